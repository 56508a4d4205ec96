"""Which frequencies of rotary keys go on turning, in one key that all heads share.

A frequency is worth what its keys carry, across KV heads, times how much the turn differs between the places that heads
look at: energy alone would keep slow pairs, whose turn hardly ever differs. Source: specs/passes_math.md, 4.2 and 4.4.
"""

from __future__ import annotations

from collections.abc import Mapping

from regraft.ir.graph import Graph
from regraft.ir.ops.fits import Statistic, second_moment
from regraft.ir.ops.phases import rotary_spectra
from regraft.passes.base import Measurements
from regraft.passes.fitting.decoupled import Rotation, phases_of, queries_of, rotation_of
from regraft.passes.matching.memories import KeyValues


def choose_frequencies(
    sites: Mapping[int, KeyValues], graph: Graph, pairs: int, measurements: Measurements
) -> dict[int, tuple[int, ...]]:
    """Return the frequencies of so many pairs in each layer, one as often as it is worth it."""
    turns = {layer: turn for layer, site in sites.items() if isinstance(turn := rotation_of(site), Rotation)}
    if not pairs:
        return dict.fromkeys(sites, ())
    wanted: list[Statistic] = []
    for layer, site in sites.items():
        wanted += [second_moment(site.keys.before), queries_of(turns[layer]), phases_of(site, turns[layer])]
    found = measurements.statistics(graph, wanted)
    chosen: dict[int, tuple[int, ...]] = {}
    for layer, turn in turns.items():
        keys, queries, phases = next(found), next(found), next(found)
        rope = turn.keys
        _, spectra, _ = rotary_spectra(keys, queries, phases, turn.attend.groups, rope.channels, rope.layout)
        worth = [(float(value), -f) for f, row in enumerate(spectra) for value in row if turn.angles[f] > 0]
        chosen[layer] = tuple(sorted(-f for _, f in sorted(worth, reverse=True)[:pairs]))
    return chosen


def first_frequencies(site: KeyValues, pairs: int) -> tuple[int, ...]:
    """Return as many frequencies, right in number only."""
    turn = rotation_of(site)
    assert isinstance(turn, Rotation)
    return tuple(sorted(place % turn.pairs for place in range(pairs)))
