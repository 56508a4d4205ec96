"""Attention of one token to a memory: the kernel beside its plain form, and that beside what the graph's ops say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.codegen.kernels.attend import AttendStep, HeadNorm, Turn
from regraft.codegen.kernels.kernel import Tile
from tests.kernels.harness import module


@dataclass(frozen=True)
class Cut(AttendStep):
    """A kernel whose rows are divided as a test wants it: over several splits of few rows."""

    splits: int = 4
    tile_rows: int = 16
    least: int = 16
    tile_heads: int = 16

    def tiles(self) -> Sequence[Tile]:
        sizes = {"HEADS": self.tile_heads, "SPLITS": self.splits, "LEAST": self.least, "ROWS": self.tile_rows}
        return [Tile(sizes)]


PLAIN = Cut("attend", heads=4, kv_heads=2, width=16, value_width=16, slots=96, scale=0.25)
NORMED = replace(PLAIN, q_norm=HeadNorm(1e-6), k_norm=HeadNorm(1e-6), turn=Turn(16))
KEY_FROM_VALUE = replace(
    PLAIN,
    width=32,
    value_width=32,
    rows="values",
    q_norm=HeadNorm(1e-6),
    k_norm=HeadNorm(1e-6),
    v_norm=HeadNorm(1e-6, weighted=False),
    turn=Turn(32, pairs=4),
)
LATENT = Cut(
    "attend",
    heads=20,
    kv_heads=1,
    width=40,
    value_width=32,
    slots=96,
    scale=0.2,
    rows="shared",
    q_apart=True,
    k_norm=HeadNorm(1e-6, width=32),
    turn=Turn(8, start=32, layout="interleaved"),
)
KINDS: Mapping[str, Cut] = {
    "plain": PLAIN,
    "normed": NORMED,
    "offset": replace(NORMED, q_norm=HeadNorm(1e-5, offset=1.0), k_norm=HeadNorm(1e-5, offset=1.0)),
    "values_normed": replace(NORMED, v_norm=HeadNorm(1e-6, weighted=False), turn=Turn(16, pairs=2)),
    "partial": replace(NORMED, turn=Turn(8)),
    "pairs": replace(NORMED, turn=Turn(8, start=8, layout="interleaved"), temper=True),
    "odd_widths": replace(PLAIN, width=40, value_width=24, turn=Turn(40)),
    "late_turn": replace(PLAIN, width=48, value_width=20, q_norm=HeadNorm(1e-6), turn=Turn(12, start=36)),
    "narrow": replace(PLAIN, width=6, value_width=6, turn=Turn(6)),
    "ring": replace(NORMED, slots=24, ring=True, window=24),
    "narrow_ring": replace(NORMED, slots=24, ring=True, window=17),
    "narrow_window": replace(NORMED, window=33),
    "first_seen": replace(NORMED, window=33, first=5),
    "anchored": replace(NORMED, slots=30, ring=True, kept=6, window=24, first=6),
    "anchored_narrow": replace(NORMED, slots=30, ring=True, kept=6, window=20, first=3),
    "sink": replace(PLAIN, sink=True),
    "capped": replace(NORMED, softcap=0.7, sink=True, gate="sigmoid", gate_wide=True),
    "gated": replace(NORMED, gate="softplus"),
    "uneven": replace(NORMED, heads=5, kv_heads=3, head_map=(2, 0, 0, 2, 0)),
    "reader": replace(NORMED, k_norm=None, writes=False, window=40),
    "key_from_value": KEY_FROM_VALUE,
    "key_from_value_all": replace(KEY_FROM_VALUE, turn=Turn(8, layout="interleaved"), temper=True),
    "key_from_value_reader": replace(KEY_FROM_VALUE, writes=False),
    "latent": LATENT,
    "latent_blocks": replace(LATENT, heads=37, slots=50, ring=True, window=50),
    "one_row": replace(PLAIN, rows="shared", kv_heads=1, k_norm=HeadNorm(1e-6), turn=Turn(4, start=12)),
    "groups": replace(NORMED, splits=40, least=2, tile_rows=2 * 8, sink=True, slots=800),
}


def inputs(k: AttendStep, dtype: torch.dtype, starts: Sequence[int], seed: int = 0) -> dict[str, Tensor]:
    """Return tensors for each argument. Slots that no token has filled hold no numbers."""
    torch.manual_seed(seed)
    batch, kv = len(starts), k.kv_heads
    angle = torch.rand(batch, 1, 1, k.turn.channels // 2 if k.turn else 1) * 7
    if k.turn is not None and k.turn.pairs is not None:
        angle[..., k.turn.pairs :] = 0.0
    cos, sin = angle.cos(), angle.sin()
    if k.turn is not None and k.turn.layout == "halves":
        cos, sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    keys = torch.randn(batch, k.slots, kv, k.row_width)
    values = torch.randn(batch, k.slots, kv, k.value_width)
    for row, start in enumerate(starts):
        filled = start if k.writes else start + 1
        keys[row, filled:] = torch.nan
        values[row, filled:] = torch.nan
    every = {
        "q": torch.randn(batch, 1, k.heads, k.value_width if k.q_apart else k.width),
        "q_turned": torch.randn(batch, 1, k.heads, k.far + 3)[..., 3:],
        "k": torch.randn(batch, 1, kv, k.width),
        "v": torch.randn(batch, 1, kv, k.value_width),
        "cos": cos,
        "sin": sin,
        "q_norm": torch.randn(k.width),
        "k_norm": torch.randn(k.width),
        "temper": torch.rand(kv) + 0.5,
        "sink": torch.randn(k.heads),
        "gate": torch.randn(batch, 1, k.heads, k.value_width) if k.gate_wide else torch.randn(batch, 1, k.heads),
        "keys": keys,
        "values": values,
    }
    given = {name: each.to(dtype) for name, each in every.items() if name in k.arguments}
    return given | {"start": torch.tensor(starts)}


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
    """Return the largest error of results and memories; empty slots must be the same in both."""
    names = [name for name in ("out", "keys", "values") if name in mine]
    for name in names:
        assert torch.equal(mine[name].isnan(), wide[name].isnan())
    return max((mine[name] - wide[name]).nan_to_num().abs().max().item() for name in names)


def starts_of(k: AttendStep) -> list[int]:
    """Return positions: in the first rows, in several splits, and beyond the ring where there is one."""
    return [0, 50, 77] if k.ring else [0, 17, k.slots - 1]


@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_its_plain_form_does(kind: str, tmp_path: Path) -> None:
    k = KINDS[kind]
    program = module(tmp_path, k)
    mine, wide = both(program, inputs(k, torch.float32, starts_of(k)))
    assert error(mine, wide) < 5e-6  # sums of up to 800 float32 numbers of size 1, and exponentials to 2 in 10^7
