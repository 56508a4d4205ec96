"""K4: what stands between two sublayers of residual streams (specs/kernels.md; specs/deepseek_v4.md, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from regraft.codegen.kernels.kernel import Entry, Kernel, Moved, Tile


@dataclass(frozen=True)
class Streams(Kernel):
    """The boundary of a step: write one sublayer's result to the streams, read the next one's input; in one launch.

    Attributes:
        name: The custom op's.
        streams: Residual streams.
        width: Channels of each.
        comes: Where the streams come from: ``whole``, they are given; ``written``, a result is added to those before;
            ``spread``, each is a copy of a token's embedding.
        gives: What is read: ``maps``, an input and the maps to write back by; ``collapsed``, one stream after the last
            layer; ``none``, nothing.
        eps: Added to the mean square of a token's streams.
        floor: Added to shares and sums.
        iterations: How often the columns of the map are normalised.
        weights: Triton dtype of ``fn``, ``base`` and ``scale``; that of the streams if None.
    """

    name: str
    streams: int
    width: int
    comes: Literal["whole", "written", "spread"] = "written"
    gives: Literal["maps", "collapsed", "none"] = "maps"
    eps: float = 1e-6
    floor: float = 1e-6
    iterations: int = 20
    weights: str | None = None

    template: ClassVar[str] = "streams.py.j2"

    def __post_init__(self) -> None:
        if self.comes == "whole" and self.gives == "none":
            raise ValueError("a boundary that neither writes nor reads")

    @property
    def maps(self) -> int:
        """Rows of ``fn``: numbers that a token's maps are made of."""
        return {"maps": (2 + self.streams) * self.streams, "collapsed": self.streams, "none": 0}[self.gives]

    @property
    def sums(self) -> int:
        """Numbers that a program leaves behind for a token, the square among them, up to a power of two."""
        return 1 << self.maps.bit_length()

    @property
    def side(self) -> int:
        """Streams, up to a power of two."""
        return 1 << (self.streams - 1).bit_length()

    @property
    def padded(self) -> bool:
        """Whether blocks have places for streams that are not there."""
        return self.side != self.streams

    def tiles(self) -> Sequence[Tile]:
        """Return channels of each stream for a program, and how many the last one reads at once."""
        if not self.maps:
            return [Tile({"BLOCK": 256 * warps}, warps) for warps in (1, 2, 4)]
        chunk = min(1 << (self.width - 1).bit_length(), 4096)
        shapes = ((32, 8), (64, 8), (64, 4), (32, 4), (128, 8))
        return [Tile({"BLOCK": block, "CHUNK": chunk}, warps) for block, warps in shapes]

    def entries(self, dtype: str) -> Sequence[Entry]:
        """Return the one function; maps are in float32 whatever the streams are in."""
        x, weight, wide = f"*{dtype}", f"*{self.weights or dtype}", "*fp32"
        arguments = {"rows" if self.comes == "spread" else "streams": x}
        if self.comes == "written":
            arguments |= {"added": x, "post": wide, "comb": wide}
        if self.maps:
            arguments |= {"fn": weight, "base": weight, "scale": weight}
        if self.comes != "whole":
            arguments["out"] = x
        if self.maps:
            arguments["read"] = x
        if self.gives == "maps":
            arguments |= {"new_post": wide, "new_comb": wide}
        if self.maps:
            arguments |= {"partial": wide, "arrived": "*i32"}
        return [Entry(f"{self.name}_kernel", arguments)]

    def moved(self, width: int, batch: int, context: int) -> Moved:
        """Return what one call moves: each program leaves sums behind, and the last one reads the streams again."""
        n, m, wide = self.streams, self.width, 4
        whole, maps = n * m * width, (n + n * n) * wide
        taken = {"whole": whole, "written": whole + m * width + maps, "spread": m * width}[self.comes] * batch
        stored = 0 if self.comes == "whole" else whole * batch
        if self.gives == "none":
            return Moved(taken, stored, taken + stored)
        item = width if self.weights is None else {"fp32": 4, "bf16": 2, "fp16": 2}[self.weights]
        scales = 3 if self.gives == "maps" else 1
        fn = (self.maps * (n * m + 1) + scales) * item
        given = (m * width + (maps if self.gives == "maps" else 0)) * batch
        least = taken + fn + stored + given
        parts = batch * -(-m // self.tiles()[0].sizes["BLOCK"])
        arrived = batch * 4
        read = taken + fn + stored + parts * (self.maps + 1) * wide + arrived
        written = stored + given + parts * self.sums * wide + arrived
        return Moved(read, written, least, flops=2 * batch * self.maps * n * m)


def examples() -> list[Streams]:
    """Return the boundaries of the models that have some."""
    found = [
        Streams("hyper_read", 4, 4096, comes="whole", weights="fp32"),
        Streams("hyper_write", 4, 4096, gives="none"),
        Streams("hyper_first_pro", 4, 7168, comes="spread", weights="fp32"),
    ]
    for label, width in (("flash", 4096), ("pro", 7168)):
        found.append(Streams(f"hyper_{label}", 4, width, weights="fp32"))
        found.append(Streams(f"hyper_{label}_narrow", 4, width))
        found.append(Streams(f"hyper_{label}_last", 4, width, gives="collapsed", weights="fp32"))
    return found
