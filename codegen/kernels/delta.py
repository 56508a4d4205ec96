"""The gated delta rule: a step of one token, from queries, keys and values side by side.

Source: Yang et al. 2024, "Gated Delta Networks".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from regraft.codegen.kernels.kernel import Entry, Kernel, Moved, Tile
from regraft.codegen.kernels.short_conv import Convolution


@dataclass(frozen=True)
class Heads:
    """Where queries, keys or values of all heads stand, and what is done to each head.

    Attributes:
        start: The first of their channels.
        eps: Added to a head's mean square where it is normed; none if it is not.
        factor: What it is multiplied by then.
    """

    start: int
    eps: float | None = None
    factor: float = 1.0


@dataclass(frozen=True)
class DeltaRule(Kernel):
    """Constants of a step, one launch; value head ``j`` takes queries and keys of head ``j // group``.

    Attributes:
        name: The custom op's.
        channels: Channels of the value that queries, keys and values are parts of.
        heads: Heads of queries and keys.
        value_heads: Heads of values, a matrix ``[width, value_width]`` in float32 for each.
        width: Channels of a query or key.
        value_width: Channels of a value.
        q: The queries.
        k: The keys.
        v: The values, as they are.
        norm: Added to the mean square of what a head reads where that is normed; none if it is not.
        weighted: Whether the norm has a weight.
        offset: Added to the weight.
        gated: Whether the result is multiplied by a gate.
        conv: What makes queries, keys and values of what is given, if that is not they themselves: each program
            convolves those it needs, and the last that needs a tail's channels moves them on.
    """

    template: ClassVar[str] = "delta.py.j2"
    name: str
    channels: int
    heads: int
    value_heads: int
    width: int
    value_width: int
    q: Heads
    k: Heads
    v: Heads
    norm: float | None = None
    weighted: bool = False
    offset: float = 0.0
    gated: bool = False
    conv: Convolution | None = None

    @property
    def group(self) -> int:
        """Value heads of a key head."""
        return self.value_heads // self.heads

    @property
    def given(self) -> list[str]:
        """Names of what it is given, in order; ``state`` and ``tail`` are changed."""
        front: tuple[str, ...] = ()
        if self.conv is not None:
            front = ("tail", "conv_weight", *(["conv_bias"] if self.conv.bias else []))
        after = (*(["norm_weight"] if self.weighted else []), *(["gate"] if self.gated else []))
        return ["x", *front, "a", "a_log", "dt_bias", "beta", "state", *after, "count"]

    @property
    def meetings(self) -> int:
        """Counters of a sequence: of each head's programs, and of heads that share queries and keys to convolve."""
        shared = self.heads if self.conv is not None and self.group > 1 else 0
        return 0 if self.norm is None and self.conv is None else self.value_heads + shared

    def power(self, size: int) -> int:
        """Return the power of two that a size fits in."""
        return 1 << (size - 1).bit_length()

    def tiles(self) -> Sequence[Tile]:
        """Return value channels of a program; where these are not all of a head, its last program norms the head."""
        most = self.power(self.value_width)
        shapes = ((32, 8), (32, 4), (64, 8), (128, 16), (128, 8), (16, 4))
        cut = dict.fromkeys((min(block, most), warps) for block, warps in shapes)
        return [Tile({"BLOCK": block}, warps) for block, warps in cut]

    def parts(self, tile: Tile) -> int:
        """Return how many programs a head has."""
        return -(-self.value_width // tile.sizes["BLOCK"])

    def programs(self, tile: Tile, batch: int) -> int:
        """Return one for each block of a head's value channels and sequence."""
        return self.parts(tile) * self.value_heads * batch

    def entries(self, dtype: str) -> Sequence[Entry]:
        """Return the one function."""
        arguments = dict.fromkeys(self.given, f"*{dtype}") | {"state": "*fp32", "count": "*i64", "y": f"*{dtype}"}
        if self.norm is not None:
            arguments["read"] = "*fp32"
        if self.meetings:
            arguments["arrived"] = "*i32"
        return [Entry(f"{self.name}_kernel", arguments)]

    def moved(self, width: int, batch: int, context: int) -> Moved:
        """Return weights once, the rest for each sequence; the context does not matter."""
        values = self.value_heads * self.value_width
        matrices = 4 * values * self.width * batch
        weights = (2 * self.value_heads + self.weighted * self.value_width) * width
        rows = 2 * self.heads * self.width + values + 2 * self.value_heads + self.gated * values
        met = 4 * (self.meetings - self.value_heads) * batch if self.meetings else 0
        if self.parts(self.cut) > 1 and self.meetings:
            met += 4 * ((self.norm is not None) * values + self.value_heads) * batch
        tails = 0
        if self.conv is not None:
            weights += self.channels * (self.conv.taps + self.conv.bias) * width
            tails = self.channels * (self.conv.taps - 1) * width * batch
        read = weights + rows * width * batch + tails + matrices + 8 * batch + met
        written = values * width * batch + tails + matrices + met
        return Moved(read, written, least=weights + 2 * (matrices + tails), flops=6 * values * self.width * batch)


def examples() -> list[Kernel]:
    """Return the rule of known models."""
    q, k = Heads(0, 1e-6 / 128, 1 / 128), Heads(2048, 1e-6 / 128, 128**-0.5)
    conv = Convolution(8192, 4, activation="silu")
    next_80b = DeltaRule(
        "delta", 8192, 16, 32, 128, 128, q, k, Heads(4096), norm=1e-6, weighted=True, gated=True, conv=conv
    )
    of_27b = replace(next_80b, channels=10240, value_heads=48, conv=replace(conv, channels=10240))
    return [next_80b, of_27b, replace(next_80b, conv=None)]  # and Qwen3.6-35B-A3B; Qwen3.6-27B; without the convolution
