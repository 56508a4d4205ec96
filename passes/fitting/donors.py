"""Which layers are to read whose memory: the best sets of readers by what each pair costs alone.

A donor may not be a reader itself. ``costs`` are of legal pairs (reader, donor), and the cost of a set of readers is
the sum over them of the cheapest donor that is none of them.

Source: specs/passes_math.md, sections 5 and 7.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from regraft.ir.ops.fits import Moment, width
from regraft.ir.ops.memory import ViewRows
from regraft.passes.base import Measurements
from regraft.passes.matching.sites import Attention

if TYPE_CHECKING:
    from regraft.ir.graph import Graph
    from regraft.ir.op import Value

Pair = tuple[int, int]
Costs = Mapping[Pair, float]
Donors = dict[int, int]

Ranked = Mapping[int, Sequence[tuple[float, int]]]  # each reader's donors, the cheapest first

MOST_SETS = 100_000  # beyond, sets are searched by exchange


def most_readers(pairs: Iterable[Pair]) -> Donors:
    """Return readers, layer by layer every one that has a donor which is none itself, and the last such donor.

    Where memories come in kinds, no more layers can be readers.
    """
    donors: Donors = {}
    known = sorted(pairs)
    for reader in sorted({mine for mine, _ in known}):
        legal = [donor for mine, donor in known if mine == reader and donor not in donors]
        if legal:
            donors[reader] = max(legal)
    return donors


def best_sets(costs: Costs, count: int, wanted: int = 1) -> list[Donors]:
    """Return up to ``wanted`` sets of ``count`` readers with their donors, those that cost least first.

    Exact where there are at most `MOST_SETS`; beyond, the best that exchanges of one reader reach, from several starts.
    """
    layers = sorted({reader for reader, _ in costs})
    ranked = {
        layer: sorted((cost, donor) for (reader, donor), cost in costs.items() if reader == layer) for layer in layers
    }
    every = math.comb(len(layers), count) <= MOST_SETS
    sets = combinations(layers, count) if every else _exchanged(ranked, count)
    found = {frozenset(each): answer for each in sets if (answer := _cheapest(ranked, frozenset(each)))}
    return [donors for _, donors in sorted(found.values(), key=lambda each: each[0])[:wanted]]


def _cheapest(ranked: Ranked, readers: Collection[int]) -> tuple[float, Donors] | None:
    """Return what a set of readers costs, and their donors; None where one of them has no donor outside the set."""
    total, donors = 0.0, Donors()
    for reader in sorted(readers):
        best = next(((cost, donor) for cost, donor in ranked[reader] if donor not in readers), None)
        if best is None:
            return None
        total += best[0]
        donors[reader] = best[1]
    return total, donors


def _exchanged(ranked: Ranked, count: int) -> Iterator[frozenset[int]]:
    """Yield sets on the way down by exchanges of one reader, from starts that grow from each layer."""
    starts = {_grown(ranked, count, layer) for layer in ranked}
    starts.add(frozenset(sorted(most_readers((r, d) for r, each in ranked.items() for _, d in each))[-count:]))
    seen: set[frozenset[int]] = set()
    for start in starts:
        chosen, best = start, _cheapest(ranked, start)
        while best is not None and len(chosen) == count and chosen not in seen:
            seen.add(chosen)
            yield chosen
            near = ((chosen - {out}) | {new} for out in chosen for new in ranked if new not in chosen)
            answers = [(answer[0], sorted(each)) for each in near if (answer := _cheapest(ranked, each)) is not None]
            if not answers or min(answers)[0] >= best[0]:
                break
            chosen = frozenset(min(answers)[1])
            best = _cheapest(ranked, chosen)


def _grown(ranked: Ranked, count: int, first: int) -> frozenset[int]:
    """Return readers added to ``first`` one by one, each at the least cost, as long as all find donors."""
    chosen = frozenset((first,))
    while len(chosen) < count:
        steps = [chosen | {each} for each in ranked if each not in chosen]
        answers = [(answer[0], sorted(each)) for each in steps if (answer := _cheapest(ranked, each)) is not None]
        if not answers:
            break
        chosen = frozenset(min(answers)[1])
    return chosen


def dissimilarities(
    graph: Graph, found: Mapping[int, Attention], pairs: Sequence[Pair], measurements: Measurements
) -> dict[Pair, float]:
    """Return one less the cosine of the caches of each pair: keys and values side by side, over the text's tokens.

    A baseline: similar caches are not those whose sharing does least damage.
    """
    layers = sorted({layer for pair in pairs for layer in pair})
    parts = [_rows(found[layer]) for layer in layers]
    wanted: list[tuple[int, int, int]] = []
    statistics: list[Moment] = []
    for high, layer in enumerate(layers):
        for low, other in enumerate(layers[: high + 1]):
            if low != high and (layer, other) not in pairs:
                continue
            for place, (a, b) in enumerate(zip(parts[high], parts[low], strict=True)):
                size = width(a.tensor)
                statistics.append(Moment({"a": (a,), "b": (b,)}, {"rows": size, "columns": size}))
                wanted.append((layer, other, place))
    products: dict[Pair, float] = {}
    for (layer, other, _), tensor in zip(wanted, measurements.statistics(graph, statistics), strict=True):
        products[layer, other] = products.get((layer, other), 0.0) + float(tensor.trace())
    return {
        (reader, donor): 1 - products[reader, donor] / math.sqrt(products[reader, reader] * products[donor, donor])
        for reader, donor in pairs
    }


def _rows(attention: Attention) -> list[Value]:
    """Return what a layer's memory keeps of each token."""
    maker = attention.memory.op
    state = maker.memory.op if isinstance(maker, ViewRows) else maker
    assert state is not None
    return [value for value in state.operands if not value.is_weight]
