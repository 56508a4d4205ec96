"""Which frequencies of rotary keys go on turning, in one key that all heads share.

A frequency is worth what its keys carry, across KV heads, times how much the turn differs between the places that heads
look at, and times what an error of a head's scores costs: energy alone would keep slow pairs, whose turn hardly ever
differs. Source: specs/passes_math.md, sections 4.2 and 4.4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from regraft.ir.graph import Graph
from regraft.ir.ops.fits import Statistic, second_moment
from regraft.ir.ops.latents import head_costs
from regraft.ir.ops.phases import rotary_spectra
from regraft.passes.base import Measurements, OptionKind, read_integer, read_key, type_error
from regraft.passes.fitting.decoupled import Rotation, phases_of, queries_of, rotation_of
from regraft.passes.fitting.latents import output_weight, spread_of
from regraft.passes.located import Node
from regraft.passes.matching.memories import KeyValues
from regraft.passes.matching.sites import Refusal, output_of
from regraft.passes.selection import MOST_LAYERS

if TYPE_CHECKING:
    from torch import Tensor

Kept = Mapping[int, tuple[int, ...]]


def _read_kept(node: Node, owner: str, name: str) -> Kept:
    if node.entries is None:
        raise type_error(node, owner, name, "a map {layer: [frequencies]}")
    kept: dict[int, tuple[int, ...]] = {}
    for key, value in node.entries:
        if value.items is None:
            raise type_error(value, owner, name, "the frequencies of a layer's shared key, such as [0, 0, 1]")
        kept[read_key(key, owner, name, MOST_LAYERS)] = tuple(
            sorted(read_integer(each, owner, name, 0, 65535) for each in value.items)
        )
    return kept


KEPT: OptionKind[Kept] = OptionKind(
    "a map {layer: [frequencies]}", _read_kept, lambda kept: {layer: list(each) for layer, each in kept.items()}
)


def choose_frequencies(
    sites: Mapping[int, KeyValues], graph: Graph, pairs: int, measurements: Measurements, alike: bool
) -> dict[int, tuple[int, ...]]:
    """Return the frequencies of so many pairs in each layer, one as often as it is worth it.

    With ``alike``, layers that turn by the same angles keep the same: what is worth most to all of them, each layer's
    worth taken as shares of its whole.
    """
    turns = {layer: turn for layer, site in sites.items() if isinstance(turn := rotation_of(site), Rotation)}
    if not pairs:
        return dict.fromkeys(sites, ())
    wanted: list[Statistic] = []
    for layer, site in sites.items():
        turn = turns[layer]
        wanted += [second_moment(site.keys.before), queries_of(turn), phases_of(site, turn)]
        wanted.append(spread_of(site, turn.attend))
    found = measurements.statistics(graph, wanted)
    spectra: dict[int, Tensor] = {}
    for layer, turn in turns.items():
        keys, queries, phases, spread = next(found), next(found), next(found), next(found)
        output, rope = output_of(turn.attend), turn.keys
        assert not isinstance(output, Refusal)
        costs = head_costs(spread, measurements.weight(graph, output_weight(output.linear)))
        queries = queries * costs[:, None, None]
        _, spectra[layer], _ = rotary_spectra(keys, queries, phases, turn.attend.groups, rope.channels, rope.layout)
    sets: dict[object, list[int]] = {}
    for layer, turn in turns.items():
        sets.setdefault((turn.angles, sites[layer].keys.heads) if alike else layer, []).append(layer)
    chosen: dict[int, tuple[int, ...]] = {}
    for layers in sets.values():
        worth = spectra[layers[0]] * 0
        for layer in layers:
            worth += spectra[layer] / spectra[layer].sum().clamp(min=1e-300)
        angles = turns[layers[0]].angles
        ranked = sorted(((float(v), -f) for f, row in enumerate(worth) for v in row if angles[f] > 0), reverse=True)
        chosen |= dict.fromkeys(layers, tuple(sorted(-f for _, f in ranked[:pairs])))
    return {layer: chosen[layer] for layer in sites}


def first_frequencies(site: KeyValues, pairs: int) -> tuple[int, ...]:
    """Return as many frequencies, right in number only."""
    turn = rotation_of(site)
    assert isinstance(turn, Rotation)
    return tuple(sorted(place % turn.pairs for place in range(pairs)))
