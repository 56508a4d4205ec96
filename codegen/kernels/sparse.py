"""K8: attention to chosen or pooled rows beside a window of tokens, keys being values too (specs/kernels.md).

All heads share one row of each token. A step norms and turns the token's queries and its row, adds that to the memory,
gathers what was chosen, attends with the work divided over rows, and merges the parts, in one launch.
Source: specs/deepseek_v4.md, sections 6 to 9; specs/mla.md, section 8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from regraft.codegen.kernels.kernel import Constant, Entry, Kernel, Moved, Tile


@dataclass(frozen=True)
class Sparse(Kernel):
    """Constants of attention to gathered rows (`attn.attend` with ``chosen``, ``entries`` or both).

    Attributes:
        name: The custom op's.
        heads: Query heads.
        width: Channels of a query and of a row.
        value_width: The first channels of a row, which are the values.
        scale: What products are multiplied by.
        window: The last tokens, whose rows are seen beside entries; None if rows are chosen of a memory of all tokens.
        rate: Tokens that an entry is made of: it is seen once all of them are there. None if there are no entries.
        chosen: Rows or entries that are chosen for a query; None if it sees all entries.
        sink: Whether each head has a further score, which takes no value.
        q_apart: Whether the channels of queries after ``value_width`` come in a tensor of their own.
        q_eps: Added to the mean square that each query is normed by; None if queries come normed.
        k_eps: The same of the new row, whose norm has a weight.
        k_normed: The first channels of the new row, which alone are normed; all if None.
        turned: The last channels, which turn by the token's position; 0 if queries and the new row come turned.
        layout: Which of them turn together: ``"halves"`` or ``"interleaved"``.
        back: Whether the last channels of the result turn back.
        writes: Whether the new row comes with the call, and is added to the memory.
    """

    template: ClassVar[str] = "sparse.py.j2"
    name: str
    heads: int
    width: int
    value_width: int
    scale: float
    window: int | None = None
    rate: int | None = 1
    chosen: int | None = None
    sink: bool = False
    q_apart: bool = False
    q_eps: float | None = None
    k_eps: float | None = None
    k_normed: int | None = None
    turned: int = 0
    layout: Literal["halves", "interleaved"] = "interleaved"
    back: bool = False
    writes: bool = True

    def __post_init__(self) -> None:
        assert self.window is not None or (self.chosen is not None and self.rate == 1)
        assert self.rate is not None or self.chosen is None
        assert self.k_normed in (None, self.value_width, self.width)
        assert not self.tail or self.turned <= self.tail
        assert not self.back or (self.layout == "interleaved" and self.turned and self.value_width == self.width)

    @property
    def gathers(self) -> bool:
        """Whether there are entries beside a window."""
        return self.window is not None and self.rate is not None

    @property
    def tail(self) -> int:
        """Channels of keys that are no values."""
        return self.width - self.value_width

    @property
    def block(self) -> int:
        """Channels of a tile of values: the power of two from 16 on."""
        return _padded(self.value_width)

    @property
    def tail_block(self) -> int:
        """Channels of a tile of the rest."""
        return _padded(self.tail)

    @property
    def angles(self) -> int:
        """Cosines of a token: halves have one for each channel, interleaved ones for each pair."""
        return self.turned if self.layout == "halves" else self.turned // 2

    @property
    def normed(self) -> int:
        """Channels of the new row that are normed."""
        return self.width if self.k_normed is None else self.k_normed

    @property
    def arguments(self) -> tuple[str, ...]:
        """The step's tensors in order, those left out that this kernel has no use for.

        ``q [B, 1, H, D]``, or ``q [B, 1, H, Dv]`` and ``q_turned [B, 1, H, D - Dv]``; ``k [B, 1, 1, D]``, ``cos`` and
        ``sin [B, 1, 1, channels]``, or one number for each pair of interleaved channels, ``k_norm [D]``, ``sink [H]``,
        ``chosen [B, 1, K]``, ``keys [B, N, 1, D]``, a ring if there is a window, ``entries [B, E, 1, D]``, of which
        those that this token completes are there, ``start [B]``. All are contiguous.
        """
        needed = {
            "q": True,
            "q_turned": self.q_apart,
            "k": self.writes,
            "cos": self.turned > 0,
            "sin": self.turned > 0,
            "k_norm": self.writes and self.k_eps is not None,
            "sink": self.sink,
            "chosen": self.chosen is not None,
            "keys": True,
            "entries": self.gathers,
            "start": True,
        }
        return tuple(name for name, there in needed.items() if there)

    def tiles(self) -> Sequence[Tile]:
        cuts = [
            (16, 16, 4, 2),
            (16, 32, 8, 2),
            (16, 32, 4, 2),
            (16, 64, 8, 2),
            (32, 32, 8, 2),
            (64, 32, 8, 2),
            (16, 16, 4, 1),
        ]
        sizes = {"SPLITS": 16, "LEAST": 128}  # a split's result is as large as many rows
        return [Tile({"HEADS": heads, "ROWS": rows, **sizes}, warps, stages) for heads, rows, warps, stages in cuts]

    def entries(self, dtype: str) -> Sequence[Entry]:
        types = dict.fromkeys(self.arguments, f"*{dtype}") | {"start": "*i64"}
        types |= {"chosen": "*i64"} if self.chosen is not None else {}
        sizes = {"N": "i32"} | ({"E": "i32"} if self.gathers else {})
        scratch = {"out": f"*{dtype}", "parts": "*fp32", "weights": "*fp32", "counters": "*i32"}
        nothing: dict[str, Constant] = {}
        return [
            Entry(f"{self.name}_kernel", {**types, **scratch, **sizes}, nothing),
        ]

    def moved(self, width: int, batch: int, context: int) -> Moved:
        far = 0 if self.rate is None else context // self.rate
        far = far if self.chosen is None else min(far, self.chosen)
        own = 1 if self.writes else 0
        near = 0 if self.window is None else min(self.window, context) - own
        held = far - (own if self.window is None else 0) + near  # rows that are read; the new one need not be
        row = self.width * width
        numbers = 8 * (self.chosen or 0)
        q = (self.heads * self.width + 2 * self.angles) * width
        shared = (self.normed if "k_norm" in self.arguments else 0) * width + (self.heads * width if self.sink else 0)
        merged = self._merged(near, context, batch)
        out = self.heads * self.value_width * width
        return Moved(
            read=batch * (q + (held + own) * row + numbers + 8 + merged) + shared,
            written=batch * (out + own * row + merged),
            least=batch * ((held + own) * row + numbers) + shared,
            flops=batch * 2 * self.heads * (self.width + self.value_width) * (far + near),
        )

    def _merged(self, near: int, context: int, batch: int) -> int:
        """Return the bytes that a sequence's programs leave for each other: results, their weights and arrivals."""
        sizes = self.cut.sizes
        far = 0 if self.rate is None else context // self.rate
        count = (far if self.chosen is None else self.chosen) + near
        splits = max(1, sizes["SPLITS"] // (1 << (batch - 1).bit_length()))
        each = max(sizes["LEAST"], math.ceil(math.ceil(count / splits) / sizes["ROWS"]) * sizes["ROWS"])
        active = max(1, math.ceil(count / each))
        blocks = math.ceil(self.heads / sizes["HEADS"])
        return 4 * (active * self.heads * self.value_width + active * blocks * sizes["HEADS"] + blocks)


@dataclass(frozen=True)
class SparsePrefill(Kernel):
    """The same of many tokens: queries and rows come normed and turned, results are turned back by who takes them.

    A program attends for some heads of one token. The attributes are those of `Sparse`.
    """

    template: ClassVar[str] = "sparse_prefill.py.j2"
    name: str
    heads: int
    width: int
    value_width: int
    scale: float
    window: int | None = None
    rate: int = 1
    chosen: int | None = None
    sink: bool = False

    def __post_init__(self) -> None:
        assert self.window is not None or (self.chosen is not None and self.rate == 1)

    @property
    def tail(self) -> int:
        """Channels of keys that are no values."""
        return self.width - self.value_width

    @property
    def block(self) -> int:
        """Channels of a tile of values: the power of two from 16 on."""
        return _padded(self.value_width)

    @property
    def tail_block(self) -> int:
        """Channels of a tile of the rest."""
        return _padded(self.tail)

    @property
    def arguments(self) -> tuple[str, ...]:
        """The op's tensors in order, those left out that this kernel has no use for.

        ``q [B, T, H, D]``, ``k [B, T, 1, D]``, the new rows beside a window, ``sink [H]``, ``chosen [B, T, K]``, ``keys
        [B, N, 1, D]``, the ring before this call or, without a window, the slots before it, by position, and then the
        call's rows, ``entries [B, E, 1, D]`` after it, ``start [B]``. All are contiguous. What is chosen without a
        window is a place among ``keys``.
        """
        needed = {"q": True, "k": self.window is not None, "sink": self.sink, "chosen": self.chosen is not None}
        needed |= {"keys": True, "entries": self.window is not None, "start": True}
        return tuple(name for name, there in needed.items() if there)

    @property
    def learned(self) -> tuple[str, ...]:
        """The arguments that gradients flow to."""
        return tuple(name for name in self.arguments if name not in ("chosen", "start"))

    def tiles(self) -> Sequence[Tile]:
        cuts = [(16, 16, 4, 2), (64, 32, 8, 2), (64, 16, 8, 2), (32, 32, 8, 2), (16, 32, 8, 2)]
        return [Tile({"HEADS": heads, "ROWS": rows}, warps, stages) for heads, rows, warps, stages in cuts]

    def entries(self, dtype: str) -> Sequence[Entry]:
        types = dict.fromkeys(self.arguments, f"*{dtype}") | {"start": "*i64"}
        types |= {"chosen": "*i64"} if self.chosen is not None else {}
        sizes = {"T": "i32", "N": "i32"} | ({"E": "i32"} if self.window is not None else {})
        return [Entry(f"{self.name}_kernel", {**types, "out": f"*{dtype}", **sizes})]

    def moved(self, width: int, batch: int, context: int) -> Moved:
        """Return what a call moves that brings all of its context: each row is read once, though many tokens see it."""
        tokens, row = batch * context, self.width * width
        far = sum(min(each // self.rate, self.chosen or context) for each in range(1, context + 1))
        near = 0 if self.window is None else sum(min(self.window, each) for each in range(1, context + 1))
        rows = tokens // self.rate + (0 if self.window is None else tokens)
        q, out = tokens * self.heads * row, tokens * self.heads * self.value_width * width
        given = rows * row + 8 * batch + 8 * tokens * (self.chosen or 0) + (self.heads * width if self.sink else 0)
        flops = batch * 2 * self.heads * (self.width + self.value_width) * (far + near)
        return Moved(read=q + given, written=out, least=q + given + out, flops=flops)


def _padded(channels: int) -> int:
    """Return the next power of two, from 16 on."""
    return max(16, 1 << (channels - 1).bit_length())


def examples() -> list[Kernel]:
    """Return the layers of DeepSeek V4 Flash and Pro, chosen and all entries, and V3.2's."""
    chosen = Sparse(
        "sparse_flash",
        heads=64,
        width=512,
        value_width=512,
        scale=512**-0.5,
        window=128,
        rate=4,
        chosen=512,
        sink=True,
        q_eps=1e-6,
        k_eps=1e-6,
        turned=64,
        back=True,
    )
    pooled = replace(chosen, name="sparse_pooled", rate=128, chosen=None)
    latent = Sparse(
        "sparse_latent",
        heads=128,
        width=576,
        value_width=512,
        scale=0.1352337788,
        chosen=2048,
        q_apart=True,
        k_eps=1e-6,
        k_normed=512,
        turned=64,
    )
    pro = replace(chosen, name="sparse_pro", heads=128, chosen=1024)
    many = SparsePrefill("many_flash", 64, 512, 512, 512**-0.5, window=128, rate=4, chosen=512, sink=True)
    many_pooled = replace(many, name="many_pooled", rate=128, chosen=None)
    many_latent = SparsePrefill("many_latent", 128, 576, 512, 0.1352337788, chosen=2048)
    near = replace(pooled, name="sparse_near", rate=None)
    steps = [chosen, near, pooled, pro, replace(pooled, name="sparse_pooled_pro", heads=128), latent]
    return [*steps, many, many_pooled, many_latent]
