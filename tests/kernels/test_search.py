from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest

from regraft.codegen.kernels.ahead import Built
from regraft.codegen.kernels.kernel import Entry, Kernel, Moved, Tile
from regraft.codegen.kernels.search import bytes_in_flight, device_of, programs_resident, ranked, search
from regraft.ir.errors.kernels import NoTileError

TEXT = """@triton.jit
def rows_kernel(w, x, y, WIDTH: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros([ROWS, CHUNK], tl.float32)
    for start in range(0, WIDTH, CHUNK):
        columns = start + tl.arange(0, CHUNK)
        total += tl.load(w + rows[:, None] * WIDTH + columns[None, :]).to(tl.float32) * tl.load(x + columns)[None, :]
    tl.store(y + rows, tl.sum(total, 1))
"""


@dataclass(frozen=True)
class Rows(Kernel):
    """A matrix times a vector."""

    name: str
    cuts: tuple[tuple[int, int, int], ...]

    def text(self, tiles: Mapping[str, Tile] | None = None) -> str:
        return TEXT

    def tiles(self) -> Sequence[Tile]:
        return [Tile({"ROWS": rows, "CHUNK": chunk}, warps) for rows, chunk, warps in self.cuts]

    def entries(self, dtype: str) -> Sequence[Entry]:
        return [Entry("rows_kernel", {"w": f"*{dtype}", "x": "*fp32", "y": "*fp32"}, {"WIDTH": 4096})]

    def moved(self, width: int, batch: int, context: int) -> Moved:
        weights = 4096 * 4096 * width
        return Moved(read=weights, written=4096 * 4, least=weights, flops=2 * 4096 * 4096)

    def programs(self, tile: Tile, batch: int) -> int | None:
        return 4096 // tile.sizes["ROWS"]


def test_tiles_that_cannot_run_come_last_with_the_reason() -> None:
    spills, narrow, fits = (64, 512, 4), (4, 64, 8), (8, 512, 4)
    best, *others = ranked(Rows("rows", (spills, narrow, fits)), "sm_90")
    assert (best.tile.sizes["ROWS"], best.problem) == (8, "")
    assert 4096 * 4096 * 2 / 4.8e12 < best.seconds < 2 * 4096 * 4096 * 2 / 4.8e12
    problems = {other.tile.sizes["ROWS"]: other.problem for other in others}
    assert "spill" in problems[64]
    assert problems[4] == "no loads of 16 bytes"


def test_more_bytes_in_flight_rank_higher_and_equals_keep_their_order() -> None:
    few, thick = (64, 64, 8), (8, 512, 4)  # 64 programs leave half of the processors idle
    best, worse = ranked(Rows("rows", (few, thick)), "sm_90")
    assert best.tile.sizes["ROWS"] == 8
    assert worse.problem == ""
    assert worse.seconds > 1.05 * best.seconds
    again = ranked(Rows("rows", (thick, thick)), "sm_90")
    assert [candidate.tile for candidate in again] == list(Rows("rows", (thick, thick)).tiles())


def test_a_table_is_what_text_takes_and_none_is_refused() -> None:
    kernel = Rows("rows", ((8, 512, 4),))
    assert search([kernel], ("sm_90",)) == {"rows": {"sm_90": kernel.tiles()[0]}}
    with pytest.raises(NoTileError, match="none of its 1 tiles fits sm_90") as caught:
        search([Rows("rows", ((64, 512, 4),))], ("sm_90",))
    assert "spill" in caught.value.notes[0]


def test_what_a_processor_holds() -> None:
    built = Built(registers=100, stack=0, shared=70_000, code=0, wide_loads=4, narrow_loads=0, copies=0, matrix={})
    assert programs_resident(built, Tile(warps=4), "sm_90") == 3  # by shared memory: 3 * 71 of 228 KB
    assert programs_resident(built, Tile(warps=8), "sm_90") == 2  # by registers: 2 * 104 * 256
    assert programs_resident(built, Tile(warps=4), "gfx942") == 0
    assert bytes_in_flight(built, Tile(warps=4), "sm_90") == 4 * 16 * 128
    piped = Built(registers=100, stack=0, shared=60_000, code=0, wide_loads=4, narrow_loads=0, copies=2, matrix={})
    assert bytes_in_flight(piped, Tile(warps=4, stages=3), "sm_90") == 40_000
    assert {device_of(target).key for target in ("sm_80", "sm_90", "gfx942")} == {"a100-sxm-80", "h200-sxm", "mi300x"}
