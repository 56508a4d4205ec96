"""The front of a step in one launch: a token's rows of the embedding tables, and the step's cosines and sines (K11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from regraft.codegen.kernels.kernel import Entry, Kernel, Moved, Tile


@dataclass(frozen=True)
class Wave:
    """Cosine and sine of a position's angles, as a model's rotations read them.

    Attributes:
        pairs: Pairs of channels, and so many angles.
        halves: Whether both are given for both halves of the channels, the sine with its sign, or once for each pair.
        amplitude: Multiplies both.
        rate: The position is the first of so many tokens, of which a row is made, not the token's own.
        offset: Added to the position.
    """

    pairs: int
    halves: bool = True
    amplitude: float = 1.0
    rate: int = 1
    offset: float = 0.0

    @property
    def channels(self) -> int:
        """Numbers of the cosine, and of the sine."""
        return 2 * self.pairs if self.halves else self.pairs


@dataclass(frozen=True)
class Embedding(Kernel):
    """Constants of a step's front.

    Attributes:
        name: The custom op's.
        width: Channels of the stream.
        scale: Multiplies the token's row.
        shifted: Whether a vector is added to the row, and the sum multiplied by another.
        wide: Whether the stream is in float32, whatever the table is.
        own: Channels of the row that layers have of their own, all layers together; 0 if they have none.
        own_scale: Multiplies it.
        streams: Residual streams that the first boundary shall write the row to: it is given streams of zeros, whole
            shares of what is written and none of what was before; 0 if there are none.
        waves: The rotations' tables.
    """

    template: ClassVar[str] = "embed.py.j2"
    name: str
    width: int
    scale: float = 1.0
    shifted: bool = False
    wide: bool = False
    own: int = 0
    own_scale: float = 1.0
    streams: int = 0
    waves: tuple[Wave, ...] = ()

    @property
    def results(self) -> list[str]:
        """Names of what it returns, in order."""
        tables = [f"{side}_{i}" for i in range(len(self.waves)) for side in ("cos", "sin")]
        return ["x", *(["own"] if self.own else []), *(["streams", "post", "comb"] if self.streams else []), *tables]

    @property
    def pairs(self) -> int:
        """Pairs of streams, up to a power of two."""
        return 1 << (self.streams**2 - 1).bit_length()

    @property
    def given(self) -> dict[str, str]:
        """The types of what it is given, by name, as entries spell them but for the tables' dtype."""
        vectors = ("bias", "gain") if self.shifted else ()
        tables = ("table", *vectors, *(("own_table",) if self.own else ()))
        angles = (f"angles_{i}" for i in range(len(self.waves)))
        return {"tokens": "*i64", "start": "*i64", **dict.fromkeys(tables, ""), **dict.fromkeys(angles, "*fp32")}

    def block(self, wave: Wave) -> int:
        """Return a rotation's pairs, up to a power of two."""
        return 1 << (wave.pairs - 1).bit_length()

    def tiles(self) -> Sequence[Tile]:
        """Return blocks of channels: some thousand bytes that one program gathers."""
        return [Tile({"BLOCK": block}, warps) for block, warps in ((1024, 4), (512, 4), (2048, 4), (2048, 8))]

    def programs(self, tile: Tile, batch: int) -> int:
        """Return those that gather, and one for each rotation."""
        block = tile.sizes["BLOCK"]
        return (-(-self.width // block) + -(-self.own // block) + len(self.waves)) * batch

    def entries(self, dtype: str) -> Sequence[Entry]:
        """Return the one function."""
        given = {name: spelled or f"*{dtype}" for name, spelled in self.given.items()}
        stream = "*fp32" if self.wide else f"*{dtype}"
        other = {"x": stream, "streams": stream, "post": "*fp32", "comb": "*fp32"}
        results = {f"{name}_out": other.get(name, f"*{dtype}") for name in self.results}
        return [Entry(f"{self.name}_kernel", {**given, **results})]

    def moved(self, width: int, batch: int, context: int) -> Moved:
        """Return the rows, read and written; of a table only they are touched. Sequences may share a row: none does."""
        rows = (self.width + self.own) * width * batch
        vectors = 2 * self.width * width if self.shifted else 0
        tables = 2 * sum(wave.channels for wave in self.waves) * width * batch
        angles = 4 * sum(wave.pairs for wave in self.waves)
        stream = self.width * batch * (4 if self.wide else width)
        numbers = 8 * batch + (8 * batch if self.waves else 0)
        spread = self.streams * (stream + (1 + self.streams) * batch * 4)
        written = stream + self.own * width * batch + spread + tables
        return Moved(read=rows + vectors + angles + numbers, written=written, least=rows + vectors)


def examples() -> list[Kernel]:
    """Return the fronts of known models."""
    gemma = (Wave(128), Wave(256))
    return [
        Embedding("embed", width=1536, scale=39.25, own=35 * 256, own_scale=16.0, waves=gemma),  # Gemma 4 E2B
        Embedding("embed", width=2048, shifted=True, wide=True, waves=(Wave(32),)),  # ZAYA1-8B
        Embedding("embed", width=4096, waves=(Wave(64),)),  # Llama-3.1-8B
        Embedding("embed", width=7168, streams=4, waves=(Wave(32, False), Wave(32, False, rate=4))),  # DeepSeek V4 Pro
    ]
