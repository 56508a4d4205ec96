"""Which key/value heads to merge: groups whose best single head loses least.

Source: specs/passes_math.md, section 2 (the cost of a group is the mass that its fit discards).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import combinations, pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.ir.ops.merging import Channels

Cost = Callable[[tuple[int, ...]], float]
Partition = tuple[tuple[int, ...], ...]


def adjacent(heads: int, groups: int) -> Partition:
    """Return groups of neighbours, as even as they can be."""
    bounds = [round(group * heads / groups) for group in range(groups + 1)]
    return tuple(tuple(range(a, b)) for a, b in pairwise(bounds))


def merge_cost(parts: Sequence[tuple[Tensor, Tensor, Channels]], method: str) -> Cost:
    """Return what merging a group of heads loses: the share of the mass of keys, and that of values.

    Args:
        parts: For keys and for values: ``E[k kᵀ] [G * D, G * D]``, the readers' metric ``[G, D, D]``, and the channels.
        method: How heads are merged.
    """
    from regraft.ir.ops.merging import merge

    grams = [(gram.view(*metric.shape[:2], *metric.shape[:2]), metric, channels) for gram, metric, channels in parts]
    masses = [merge(gram, metric, channels, "mean").mass for gram, metric, channels in grams]

    @cache
    def cost(group: tuple[int, ...]) -> float:
        if len(group) == 1:
            return 0.0
        chosen = list(group)
        total = 0.0
        for (gram, metric, channels), mass in zip(grams, masses, strict=True):
            if mass > 0:
                total += merge(gram[chosen][:, :, chosen], metric[chosen], channels, method).lost / mass
        return total

    return cost


def cluster(heads: int, groups: int, cost: Cost, even: bool) -> Partition:
    """Return groups of heads that are cheap to merge, the one with the first head first.

    Groups are joined two at a time, the two whose union costs least more than they do; then heads move, or with
    ``even`` change places, as long as that makes the sum smaller.

    Args:
        heads: How many there are.
        groups: How many groups to make.
        cost: What it costs to merge the heads of a group, which ascend.
        even: Whether all groups must have as many heads; ``groups`` then divides ``heads``.
    """
    most = heads // groups if even else heads
    found: list[tuple[int, ...]] = [(head,) for head in range(heads)]
    while len(found) > groups:
        pairs = [
            (cost(joined) - cost(a) - cost(b), joined, a, b)
            for a, b in combinations(found, 2)
            if len(joined := tuple(sorted(a + b))) <= most
        ]
        if not pairs:  # what is left does not fit together: split the smallest, whose heads fill up others
            found = _refilled(found, most, cost)
            continue
        _, joined, a, b = min(pairs)
        found = [*(group for group in found if group not in (a, b)), joined]
    return tuple(sorted(_improved(found, cost, even)))


def _refilled(found: Sequence[tuple[int, ...]], most: int, cost: Cost) -> list[tuple[int, ...]]:
    """Return the groups without the smallest, whose heads go where they cost least."""
    smallest = min(found, key=lambda group: (len(group), group))
    rest = [group for group in found if group != smallest]
    for head in smallest:
        open_groups = [group for group in rest if len(group) < most]
        best = min(open_groups, key=lambda group: cost(tuple(sorted((*group, head)))) - cost(group))
        rest[rest.index(best)] = tuple(sorted((*best, head)))
    return rest


def _improved(found: Sequence[tuple[int, ...]], cost: Cost, even: bool) -> list[tuple[int, ...]]:
    """Return the groups after the best single changes, one after another, until none helps."""
    groups = list(found)
    while True:
        best, change = -1e-12, None
        for i, j in combinations(range(len(groups)), 2):
            now = cost(groups[i]) + cost(groups[j])
            for a, b in _changes(groups[i], groups[j], even):
                gain = cost(a) + cost(b) - now
                if gain < best:
                    best, change = gain, (i, j, a, b)
        if change is None:
            return groups
        i, j, a, b = change
        groups[i], groups[j] = a, b


def _changes(a: tuple[int, ...], b: tuple[int, ...], even: bool) -> list[Partition]:
    """Return two groups after one head of each has changed places, or, where they may be uneven, one has moved."""
    swaps = [(_with(a, x, y), _with(b, y, x)) for x in a for y in b]
    if even:
        return swaps
    moves = [(tuple(h for h in a if h != x), tuple(sorted((*b, x)))) for x in a if len(a) > 1]
    moves += [(tuple(sorted((*a, y))), tuple(h for h in b if h != y)) for y in b if len(b) > 1]
    return [*swaps, *moves]


def _with(group: tuple[int, ...], out: int, into: int) -> tuple[int, ...]:
    return tuple(sorted(into if head == out else head for head in group))
