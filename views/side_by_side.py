"""Facts of several models side by side, and what differs between two: what ``compare`` shows a person."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from regraft.views.card import expansion_note
from regraft.views.diff import Change, Diff, KindDiff, MemoryDiff, OpDiff
from regraft.views.facts import Facts, layers_text
from regraft.views.limits import Limits
from regraft.views.numbers import change, context, count, flops, plural, rate, seconds, size
from regraft.views.parts import PARTS
from regraft.views.pattern import fold, spelled
from regraft.views.table import ADDED, CHANGED, REMOVED, Block, Heading, Item, table

NONE = "-"
_SIGNS = {"added": ADDED, "removed": REMOVED, "changed": CHANGED, "same": "  "}
_ROW = tuple[str, Sequence[str], Sequence[float | None]]  # what it is, as text, and as numbers where it is one


def side_by_side(models: Sequence[Facts], found: Diff | None = None) -> list[Block]:
    """Return models side by side, rows that differ marked; of two also what differs in structure.

    Args:
        models: Facts at the same contexts, on the same device; two or more.
        found: What differs between two.
    """
    names = [model.name for model in models]
    title = " beside ".join(names) if len(names) == 2 else f"{len(names)} models side by side"
    blocks: list[Block] = [Heading(title, 1)]
    for heading, rows in _sections(models):
        blocks += [Heading(heading), _table(names, rows)]
        blocks += expansion_note(models) if heading.startswith("Work") else []
    return blocks if found is None else blocks + difference(found)


def _table(names: Sequence[str], rows: Sequence[_ROW]) -> Block:
    both = len(names) == 2
    marked = [n for n, (_, texts, numbers) in enumerate(rows) if len(set(numbers or texts)) > 1]
    lines: list[tuple[str, ...]] = []
    for n, (what, texts, numbers) in enumerate(rows):
        lines.append((what, *texts, *([_change(numbers) if n in marked else ""] if both else [])))
    return table(["", *names, *(["change"] if both else [])], lines, marked=marked)


def _change(numbers: Sequence[float | None]) -> str:
    known = [number for number in numbers if number is not None]
    return change(known[0], known[1]) if len(known) == 2 else ""


def _sections(models: Sequence[Facts]) -> list[tuple[str, list[_ROW]]]:
    found = [
        ("Structure", _structure(models)),
        ("Parameters", _parameters(models)),
        (f"Cache, {plural(models[0].batch, 'sequence')}", _cache(models)),
        (f"Work, {plural(models[0].batch, 'sequence')}", _work(models)),
    ]
    device = models[0].device
    return found if device is None else [*found, (f"At most, on {device.device.name}", _limits(models))]


def _numbers(
    models: Sequence[Facts], what: str, form: Callable[[float], str], of: Callable[[Facts], float | None]
) -> _ROW:
    values = [of(model) for model in models]
    return what, [NONE if value is None else form(value) for value in values], values


def _structure(models: Sequence[Facts]) -> list[_ROW]:
    def whole(number: float) -> str:
        return f"{number:,.0f}"

    def owners(model: Facts) -> float:
        return len({layer for memory in model.memories for layer in memory.owners})

    def readers(model: Facts) -> float:
        return len({n for memory in model.memories for _, layers in memory.readers for n in layers})

    return [
        ("family", [model.family or NONE for model in models], []),
        ("dtype", [model.dtype or NONE for model in models], []),
        _numbers(models, "layers", whole, lambda model: model.layers),
        _numbers(models, "kinds of layers", whole, lambda model: len(model.kinds)),
        _numbers(models, "layers with memories of their own", whole, owners),
        _numbers(models, "layers that read another's", whole, readers),
        _numbers(models, "vocabulary", whole, lambda model: model.vocabulary),
        _numbers(models, "trained for tokens", whole, lambda model: model.trained_context),
    ]


def _parameters(models: Sequence[Facts]) -> list[_ROW]:
    rows = [
        _numbers(models, "all", count, lambda model: model.parameters.total),
        _numbers(models, "used by a token", count, lambda model: model.parameters.active),
        _numbers(models, "as the vendor counts", count, lambda model: model.parameters.effective),
    ]
    for part, words in PARTS.items():
        if any(part in model.parameters.by_part for model in models):
            rows.append(_numbers(models, words, count, lambda model, part=part: model.parameters.by_part.get(part, 0)))
    return rows


def _cache(models: Sequence[Facts]) -> list[_ROW]:
    rows = [
        _numbers(models, "a further token adds", size, lambda model: model.bytes_per_token * model.batch),
        _numbers(models, "of the exact at any length", size, lambda model: model.fixed_bytes),
    ]
    for n in models[0].contexts:
        rows.append(_numbers(models, f"{context(n)}, exact", size, lambda model, n=n: model.held(n)))
        theirs = _numbers(
            models, f"{context(n)}, in transformers", size, lambda model, n=n: model.cache[n].bytes_transformers
        )
        usual = _numbers(models, f"{context(n)}, usual formula", size, lambda model, n=n: model.cache[n].bytes_uniform)
        rows += [theirs, usual]
        if any(model.cache[n].bytes_served is not None for model in models):
            rows.append(
                _numbers(models, f"{context(n)}, as served", size, lambda model, n=n: model.cache[n].bytes_served)
            )
    return rows


def _work(models: Sequence[Facts]) -> list[_ROW]:
    rows: list[_ROW] = []
    for n in models[0].contexts:
        rows.append(_numbers(models, f"a step at {context(n)}", flops, lambda model, n=n: model.decode[n].flops))
        rows.append(_numbers(models, f"reads at {context(n)}", size, lambda model, n=n: model.decode[n].bytes_read))
    return rows + [
        _numbers(models, f"a prompt of {context(n)}", flops, lambda model, n=n: model.prefill[n].flops)
        for n in models[0].contexts
    ]


def _limits(models: Sequence[Facts]) -> list[_ROW]:
    def at(n: int, of: Callable[[Limits], float | None]) -> Callable[[Facts], float | None]:
        return lambda model: None if model.device is None else of(model.device.at[n])

    def whole(number: float) -> str:
        return f"{number:,.0f}"

    rows: list[_ROW] = []
    for n in models[0].contexts:
        rows += [
            _numbers(models, f"tokens/s at {context(n)}", rate, at(n, lambda limits: limits.tokens_per_s)),
            _numbers(
                models,
                f"first token of {context(n)} after",
                seconds,
                at(n, lambda limits: limits.time_to_first_token_s),
            ),
            _numbers(models, f"sequences of {context(n)} that fit", whole, at(n, lambda limits: limits.largest_batch)),
        ]
    rows.append(_numbers(models, "devices for the weights", whole, lambda m: m.device and m.device.devices_for_weights))
    rows.append(_numbers(models, "longest context that fits", whole, lambda m: m.device and m.device.largest_context))
    return rows


# -- what differs in structure


def difference(found: Diff) -> list[Block]:
    """Return what differs between two graphs, kind by kind."""
    blocks: list[Block] = [Heading(f"What differs in structure: {found.before.name}, then {found.after.name}")]
    if found.identical:
        return [*blocks, "nothing: the same operations, shapes, memories and readers"]
    blocks += [_changed(each.name, each) for each in found.model]
    blocks += _pattern(found)
    same = [kind for kind in found.kinds if kind.status == "same"]
    if same:
        listed = ", ".join(f"{kind.after} ({layers_text(kind.layers_after)})" for kind in same)
        blocks.append(f"kinds that are as they were: {listed}")
    blocks += [_kind(kind) for kind in found.kinds if kind.status != "same"]
    return blocks + _memories(found) + _outside(found)


def _changed(what: str, each: Change) -> str:
    return f"{CHANGED}{what}: {each.before or 'none'} → {each.after or 'none'}"


def _pattern(found: Diff) -> list[Block]:
    before, after = (spelled(fold([name or "·" for name in each.pattern])) for each in (found.before, found.after))
    if before == after:
        return [f"layers, first to last: {after}"]
    return [Item("layers, first to last", (f"{REMOVED}{before}", f"{ADDED}{after}"))]


def _kind(kind: KindDiff) -> Item:
    was, now = kind.layers_before, kind.layers_after
    names = " → ".join(dict.fromkeys(name for name in (kind.before, kind.after) if name))
    where = layers_text(now or was) if was == now or not (was and now) else f"{layers_text(was)} → {layers_text(now)}"
    lines = [line for words in kind.words for line in _words(words)]
    gone, come = ([op.name for op in kind.ops if op.status == status] for status in ("removed", "added"))
    lines += [f"{sign}{line}" for sign, names_ in ((REMOVED, gone), (ADDED, come)) for line in _by_scope(names_)]
    lines += _op_changes([op for op in kind.ops if op.status == "changed"])
    one, other = kind.parameters
    if one is not None and other is not None and one != other:
        lines.append(f"parameters of a layer: {count(one)} → {count(other)} ({change(one, other)})")
    return Item(f"{_SIGNS[kind.status]}{names}: {_layers(now or was, where)}", tuple(lines))


def _layers(numbers: Sequence[int], text: str = "") -> str:
    return f"{'layer' if len(numbers) == 1 else 'layers'} {text or layers_text(numbers)}"


def _words(each: Change) -> list[str]:
    """Return the phrases that are no longer said, and those that are said now."""
    was, now = ((text or "").replace("; ", ", ").split(", ") for text in (each.before, each.after))
    was, now = ([phrase for phrase in phrases if phrase] for phrases in (was, now))
    gone, come = [each for each in was if each not in now], [each for each in now if each not in was]
    return [f"{sign}{', '.join(phrases)}" for sign, phrases in ((REMOVED, gone), (ADDED, come)) if phrases]


def _by_scope(names: Sequence[str]) -> list[str]:
    """Return names of ops as lines, one for each scope: ``attn: k_proj, k_norm``."""
    scopes: dict[str, list[str]] = {}
    for name in names:
        scope, _, last = name.rpartition(".")
        scopes.setdefault(scope, []).append(last)
    return [f"{scope}: {', '.join(each)}" if scope else ", ".join(each) for scope, each in scopes.items()]


def _op_changes(ops: Sequence[OpDiff]) -> list[str]:
    """Return what changed in ops, those that changed alike in one line; of another operation no more than its name."""
    told: dict[str, list[str]] = {}
    for op in ops:
        text = "; ".join(map(_op_change, op.changes)) if op.before == op.after else f"{op.before} → {op.after}"
        told.setdefault(text, []).append(op.name)
    return [f"{CHANGED}{', '.join(names)}: {text}" for text, names in told.items()]


def _op_change(each: Change) -> str:
    before, after = each.before or "none", each.after or "none"
    more = after.removeprefix(f"{before}, ")  # the same weight, made otherwise
    return f"{each.name} {more if more != after else f'{before} → {after}'}"


def _memories(found: Diff) -> list[Block]:
    blocks: list[Block] = [_memory(memory) for memory in found.memories]
    for each in found.rewired:
        own = "its own" if len(each.layers) == 1 else "their own"
        was, now = (own if owner is None else f"layer {owner}'s" for owner in (each.before, each.after))
        what = each.name.removeprefix("layers.*.")
        read = f"reads {now} {what}, not {was}" if len(each.layers) == 1 else f"read {now} {what}, not {was}"
        blocks.append(f"{CHANGED}{_layers(each.layers)} {read}")
    return [Heading("Memories that differ", 3), *blocks] if blocks else []


def _memory(memory: MemoryDiff) -> Item:
    what = f"{_SIGNS[memory.status]}{memory.name.removeprefix('layers.*.')} of {_layers(memory.layers)}"
    sides = ((REMOVED, memory.before), (ADDED, memory.after))
    return Item(what, tuple(f"{sign}{keeps}" for sign, keeps in sides if keeps))


def _outside(found: Diff) -> list[Block]:
    lines: list[Block] = []
    for status in ("removed", "added"):
        names = [op.name for op in found.outside if op.status == status]
        lines += [f"{_SIGNS[status]}{line}" for line in _by_scope(names)]
    lines += _op_changes([op for op in found.outside if op.status == "changed"])
    return [Heading("Outside of the layers", 3), *lines] if lines else []
