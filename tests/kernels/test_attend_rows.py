"""Attention of one token to rows of which keys and values are made as they are read: kernel beside plain form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.codegen.kernels.attend_rows import AttendRows, Made, Piece
from regraft.codegen.kernels.attention import HeadNorm, Turn
from regraft.codegen.kernels.kernel import Tile
from tests.kernels.harness import module
from tests.kernels.touched import touched


@dataclass(frozen=True, kw_only=True)
class Cut(AttendRows):
    """A kernel whose rows are divided as a test wants it: over several splits of few rows."""

    splits: int = 12

    def tiles(self) -> Sequence[Tile]:
        sizes = {"HEADS": 16, "SPLITS": self.splits, "LEAST": 16, "ROWS": 16}
        return [Tile(sizes | ({"CHUNK": 16} if self.keys.mapped or self.values.mapped else {}))]


HEADS = Piece(2, 16)
KEPT = Cut(
    name="attend",
    heads=4,
    kv_heads=2,
    width=16,
    value_width=16,
    slots=96,
    scale=0.25,
    row=64,
    keys=Made(0, 32),
    values=Made(32, 64),
    pieces=(replace(HEADS, norm=HeadNorm(1e-6)), HEADS),
    turn=Turn(16),
    late=True,
    q_norm=HeadNorm(1e-6),
)
LATENT = Made(0, 20, mapped=True)
MAPPED = replace(KEPT, row=20, keys=LATENT, values=LATENT, pieces=(Piece(1, 20),))
VALUES = replace(
    KEPT,
    width=32,
    value_width=32,
    keys=Made(0, 64),
    values=Made(0, 64),
    pieces=(Piece(2, 32, HeadNorm(1e-6, weighted=False)),),
    turn=Turn(32, pairs=4),
    gain=True,
)
KINDS: Mapping[str, Cut] = {
    "kept": KEPT,
    "ring": replace(KEPT, slots=30, ring=True, kept=6, window=20, first=3, sink=True),
    "window": replace(KEPT, window=33, turn=Turn(8, start=4), softcap=0.7),
    "pairs": replace(KEPT, turn=Turn(8, layout="interleaved", pairs=3)),
    "mapped": MAPPED,
    "carried": replace(
        MAPPED,
        row=24,
        pieces=(Piece(1, 20), replace(HEADS, inverse=1e-6), replace(HEADS, inverse=1e-5)),
        factors=20,
        factor_heads=2,
        value_factors=22,
        turn=Turn(8),
        keys=replace(LATENT, biased=True),
        values=replace(LATENT, biased=True),
    ),
    "carried, uneven": replace(
        KEPT,
        heads=5,
        head_map=(1, 0, 0, 1, 0),
        row=66,
        pieces=(HEADS, HEADS, replace(HEADS, inverse=1e-6)),
        factors=64,
        factor_heads=2,
    ),
    "reader": replace(
        MAPPED,
        amplitude=1.2,
        row=24,
        pieces=(),
        keys=Made(4, 24, mapped=True),
        values=Made(4, 24, mapped=True),
        writes=False,
    ),
    "merged": replace(
        KEPT,
        kv_heads=1,
        row=34,
        keys=Made(0, 16),
        values=Made(16, 32),
        pieces=(Piece(1, 16, turned=True), Piece(1, 16), replace(HEADS, inverse=1e-6)),
        late=False,
        factors=32,
        factor_heads=2,
    ),
    "uneven": replace(KEPT, heads=5, head_map=(1, 0, 0, 1, 0), turn=None, late=False, q_norm=None),
    "values": VALUES,
    "values_all": replace(VALUES, turn=Turn(32), gain=False),
}


def inputs(k: AttendRows, dtype: torch.dtype, starts: Sequence[int]) -> dict[str, Tensor]:
    """Return tensors for each argument. Slots that no token has filled hold no numbers."""
    torch.manual_seed(0)
    batch, turn = len(starts), k.turn
    angles = torch.rand(turn.channels // 2 if turn else 1)
    if turn is not None and turn.pairs is not None:
        angles[turn.pairs :] = 0.0
    angle = torch.tensor(starts)[:, None, None, None] * angles
    cos, sin = angle.cos(), angle.sin()
    if turn is not None and turn.layout == "halves":
        cos, sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    rows = torch.randn(batch, k.slots, k.row)
    for row, start in enumerate(starts):
        rows[row, start + (not k.writes) :] = torch.nan
    every = {
        "q": torch.randn(batch, 1, k.heads, k.width),
        "cos": cos,
        "sin": sin,
        "q_norm": torch.randn(k.width),
        **{f"piece_{i}": torch.randn(batch, 1, piece.heads, piece.width) for i, piece in enumerate(k.pieces)},
        **{f"norm_{i}": torch.randn(piece.width) for i, piece in enumerate(k.pieces)},
        "angles": angles,
        "gain": torch.randn(k.width),
        "k_map": torch.randn(k.kv_heads * k.width, k.keys.channels) / 4,
        "k_bias": torch.randn(k.kv_heads * k.width),
        "v_map": torch.randn(k.kv_heads * k.value_width, k.values.channels) / 4,
        "v_bias": torch.randn(k.kv_heads * k.value_width),
        "sink": torch.randn(k.heads),
        "rows": rows,
    }
    given = {name: each if name == "angles" else each.to(dtype) for name, each in every.items() if name in k.arguments}
    return {name: given[name] for name in k.arguments if name != "start"} | {"start": torch.tensor(starts)}


def copied(given: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Return tensors of their own, floats in another dtype if given."""
    return {name: each.clone() if name == "start" else each.to(dtype, copy=True) for name, each in given.items()}


def both(program: Any, given: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what the kernel computes and keeps, and what its plain form does in float64."""
    mine, wide = dict(given), copied(given, torch.float64)
    mine["out"] = program.attend(*mine.values())
    wide["out"] = program.attend_plain(*wide.values())
    return mine, wide


def error(mine: Mapping[str, Tensor], wide: Mapping[str, Tensor]) -> float:
    """Return the largest error of results and of the memory; empty slots must be the same in both."""
    for name in ("out", "rows"):
        assert torch.equal(mine[name].isnan(), wide[name].isnan())
    return max((mine[name] - wide[name]).nan_to_num().abs().max().item() for name in ("out", "rows"))


def starts_of(k: AttendRows) -> list[int]:
    """Return positions: in one and in several splits, or at the start and beyond the ring where there is one."""
    return [0, 77] if k.ring else [17, k.slots - 1]


COVERED = ("kept", "mapped", "values")  # by kinds with more than they have


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind in COVERED else kind for kind in KINDS]
)
def test_it_computes_what_its_plain_form_does(kind: str, tmp_path: Path) -> None:
    k = KINDS[kind]
    mine, wide = both(module(tmp_path, k), inputs(k, torch.float32, starts_of(k)))
    assert error(mine, wide) < 2e-5  # angles up to 95, of which float32 holds 8e-6; sums of 100 numbers of size 1


@pytest.mark.parametrize("kind", ["carried", "values_all"])
def test_half_precision(kind: str, tmp_path: Path) -> None:
    """The kernel rounds less often than its plain form, which rounds where the graph's ops do."""
    k = KINDS[kind]
    program = module(tmp_path, k)
    given = inputs(k, torch.float16, starts_of(k))
    plain = copied(given)
    plain["out"] = program.attend_plain(*plain.values())
    mine, wide = both(program, given)
    assert error(mine, wide) <= max(2 * error(plain, wide), 2.0**-9)


def test_ends_of_tiles_and_splits(tmp_path: Path) -> None:
    """Splits of 16 rows: none but the token's own, one less than full, full, one more, and splits left over."""
    starts = [0, 1, 14, 15, 16, 17, 33, 64]
    k = replace(KEPT, splits=4 * len(starts))
    mine, wide = both(module(tmp_path, k), inputs(k, torch.float32, starts))
    assert error(mine, wide) < 2e-5


def test_an_idle_row_behind_the_last_slot_touches_no_other(tmp_path: Path) -> None:
    k = replace(MAPPED, slots=20)
    given = inputs(k, torch.float32, [20, 9])
    given["rows"][0] = 1.0
    mine, wide = both(module(tmp_path, k), given)
    assert error(mine, wide) < 2e-5


def test_rows_far_away_turn_as_plain_functions_turn_them(tmp_path: Path) -> None:
    """Angles are as float32 has them; the interpreter has no fused multiply-add, and is as exact up to 1e5."""
    k = replace(KEPT, slots=8, ring=True, window=8)
    program = module(tmp_path, k)
    given = inputs(k, torch.float32, [60001])
    given["rows"] = torch.randn(1, 8, 64)
    plain = program.attend_plain(*copied(given, torch.float32).values())
    assert (program.attend(*given.values()) - plain).abs().max() < 2e-6


@pytest.mark.parametrize("kind", ["ring", "window", "carried", "reader", "merged", "uneven", "values"])
def test_it_moves_what_it_says(kind: str, tmp_path: Path) -> None:
    k = KINDS[kind]
    program = module(tmp_path, k)
    with touched() as run:
        program.attend(*inputs(k, torch.float32, [70]).values())
    moved = k.moved(4, 1, 71)
    assert (run.read, run.written, len(run.launches)) == (moved.read, moved.written, moved.launches)


@pytest.mark.parametrize("kind", ["carried", "merged"])
def test_the_op_is_registered_as_torch_wants(kind: str, tmp_path: Path) -> None:
    k = KINDS[kind]
    given = inputs(k, torch.float32, [5])
    given["rows"] = given["rows"].nan_to_num()
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(module(tmp_path, k).attend, tuple(given.values()), test_utils=checks)
