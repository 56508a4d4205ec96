"""Short convolutions of one token: against the plain form, what they keep, and how much they move."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from regraft.codegen.kernels.short_conv import Convolution, ShortConv
from tests.kernels.harness import module
from tests.kernels.touched import touched

CASES = {
    "one": ShortConv("short_conv", (Convolution(300, 4, activation="silu"),)),
    "two, one with a bias": ShortConv("short_conv", (Convolution(20, 2), Convolution(270, 3, bias=True))),
    "three": ShortConv("short_conv", (Convolution(5, 2, bias=True, activation="silu"), *[Convolution(8, 2)] * 2)),
}


def inputs(k: ShortConv, dtype: torch.dtype, counts: list[int]) -> list[Tensor]:
    """Return what the op takes, in order."""
    g = torch.Generator().manual_seed(0)
    given: list[Tensor] = []
    for conv in k.convs:
        rows = [(len(counts), rows, conv.channels) for rows in (1, conv.taps - 1)]
        shapes = [*rows, (conv.channels, 1, conv.taps), *([(conv.channels,)] if conv.bias else [])]
        given += [torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes]
    return [*given, torch.tensor(counts)]


def all_of(k: ShortConv, found: Tensor | tuple[Tensor, ...], given: list[Tensor]) -> list[Tensor]:
    """Return what a call gives and what it keeps."""
    results = [found] if isinstance(found, Tensor) else list(found)
    return results + [x for name, x in zip(k.given, given, strict=True) if name in k.tails]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_it_computes_what_the_plain_form_does(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    k = CASES[case]
    made = module(tmp_path, k)
    for counts in ([1], [1, 0, 1]):
        fused = inputs(k, dtype, counts)
        exact, plain = ([x.to(to) if x.is_floating_point() else x for x in fused] for to in (torch.float64, dtype))
        plain = [x.clone() for x in plain]
        wanted = all_of(k, made.short_conv_plain(*exact), exact)
        rounded = all_of(k, made.short_conv_plain(*plain), plain)
        for x, y, z in zip(all_of(k, made.short_conv(*fused), fused), wanted, rounded, strict=True):
            least = 2e-6 if dtype == torch.float32 else float(y.abs().max()) * 2**-11
            assert (x.shape, x.dtype) == (z.shape, z.dtype)
            assert (x - y).abs().max() <= max(2 * float((z - y).abs().max()), least)


def test_an_idle_row_keeps_what_it_has(tmp_path: Path) -> None:
    k = CASES["three"]
    given = inputs(k, torch.float32, [0, 0])
    before = [x.clone() for x in given]
    module(tmp_path, k).short_conv(*given)
    assert all(torch.equal(x, y) for x, y in zip(given, before, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_it_moves_what_it_says(case: str, tmp_path: Path) -> None:
    k = CASES[case]
    made = module(tmp_path, k)
    with touched() as run, torch.no_grad():
        made.short_conv(*inputs(k, torch.float32, [1, 1]))
    moved = k.moved(4, 2, 7)
    assert (run.read, run.written, len(run.launches)) == (moved.read, moved.written, moved.launches)


@pytest.mark.parametrize("case", CASES)
def test_the_op_says_what_it_changes(case: str, tmp_path: Path) -> None:
    made = module(tmp_path, CASES[case])
    given = tuple(inputs(CASES[case], torch.float32, [1]))
    torch.library.opcheck(made.short_conv, given, test_utils=("test_schema", "test_faketensor"))
