"""The gated delta rule of one token: against the plain form, what it keeps, and how much it moves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.codegen.kernels.delta import DeltaRule, Heads
from regraft.codegen.kernels.short_conv import Convolution
from tests.kernels.harness import module
from tests.kernels.touched import touched

NORMED = DeltaRule("delta", 96, 2, 4, 12, 12, Heads(0, 1e-6, 0.3), Heads(24, 1e-6, 0.2), Heads(48))
CASES = {
    "normed and gated": replace(NORMED, norm=1e-6, weighted=True, gated=True),
    "wider than a block": DeltaRule(
        "delta", 160, 1, 3, 16, 40, Heads(23, 1e-5), Heads(7), Heads(39), 1e-5, weighted=True, offset=1.0
    ),
    "a norm without a weight": replace(NORMED, value_heads=2, value_width=34, channels=116, norm=1e-5, gated=True),
    "convolved": replace(NORMED, norm=1e-6, weighted=True, gated=True, conv=Convolution(96, 4, activation="silu")),
    "convolved, wider than a block": DeltaRule(
        "delta", 152, 1, 3, 16, 40, Heads(16, 1e-5), Heads(0), Heads(32), 1e-5, conv=Convolution(152, 3, bias=True)
    ),
    "convolved, wider than a block, not normed": replace(
        NORMED, value_heads=2, value_width=34, channels=116, conv=Convolution(116, 2, activation="silu")
    ),
    "as it is": DeltaRule("delta", 112, 2, 2, 8, 40, Heads(80, None, 0.5), Heads(96), Heads(0), gated=True),
}


def inputs(k: DeltaRule, dtype: torch.dtype, counts: list[int], seed: int = 0) -> dict[str, Tensor]:
    """Return what the op takes; unit keys and shares below one keep the matrices small."""
    g = torch.Generator().manual_seed(seed)
    rows, heads, matrix = len(counts), k.value_heads, (k.width, k.value_width)
    shapes = {
        "x": (rows, 1, k.channels),
        "tail": (rows, 0 if k.conv is None else k.conv.taps - 1, k.channels),
        "conv_weight": (k.channels, 1, 0 if k.conv is None else k.conv.taps),
        "conv_bias": (k.channels,),
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
    if "conv_weight" in given:
        given["conv_weight"] /= given["conv_weight"].shape[-1] ** 0.5  # what it gives is as large as what it is given
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
    return [function(*given.values()), *(given[name] for name in ("state", "tail") if name in given)]


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


@pytest.mark.parametrize("case", ["normed and gated", "wider than a block", "convolved, wider than a block"])
def test_matrices_stay_right_over_steps(case: str, tmp_path: Path) -> None:
    k = CASES[case]
    made = module(tmp_path, k)
    held = {name: x.zero_() for name, x in inputs(k, torch.float32, [1, 1]).items() if name in ("state", "tail")}
    exact = {name: x.double() for name, x in held.items()}
    for step, counts in enumerate(([1, 1], [0, 1], [1, 0], [1, 1])):
        given = inputs(k, torch.float32, counts, step)
        found = called(made.delta, given | held)
        wanted = called(made.delta_plain, copied(given, torch.float64) | exact)
        for x, y in zip(found, wanted, strict=True):
            assert (x - y).abs().max() <= 4e-6 * float(y.abs().max())


@pytest.mark.parametrize("case", ["wider than a block", "convolved, wider than a block"])
def test_an_idle_row_keeps_what_it_has(case: str, tmp_path: Path) -> None:
    given = inputs(CASES[case], torch.float32, [0, 0])
    given["x"][:] = float("nan")
    before = {name: x.clone() for name, x in given.items() if name in ("state", "tail")}
    made = module(tmp_path, CASES[case])
    for function in (made.delta, made.delta_plain):
        function(*given.values())
        assert all(torch.equal(given[name], x) for name, x in before.items())


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


@pytest.mark.parametrize("case", ["normed and gated", "convolved", "as it is"])
def test_the_op_says_what_it_changes(case: str, tmp_path: Path) -> None:
    made = module(tmp_path, CASES[case])
    given = tuple(inputs(CASES[case], torch.float32, [1]).values())
    torch.library.opcheck(made.delta, given, test_utils=("test_schema", "test_faketensor"))
