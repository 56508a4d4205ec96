"""The gated delta rule of many tokens: against the plain form, what it keeps, gradients, and how much it moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.codegen.kernels.delta_rows import DeltaRows
from tests.kernels.harness import module
from tests.kernels.touched import touched

CASES = {
    "heads of values that share keys": DeltaRows("delta", 2, 4, 16, 16),
    "widths of no power of two": DeltaRows("delta", 1, 1, 20, 40),
}


def inputs(k: DeltaRows, dtype: torch.dtype, counts: list[int], length: int) -> list[Tensor]:
    """Return what the op takes; unit keys and shares below one keep the matrices small."""
    g = torch.Generator().manual_seed(0)
    batch, wide = len(counts), torch.promote_types(dtype, torch.float32)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    q, keys = (normal(batch, length, k.heads, k.width) for _ in range(2))
    q, keys = (x / x.norm(dim=-1, keepdim=True) for x in (q, keys))
    values, beta = normal(batch, length, k.value_heads, k.value_width), normal(batch, length, k.value_heads).sigmoid()
    decay = -normal(batch, length, k.value_heads).exp()
    state = normal(batch, 1, k.value_heads, k.width, k.value_width)
    given = [x.to(dtype) for x in (q, keys, values)]
    return [*given, decay.to(wide), beta.to(dtype), state.to(wide), torch.tensor(counts)]


def widened(given: list[Tensor]) -> list[Tensor]:
    return [x.double() if x.is_floating_point() else x for x in given]


@pytest.mark.parametrize("case", CASES)
def test_tokens_read_what_the_plain_form_says(case: str, tmp_path: Path) -> None:
    k = CASES[case]
    made: Any = module(tmp_path, k)
    for dtype, counts, length in ((torch.float32, [37, 18, 0], 37), (torch.float16, [5], 5)):
        given = inputs(k, dtype, counts, length)
        wanted, rounded = made.delta_plain(*widened(given)), made.delta_plain(*given)
        for x, y, z in zip(made.delta(*given), wanted, rounded, strict=True):
            least = 1e-5 if dtype == torch.float32 else float(y.abs().max()) * 2**-10
            assert (x - y).abs().max() <= max(2 * float((z - y).abs().max()), least)


def test_token_by_token_it_is_the_rule(tmp_path: Path) -> None:
    k = CASES["heads of values that share keys"]
    made: Any = module(tmp_path, k)
    q, keys, values, decay, beta, state, count = given = widened(inputs(k, torch.float32, [9, 4], 9))
    mixed, after = made.delta_plain(*given)
    for b in range(2):
        for head in range(k.value_heads):
            matrix, of = state[b, 0, head], head // k.group
            for t in range(int(count[b])):
                matrix = decay[b, t, head].exp() * matrix
                error = beta[b, t, head] * (values[b, t, head] - matrix.mT @ keys[b, t, of])
                matrix = matrix + torch.outer(keys[b, t, of], error)
                torch.testing.assert_close(mixed[b, t, head], matrix.mT @ q[b, t, of], rtol=0, atol=1e-12)
            torch.testing.assert_close(after[b, 0, head], matrix, rtol=0, atol=1e-12)


def test_gradients_are_those_of_the_plain_form(tmp_path: Path) -> None:
    k = CASES["heads of values that share keys"]
    made: Any = module(tmp_path, k)
    given = inputs(k, torch.float32, [4, 3], 4)
    found: list[list[Tensor | None]] = []
    for form in (made.delta, made.delta_plain):
        taken = [x.clone().requires_grad_(x.is_floating_point()) for x in given]
        mixed, after = form(*taken)
        (mixed.pow(2).sum() + after.sum()).backward()
        found.append([x.grad for x in taken])
    for mine, expected in zip(*found, strict=True):
        assert (mine is None) == (expected is None)
        if mine is not None and expected is not None:
            torch.testing.assert_close(mine, expected, rtol=0, atol=1e-4)
    torch.library.opcheck(made.delta, tuple(given), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("case", CASES)
def test_it_moves_the_bytes_that_it_says(case: str, tmp_path: Path) -> None:
    k = CASES[case]
    made: Any = module(tmp_path, k)
    with touched() as run:
        made.delta(*inputs(k, torch.float32, [19, 19], 19))
    stated = k.moved(4, 2, 19)
    assert (run.read, run.written, len(run.launches)) == (stated.read, stated.written, stated.launches)
