"""What memories hold, in each of the conventions that people count them by."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from regraft.ir.graph import Graph, layer_of, relative
from regraft.ir.op import Op, Value
from regraft.ir.ops.attn import KV, Attend
from regraft.ir.ops.compress import Compressed
from regraft.ir.ops.index import Index
from regraft.ir.ops.memory import ViewRows
from regraft.ir.ops.seq import Conv, Delta, Tail
from regraft.ir.types import ITEM_BITS, MemoryType

CONVENTIONS = {  # of the fields of CacheFacts
    "bytes": "exact: the rows that this model holds, windows capped, a memory that several layers read once",
    "bytes_without_windows": "exact, if no memory forgot rows",
    "bytes_without_sharing": "exact, if every layer that reads another layer's memory kept its own",
    "bytes_without_either": "exact, with neither windows nor sharing",
    "bytes_as_article": "as overview articles count: no windows, one head width in all layers, shared memories once",
    "bytes_as_article_without_sharing": "as overview articles count, if every layer kept its own",
    "bytes_transformers": "what the dynamic cache of transformers 5.23 holds after these tokens, fixed parts included",
    "bytes_served": "the rows as the vendor serves them, in float8 with scales; none where it has not said",
    "bytes_uniform": "the usual formula: layers x tokens x 2 x KV heads x head width, heads as in the first layer",
}

# A head width of the published comparison of KV sharing that no layer of the model has, by family and layers: the
# model's width divided by its query heads. Source: specs/gemma4.md, section 9.
_ARTICLE_WIDTHS = {("gemma4", 42): 320}
# Bytes of a row as it is served, by the channels that it has: values in float8 with their scales, what turns in bf16,
# index keys in float4 or float8. Sources: specs/deepseek_v4.md, section 14 (format C); specs/mla.md, section 8.
_SERVED = {"deepseek_v4": {512: 584, 128: 68}, "deepseek_v32": {576: 656, 128: 132}}
_NOT_IN_TRANSFORMERS = ("openelm",)  # published with code of their own


@dataclass(frozen=True)
class CacheFacts:
    """Bytes of the memories of all sequences of one length, each field by a convention of `CONVENTIONS`.

    Bytes that are held at any length count in ``bytes_transformers`` alone. That is none where transformers has no
    class for the family, and ``bytes_served`` where the vendor has not said how it serves rows like these.
    """

    bytes: int
    bytes_without_windows: int
    bytes_without_sharing: int
    bytes_without_either: int
    bytes_as_article: int
    bytes_as_article_without_sharing: int
    bytes_transformers: int | None
    bytes_served: int | None
    bytes_uniform: int


@dataclass(frozen=True)
class MemoryFacts:
    """Memories that are alike: what they hold, which layers own one, and which layers read that of another.

    Attributes:
        name: The name that they share, with ``*`` for the layer; it identifies a cache across programs.
        holds: What a row is, in words.
        row: The fields of a row, as ``k 8 × 128, v 8 × 128``.
        dtype: Of the rows.
        row_bytes: Bytes of a row.
        window: How many of the last rows are kept at most, none for all.
        first: How many of a sequence's first rows are kept beside a window.
        fixed: How many rows are held whatever the length, where that is what the memory does.
        rate: How many tokens make a row, where that is more than one.
        bytes_per_token: What a further token adds to each of them for good; none adds to a window that is full.
        fixed_bytes: What each of them holds whatever the length, unfinished rows at their worst case.
        owners: The layers that keep one.
        readers: Each owner that others read, and these layers.
    """

    name: str
    holds: str
    row: str
    dtype: str
    row_bytes: int
    window: int | None
    first: int
    fixed: int | None
    rate: int | None
    bytes_per_token: Fraction
    fixed_bytes: int
    owners: tuple[int, ...]
    readers: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def kept(self) -> str:
        """What is kept of a sequence, in words."""
        if self.fixed is not None:
            return "at any length"
        if self.rate is not None:
            return f"a row for every {self.rate} tokens"
        first = f"the first {self.first:,} and " if self.first else ""
        return "of every token" if self.window is None else f"of {first}the last {self.window:,} tokens"


class Memories:
    """The memories of a graph, those that are alike together.

    Args:
        graph: A verified graph.
        batch: Sequences.
    """

    def __init__(self, graph: Graph, batch: int = 1) -> None:
        self.family = str(graph.meta.get("family", ""))
        self.layers = graph.layer_count()
        self.batch = batch
        groups: dict[tuple[str, object], list[Value]] = {}
        for memory in graph.memories():
            groups.setdefault((relative(memory.name), memory.type), []).append(memory)
        self.groups = tuple(groups.values())
        self._attends = next((op for op in graph.ops if isinstance(op, Attend)), None)
        self._recurrent = {layer_of(op.results[0].name) for op in graph.ops if isinstance(op, Delta)}
        self._pooling = {layer_of(op.results[0].name) for op in graph.ops if isinstance(op, Compressed)}

    @property
    def dtype(self) -> str | None:
        """The dtype of the first memory, none where there is no memory."""
        return self.groups[0][0].memory.dtype if self.groups else None

    @property
    def fixed_bytes(self) -> int:
        """Bytes that all sequences hold whatever their length, unfinished rows at their worst case."""
        return sum(fixed_bytes(group[0]) * len(group) for group in self.groups) * self.batch

    @property
    def bytes_per_token(self) -> Fraction:
        """Bytes that a further token of one sequence adds for good."""
        return sum((bytes_per_token(group[0].memory) * len(group) for group in self.groups), Fraction())

    def facts(self) -> tuple[MemoryFacts, ...]:
        """Return what there is to say of each group of memories that are alike."""
        return tuple(memory_facts(group) for group in self.groups)

    def held(self, context: int) -> int:
        """Return the bytes of the rows of sequences of ``context`` tokens, without what is held at any length."""
        return self._sum(lambda kept: 0 if kept.fixed is not None else kept.rows(context))

    def at(self, context: int) -> CacheFacts:
        """Return the bytes at a context, by every convention."""
        held, all_rows = self.held(context), self._sum(lambda kept: _all_rows(kept, context))
        own, all_own = (self._own(context, windows) for windows in (True, False))
        article = self._article_row()
        return CacheFacts(
            bytes=held,
            bytes_without_windows=all_rows,
            bytes_without_sharing=held + own,
            bytes_without_either=all_rows + all_own,
            bytes_as_article=self._article(article, context, sharing=True),
            bytes_as_article_without_sharing=self._article(article, context, sharing=False),
            bytes_transformers=self._transformers(context),
            bytes_served=self._served(context),
            bytes_uniform=self._uniform_row() * self.layers * context * self.batch,
        )

    def _sum(self, rows: Callable[[MemoryType], int]) -> int:
        kinds = ((group[0].memory, len(group)) for group in self.groups)
        return sum(rows(kept) * kept.row_bytes * count for kept, count in kinds) * self.batch

    def _own(self, context: int, windows: bool) -> int:
        """Return what the readers of others' memories would hold, each its own."""
        total = 0
        for memory in (memory for group in self.groups for memory in group):
            kept = memory.memory
            for reader in other_readers(memory):
                shown = [reader.attributes.get(name) if windows else None for name in ("window", "first")]
                window, first = (number if isinstance(number, int) else None for number in shown)
                total += kept.with_window(window, first or 0).rows(context) * kept.row_bytes
        return total * self.batch

    def _uniform_row(self) -> int:
        """Return the bytes of keys and values of a token as the first layer that attends reads them."""
        if self._attends is None:
            return 0
        read = self._attends.memory.memory
        heads, width = read.fields[0].shape
        return heads * (width + read.fields[-1].shape[-1]) * ITEM_BITS[read.dtype] // 8

    def _article_row(self) -> int:
        width = _ARTICLE_WIDTHS.get((self.family, self.layers))
        if width is None or self._attends is None:
            return self._uniform_row()
        read = self._attends.memory.memory
        return read.fields[0].shape[0] * 2 * width * ITEM_BITS[read.dtype] // 8

    def _article(self, row: int, context: int, *, sharing: bool) -> int:
        total = 0
        for group in self.groups:
            kept = group[0].memory
            count = len(group) + (0 if sharing else sum(len(other_readers(memory)) for memory in group))
            total += _all_rows(kept, context) * (row if isinstance(group[0].op, KV) else kept.row_bytes) * count
        return total * self.batch

    def _transformers(self, context: int) -> int | None:
        if self.family in _NOT_IN_TRANSFORMERS:
            return None
        return sum(self._dynamic_cache(memory, context) for group in self.groups for memory in group) * self.batch

    def _served(self, context: int) -> int | None:
        sizes, kept = _SERVED.get(self.family, {}), [(group[0].memory, len(group)) for group in self.groups]
        if not kept or any(memory.row_elements not in sizes for memory, _ in kept):
            return None
        return sum(sizes[memory.row_elements] * memory.rows(context) * n for memory, n in kept) * self.batch

    def _dynamic_cache(self, memory: Value, context: int) -> int:
        """Return the bytes that transformers holds for one memory of one sequence.

        Between calls a window is kept without the row that the next token replaces; the tails of linear attention are
        as long as the kernel; unfinished windows of a compression grow up to their end; rows that are key and value in
        one are kept as both where the layer pools nothing beside them.
        """
        kept, op = memory.memory, memory.op
        if isinstance(op, Compressed):
            item, width = ITEM_BITS[kept.dtype] // 8, op.bias.tensor.sizes[1]
            overlap = op.rate * kept.row_elements if op.overlap and context >= op.rate else 0
            return kept.rows(context) * kept.row_bytes + 2 * (context % op.rate * width + overlap) * item
        if isinstance(op, Tail) and layer_of(memory.name) in self._recurrent:
            return (kept.rows(context) + 1) * kept.row_bytes
        rows = kept.rows(context) if kept.window is None else min(context, kept.window - 1 + kept.first)
        twice = layer_of(memory.name) not in self._pooling and any(view.v is None for view in _views(memory))
        return rows * kept.row_bytes * (2 if twice else 1)


def _all_rows(kept: MemoryType, context: int) -> int:
    return 0 if kept.fixed is not None else kept.with_window(None).rows(context)


def fixed_bytes(memory: Value) -> int:
    """Return the bytes that a memory of one sequence holds whatever the length."""
    return 0 if memory.op is None else memory.op.cost({"B": 1, "T": 0, "S": 0}).cache


def bytes_per_token(kept: MemoryType) -> Fraction:
    """Return the bytes that a further token adds to a memory for good: none where a window is full."""
    if kept.window is not None or kept.fixed is not None:
        return Fraction()
    return Fraction(kept.row_bytes, kept.rate or 1)


def other_readers(memory: Value) -> list[Op]:
    """Return one reading op for each layer that reads the memory of another layer."""
    home = layer_of(memory.name)
    readers = {layer_of(op.results[0].name): op for op in memory.users if op.reads_memory}
    readers.pop(home, None)
    return list(readers.values())


def memory_facts(group: Sequence[Value]) -> MemoryFacts:
    """Return what there is to say of memories that are alike."""
    first = group[0]
    kept = first.memory
    shared = {m: sorted(layer_of(op.results[0].name) or 0 for op in other_readers(m)) for m in group}
    return MemoryFacts(
        name=relative(first.name),
        holds=_holds(first),
        row=", ".join(f"{field.name} {' × '.join(map(str, field.shape))}" for field in kept.fields),
        dtype=kept.dtype,
        row_bytes=kept.row_bytes,
        window=kept.window,
        first=kept.first,
        fixed=kept.fixed,
        rate=kept.rate,
        bytes_per_token=bytes_per_token(kept),
        fixed_bytes=fixed_bytes(first),
        owners=tuple(layer_of(m.name) or 0 for m in group),
        readers=tuple((layer_of(m.name) or 0, tuple(layers)) for m, layers in shared.items() if layers),
    )


def _holds(memory: Value) -> str:
    """Return what a row of a memory is, in words, from who made it and who reads it."""
    kept, op = memory.memory, memory.op
    shape = kept.fields[0].shape
    width = math.prod(shape)
    if isinstance(op, KV):
        return f"keys and values, {_heads(kept)}"
    if isinstance(op, Delta):
        return f"recurrent matrices, {shape[0]} of {shape[1]} × {shape[2]}"
    readers = list(memory.users)
    if isinstance(op, Tail):
        before = "a convolution" if any(isinstance(reader, Conv) for reader in readers) else "a shift by one token"
        return f"last {'row' if kept.fixed == 1 else f'{kept.fixed} rows'} of {width}, for {before}"
    what = "pooled " if isinstance(op, Compressed) else ""
    views = _views(memory)
    if isinstance(op, Compressed) and len(views) == 1 and views[0].v is not None:
        return f"pooled keys and values, {_heads(views[0].out.memory)}"
    if any(isinstance(reader, Index) for reader in _readers_of_rows(memory)):
        return f"{what}index keys of {width}"
    if any(view.v is None for view in views):
        return f"{what}rows of {width} that are key and value in one"
    return f"{what}latents of {width}, for the keys and values of all heads" if views else f"{what}rows of {width}"


def _heads(kept: MemoryType) -> str:
    """Return how many heads there are of keys and values, and how wide they are: ``8 heads of 128``."""
    heads, width = kept.fields[0].shape
    values = kept.fields[-1].shape[-1]
    wide = f"{width}" if values == width else f"{width} and {values}"
    return f"{heads} {'head' if heads == 1 else 'heads'} of {wide}"


def _readers_of_rows(memory: Value) -> list[Op]:
    """Return the ops that read a memory, or a view of it."""
    return [reader for value in (memory, *(view.out for view in _views(memory))) for reader in value.users]


def _views(memory: Value) -> list[ViewRows]:
    return [reader for reader in memory.users if isinstance(reader, ViewRows)]
