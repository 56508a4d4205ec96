"""The front of a step: rows of tables, cosines and sines far into a sequence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from regraft.codegen.kernels.embed import Embedding, Wave
from tests.kernels.harness import module
from tests.kernels.touched import touched

CASES = {
    "a row": Embedding("embed", width=40),
    "layers' own rows, two rotations": Embedding(
        "embed", width=1100, scale=6.25, own=36, own_scale=4.0, waves=(Wave(6), Wave(5, halves=False, amplitude=1.2))
    ),
    "rows of several tokens": Embedding(
        "embed", width=8, waves=(Wave(5, False, 1.1, rate=4), Wave(6, offset=1.5, rate=128))
    ),
    "shifted, wide": Embedding("embed", width=24, shifted=True, wide=True, waves=(Wave(8),)),
    "into streams": Embedding("embed", width=1100, streams=4, waves=(Wave(5, halves=False),)),
    "into three wide ones": Embedding("embed", width=24, streams=3, wide=True),
}


def inputs(k: Embedding, dtype: torch.dtype, starts: list[int]) -> list[Tensor]:
    """Return what the op takes, in order."""
    g = torch.Generator().manual_seed(0)

    def of(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    vectors = [of(k.width), of(k.width)] if k.shifted else []
    own = [of(11, k.own)] if k.own else []
    tokens = torch.tensor([[10], [0], [7]])[: len(starts)]
    angles = [1e6 ** (-torch.arange(wave.pairs) / wave.pairs) for wave in k.waves]
    return [tokens, torch.tensor(starts), of(11, k.width), *vectors, *own, *angles]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_it_computes_what_the_plain_form_does(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    k = CASES[case]
    made = module(tmp_path, k)
    for starts in ([4095], [0, 1, 131071]):
        given = inputs(k, dtype, starts)
        for x, y in zip(made.embed(*given), made.embed_plain(*given), strict=True):
            assert (x.shape, x.dtype) == (y.shape, y.dtype)
            least = 2e-6 if dtype == torch.float32 else 2.0**-9  # the shifted row is rounded twice in the plain form
            assert torch.allclose(x.float(), y.float(), rtol=least, atol=least)


@pytest.mark.parametrize("case", CASES)
def test_it_moves_what_it_says(case: str, tmp_path: Path) -> None:
    k = CASES[case]
    made = module(tmp_path, k)
    with touched() as run, torch.no_grad():
        made.embed(*inputs(k, torch.float32, [3, 5]))
    moved = k.moved(4, 2, 7)
    assert (run.read, run.written, len(run.launches)) == (moved.read, moved.written, moved.launches)


def test_the_op_is_sound(tmp_path: Path) -> None:
    k = CASES["layers' own rows, two rotations"]
    made = module(tmp_path, k)
    given = tuple(inputs(k, torch.float32, [3]))
    torch.library.opcheck(made.embed, given, test_utils=("test_schema", "test_faketensor"))
