"""The facts card: what ``inspect`` shows a person."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.views.facts import Facts, MemoryFacts, layers_text
from regraft.views.numbers import context, count, flops, size
from regraft.views.table import Block, Heading, table


def card(facts: Facts) -> list[Block]:
    """Return the card as blocks, for any of the ways in which `views.table` shows them."""
    return [
        Heading(_title(facts), 1),
        *_structure(facts),
        *_memories(facts),
        *_parameters(facts),
        *_cache(facts),
        *_decode(facts),
    ]


def _title(facts: Facts) -> str:
    parts = [f"{facts.layers} layers", facts.dtype]
    if facts.vocabulary:
        parts.append(f"vocabulary {facts.vocabulary:,}")
    if facts.trained_context:
        parts.append(f"trained context {facts.trained_context:,}")
    return f"{facts.name}: {facts.family}, {', '.join(part for part in parts if part)}"


def _structure(facts: Facts) -> list[Block]:
    rows = [(kind.name, layers_text(kind.layers), kind.words) for kind in facts.kinds]
    return [Heading("Structure"), table(("block kind", "layers", "made of"), rows, numbers=False)]


def _memories(facts: Facts) -> list[Block]:
    rows = [
        (
            layers_text(memory.owners),
            memory.row,
            _kept(memory),
            f"{size(memory.row_bytes)}",
            _readers(memory),
        )
        for memory in facts.memories
    ]
    return [
        Heading("Memories"),
        table(("of layers", "a row holds", "rows kept", "a row", "read by"), rows, numbers=False),
    ]


def _kept(memory: MemoryFacts) -> str:
    if memory.fixed is not None:
        return f"{memory.fixed}, at any length"
    if memory.rate is not None:
        return f"one for {memory.rate} tokens"
    return "all" if memory.window is None else f"last {memory.window:,}"


def _readers(memory: MemoryFacts) -> str:
    if not memory.readers:
        return "its own layer"
    return "its own layer; " + "; ".join(f"{owner} also by {layers_text(layers)}" for owner, layers in memory.readers)


def _parameters(facts: Facts) -> list[Block]:
    held = facts.parameters
    rows = [("total", held.total), ("active for a token", held.active)]
    rows += [("active without embedding", held.active_without_embedding), ("embedding", held.embedding)]
    if held.per_layer_embedding:
        rows.append(("per-layer embedding", held.per_layer_embedding))
    if held.buffers:
        rows.append(("buffers", held.buffers))
    return [Heading("Parameters"), table(("", "", ""), [(name, count(n), f"{n:,}") for name, n in rows])]


def _cache(facts: Facts) -> list[Block]:
    growing = sum(
        m.row_bytes * len(m.owners) / (m.rate or 1) for m in facts.memories if m.window is None and m.fixed is None
    )
    facts_line = f"each further token adds {size(round(growing))}; {size(facts.fixed_bytes)} are held at any length"
    rows = [
        (context(n), size(held.bytes), size(held.bytes_without_windows), size(held.bytes_without_sharing))
        for n, held in facts.cache.items()
    ]
    columns = ("context", "held", "without windows", "without sharing")
    title = f"Cache, {facts.cache_dtype}, {_sequences(facts.batch)}"
    return [Heading(title), facts_line, table(columns, rows)]


def _decode(facts: Facts) -> list[Block]:
    columns = ["context", "operations", "of them attention", "bytes read"]
    if facts.device is not None:
        columns.append("tokens/s at most")
    rows: list[Sequence[str]] = []
    for n, step in facts.decode.items():
        row = [context(n), flops(step.flops), flops(step.attention_flops), size(step.bytes_read)]
        if facts.device is not None:
            row.append(f"{facts.device.at[n].tokens_per_s:,.0f}")
        rows.append(row)
    blocks: list[Block] = [Heading(f"One decode step, {_sequences(facts.batch)}"), table(columns, rows)]
    if facts.device is not None:
        bandwidth = facts.device.device.bandwidth_bytes_per_s / 1e12
        blocks.append(f"limit: {facts.device.device.name}, sheet bandwidth {bandwidth:g} TB/s over bytes read")
    return blocks


def _sequences(batch: int) -> str:
    return "1 sequence" if batch == 1 else f"{batch} sequences"
