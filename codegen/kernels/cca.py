"""K6: what stands between the latent projections and the attention of CCA (specs/kernels.md; specs/zaya_cca.md, 3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from regraft.codegen.kernels.kernel import Entry, Kernel, Moved, Tile


@dataclass(frozen=True)
class Latent(Kernel):
    """Constants of compressed convolutional attention.

    Attributes:
        name: The custom op's.
        heads: Query heads.
        kv_heads: Key/value heads.
        width: Channels of a head.
        taps: Lengths of the two convolutions, the depthwise one first; 0 where the other one does what both did.
        channels: Of a head, those that turn: channel ``i`` with ``i + channels / 2``.
        eps: Least root mean square that queries and keys are divided by.
        initial: Whether the values' tail starts with a row of its own, not with zeros.
    """

    name: str
    heads: int
    kv_heads: int
    width: int
    taps: tuple[int, int]
    channels: int
    eps: float
    initial: bool = False

    @property
    def packed(self) -> int:
        """Channels of queries and keys, one head after another."""
        return (self.heads + self.kv_heads) * self.width

    @property
    def half(self) -> int:
        """Channels of the values that come at once, and of those that come one token late."""
        return self.kv_heads * self.width // 2

    @property
    def weights(self) -> int:
        """Numbers of both convolutions and of the keys' factors."""
        both = self.packed * (self.taps[0] + self.width * self.taps[1] + (2 if self.taps[0] else 1))
        return both + self.kv_heads + (self.half if self.initial else 0)

    @property
    def tails(self) -> int:
        """Numbers that are carried from token to token."""
        return self.packed * sum(taps - 1 for taps in self.taps if taps) + self.half

    @property
    def block(self) -> int:
        """Channels of a head, up to a power of two."""
        return 1 << (self.width - 1).bit_length()

    @property
    def deep(self) -> int:
        """Numbers in a row of the second convolution, up to a power of two."""
        return 1 << (self.width * self.taps[1] - 1).bit_length()

    def pointers(self, dtype: str, before: Sequence[str], after: Sequence[str]) -> dict[str, str]:
        """Return the types of a function's arguments: tails and weights stand between those of its own."""
        tails = (*(("tail_0",) if self.taps[0] else ()), "tail_1", "tail_v", *(("initial",) if self.initial else ()))
        weights = ("cos", "sin", "start", "count", *(("w0", "b0") if self.taps[0] else ()), "w1", "b1", "factor")
        whole = {"start": "*i64", "count": "*i64"}
        return {name: whole.get(name, f"*{dtype}") for name in (*before, *tails, *weights, *after)}


@dataclass(frozen=True)
class CCA(Latent):
    """A step of one token: convolutions, coupling, norm, rotation, and what is kept of all that, in one launch.

    Attributes:
        window: Whether the memory is a ring.
        first: Rows at its start that stay where they are.
    """

    template: ClassVar[str] = "cca.py.j2"
    window: bool = False
    first: int = 0

    def tiles(self) -> Sequence[Tile]:
        """Return one size, a head, and several numbers of warps: the head's weights are all in flight at once."""
        return [Tile(warps=8), Tile(warps=16), Tile(warps=4)]

    def programs(self, tile: Tile, batch: int) -> int:
        """Return one for each head and sequence."""
        return (self.heads + self.kv_heads) * batch

    def entries(self, dtype: str) -> Sequence[Entry]:
        """Return the one function."""
        arguments = self.pointers(dtype, ("q_proj", "k_proj", "v_now", "v_later", "keys", "values"), ("q",))
        return [Entry(f"{self.name}_kernel", {**arguments, "rows": "i32"})]

    def moved(self, width: int, batch: int, context: int) -> Moved:
        """Return the weights once, the rest for each sequence; the context does not matter."""
        x = (self.packed + 2 * self.half) * width * batch
        weights = self.weights * width
        tails = self.tails * width * batch
        rows = 4 * self.half * width * batch  # a row of keys and one of values
        return Moved(
            read=x + weights + tails + 2 * self.channels * width * batch + 2 * 8 * batch,
            written=self.heads * self.width * width * batch + rows + tails,
            least=weights + 2 * tails + rows,
            flops=2 * self.packed * (self.taps[0] + self.width * self.taps[1]) * batch,
        )


@dataclass(frozen=True)
class CCARows(Latent):
    """The same for all tokens of a call; rows are kept elsewhere, tails are returned."""

    template: ClassVar[str] = "cca_rows.py.j2"

    def tiles(self) -> Sequence[Tile]:
        """Return blocks of tokens, and of the second convolution's weights: chunks keep shared memory small."""
        shapes = ((32, 64, 8), (64, 128, 8), (16, 64, 4), (32, 128, 8))
        return [Tile({"TOKENS": tokens, "CHUNK": min(chunk, self.deep)}, warps) for tokens, chunk, warps in shapes]

    def entries(self, dtype: str) -> Sequence[Entry]:
        """Return the one function."""
        arguments = self.pointers(dtype, ("x",), ("q", "k", "v", "new_0", "new_1", "new_v"))
        return [Entry(f"{self.name}_kernel", {**arguments, "length": "i32"})]

    def moved(self, width: int, batch: int, context: int) -> Moved:
        """Return what all tokens of an empty cache's first call move: each is read and written once."""
        tokens = batch * context
        read = (self.packed + 2 * self.half) * width * tokens
        written = (self.packed + 2 * self.half) * width * tokens  # queries, keys, and as many values
        weights, tails = self.weights * width, self.tails * width * batch
        return Moved(
            read=read + 2 * self.channels * width * tokens + weights + tails + 2 * 8 * batch,
            written=written + tails,
            least=read + written + weights + 2 * tails,
            flops=2 * self.packed * (self.taps[0] + self.width * self.taps[1]) * tokens,
        )


def examples() -> list[Kernel]:
    """Return the shapes of models that have it."""
    eps = 2.0**-7 * 128**-0.5
    return [  # ZAYA1-8B
        CCA("cca", heads=8, kv_heads=2, width=128, taps=(2, 2), channels=64, eps=eps),
        CCARows("cca_rows", heads=8, kv_heads=2, width=128, taps=(2, 2), channels=64, eps=eps),
    ]
