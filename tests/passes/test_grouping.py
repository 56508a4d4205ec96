"""Which heads merge: clusters by cost, even or not, against the best of all partitions where these can be listed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch

from regraft.ir.ops.merging import Channels
from regraft.passes.fitting.grouping import Partition, adjacent, cluster, merge_cost


def partitions(heads: Sequence[int], groups: int, size: int | None) -> Iterator[list[tuple[int, ...]]]:
    """Yield the partitions of heads, all groups of one size if that is given."""
    if not heads:
        if groups == 0:
            yield []
        return
    first, *rest = heads
    for bits in range(2 ** len(rest)):
        mates = [head for place, head in enumerate(rest) if bits >> place & 1]
        if size is not None and len(mates) != size - 1:
            continue
        left = [head for head in rest if head not in mates]
        if groups:
            yield from ([(first, *mates), *others] for others in partitions(left, groups - 1, size))


def spread(points: Sequence[float], group: tuple[int, ...]) -> float:
    chosen = torch.tensor([points[head] for head in group])
    return float((chosen - chosen.mean()).square().sum())


@pytest.mark.parametrize(
    ("heads", "groups", "even"), [(6, 3, True), (6, 2, True), (8, 4, True), (6, 3, False), (7, 2, False)]
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_clusters_cost_little_more_than_the_best_partition(heads: int, groups: int, even: bool, seed: int) -> None:
    points = torch.rand(heads, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).tolist()

    def total(found: Partition | list[tuple[int, ...]]) -> float:
        return sum(spread(points, group) for group in found)

    found = cluster(heads, groups, lambda group: spread(points, group), even)
    assert sorted(head for group in found for head in group) == list(range(heads))
    assert len(found) == groups
    assert found[0][0] == 0
    if even:
        assert {len(group) for group in found} == {heads // groups}
    best = min(total(each) for each in partitions(range(heads), groups, heads // groups if even else None))
    assert best - 1e-12 <= total(found) <= 1.3 * best + 1e-9


def test_neighbours_are_as_even_as_they_can_be() -> None:
    assert adjacent(4, 2) == ((0, 1), (2, 3))
    assert adjacent(5, 2) == ((0, 1), (2, 3, 4))
    assert adjacent(3, 3) == ((0,), (1,), (2,))


def test_cost_is_the_share_of_keys_and_of_values_that_is_lost() -> None:
    keys = torch.randn(50, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    keys[:, 2] = 2 * keys[:, 0]
    gram = keys.flatten(1).T @ keys.flatten(1) / 50
    metric = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    cost = merge_cost([(gram, metric, Channels(4, 4, 2)), (gram, metric, Channels(4))], "pca")
    assert cost((1,)) == 0
    assert cost((0, 2)) < 1e-12
    assert 0.05 < cost((0, 1)) < 2
    assert cluster(3, 2, cost, even=False) == ((0, 2), (1,))
