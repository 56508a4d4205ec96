"""Scores and elimination against brute force, in float64."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from regraft.passes.fitting.head_scores import Shares, activation_norms, eliminate, keep_largest, weight_norms

torch.set_num_threads(1)


def problem(seed: int, heads: int, width: int) -> tuple[Tensor, Tensor]:
    """Return second moments and output rows of correlated heads of different strength."""
    torch.manual_seed(seed)
    strength = torch.rand(heads, dtype=torch.float64).repeat_interleave(width)
    z = torch.randn(200, heads * width, dtype=torch.float64) @ torch.randn(
        heads * width, heads * width, dtype=torch.float64
    )
    z = z * strength
    return z.T @ z / len(z), torch.randn(heads * width, 7, dtype=torch.float64)


def error(c: Tensor, o: Tensor, removed: list[int], width: int) -> float:
    """Return the error of the best refit without some heads: equation (3)."""
    gone = torch.tensor([head * width + i for head in removed for i in range(width)])
    kept = torch.tensor([i for i in range(len(c)) if i not in gone.tolist()])
    rest = c[gone][:, gone] - c[gone][:, kept] @ torch.linalg.solve(c[kept][:, kept], c[kept][:, gone])
    return float(torch.trace(o[gone].T @ rest @ o[gone]))


@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(1, 3), st.data())
def test_each_step_removes_the_head_that_adds_the_least_error(
    seed: int, heads: int, width: int, data: st.DataObject
) -> None:
    c, o = problem(seed, heads, width)
    keep = data.draw(st.integers(1, heads - 1))
    shares = Shares([0] * heads, 1)
    removed: list[int] = []
    for left in range(heads - 1, keep - 1, -1):
        alive = [head for head in range(heads) if head not in removed]
        removed.append(min(alive, key=lambda head: error(c, o, [*removed, head], width)))
        assert eliminate(c, o, left, shares) == [head for head in range(heads) if head not in removed]


@given(st.integers(0, 10_000))
def test_two_heads_of_three_are_never_far_from_the_best_choice(seed: int) -> None:
    c, o = problem(seed, 3, 2)
    kept = eliminate(c, o, 1, Shares([0, 0, 0], 1))
    found = error(c, o, [h for h in range(3) if h not in kept], 2)
    best = min(error(c, o, list(pair), 2) for pair in combinations(range(3), 2))
    assert best <= found * (1 + 1e-9)


def test_a_silent_head_and_one_of_two_copies_go_first() -> None:
    torch.manual_seed(0)
    z = torch.randn(500, 8, dtype=torch.float64)
    z[:, 2:4] = 0.0  # head 1 is silent
    z[:, 6:8] = z[:, 0:2] @ torch.randn(2, 2, dtype=torch.float64)  # head 3 is a map of head 0
    c, o = z.T @ z / 500, torch.randn(8, 5, dtype=torch.float64)
    shares = Shares([0, 0, 1, 1], 2)
    assert eliminate(c, o, 2, shares) in ([0, 2], [2, 3])
    assert error(c + 1e-12 * torch.eye(8), o, [1, 3], 2) < 1e-9


def test_norms() -> None:
    torch.manual_seed(0)
    z, o = torch.randn(300, 6, dtype=torch.float64), torch.randn(6, 5, dtype=torch.float64)
    values = torch.randn(4, 5, dtype=torch.float64)
    norms = activation_norms(z.T @ z / 300, o, 3)
    paths = weight_norms(o, values, [0, 0, 1])
    for head, group in enumerate([0, 0, 1]):
        rows = slice(2 * head, 2 * head + 2)
        assert float(norms[head]) == pytest.approx(float((z[:, rows] @ o[rows]).pow(2).sum() / 300), rel=1e-12)
        path = values[2 * group : 2 * group + 2].T @ o[rows]
        assert float(paths[head]) == pytest.approx(float(path.pow(2).sum()), rel=1e-12)
    order = norms.argsort(descending=True).tolist()
    assert keep_largest(norms, 2, Shares([0, 0, 0], 1)) == sorted(order[:2])


@given(st.permutations(range(8)), st.sampled_from([1, 2, 4]), st.integers(0, 99))
def test_shares_stay_even(order: list[int], parts: int, seed: int) -> None:
    groups = [0, 0, 1, 1, 2, 2, 3, 3]
    shares = Shares(groups, 4, parts)
    kept = keep_largest(torch.tensor(order), 4, shares)
    held = [shares.part(head) for head in kept]
    assert {held.count(part) for part in range(parts)} == {4 // parts}
    if parts > 1:
        assert {groups[head] for head in kept} == {0, 1, 2, 3}
    else:
        assert kept == sorted(sorted(range(8), key=lambda head: order[head])[4:])
