"""What kernels for the attention of one token have in common: heads, what is seen, and how the work is divided.

Work is divided along the rows seen. The last program of a group to arrive merges the group, the last group all of
them. Which rows there are is read on the device; the grid depends on shapes only.
Source: Dao et al. 2023, "Flash-Decoding for long-context inference"; specs/kernels.md, K3 and K7.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from regraft.codegen.kernels.kernel import Kernel

PROGRAMS = 264  # two for each of the 132 processors of an H100
FAN = 16  # parts that one program merges, and groups of them: 256 splits at most


@dataclass(frozen=True)
class HeadNorm:
    """Root mean square norm of each head, as `core.norm` without clamp.

    Attributes:
        eps: Added to the mean square.
        weighted: Whether it has a weight.
        offset: Added to the weight.
        width: The first channels, which alone are normed; all if None.
    """

    eps: float
    weighted: bool = True
    offset: float = 0.0
    width: int | None = None


@dataclass(frozen=True)
class Turn:
    """Rotation of some channels of queries and keys, by cosine and sine as the model computes them once a step.

    In ``halves`` both are ``[B, 1, 1, channels]``, the sine signed: ``x * cos + roll(x, channels / 2) * sin``. In
    ``interleaved`` both are ``[B, 1, 1, channels / 2]``.

    Attributes:
        channels: How many turn.
        start: The first of them.
        layout: Whether channel i is paired with i + channels / 2, or 2i with 2i + 1.
        pairs: Pairs that turn at all; the others have angle 0. All if None.
        every: Channels after which the same begins again, where heads stand side by side as one; none do if None.
    """

    channels: int
    start: int = 0
    layout: Literal["halves", "interleaved"] = "halves"
    pairs: int | None = None
    every: int | None = None

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """The channels that turn at all, as ranges."""
        half = self.channels // 2
        pairs = half if self.pairs is None else self.pairs
        if self.layout == "interleaved" or pairs == half:
            return ((self.start, self.start + 2 * pairs),)
        return ((self.start, self.start + pairs), (self.start + half, self.start + half + pairs))


def padded(count: int, least: int = 16) -> int:
    """Return the next power of two; matrix products need 16 of anything."""
    return max(least, 1 << (count - 1).bit_length())


@dataclass(frozen=True)
class Entries:
    """Rows pooled of several tokens each, with keys and values by head: they stand for the tokens before a window.

    Attributes:
        rate: Tokens of a row.
        slots: How many rows the memory holds, which tiles are chosen for.
        bias: What is added to their scores.
        chosen: Only so many of them are seen, which are given by number, those that there are first; all if None.
    """

    rate: int
    slots: int
    bias: float = 0.0
    chosen: int | None = None

    @property
    def seen(self) -> int:
        """How many are seen at most."""
        return self.slots if self.chosen is None else min(self.slots, self.chosen)


@dataclass(frozen=True)
class Attention(Kernel):
    """Attention of one token to a memory.

    Attributes:
        name: The custom op's.
        heads: Query heads.
        kv_heads: Key/value heads.
        width: Channels of a query or key.
        value_width: Channels of a value.
        slots: Rows that the memory holds, which tiles are chosen for; a call takes a memory of any length.
        scale: What products are multiplied by.
        ring: Whether rows go round: position modulo slots. Else each has the slot of its position.
        kept: The first rows of a ring that keep their own slots.
        window: The last rows, which alone are seen; all if None.
        first: The first rows, which are seen beside a window.
        head_map: The key/value head of each query head; evenly dealt if None.
        q_norm: Norm of each query.
        turn: Rotation of queries, and of keys.
        softcap: Scores are squashed to this times tanh(score / this).
        sink: Whether each query head has a further score, which takes no value.
        gate: What each head's result is multiplied by: this function of a number of its own, or of each channel's.
        gate_wide: Whether there is a gate for each channel.
        writes: Whether the token's row is added; a layer that reads another's memory finds it there.
        pooled: Rows that stand for the tokens before a window.
    """

    name: str
    heads: int
    kv_heads: int
    width: int
    value_width: int
    slots: int
    scale: float
    ring: bool = False
    kept: int = 0
    window: int | None = None
    first: int = 0
    head_map: tuple[int, ...] | None = None
    q_norm: HeadNorm | None = None
    turn: Turn | None = None
    softcap: float | None = None
    sink: bool = False
    gate: Literal["sigmoid", "softplus"] | None = None
    gate_wide: bool = False
    writes: bool = True
    pooled: Entries | None = None

    @property
    def groups(self) -> tuple[tuple[int, ...], ...]:
        """The query heads of each key/value head."""
        each = self.head_map or tuple(head // (self.heads // self.kv_heads) for head in range(self.heads))
        return tuple(tuple(head for head in range(self.heads) if each[head] == kv) for kv in range(self.kv_heads))

    @property
    def group(self) -> int:
        """The most query heads of a key/value head."""
        return max(len(group) for group in self.groups)

    @property
    def head_table(self) -> list[list[int]]:
        """The query heads of each key/value head, -1 where it has fewer than others."""
        return [[*group, *(-1 for _ in range(self.group - len(group)))] for group in self.groups]

    @property
    def seen(self) -> int:
        """Rows that a query sees at most."""
        if self.window is None:
            return self.slots
        return min(self.slots, self.window + self.first) + (self.pooled.seen if self.pooled else 0)

    @property
    def held(self) -> int:
        """Rows that there are to see at most, in all memories."""
        return self.slots + (self.pooled.seen if self.pooled else 0)

    @property
    def fan(self) -> int:
        """Parts that one program merges."""
        return FAN

    def pad(self, count: int, least: int = 16) -> int:
        """Return the length of a vector of so many channels."""
        return padded(count, least)

    def merged_bytes(self, found: int, batch: int) -> int:
        """Return the bytes that a sequence's programs leave for each other: results, their weights and arrivals."""
        sizes = self.cut.sizes
        splits = max(1, min(sizes["SPLITS"] // batch, self.held // sizes["LEAST"]))
        rows = sizes["ROWS"]
        even = math.ceil(found / splits)
        each = max(sizes["LEAST"], math.ceil(even / rows) * rows)
        active = math.ceil(found / each)
        if active <= 1:
            return 0
        groups = math.ceil(active / FAN)
        parts = active + (groups if groups > 1 else 0)
        counters = groups + (1 if groups > 1 else 0)
        blocks = self.kv_heads * -(-self.group // sizes["HEADS"])
        return 4 * (parts * (self.heads * self.value_width + blocks * sizes["HEADS"]) + blocks * counters)
