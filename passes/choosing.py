"""Choosing layers by measurement: those whose edit alone diverges least from the original on calibration text."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from regraft.ir.errors.recipe import OptionRangeError
from regraft.ir.graph import Graph
from regraft.passes.base import Measurements, Pass


def check_choose(owner: Pass, choose: int | None, layers: Sequence[int]) -> int | None:
    """Return how many of the selected layers are to be chosen, or None where it is all of them.

    Raises:
        OptionRangeError: There are not so many.
    """
    if choose is not None and choose > len(layers):
        legal = f"from 1 to {len(layers)}, the layers that are selected"
        raise OptionRangeError(owner=owner.name, name="choose", found=choose, legal=legal, where=owner.place("choose"))
    return None if choose == len(layers) else choose


def least_damage(
    measurements: Measurements, graph: Graph, layers: Sequence[int], count: int, edit: Callable[[int], Pass]
) -> list[int]:
    """Return the ``count`` layers whose edit alone costs least, in order; ``edit`` gives the pass for one layer."""
    damage = measurements.damage(graph, [edit(layer).rewrite for layer in layers])
    order = sorted(range(len(layers)), key=lambda place: damage[place])
    return sorted(layers[place] for place in order[:count])
