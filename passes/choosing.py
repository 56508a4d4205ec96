"""Choosing layers: those whose edit alone diverges least from the original, and what is said of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from regraft.ir.errors.recipe import OptionRangeError
from regraft.ir.graph import Graph
from regraft.ir.kinds import ranges
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


def leave_out(asked: Iterable[int], able: Sequence[int]) -> str:
    """Return what to do where a pass refuses layers.

    Args:
        asked: The layers that the recipe asks for.
        able: Those of the whole model that the pass can change.
    """
    if not able:
        return "leave the pass out, as no layer of this model fits it"
    gone = [layer for layer in asked if layer not in able]
    return f"leave layer{'s' * (len(gone) > 1)} {ranges(gone)} out (the pass fits {ranges(able)})"


def never_outrun(graph: Graph, rows: int) -> str:
    """Return a remark where a model was made for no more tokens than a query sees of them as they are, or nothing."""
    context = graph.meta.get("context")
    if not isinstance(context, int) or context > rows:
        return ""
    return f"; the model was made for {context} tokens, up to which nothing changes"
