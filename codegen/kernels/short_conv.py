"""Short convolutions along the sequence, channel by channel: a step of one token (specs/kernels.md, K11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from regraft.codegen.kernels.kernel import Entry, Kernel, Moved, Tile


@dataclass(frozen=True)
class Convolution:
    """One of the convolutions that a launch computes.

    Attributes:
        channels: Channels.
        taps: Its length; the last tap is this token's.
        bias: Whether a bias is added.
        activation: What is applied then.
    """

    channels: int
    taps: int
    bias: bool = False
    activation: str | None = None


@dataclass(frozen=True)
class ShortConv(Kernel):
    """Constants of convolutions that do not depend on each other.

    Attributes:
        name: The custom op's.
        convs: The convolutions.
    """

    template: ClassVar[str] = "short_conv.py.j2"
    name: str
    convs: tuple[Convolution, ...]

    @property
    def given(self) -> list[str]:
        """Names of what it is given, in order."""
        parts = (("x", "tail", "weight", *(("bias",) if conv.bias else ())) for conv in self.convs)
        return [*(f"{part}_{n}" for n, names in enumerate(parts) for part in names), "count"]

    @property
    def tails(self) -> list[str]:
        """Names of what it changes."""
        return [f"tail_{n}" for n in range(len(self.convs))]

    def tiles(self) -> Sequence[Tile]:
        """Return blocks of channels."""
        return [Tile({"BLOCK": block}, warps) for block, warps in ((512, 2), (512, 1), (1024, 4), (256, 1))]

    def programs(self, tile: Tile, batch: int) -> int:
        """Return one for each block of channels and sequence."""
        return sum(-(-conv.channels // tile.sizes["BLOCK"]) for conv in self.convs) * batch

    def entries(self, dtype: str) -> Sequence[Entry]:
        """Return the one function."""
        results = [f"y_{n}" for n in range(len(self.convs))]
        arguments = {**dict.fromkeys(self.given, f"*{dtype}"), "count": "*i64", **dict.fromkeys(results, f"*{dtype}")}
        return [Entry(f"{self.name}_kernel", arguments)]

    def moved(self, width: int, batch: int, context: int) -> Moved:
        """Return the weights once, the rest for each sequence; the context does not matter."""
        channels = sum(conv.channels for conv in self.convs) * width * batch
        tails = sum(conv.channels * (conv.taps - 1) for conv in self.convs) * width * batch
        weights = sum(conv.channels * (conv.taps + conv.bias) for conv in self.convs) * width
        read, written = weights + tails + channels + 8 * batch, tails + channels
        return Moved(read, written, least=weights + 2 * tails)


def examples() -> list[Kernel]:
    """Return the convolutions of known models."""
    return [ShortConv("short_conv", (Convolution(8192, 4, activation="silu"),))]  # Qwen3-Next-80B-A3B
