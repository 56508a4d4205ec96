"""The facts card: what ``inspect`` shows a person."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from regraft.views.cache import MemoryFacts
from regraft.views.facts import Facts, KindFacts, layers_text
from regraft.views.limits import DeviceFacts
from regraft.views.numbers import context, count, flops, plural, rate, seconds, share, size
from regraft.views.parts import PARTS, Work
from regraft.views.pattern import fold, letter, spelled
from regraft.views.table import Block, Heading, Item, table

SPELLED = 10  # kinds that have an item of their own
CACHE_ROWS = (  # of the table of conventions: fields of CacheFacts, and what a reader is told of them
    ("bytes", "exact"),
    ("bytes_without_windows", "exact, if nothing forgot rows (no windows)"),
    ("bytes_without_sharing", "exact, if every layer kept its own (no sharing)"),
    ("bytes_without_either", "exact, with neither windows nor sharing"),
    ("bytes_transformers", "in transformers 5.23 (its dynamic cache)"),
    ("bytes_served", "as the vendor serves it (float8 with scales)"),
    ("bytes_as_article", "as overview articles count (no windows, one head width)"),
    ("bytes_uniform", "by the usual formula (layers × 2 × KV heads × width)"),
)


def card(facts: Facts) -> list[Block]:
    """Return the card as blocks, for any of the ways in which `views.table` shows them."""
    return [
        Heading(facts.name, 1),
        _summary(facts),
        *_structure(facts),
        *_memories(facts),
        *_parts(facts),
        *_cache(facts),
        *_work(facts),
        *([] if facts.device is None else _limits(facts, facts.device)),
    ]


def _summary(facts: Facts) -> str:
    parts = [
        facts.family,
        f"{plural(facts.layers, 'layer')} of {plural(len(facts.kinds), 'kind')}",
        f"{count(facts.parameters.total)} parameters",
        facts.dtype,
        f"vocabulary {facts.vocabulary:,}" if facts.vocabulary else "",
        f"trained for {facts.trained_context:,} tokens" if facts.trained_context else "",
    ]
    return ", ".join(part for part in parts if part)


def _structure(facts: Facts) -> list[Block]:
    letters = {kind.name: letter(i) for i, kind in enumerate(facts.kinds)}
    blocks: list[Block] = [Heading("Structure")]
    if len(facts.kinds) > 1:
        blocks.append(f"first layer to last: {spelled(fold([letters.get(name, '·') for name in facts.pattern]))}")
    if len(facts.kinds) > SPELLED:
        return blocks + _many_kinds(facts.kinds, letters)
    return blocks + [_kind(letters[kind.name], kind) for kind in facts.kinds]


def _many_kinds(kinds: Sequence[KindFacts], letters: Mapping[str, str]) -> list[Block]:
    """Return many kinds as a table of what differs, and a line of what they have in common."""
    phrases = [re.split("[,;] ", kind.words) for kind in kinds]
    common = [phrase for phrase in phrases[0] if all(phrase in each for each in phrases)]
    rows = [
        (
            letters[kind.name],
            kind.name,
            layers_text(kind.layers),
            ", ".join(phrase for phrase in each if phrase not in common),
            count(kind.parameters),
        )
        for kind, each in zip(kinds, phrases, strict=True)
    ]
    made = table(("", "kind", "layers", "made of", "each"), rows, numbers=False)
    return [made, *([f"all of them: {', '.join(common)}"] if common else [])]


def _kind(key: str, kind: KindFacts) -> Item:
    numbers = f"{'layer' if len(kind.layers) == 1 else 'layers'} {layers_text(kind.layers, counted=False)}"
    title = f"{key}  {kind.name} ×{len(kind.layers)}: {numbers}"
    size_line = f"{count(kind.parameters)} parameters each"
    if kind.active < kind.parameters:
        size_line += f", {count(kind.active)} of them for a token"
    return Item(title, tuple(line for line in (kind.mixer, kind.mlp, kind.unlike, size_line) if line))


def _memories(facts: Facts) -> list[Block]:
    heading = Heading("Memories: what a sequence keeps between tokens")
    return [heading, *(_memory(memory, facts.layers) for memory in facts.memories)]


def _memory(memory: MemoryFacts, layers: int) -> Item:
    row = f"{size(memory.row_bytes)}{'' if memory.fixed == 1 else ' a row'}, {memory.dtype}"
    lines = [f"{row}; kept by {_layers(memory.owners, layers)}"]
    if memory.fixed is None and memory.fixed_bytes:
        lines.append(f"up to {size(memory.fixed_bytes)} for rows that are not finished")
    lines += [f"layer {owner}'s is also read by {_layers(readers, layers)}" for owner, readers in memory.readers]
    return Item(f"{memory.holds}, {memory.kept}", tuple(lines))


def _layers(numbers: Sequence[int], of: int) -> str:
    if len(numbers) == of:
        return "every layer"
    return f"{'layer' if len(numbers) == 1 else 'layers'} {layers_text(numbers)}"


def _parts(facts: Facts) -> list[Block]:
    held, longest = facts.parameters, max(facts.contexts, default=0)
    step = facts.decode[longest].by_part if longest else {}
    rows: list[tuple[str, ...]] = []
    for part, words in PARTS.items():
        if part in held.by_part or part in step:
            rows.append(_part_row(words, held.by_part.get(part, 0), held.active_by_part.get(part, 0), step.get(part)))
    rows.append(_part_row("all", held.total, held.active, sum(step.values(), Work())))
    title = "Parts: parameters, how many of them a token uses"
    if longest:
        title += f", and what a step at {context(longest)} takes"
    columns = ("", "parameters", "used", "operations", "reads")
    return [Heading(title), table(columns, rows), *_counts(facts)]


def _part_row(words: str, total: int, active: int, work: Work | None) -> tuple[str, ...]:
    done = (flops(work.flops) if work and work.flops else "-", size(work.bytes_read) if work else "-")
    return (words, count(total) if total else "-", count(active) if active else "-", *done)


def _counts(facts: Facts) -> list[Block]:
    held = facts.parameters
    lines = [
        f"{held.total:,} parameters; a token uses {held.active:,},"
        f" {held.active_without_embedding:,} of them beside embeddings",
        f"as the vendor counts, {held.effective_is}: {count(held.effective)} ({held.effective:,})",
    ]
    if not held.head and held.embedding:
        lines.append("the embedding is the head too: counted once, read whole by the head")
    if held.buffers:
        lines.append(f"beside these, {held.buffers:,} numbers that training does not move by gradients")
    return list(lines)


def _cache(facts: Facts) -> list[Block]:
    held = facts.cache.values()
    windows, sharing = (
        any(getattr(each, f"bytes_without_{what}") != each.bytes for each in held) for what in ("windows", "sharing")
    )
    left_out = {"windows": not windows, "sharing": not sharing, "either": not (windows and sharing)}
    left_out["served"] = all(each.bytes_served is None for each in held)
    rows: list[tuple[str, ...]] = []
    for field, words in CACHE_ROWS:
        if not left_out.get(field.removeprefix("bytes_").removeprefix("without_")):
            more = facts.fixed_bytes if words.startswith("exact") else 0
            found = [None if (number := getattr(each, field)) is None else number + more for each in held]
            rows.append((words, *("no such class" if number is None else size(number) for number in found)))
    grows = f"a further token adds {size(float(facts.bytes_per_token) * facts.batch)}"
    if any(memory.window is not None for memory in facts.memories):
        grows += " once windows are full"
    if facts.fixed_bytes:
        worst = any(memory.fixed is None and memory.fixed_bytes for memory in facts.memories)
        grows += f"; {size(facts.fixed_bytes)} of the exact figures are held at any length"
        grows += ", unfinished rows at their most" if worst else ""
    columns = ("tokens in context", *(context(n) for n in facts.cache))
    return [Heading(f"Cache, {facts.cache_dtype}, {plural(facts.batch, 'sequence')}"), table(columns, rows), grows]


def _work(facts: Facts) -> list[Block]:
    columns = ("", "operations", "of them attention", "reads", "of it cache")
    rows: list[tuple[str, ...]] = []
    for name, calls in (("a step at", facts.decode), ("a prompt of", facts.prefill)):
        for n, call in calls.items():
            cache = sum(work.cache_bytes for work in call.by_part.values())
            attention = share(call.attention_flops, call.flops)
            row = (flops(call.flops), attention, size(call.bytes_read), share(cache, call.bytes_read))
            rows.append((f"{name} {context(n)}", *row))
    note = (
        "a step: a new token of each sequence; operations count two for a multiply-add;"
        " attention: scores and mix alone; of a prompt only the last logits"
    )
    notes = [note, *expansion_note([facts])]
    return [Heading(f"Work, {plural(facts.batch, 'sequence')}"), table(columns, rows), *notes]


def expansion_note(models: Sequence[Facts]) -> list[Block]:
    """Return what to say of the form in which steps attend to kept latents, if some model has such."""
    notes: list[Block] = []
    if any(facts.decode_form == "absorbed" for facts in models):
        notes.append(
            "a step attends to kept latents themselves, absorbed, as the program that build writes does; a prompt makes"
            " keys and values of them"
        )
    found = [call.expansion_flops / call.flops for facts in models for call in facts.decode.values() if call.flops]
    if any(found):
        notes.append(
            f"up to {share(max(found), 1)} of a step's operations make keys and values of kept latents anew, as the"
            " graph stands; absorb-mla moves them into other maps"
        )
    return notes


def _limits(facts: Facts, found: DeviceFacts) -> list[Block]:
    device = found.device
    rows: list[tuple[str, ...]] = []
    for n, limits in found.at.items():
        first = "unknown" if limits.time_to_first_token_s is None else seconds(limits.time_to_first_token_s)
        batch = "any number" if limits.largest_batch is None else f"{limits.largest_batch:,}"
        rows.append((context(n), rate(limits.tokens_per_s), limits.bottleneck, first, batch))
    columns = ("context", "tokens/s", "held back by", "first token after", "sequences that fit")
    speed = "no figure for arithmetic"
    if device.bf16_dense_flops is not None:
        speed = f"{device.bf16_dense_flops / 1e12:,.0f} TFLOP/s in bf16"
    sheet = f"{size(device.memory_bytes)}, {device.bandwidth_bytes_per_s / 1e12:.3g} TB/s, {speed}"
    together = "" if facts.batch == 1 else f", {facts.batch:,} sequences at a time"
    return [
        Heading(f"At most, on {device.name}{together}"),
        table(columns, rows),
        _fits(facts, found),
        f"limits by the sheet ({sheet}) for what the graph reads and computes; memory counts weights and cache alone",
    ]


def _fits(facts: Facts, found: DeviceFacts) -> str:
    weights = f"weights, {facts.dtype}: {size(found.weight_bytes)}"
    if found.devices_for_weights > 1:
        fewest = f"at least {found.devices_for_weights} of these are needed"
        return f"{weights}, which do not fit: {fewest}; the limits are those of one, were it large enough"
    each = "a sequence" if facts.batch == 1 else f"each of {facts.batch:,} sequences"
    if found.largest_context is None:
        return f"{weights}; beside them {each} may have any number of tokens"
    trained = facts.trained_context
    beyond = f" (trained for {trained:,})" if trained and found.largest_context > trained else ""
    return f"{weights}; beside them {each} may have {plural(found.largest_context, 'token')}{beyond}"
