"""A mixture of experts over many tokens: sorted copies, two products over blocks of rows, sums in order."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.codegen.kernels.grouped import Grouped
from regraft.codegen.kernels.kernel import Tile
from tests.kernels.harness import module
from tests.kernels.touched import touched

HEIGHT = 16
BARE = Grouped("grouped", 40, 22, 5, 2)
CASES = {
    "two of five": BARE,
    "biases, a limit, a shift, zero": replace(
        BARE, activation="quick_gelu", limit=1.0, shift=1.0, biases=True, skip="zero"
    ),
    "the input": replace(BARE, chosen=1, skip="identity", activation="gelu_tanh"),
}


def tiled(folder: Path, k: Grouped) -> Any:
    made = module(folder, k)
    made.GROUPED_TILES["default"] = Tile({"BLOCK_T": HEIGHT, "BLOCK_N": 32, "BLOCK_K": 32}).launch()
    return made


def inputs(k: Grouped, dtype: torch.dtype = torch.float32, counts: list[int] | None = None) -> list[Tensor]:
    """Return what the op takes; with counts, each token chooses one expert, this often each, in a mixed order."""
    g = torch.Generator().manual_seed(k.width + k.chosen)

    def of(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    if counts is None:
        numbers = k.experts + (k.skip != "none")
        experts = torch.rand(2, 9, numbers, generator=g).argsort(-1)[..., : k.chosen].contiguous()
    else:
        experts = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
        experts = experts[torch.randperm(len(experts), generator=g)][None, :, None].contiguous()
    given = {
        "x": of(*experts.shape[:2], k.width),
        "weights": torch.rand(experts.shape, generator=g),
        "experts": experts,
        "gate_up": of(k.experts, 2 * k.inner, k.width) / k.width**0.5,
        "down": of(k.experts, k.width, k.inner) / k.inner**0.5,
        "gate_up_bias": of(k.experts, 2 * k.inner),
        "down_bias": of(k.experts, k.width),
    }
    return [x.to(dtype) if x.is_floating_point() else x for x in (given[name] for name in k.arguments())]


def wide(values: list[Tensor]) -> list[Tensor]:
    return [x.double() if x.is_floating_point() else x for x in values]


@pytest.mark.parametrize("k", CASES.values(), ids=CASES)
def test_tokens_are_mixed_as_in_double(tmp_path: Path, k: Grouped) -> None:
    made, given = tiled(tmp_path, k), inputs(k)
    torch.testing.assert_close(made.grouped(*given).double(), made.grouped_plain(*wide(given)), rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("k", CASES.values(), ids=CASES)
def test_half_precision_errs_little_more_than_the_plain_form(tmp_path: Path, k: Grouped) -> None:
    made, given = tiled(tmp_path, k), inputs(k, torch.float16)
    expected, plain, fused = made.grouped_plain(*wide(given)), made.grouped_plain(*given), made.grouped(*given)
    assert fused.dtype == torch.float16
    assert (fused - expected).norm() <= 2 * (plain - expected).norm()


@pytest.mark.parametrize("counts", [[0, 1, HEIGHT, HEIGHT + 1, 0], [0, 0, 0, 0, 3], [HEIGHT - 1, 0, 0, 0, 0]], ids=str)
def test_experts_have_any_number_of_rows(tmp_path: Path, counts: list[int]) -> None:
    k = replace(BARE, chosen=1)
    made, given = tiled(tmp_path, k), inputs(k, counts=counts)
    _, starts, firsts, owners = made.grouped_plan(given[2], HEIGHT)
    assert starts.diff().tolist() == counts
    blocks = [-(-count // HEIGHT) for count in counts]
    assert firsts.tolist() == [sum(blocks[:expert]) for expert in range(5)]
    real = [expert for expert, count in enumerate(blocks) for _ in range(count)]
    assert owners.tolist() == real + [5] * (len(owners) - len(real))
    torch.testing.assert_close(made.grouped(*given).double(), made.grouped_plain(*wide(given)), rtol=1e-5, atol=5e-6)


def test_blocks_never_outnumber_the_grid(tmp_path: Path) -> None:
    made = tiled(tmp_path, replace(BARE, chosen=1))
    for counts in ([1] * 5, [HEIGHT + 1] * 5, [1, 1, 1, 1, HEIGHT], [2 * HEIGHT, 0, 1, 1, 1], [0] * 5):
        experts = torch.arange(5).repeat_interleave(torch.tensor(counts))
        owners = made.grouped_plan(experts, HEIGHT)[-1]
        assert int((owners < 5).sum()) == sum(-(-count // HEIGHT) for count in counts)


def test_no_value_is_read_on_the_host(tmp_path: Path) -> None:
    made = tiled(tmp_path, BARE)
    plan = made.grouped_plan(torch.empty(2, 9, 2, dtype=torch.int64, device="meta"), HEIGHT)
    assert [len(part) for part in plan] == [36, 6, 5, 36 // HEIGHT + 5]


def test_permuted_tokens_give_the_permuted_result(tmp_path: Path) -> None:
    """To the last bit. Products are of small integers, and so exact, as the interpreter's round by place in a tile."""
    k = replace(BARE, chosen=4, activation="relu")
    made, (x, weights, experts, *maps) = tiled(tmp_path, k), inputs(k)
    x, weights, experts = (each.flatten(0, 1)[None] for each in ((2 * x).round(), weights, experts))
    maps = [(2 * each * each.shape[-1] ** 0.5).round().clamp(-1, 1) for each in maps]
    order = torch.randperm(18, generator=torch.Generator().manual_seed(1))
    mixed = made.grouped(x, weights, experts, *maps)
    assert torch.equal(made.grouped(x[:, order], weights[:, order], experts[:, order], *maps), mixed[:, order])
    turned = made.grouped(x, weights.flip(-1), experts.flip(-1), *maps)
    assert not torch.equal(turned, mixed), "sums are rounded, so their order shows"


@pytest.mark.parametrize("k", CASES.values(), ids=CASES)
def test_gradients_are_the_plain_forms(tmp_path: Path, k: Grouped) -> None:
    made, given = tiled(tmp_path, k), inputs(k)
    found: list[list[Tensor]] = []
    for run in (made.grouped, made.grouped_plain):
        leaves = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in given]
        run(*leaves).square().sum().backward()
        found.append([x.grad for x in leaves if x.grad is not None])
    assert len(found[0]) == len(given) - 1
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_bytes_are_those_touched(tmp_path: Path) -> None:
    k = replace(BARE, width=96, inner=80, chosen=1)
    made, given = tiled(tmp_path, k), inputs(k, counts=[3, 5, 2, 4, 4])
    with touched() as run:
        made.grouped(*given)
    moved = k.moved(4, 1, 18)
    assert len(run.launches) == moved.launches == 3
    assert abs(run.read + run.written - moved.total) <= 0.02 * moved.total


def test_the_op_is_one_of_pytorchs(tmp_path: Path) -> None:
    made = tiled(tmp_path, BARE)
    made.INTERPRETED = False
    leaves = [x.requires_grad_() if x.is_floating_point() else x for x in inputs(BARE)]
    torch.library.opcheck(made.grouped, tuple(leaves))
