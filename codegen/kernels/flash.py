"""K12: attention of a call of many tokens, computed block by block without its scores ever being stored."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from regraft.codegen.kernels.kernel import Entry, Kernel, Moved, Tile

LIBRARY_WIDTH = 256  # channels of a head up to which torch's scaled_dot_product_attention has fused kernels

WIDEST_SUM = 256  # channels of values that a program has registers to sum


def _power(number: int) -> int:
    """Return the least power of two that is at least a number, and 16, the least side of a matrix unit's tile."""
    return max(16, 1 << (number - 1).bit_length())


@dataclass(frozen=True)
class Piece:
    """Tokens whose rows stand one after the other: expressions of their positions, and of what leads to rows."""

    what: str
    first: str
    end: str
    shift: str


@dataclass(frozen=True)
class Flash(Kernel):
    """Attention of T tokens to rows of earlier calls and their own, Dao et al. 2022, "FlashAttention".

    Attributes:
        name: The custom op's.
        heads: Query heads.
        kv_heads: Key heads.
        width: Channels of a query or key.
        value_width: Channels of a value.
        scale: Factor of products; above 0.
        window: Tokens that a query sees, its own the last; all if None.
        first: Tokens at the start of the sequence that it sees beside a window.
        kept: Tokens at the start of the sequence that a windowed memory keeps in slots of their own.
        rate: A window starts with a block of so many tokens.
        softcap: Scores s become ``softcap * tanh(s / softcap)``.
        sink: Whether each head has a learned score that takes a share of the softmax, without a value.
        head_map: The key head that each head reads; as many heads for each in order if None.
        shared: Whether the first ``value_width`` channels of keys are the values.
    """

    template = "flash.py.j2"

    name: str
    heads: int
    kv_heads: int
    width: int
    value_width: int
    scale: float
    window: int | None = None
    first: int = 0
    kept: int = 0
    rate: int = 1
    softcap: float | None = None
    sink: bool = False
    head_map: tuple[int, ...] | None = None
    shared: bool = False

    log2e = math.log2(math.e)

    @property
    def group(self) -> int:
        """Heads of a program that read one key head; their queries are rows of one product."""
        return 1 if self.head_map is not None else self.heads // self.kv_heads

    @property
    def even_blocks(self) -> bool:
        """Whether any block of rows holds whole groups."""
        return self.group <= 16 and self.group & (self.group - 1) == 0

    @property
    def pairs(self) -> int:
        """Programs for each block of tokens of a sequence."""
        return self.heads // self.group * self.parts

    @property
    def turns(self) -> list[tuple[int, int]]:
        """The heads from which on another key head is read, and which."""
        heads = self.head_map or ()
        return [(at, heads[at]) for at in range(1, len(heads)) if heads[at] != heads[at - 1]]

    @property
    def main(self) -> int:
        """Channels of the first of a score's two products, a power of two; what a width has beyond it is `rest`."""
        below = max(16, 1 << (self.width.bit_length() - 1))
        whole = below + _power(self.width - below) >= _power(self.width) if self.width > below else True
        return _power(self.width) if whole or (self.shared and self.value_width > below) else below

    @property
    def rest(self) -> int:
        """Channels of a score's second product, padded to a power of two; 0 if there is none."""
        return _power(self.width - self.main) if self.width > self.main else 0

    @property
    def value_block(self) -> int:
        """Channels of values that a program sums, a power of two."""
        return self.main if self.shared else min(_power(self.value_width), WIDEST_SUM)

    @property
    def parts(self) -> int:
        """Programs that share the channels of wide values; each computes the scores."""
        return 1 if self.shared else -(-self.value_width // self.value_block)

    @property
    def masked_throughout(self) -> bool:
        """Whether one loop with masks takes all keys: beside wide products they cost nothing, two loops registers."""
        return self.main + self.rest > WIDEST_SUM

    @property
    def lead(self) -> int:
        """Tokens at the start of the sequence whose slots are their positions, whatever the ring does."""
        return max(self.first, self.kept)

    @property
    def pieces(self) -> list[Piece]:
        """What a windowed kernel visits in turn."""
        kept = f"{self.kept} - turn" if self.kept else "-turn"
        ring = [
            Piece("the memory's ring, up to its turn", "ringed", "tl.minimum(turn, start)", f"{kept} + ring"),
            Piece("and after it", "tl.maximum(ringed, turn)", "start", kept),
        ]
        call = Piece("the call's rows", "tl.maximum(near, start)", "after", "held - start")
        if not self.lead:
            return [*ring, call]
        first = "0" if self.first else "near"
        lead = [Piece("the memory's first rows", first, f"tl.minimum(past, {self.lead})", "0")]
        if self.first:
            lead += [Piece("those of the call", "start", f"tl.minimum(near, {self.first})", "held - start")]
        return [*lead, *ring, call]

    @property
    def in_library(self) -> bool:
        """Whether torch's own attention computes this for a call without earlier rows."""
        plain = self.window is None and self.softcap is None and not self.sink
        like = not self.shared and self.head_map is None and (self.width == self.value_width or self.group == 1)
        return plain and like and max(self.width, self.value_width) <= LIBRARY_WIDTH

    def tiles(self) -> Sequence[Tile]:
        if self.value_block > WIDEST_SUM:  # keys that are values are summed whole
            cuts = [(32, 16, 4, 1), (32, 32, 8, 1), (32, 32, 8, 2)]
        elif self.main + self.rest > 256:
            cuts = [(32, 32, 4, 1), (64, 32, 8, 2), (64, 16, 8, 2), (32, 32, 8, 2)]
        elif self.value_block > 128:
            cuts = [(64, 32, 8, 2), (128, 32, 8, 2), (64, 64, 8, 2), (128, 64, 8, 2)]
        else:
            cuts = [(64, 32, 4, 2), (128, 64, 8, 2), (128, 128, 8, 2), (64, 64, 4, 2)]
        return [Tile({"BM": rows, "BN": keys}, warps, stages) for rows, keys, warps, stages in cuts]

    def entries(self, dtype: str) -> Sequence[Entry]:
        tensors = ["q", "k", *([] if self.shared else ["v"]), *(["sink"] if self.sink else [])]
        pointers = {f"{tensor}_ptr": f"*{dtype}" for tensor in tensors}
        pointers |= {"start_ptr": "*i64", "count_ptr": "*i64", "out_ptr": f"*{dtype}", "lse_ptr": "*fp32"}
        sizes = {"batch": "i32", "length": "i32", "held": "i32"}
        return [Entry(f"{self.name}_kernel", pointers | sizes)]

    def seen(self, context: int) -> int:
        """Return how many pairs of a query and a key there are in a sequence of `context` tokens."""
        if self.window is None:
            return context * (context + 1) // 2
        oldest = (max(at - self.window + 1, 0) for at in range(context))
        starts = (-(-position // self.rate) * self.rate for position in oldest)
        return sum(max(at + 1 - start, 0) + min(self.first, start, at + 1) for at, start in enumerate(starts))

    def moved(self, width: int, batch: int, context: int) -> Moved:
        """Return what a call of `context` tokens moves that no others come before."""
        rows = self.kv_heads * (self.width + (0 if self.shared else self.value_width)) * width
        read = context * (self.heads * self.width * width + rows) + 16
        written = context * self.heads * self.value_width * width
        log = context * self.heads * 4
        sink = self.heads * width if self.sink else 0
        flops = 2 * self.heads * (self.width + self.value_width) * self.seen(context)
        least = batch * (read + written) + sink
        return Moved(batch * read + sink, batch * (written + log), least, flops=batch * flops)


def examples() -> list[Kernel]:
    """Return the kernel for layers of real models."""
    return [
        Flash("llama_3_8b", 32, 8, 128, 128, 128**-0.5),
        Flash("gemma_4_e2b_near", 8, 1, 256, 256, 1.0, window=512),
        Flash("gemma_4_31b_near", 32, 16, 256, 256, 1.0, window=1024),
        Flash("gemma_4_31b_far", 32, 4, 512, 512, 1.0),
        Flash("laguna_xs_2_near", 64, 8, 128, 128, 128**-0.5, window=512),
        Flash("laguna_xs_2_far", 48, 8, 128, 128, 128**-0.5),
        Flash("gpt_oss_20b_near", 64, 8, 64, 64, 0.125, window=128, sink=True),
        Flash("deepseek_v3", 128, 128, 192, 128, 192**-0.5),
    ]
