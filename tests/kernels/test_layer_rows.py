"""What layers are given of their own: mapped rows, normed layer by layer, and those of tokens beside them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from regraft.codegen.kernels.layer_rows import LayerRows
from tests.kernels.harness import module
from tests.kernels.touched import touched

PLAIN = LayerRows("layer_rows", layers=3, width=20, eps=1e-6, scale=2**-0.5)
CASES = {
    "scaled": PLAIN,
    "no weight, no scale": replace(PLAIN, weighted=False, scale=1.0, width=16),
    "one plus the weight": replace(PLAIN, offset=1.0, layers=1, eps=0.5),
}


def inputs(k: LayerRows, dtype: torch.dtype, batch: int) -> list[Tensor]:
    """Return what the op takes, in order."""
    g = torch.Generator().manual_seed(0)
    shapes = [(batch, 1, k.layers, k.width), (batch, 1, k.layers * k.width), *([(k.width,)] if k.weighted else [])]
    return [torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes]


@pytest.mark.parametrize("case", CASES)
def test_it_computes_what_the_plain_form_does(case: str, tmp_path: Path) -> None:
    k = CASES[case]
    made = module(tmp_path, k)
    for batch in (1, 3):
        for dtype in (torch.float32, torch.float16):
            given = inputs(k, dtype, batch)
            exact, rounded = made.layer_rows_plain(*(x.double() for x in given)), made.layer_rows_plain(*given)
            least = 2e-6 if dtype == torch.float32 else float(exact.abs().max()) * 2**-11
            got = made.layer_rows(*given)
            assert (got.shape, got.dtype) == (rounded.shape, rounded.dtype)
            assert (got - exact).abs().max() <= max(2 * float((rounded - exact).abs().max()), least)


@pytest.mark.parametrize("case", CASES)
def test_it_moves_what_it_says(case: str, tmp_path: Path) -> None:
    k = CASES[case]
    made = module(tmp_path, k)
    with touched() as run, torch.no_grad():
        made.layer_rows(*inputs(k, torch.float32, 2))
    moved = k.moved(4, 2, 7)
    assert (run.read, run.written, len(run.launches)) == (moved.read, moved.written, moved.launches)


def test_the_op_is_well_formed(tmp_path: Path) -> None:
    made = module(tmp_path, PLAIN)
    torch.library.opcheck(
        made.layer_rows, tuple(inputs(PLAIN, torch.float32, 1)), test_utils=("test_schema", "test_faketensor")
    )
