"""Tables of docs/performance.md: what models and passes reached on a GPU, and what the schedule says of a step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.gpu_passes import CONTEXT, PASSES, before_and_after
from benchmarks.gpu_subjects import MODELS, fused_step
from benchmarks.model_rivals import MODES
from regraft.codegen.kernels.kernel import Moved
from regraft.codegen.schedule import Schedule, schedule
from regraft.frontends.folder import open_model
from regraft.frontends.lift import lift
from regraft.ir.graph import Graph

CONTEXTS, PROMPTS = (4096, 131072), (4096, 32768)
NEVER = "not measured"
SHIPPED = "kernels shipped"
COLD = ("kernels compiled at first use", SHIPPED)

Entries = Mapping[str, Mapping[str, Any]]


def model_lines(entries: Entries) -> Iterator[str]:
    """Yield the tables of models and passes on one device, with a row for all that is to be measured."""
    yield "\n### Decoded tokens, one sequence\n"
    yield "| model | context | ms | tokens/s | least bytes | of sheet | of a copy | transformers, tokens/s | faster |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name in MODELS:
        for context in CONTEXTS:
            yield row(name, context, *_decoded(entries, f"models/{name}", context))
    yield "\n### Prompts\n"
    yield "| model | tokens | s | tokens/s | transformers, tokens/s |"
    yield "|---|---|---|---|---|"
    for name in MODELS:
        for count in PROMPTS:
            yield row(name, count, *_read(entries, f"models/{name}", count))
    yield "\n### Maps of a step, one by one\n"
    yield "| model | map | µs | least bytes | of a copy | error | of the plain form | beside, µs |"
    yield "|---|---|---|---|---|---|---|---|"
    for name in MODELS:
        yield from _maps(entries, name)
    yield "\n### From the start of a process to the first token, weights apart\n"
    yield f"| model | {COLD[0]}, s | {COLD[1]}, s |"
    yield "|---|---|---|"
    for name in MODELS:
        yield row(name, *(_told(entries, f"models/{name}/cold/{each}", "seconds", "{:.1f}") for each in COLD))
    yield "\n### What passes do to a decoded token, predicted and measured\n"
    yield "| pass | model | context | bytes predict | measured | apart |"
    yield "|---|---|---|---|---|---|"
    for name, (model, _) in PASSES.items():
        yield row(name, model, CONTEXT, *_passed(entries, f"passes/{name}@{CONTEXT}"))


def row(*cells: object) -> str:
    """Return a row of a table."""
    return f"| {' | '.join(map(str, cells))} |"


def beside(entry: Mapping[str, Any]) -> str:
    """Return the microseconds of what stands beside a kernel; a dash where it does not run."""
    return ", ".join(
        f"{other} {time:.1f}" if isinstance(time, float) else f"{other} –" for other, time in entry["beside"].items()
    )


def _done(entries: Entries, key: str) -> bool:
    return entries.get(key, {}).get("status") == "measured"


def _told(entries: Entries, key: str, name: str, form: str) -> str:
    """Return a number of an entry, or why there is none."""
    entry = entries.get(key)
    if entry is None:
        return NEVER
    if entry["status"] != "measured":
        return f"{entry['status']}: {entry.get('reason', '')[-80:]}".replace("\n", " ").replace("|", "/")
    return "–" if entry[name] is None else form.format(entry[name])


def _decoded(entries: Entries, key: str, context: int) -> Sequence[str]:
    place = f"{key}/decode@{context}"
    beside = f"{key}/transformers/decode@{context}"
    mode = next((mode for mode in MODES if _done(entries, f"{beside}/{mode}")), None)
    theirs, faster = (NEVER if not any(f"{beside}/{each}" in entries for each in MODES) else "none works"), ""
    if mode is not None:
        rate = entries[f"{beside}/{mode}"]["tokens_per_s"]
        theirs = f"{rate:.1f} ({mode})"
        faster = f"{entries[place]['tokens_per_s'] / rate:.2f}×" if _done(entries, place) else ""
    numbers = [
        _told(entries, place, name, form)
        for name, form in (
            ("ms", "{:.3f}"),
            ("tokens_per_s", "{:.1f}"),
            ("least", "{:,}"),
            ("of_sheet", "{:.0%}"),
            ("of_copy", "{:.0%}"),
        )
    ]
    return [*(numbers if _done(entries, place) else [numbers[0], "", "", "", ""]), theirs, faster]


def _read(entries: Entries, key: str, count: int) -> Sequence[str]:
    place, beside = f"{key}/prefill@{count}", f"{key}/transformers/prefill@{count}"
    ours = (
        [f"{entries[place]['ms'] / 1e3:.2f}", f"{entries[place]['tokens_per_s']:.0f}"] if _done(entries, place) else []
    )
    return [*(ours or [_told(entries, place, "ms", ""), ""]), _told(entries, beside, "tokens_per_s", "{:.0f}")]


def _maps(entries: Entries, name: str) -> Iterator[str]:
    key = f"models/{name}/maps"
    if not _done(entries, key):
        yield row(name, _told(entries, key, "maps", ""), *[""] * 6)
        return
    for op, found in entries[key]["maps"].items():
        numbers = (f"{found['us']:.1f}", f"{found['least']:,}", f"{found['share']:.0%}")
        yield row(name, op, *numbers, f"{found['error']:.1e}", f"{found['plain_error']:.1e}", beside(found))


def _passed(entries: Entries, key: str) -> Sequence[str]:
    if not _done(entries, key):
        return [_told(entries, key, "measured", ""), "", ""]
    predicted, measured = entries[key]["predicted"], entries[key]["measured"]
    return [f"{predicted:.2f}×", f"{measured:.2f}×", f"{abs(measured / predicted - 1):.0%}"]


# -- what needs no GPU


def schedule_lines(models: Sequence[str]) -> Iterator[str]:
    """Yield the tables of what a decoded token launches and moves, and of what passes change in it."""
    yield "| model | kernels a layer | a token | not ours | least bytes at 4K | moved over it | at 128K | over it |"
    yield "|---|---|---|---|---|---|---|---|"
    for name in models:
        yield scheduled(name)


def pass_lines() -> Iterator[str]:
    """Yield the table of what bytes predict of passes."""
    yield "| pass | model | bytes at 128K before | after | a token would be faster by |"
    yield "|---|---|---|---|---|"
    for name, (model, recipe) in PASSES.items():
        before, after = (_whole(graph, CONTEXT).total for graph in before_and_after((model, recipe)))
        yield row(name, model, f"{before:,}", f"{after:,}", f"{before / after:.3f}×")


def scheduled(name: str) -> str:
    """Return a builtin model's row."""
    graph = lift(open_model(f"builtin:{name}"), strict=False).graph
    fused = fused_step(graph)
    found = [schedule(graph, fused, 1, context) for context in CONTEXTS]
    layers = sorted({part.each.launches for part in found[0].parts if part.layers})
    span = str(layers[0]) if len(layers) == 1 else f"{layers[0]} to {layers[-1]}"
    numbers = [text for each in found for text in (f"{each.whole.least:,}", f"{_over(each.whole):.3f}")]
    return row(name, span, found[0].whole.launches, _foreign(found[0]), *numbers)


def _whole(graph: Graph, context: int) -> Moved:
    return schedule(graph, fused_step(graph), 1, context).whole


def _over(moved: Moved) -> float:
    return moved.total / moved.least


def _foreign(found: Schedule) -> int:
    """Return how many launches of a step are PyTorch's."""
    return sum(
        line.moved.launches * max(len(part.layers), 1) for part in found.parts for line in part.lines if not line.fused
    )
