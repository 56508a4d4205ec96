"""The gated delta rule of many tokens, one after the other: queries, keys and values come as they are.

Source: Yang et al. 2024, "Gated Delta Networks". Its form in chunks, for matrix units, is that of the plain functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from regraft.codegen.kernels.kernel import Entry, Kernel, Moved, Tile


@dataclass(frozen=True)
class DeltaRows(Kernel):
    """Constants of a call; value head ``j`` takes queries and keys of head ``j // group``.

    A program goes through a sequence with some channels of a value head's matrix, which stay in registers.

    Attributes:
        name: The custom op's.
        heads: Heads of queries and keys.
        value_heads: Heads of values, a matrix ``[width, value_width]`` in float32 for each.
        width: Channels of a query or key.
        value_width: Channels of a value.
    """

    template: ClassVar[str] = "delta_rows.py.j2"
    name: str
    heads: int
    value_heads: int
    width: int
    value_width: int

    @property
    def group(self) -> int:
        """Value heads of a key head."""
        return self.value_heads // self.heads

    @property
    def wide(self) -> int:
        """Channels of a key, up to a power of two from 16 on."""
        return max(16, 1 << (self.width - 1).bit_length())

    @property
    def most(self) -> int:
        """Channels of a value, in the same way."""
        return max(16, 1 << (self.value_width - 1).bit_length())

    def tiles(self) -> Sequence[Tile]:
        """Return value channels of a program; a matrix has 128 rows, so few of them fill its registers."""
        cut = dict.fromkeys(
            (min(block, self.most), warps) for block, warps in ((16, 1), (32, 2), (16, 2), (32, 4), (64, 8))
        )
        return [Tile({"BLOCK": block}, warps) for block, warps in cut]

    def programs(self, tile: Tile, batch: int) -> int:
        """Return one for each block of a head's value channels and sequence."""
        return -(-self.value_width // tile.sizes["BLOCK"]) * self.value_heads * batch

    def entries(self, dtype: str) -> Sequence[Entry]:
        """Return the one function."""
        arguments = dict.fromkeys(("q", "k", "v"), f"*{dtype}") | {"decay": "*fp32", "beta": f"*{dtype}"}
        arguments |= {"state": "*fp32", "count": "*i64", "y": f"*{dtype}", "after": "*fp32", "length": "i32"}
        return [Entry(f"{self.name}_kernel", arguments)]

    def moved(self, width: int, batch: int, context: int) -> Moved:
        """Return what all tokens of an empty cache's first call move: each is read and written once."""
        tokens, values = batch * context, self.value_heads * self.value_width
        matrices = 4 * values * self.width * batch
        read = (2 * self.heads * self.width + values + self.value_heads) * width * tokens
        read += 4 * self.value_heads * tokens  # decays, in float32
        written = values * width * tokens
        return Moved(
            read=read + matrices + 8 * batch,
            written=written + matrices,
            least=read + written + 2 * matrices,
            flops=6 * values * self.width * tokens,
        )


def examples() -> list[Kernel]:
    """Return those of Qwen3-Next and of Qwen3.6 27B."""
    return [
        DeltaRows("delta_rows", heads=16, value_heads=32, width=128, value_width=128),
        DeltaRows("delta_rows_27b", heads=16, value_heads=48, width=128, value_width=128),
    ]
