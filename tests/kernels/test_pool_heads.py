"""Keys and values by head, pooled token by token: the kernel beside its plain form, and that beside a softmax."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.codegen.kernels.attend_rows import Piece
from regraft.codegen.kernels.attention import HeadNorm, Turn
from regraft.codegen.kernels.pool_heads import PoolHeads
from tests.kernels.harness import module
from tests.kernels.touched import touched

HEADS = Piece(2, 16)
MEAN = PoolHeads("pool", (replace(HEADS, turned=True), HEADS), 4, turn=Turn(16))
KINDS = {
    "mean": MEAN,
    "gated": replace(MEAN, rate=3, gated=True, pieces=(Piece(2, 16, HeadNorm(1e-6), turned=True), HEADS)),
    "overlap": replace(MEAN, overlap=True),
    "late": replace(
        MEAN, rate=3, overlap=True, gated=True, late=True, pieces=(Piece(2, 12), HEADS), turn=Turn(8, start=4)
    ),
    "pairs": replace(MEAN, late=True, pieces=(HEADS, HEADS), turn=Turn(8, layout="interleaved")),
    "index": PoolHeads("pool", (Piece(1, 20),), 4),
}


def memory(k: PoolHeads, batch: int, rows: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return an empty memory, its tails and what is trained."""
    kinds = 1 + k.gated
    found = {f"rows_{i}": torch.full((batch, rows, p.heads, p.width), torch.nan) for i, p in enumerate(k.pieces)}
    found["tail"] = torch.zeros(batch, k.rate - 1, kinds * k.total)
    found["before"] = torch.zeros(batch, 2 * k.rate - 1, kinds * k.total)
    found |= {f"norm_{i}": torch.randn(piece.width) for i, piece in enumerate(k.pieces)}
    found["bias"] = torch.randn(k.rate, k.total * (1 + k.overlap))
    wide = ("tail", "before") if dtype != torch.float64 else ()
    return {name: x if name in wide else x.to(dtype) for name, x in found.items() if name in k.arguments}


def token(k: PoolHeads, starts: list[int], counts: list[int], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return a token of each sequence."""
    batch, turn = len(starts), k.turn
    angle = torch.rand(2, batch, 1, 1, turn.channels // 2 if turn else 1) * 7
    cos, sin = angle.cos(), angle.sin()
    if turn is not None and turn.layout == "halves":
        cos, sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    every = {f"piece_{i}": torch.randn(batch, 1, piece.heads, piece.width) for i, piece in enumerate(k.pieces)}
    every |= {"cos": cos[0], "sin": sin[0], "row_cos": cos[1], "row_sin": sin[1]}
    every["gates"] = torch.randn(batch, 1, k.total * (1 + k.overlap))
    given = {name: x.to(dtype) for name, x in every.items() if name in k.arguments}
    return given | {"start": torch.tensor(starts), "count": torch.tensor(counts)}


def called(function: Any, k: PoolHeads, given: dict[str, Tensor]) -> None:
    function(*(given[name] for name in k.arguments))


@pytest.mark.parametrize("kind", KINDS)
def test_steps_keep_and_pool_what_the_plain_form_does(kind: str, tmp_path: Path) -> None:
    """Rows of a batch stand apart; one is idle once, and keeps what it has."""
    torch.manual_seed(0)
    k = KINDS[kind]
    program = module(tmp_path, k)
    mine = memory(k, 2, 4, torch.float32)
    wide = {name: x.double() for name, x in mine.items()}
    lengths = [0, 2]
    for step in range(2 * k.rate + 1):
        counts = [1, int(step != 1)]
        new = token(k, lengths, counts, torch.float32)
        called(program.pool, k, mine | new)
        called(program.pool_plain, k, wide | {n: x.double() if x.is_floating_point() else x for n, x in new.items()})
        lengths = [length + count for length, count in zip(lengths, counts, strict=True)]
    for name in k.changed:
        assert torch.equal(mine[name].isnan(), wide[name].isnan())
        assert (mine[name] - wide[name]).nan_to_num().abs().max() < 2e-6
    assert not mine["rows_0"][0, :2].isnan().any()


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_no_further_off_than_twice_the_plain_form(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    k = KINDS[kind]
    program = module(tmp_path, k)
    mine = memory(k, 1, 4, torch.float16)
    plain = {name: x.clone() for name, x in mine.items()}
    exact = {name: x.double() for name, x in mine.items()}
    for start in range(2 * k.rate):
        new = token(k, [start], [1], torch.float16)
        called(program.pool, k, mine | new)
        called(program.pool_plain, k, plain | new)
        called(program.pool_plain, k, exact | {n: x.double() if x.is_floating_point() else x for n, x in new.items()})
    for name in k.changed:
        error, least = ((each[name].double() - exact[name]).nan_to_num().abs().max() for each in (mine, plain))
        rounding = 2**-11 * exact[name].nan_to_num().abs().max()  # half of the spacing of the largest number
        assert error <= max(2 * float(least), float(rounding))


@pytest.mark.parametrize("kind", ["gated", "overlap", "late"])
@pytest.mark.parametrize("ends", [False, True])
def test_it_moves_what_it_says(kind: str, ends: bool, tmp_path: Path) -> None:
    k = KINDS[kind]
    program = module(tmp_path, k)
    context = 2 * k.rate + (0 if ends else 1)
    given = memory(k, 1, 4, torch.float32) | token(k, [context - 1], [1], torch.float32)
    with touched() as run:
        called(program.pool, k, given)
    moved = k.moved(4, 1, context)
    assert (run.read, run.written, len(run.launches)) == (moved.read, moved.written, moved.launches)


def test_the_op_is_registered_as_torch_wants(tmp_path: Path) -> None:
    k = KINDS["late"]
    given = memory(k, 1, 4, torch.float32) | token(k, [5], [1], torch.float32)
    given |= {name: given[name].nan_to_num() for name in k.changed}
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(module(tmp_path, k).pool, tuple(given[name] for name in k.arguments), test_utils=checks)
