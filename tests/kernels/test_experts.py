"""A step's mixture of experts in two launches, against plain PyTorch in double precision and against the op."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from regraft.codegen.kernels.experts import Experts
from regraft.codegen.kernels.kernel import Tile
from regraft.ir.ops.moe import Experts as ExpertsOp
from tests.kernels.harness import module
from tests.kernels.touched import touched

BARE = Experts("experts", 40, 22, 6, 3)
CASES = {
    "a shared one, normed, added": replace(BARE, shared=18, norm=1e-6, norm_weight=True, residual="add"),
    "one or none, a moved residual": replace(BARE, chosen=1, skip="zero", residual="move"),
    "a shared one with limit and share": replace(
        BARE, limit=1.0, shared=18, shared_limit=0.5, shared_share=True, norm=1e-6, norm_weight=True, norm_offset=1.0
    ),
    "biases, a shift, the input": replace(
        BARE, activation="quick_gelu", limit=1.0, shift=1.0, biases=True, skip="identity", residual="add"
    ),
    "more pieces than one, biases, none": replace(BARE, inner=70, skip="zero", biases=True, activation="gelu_tanh"),
    "an MLP beside, all normed": replace(
        BARE, shared=18, shared_norm=True, norm=1e-6, norm_weight=True, residual="norms", gain=True
    ),
    "a share without norm": replace(BARE, shared=18, shared_share=True, activation="gelu"),
}


def tiled(folder: Path, k: Experts) -> Any:
    """Return the kernel's module, with tiles so small that each launch has several programs and ragged ends."""
    made = module(folder, k)
    made.EXPERTS_TILES["default"] = Tile({"BLOCK_N": 16, "BLOCK_K": 32}).launch()
    return made


def inputs(k: Experts, dtype: torch.dtype = torch.float32, batch: int = 3) -> list[Tensor]:
    """Return what the op takes, in order; a residual that is moved is in float32."""
    g = torch.Generator().manual_seed(k.width + k.inner)

    def of(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    m, f, e, s = k.width, k.inner, k.experts, max(k.shared, 1)
    numbers = e + (k.skip != "none")
    given = {
        "x": of(batch, 1, m),
        "norm_weight": of(m),
        "weights": torch.rand(batch, 1, k.chosen, generator=g),
        "experts": torch.rand(batch, 1, numbers, generator=g).argsort(-1)[..., : k.chosen].contiguous(),
        "gate_up": of(e, 2 * f, m) / m**0.5,
        "down": of(e, m, f) / f**0.5,
        "gate_up_bias": of(e, 2 * f),
        "down_bias": of(e, m),
        "shared_gate": of(s, m) / m**0.5,
        "shared_up": of(s, m) / m**0.5,
        "shared_down": of(m, s) / s**0.5,
        "shared_share": of(1, m) / m**0.5,
        "residual": of(batch, 1, m),
        **{name: of(m) for name in ("out_bias", "out_gain", "residual_bias", "residual_gain")},
        **{name: of(m) for name in ("shared_norm", "out_norm", "shared_out_norm", "sum_norm")},
        "gain": of(1),
    }
    if k.skip != "none":
        given["experts"][-1, 0, 0] = e  # the last row, which is the only one of a batch of one, skips
        given["experts"][-1, 0, 1:] = torch.arange(k.chosen - 1)
    narrow = {name: x.to(dtype) if x.is_floating_point() else x for name, x in given.items()}
    if k.residual == "move":
        narrow["residual"] = given["residual"]
    return [narrow[name] for name in k.arguments()]


def wide(values: list[Tensor]) -> list[Tensor]:
    return [x.double() if x.is_floating_point() else x for x in values]


@pytest.mark.parametrize("k", CASES.values(), ids=CASES)
def test_a_step_is_mixed_as_in_double(tmp_path: Path, k: Experts) -> None:
    made, given = tiled(tmp_path, k), inputs(k)
    torch.testing.assert_close(made.experts(*given).double(), made.experts_plain(*wide(given)), rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize("name", ["one or none, a moved residual", "an MLP beside, all normed"])
def test_half_precision_errs_no_more_than_the_plain_form(tmp_path: Path, name: str) -> None:
    k = CASES[name]
    made, given = tiled(tmp_path, k), inputs(k, torch.float16)
    expected, plain, fused = made.experts_plain(*wide(given)), made.experts_plain(*given), made.experts(*given)
    assert fused.dtype == plain.dtype
    assert (fused - expected).norm() <= 2 * (plain - expected).norm()


@pytest.mark.parametrize("name", ["biases, a shift, the input", "more pieces than one, biases, none"])
def test_the_plain_form_is_the_op(tmp_path: Path, name: str) -> None:
    k = replace(CASES[name], residual="none")
    given = wide(inputs(k))
    attributes = {"activation": k.activation, "limit": k.limit, "shift": k.shift, "skip": k.skip}
    op = cast(Any, SimpleNamespace(**attributes))
    op._gated = lambda gate, up: ExpertsOp.__dict__["_gated"](op, gate, up)
    expected = ExpertsOp.reference(op, cast(Any, None), *given)
    torch.testing.assert_close(tiled(tmp_path, k).experts_plain(*given), expected, rtol=1e-12, atol=1e-12)


def test_rows_do_not_know_of_each_other(tmp_path: Path) -> None:
    k = CASES["a shared one, normed, added"]
    made, given = tiled(tmp_path, k), inputs(k)
    order = torch.tensor([2, 0, 1])
    moved = [
        x[order] if name in ("x", "weights", "experts", "residual") else x
        for name, x in zip(k.arguments(), given, strict=True)
    ]
    assert torch.equal(made.experts(*moved), made.experts(*given)[order])


@pytest.mark.parametrize(
    "name",
    ["a shared one, normed, added", "biases, a shift, the input", "a share without norm", "an MLP beside, all normed"],
)
def test_bytes_are_those_touched(tmp_path: Path, name: str) -> None:
    k = replace(CASES[name], skip="none")
    made, given = tiled(tmp_path, k), inputs(k, batch=1)
    with touched() as run:
        out = made.experts(*given)
    torch.testing.assert_close(out.double(), made.experts_plain(*wide(given)), rtol=1e-5, atol=5e-6)
    moved = k.moved(4, 1, 8)
    assert len(run.launches) == moved.launches == 2
    assert abs(run.read + run.written - moved.total) <= 0.02 * moved.total


def test_a_skipped_expert_reads_no_weights(tmp_path: Path) -> None:
    k = CASES["one or none, a moved residual"]
    made, given = tiled(tmp_path, k), inputs(k, batch=1)
    with touched() as run:
        made.experts(*given)
    assert run.read < k.width * k.inner * 4


def test_the_op_is_one_of_pytorchs(tmp_path: Path) -> None:
    k = CASES["one or none, a moved residual"]
    made = tiled(tmp_path, k)
    made.INTERPRETED = False
    torch.library.opcheck(made.experts, tuple(inputs(k)))


def test_an_identity_takes_no_norm() -> None:
    with pytest.raises(ValueError, match="the norm comes before"):
        replace(BARE, skip="identity", norm=1e-6)
    with pytest.raises(ValueError, match="an expert that every token takes"):
        replace(BARE, residual="norms", norm=1e-6)
