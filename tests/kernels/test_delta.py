"""The gated delta rule of one token: against the plain form, what it keeps, and how much it moves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.codegen.kernels.delta import DeltaRule, Heads
from tests.kernels.harness import module
from tests.kernels.touched import touched

NORMED = DeltaRule("delta", 96, 2, 4, 12, 12, Heads(0, 1e-6, 0.3), Heads(24, 1e-6, 0.2), Heads(48))
CASES = {
    "normed and gated": replace(NORMED, norm=1e-6, weighted=True, gated=True),
    "wider than a block": DeltaRule(
        "delta", 160, 1, 3, 16, 40, Heads(23, 1e-5), Heads(7), Heads(39), 1e-5, weighted=True, offset=1.0
    ),
    "a norm without a weight": replace(NORMED, value_heads=2, value_width=34, channels=116, norm=1e-5, gated=True),
    "as it is": DeltaRule("delta", 112, 2, 2, 8, 40, Heads(80, None, 0.5), Heads(96), Heads(0), gated=True),
}


def inputs(k: DeltaRule, dtype: torch.dtype, counts: list[int], seed: int = 0) -> dict[str, Tensor]:
    """Return what the op takes; unit keys and shares below one keep the matrices small."""
    g = torch.Generator().manual_seed(seed)
    rows, heads, matrix = len(counts), k.value_heads, (k.width, k.value_width)
    shapes = {
        "x": (rows, 1, k.channels),
        "a": (rows, 1, heads),
        "a_log": (heads,),
        "dt_bias": (heads,),
        "beta": (rows, 1, heads),
        "state": (rows, 1, heads, *matrix),
        "norm_weight": (k.value_width,),
        "gate": (rows, 1, heads, k.value_width),
    }
    given = {
        name: torch.randn(*shape, generator=g, dtype=torch.float64) for name, shape in shapes.items() if name in k.given
    }
    given["beta"] = given["beta"].sigmoid()
    given = {name: value.to(dtype) for name, value in given.items()}
    given["state"] = given["state"].to(torch.promote_types(dtype, torch.float32))
    return given | {"count": torch.tensor(counts)}


def copied(given: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the same in another dtype, the matrices in float32 at least."""
    wide = torch.promote_types(dtype, torch.float32)
    parts = {name: value.to(wide if name == "state" else dtype, copy=True) for name, value in given.items()}
    return parts | {"count": given["count"]}


def called(function: Any, given: dict[str, Tensor]) -> list[Tensor]:
    """Return what a call gives and what it keeps."""
    return [function(*given.values()), given["state"]]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_it_computes_what_the_plain_form_does(case: str, dtype: torch.dtype, tmp_path: Path) -> None:
    k = CASES[case]
    made = module(tmp_path, k)
    for counts in ([1], [1, 0, 1]):
        fused = inputs(k, dtype, counts)
        exact, plain = copied(fused, torch.float64), copied(fused, dtype)
        wanted, rounded = called(made.delta_plain, exact), called(made.delta_plain, plain)
        for x, y, z in zip(called(made.delta, fused), wanted, rounded, strict=True):
            scale = float(y.abs().max())
            least = scale * (4e-6 if x.dtype == torch.float32 else 2**-11)
            assert (x.shape, x.dtype) == (z.shape, z.dtype)
            assert (x - y).abs().max() <= max(2 * float((z - y).abs().max()), least)


@pytest.mark.parametrize("case", ["normed and gated", "wider than a block"])
def test_matrices_stay_right_over_steps(case: str, tmp_path: Path) -> None:
    k = CASES[case]
    made = module(tmp_path, k)
    state = torch.zeros(2, 1, k.value_heads, k.width, k.value_width)
    exact = state.double()
    for step, counts in enumerate(([1, 1], [0, 1], [1, 0], [1, 1])):
        given = inputs(k, torch.float32, counts, step)
        found = called(made.delta, given | {"state": state})
        wanted = called(made.delta_plain, copied(given, torch.float64) | {"state": exact})
        for x, y in zip(found, wanted, strict=True):
            assert (x - y).abs().max() <= 4e-6 * float(y.abs().max())


def test_an_idle_row_keeps_what_it_has(tmp_path: Path) -> None:
    given = inputs(CASES["wider than a block"], torch.float32, [0, 0])
    given["x"][:] = float("nan")
    before = given["state"].clone()
    made = module(tmp_path, CASES["wider than a block"])
    for function in (made.delta, made.delta_plain):
        function(*given.values())
        assert torch.equal(given["state"], before)


@pytest.mark.parametrize("case", CASES)
def test_it_moves_what_it_says(case: str, tmp_path: Path) -> None:
    k = CASES[case]
    made = module(tmp_path, k)
    given = inputs(k, torch.float32, [1, 1])
    made.delta(*given.values())  # the first call makes the counters that programs meet at
    with touched() as run, torch.no_grad():
        made.delta(*given.values())
    moved = k.moved(4, 2, 7)
    assert (run.read, run.written, len(run.launches)) == (moved.read, moved.written, moved.launches)
    assert not run.operations


@pytest.mark.parametrize("case", ["normed and gated", "as it is"])
def test_the_op_says_what_it_changes(case: str, tmp_path: Path) -> None:
    made = module(tmp_path, CASES[case])
    given = tuple(inputs(CASES[case], torch.float32, [1]).values())
    torch.library.opcheck(made.delta, given, test_utils=("test_schema", "test_faketensor"))
