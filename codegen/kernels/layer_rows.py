"""What layers are given of their own: rows of tokens, and beside them what is mapped from the stream, normed (K11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from regraft.codegen.kernels.kernel import Entry, Kernel, Moved, Tile


@dataclass(frozen=True)
class LayerRows(Kernel):
    """Constants of the layers' own rows.

    Attributes:
        name: The custom op's.
        layers: Their number.
        width: Channels of a layer's row.
        eps: Of the norm.
        offset: Added to its weight.
        weighted: Whether it has one.
        scale: Multiplies the sum.
    """

    template: ClassVar[str] = "layer_rows.py.j2"
    name: str
    layers: int
    width: int
    eps: float
    offset: float = 0.0
    weighted: bool = True
    scale: float = 1.0

    @property
    def block(self) -> int:
        """Channels of a row, up to a power of two."""
        return 1 << (self.width - 1).bit_length()

    @property
    def given(self) -> list[str]:
        """Names of what it is given, in order."""
        return ["x", "own", *(["weight"] if self.weighted else [])]

    def tiles(self) -> Sequence[Tile]:
        """Return how many layers' rows a program takes."""
        return [Tile({"ROWS": rows}, warps) for rows, warps in ((1, 1), (2, 1), (4, 4), (1, 2))]

    def programs(self, tile: Tile, batch: int) -> int:
        """Return one for some layers, those of all sequences counted on."""
        return -(-self.layers * batch // tile.sizes["ROWS"])

    def entries(self, dtype: str) -> Sequence[Entry]:
        """Return the one function."""
        return [Entry(f"{self.name}_kernel", {**dict.fromkeys([*self.given, "out"], f"*{dtype}"), "rows": "i32"})]

    def moved(self, width: int, batch: int, context: int) -> Moved:
        """Return both rows and their sum; the context does not matter."""
        rows = self.layers * self.width * width * batch
        weight = self.width * width if self.weighted else 0
        return Moved(read=2 * rows + weight, written=rows, least=weight)


def examples() -> list[Kernel]:
    """Return the layers' rows of known models."""
    return [LayerRows("layer_rows", layers=35, width=256, eps=1e-6, scale=2**-0.5)]  # Gemma 4 E2B
