"""K5: the last norm, the map to the vocabulary and the choice of a token, in one launch (specs/kernels.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from regraft.codegen.kernels.kernel import Constant, Entry, Kernel, Moved, Tile

_PROGRAMS = 512  # of them four run at once on a processor of an H100, so that all run at once
_STREAMS = 16  # the fewest rows of a matrix unit: more than one stream make as many


@dataclass(frozen=True)
class Head(Kernel):
    """Constants of an output head.

    Its template holds three ops: ``name`` gives the likeliest token, ``name_sample`` draws one, in one launch where it
    is among the 64 likeliest, ``name_logits`` gives logits.

    Attributes:
        name: The first op's.
        width: Channels of the stream.
        vocab: Rows of the map.
        eps: Added to the mean square.
        offset: Added to the norm's weight.
        scale: Multiplies logits; above 0.
        cap: Bounds logits, after that: ``cap tanh(logit / cap)``.
        wide: Whether the stream is in float32, whatever the map is.
    """

    template: ClassVar[str] = "head.py.j2"
    name: str
    width: int
    vocab: int
    eps: float
    offset: float = 0.0
    scale: float = 1.0
    cap: float | None = None
    wide: bool = False

    @property
    def spread(self) -> int:
        """Programs of a launch, a power of two: each has some rows of the map."""
        return min(_PROGRAMS, 1 << max(self.vocab // 16, 1).bit_length() - 1)

    @property
    def block(self) -> int:
        """Channels of the stream, up to a power of two."""
        return 1 << (self.width - 1).bit_length()

    def tiles(self) -> Sequence[Tile]:
        """Return tiles by what one stream needs, whole rows; several go through a matrix unit, in chunks."""
        shapes = ((16384, 8, 1), (8192, 4, 1), (8192, 8, 1), (8192, 4, 3), (4096, 4, 4), (16384, 4, 1))
        made: list[Tile] = []
        for numbers, few, stages in shapes:
            warps = max(few, 8) if self.block > 4096 else few
            rows = min(max(numbers // self.block, 1), 16)
            chunk = min(64, max(self.block, 16))
            sizes = {"ROWS_1": rows, "ROWS_16": 8 * warps, "CHUNK": chunk, "PROGRAMS": self.spread, "STAGES": stages}
            made.append(Tile(sizes, warps, stages))
        return made

    def programs(self, tile: Tile, batch: int) -> int:
        """Return the programs of one launch: each streams its rows of the map for up to 16 sequences."""
        return tile.sizes["PROGRAMS"] * -(-batch // _STREAMS)

    def entries(self, dtype: str) -> Sequence[Entry]:
        """Return the three functions, each for one stream and for several."""
        given = {"x": "*fp32" if self.wide else f"*{dtype}", "gain": f"*{dtype}", "weight": f"*{dtype}"}
        merged = {"keys": "*i64", "seen": "*i32", "tokens": "*i64", "batch": "i32"}
        drawn = {"noise": "*fp32", "temperature": "fp32", "top_k": "i32", "top_p": "fp32"}
        of: list[Entry] = []
        for streams in (1, _STREAMS):
            constants: dict[str, Constant] = {"STREAMS": streams}
            of.append(Entry(f"{self.name}_kernel", {**given, **merged}, constants))
            of.append(Entry(f"{self.name}_logits_kernel", {**given, "logits": f"*{dtype}", "batch": "i32"}, constants))
            arguments = {**given, **drawn, "logits": "*fp32", **merged}
            of.append(Entry(f"{self.name}_sample_kernel", arguments, {**constants, "LIKELIEST": 64}))
        return of

    def moved(self, width: int, batch: int, context: int) -> Moved:
        """Return what the choice of the likeliest token moves."""
        programs = self.cut.sizes["PROGRAMS"]
        keys = 8 * programs * batch
        rows = self.vocab * self.width * width
        groups = -(-batch // _STREAMS)
        return Moved(
            read=rows + self.width * width + self._read(width, batch) + keys + 4 * groups,
            written=keys + 8 * batch + 4 * groups,
            least=rows + self.width * width,
            flops=2 * self.vocab * self.width * batch,
        )

    def moved_logits(self, width: int, batch: int) -> Moved:
        """Return what it moves to write logits."""
        rows, out = self.vocab * self.width * width, self.vocab * width * batch
        read = rows + self.width * width + self._read(width, batch)
        return Moved(read, out, rows + self.width * width + out, flops=2 * self.vocab * self.width * batch)

    def _read(self, width: int, batch: int) -> int:
        return batch * self.width * (4 if self.wide else width)


def examples() -> list[Kernel]:
    """Return the heads of known models."""
    return [
        Head("head", width=1536, vocab=262144, eps=1e-6, cap=30.0),  # Gemma 4 E2B
        Head("head", width=5376, vocab=262144, eps=1e-6, cap=30.0),  # Gemma 4 31B
        Head("head", width=2048, vocab=262272, eps=1e-5, wide=True),  # ZAYA1-8B
        Head("head", width=4096, vocab=128256, eps=1e-5),  # Llama-3.1-8B
    ]
