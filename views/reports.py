"""Tables of what commands found, from the JSON that ``--json`` prints: one function for each schema."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from regraft.views.numbers import change, count, flops, size
from regraft.views.table import Block, Heading, table

Payload = Mapping[str, Any]


def verify_report(found: Payload) -> list[Block]:
    """Return ``regraft.verify/1`` as blocks."""
    against = f" against {found['against']}" if found["against"] else ""
    rows = [
        ("ok" if check["passed"] else "FAILED", check["name"], f"{check['error']:.2e}", f"{check['bound']:.2e}")
        for check in found["checks"]
    ]
    title = f"{found['subject']}{against}: largest difference of logits"
    details = dict.fromkeys(check["detail"] for check in found["checks"] if check["detail"])
    return [Heading(title, 1), table(("", "check", "found", "allowed"), rows, numbers=False), *details]


def eval_report(found: Payload) -> list[Block]:
    """Return ``regraft.eval/1`` as blocks."""
    title = f"{found['tokens']:,} tokens of {found['text']}, windows of {found['context']:,}"
    based = found["base_perplexity"] is not None
    rows = [("perplexity", f"{found['perplexity']:.4f}")]
    if based:
        rows += [
            ("perplexity of the base", f"{found['base_perplexity']:.4f}"),
            ("KL(base || model), mean, nats a token", f"{found['kl']['mean']:.5f}"),
            ("KL(base || model), 99th percentile", f"{found['kl']['p99']:.5f}"),
            ("top-1 agreement", f"{found['top1_agreement']:.2%}"),
        ]
    cache = found["cache"]
    for key, name in (("predicted_bytes", "cache predicted"), ("measured_bytes", "cache measured")):
        if cache[key] is not None:
            rows.append((f"{name}, {found['context']:,} tokens", size(cache[key])))
    blocks: list[Block] = [Heading(title, 1), table(("", ""), rows)]
    return blocks + _needles(found) + _layers(found["layers"])


def _needles(found: Payload) -> list[Block]:
    if not found["needle"]:
        return []
    base = {(each["length"], each["depth"]): each["recall"] for each in found["base_needle"]}
    columns = ["prompt tokens", "depth", "recall"] + (["base"] if base else [])
    rows: list[Sequence[str]] = []
    for each in found["needle"]:
        row = [f"{each['length']}", f"{each['depth']:.2f}", f"{each['recall']:.0%}"]
        rows.append([*row, f"{base[each['length'], each['depth']]:.0%}"] if base else row)
    return [Heading("Recall of one key-value pair among many"), table(columns, rows)]


def _layers(layers: Sequence[Payload]) -> list[Block]:
    if not layers:
        return []
    rows = [
        (str(each["layer"]), _share(each["error_teacher_forced"]), _share(each["error_free_running"]))
        for each in layers
    ]
    columns = ("layer", "fed by the original", "free-running")
    return [Heading("Relative error by layer"), table(columns, rows)]


def _share(error: float | None) -> str:
    return "-" if error is None or math.isnan(error) else f"{error:.2%}"


SIZES = (
    ("parameters", "parameters", count),
    ("active_parameters", "active parameters", count),
    ("weight_bytes", "weights", size),
    ("cache_bytes", "cache at 4,096 tokens", size),
    ("decode_flops", "one decode step", flops),
    ("decode_bytes_read", "bytes read by it", size),
    ("prefill_flops", "a prompt as long", flops),
)


def plan_report(found: Payload) -> list[Block]:
    """Return ``regraft.plan/1`` as blocks."""
    blocks: list[Block] = [Heading(f"Plan for {found['model']}", 1), *_steps(found["steps"])]
    before, after = found["before"], found["after"]
    rows = [(name, form(before[key]), form(after[key]), change(before[key], after[key])) for key, name, form in SIZES]
    blocks += [Heading("Predicted change"), table(("", "before", "after", "change"), rows)]
    need = [("disk for the weights", size(found["disk_bytes"])), ("memory, at most about", size(found["memory_bytes"]))]
    blocks += [Heading("Apply needs"), table(("", ""), need)]
    if line := quantized_line(found["quantized"]):
        blocks.append(line)
    if not found["decided"]:
        blocks.append("decided at apply: choices that need weights or calibration text; --measure makes them now")
    return blocks


def quantized_line(found: Payload) -> str:
    """Return what becomes of a checkpoint's quantised tensors, and what that costs on disk; empty where it has none."""
    if not found["tensors"]:
        return ""
    parts = [f"quantised: {found['tensors']:,} tensors of {size(found['bytes'])} with their scales"]
    if found["kept_tensors"]:
        parts.append(f"{found['kept_tensors']:,} copied as they are")
    if found["dequantized"]:
        now, then = size(found["dequantized_from_bytes"]), size(found["dequantized_bytes"])
        added = found["added_bytes"]
        more = f"{size(abs(added))} {'more' if added >= 0 else 'less'}"
        parts.append(f"parameters dequantised: {found['dequantized']:,}, {now} become {then} ({more} on disk)")
    return "; ".join(parts)


def _steps(steps: Sequence[Payload]) -> list[Block]:
    blocks: list[Block] = []
    for number, step in enumerate(steps, 1):
        decided = "" if step["decided"] else ", decided at apply"
        blocks.append(Heading(f"{number}. {step['pass']} ({step['preserves']}{decided})"))
        rows = [(each["where"], "" if each["applied"] else "left", each["text"]) for each in step["layers"]]
        blocks.append(table(("", "", ""), rows, numbers=False) if rows else "nothing to do")
    return blocks


def apply_report(found: Payload) -> list[Block]:
    """Return ``regraft.apply/1`` as blocks."""
    blocks: list[Block] = [Heading(f"Wrote {found['out']}", 1), *_steps(found["steps"])]
    predicted, measured = found["predicted"], found["measured"]
    names = {**dict.fromkeys(predicted), **dict.fromkeys(measured)}
    rows = [(name.replace("_", " "), _amount(name, predicted), _amount(name, measured)) for name in names]
    blocks += [Heading("Result"), table(("", "predicted", "measured"), rows)]
    if line := quantized_line(found["quantized"]):
        blocks.append(line)
    if found["stock"]:
        blocks.append(f"transformers loads it as {found['stock']}")
    if found["quality"]:
        blocks += eval_report(found["quality"])
    elif found["note"]:
        blocks.append(f"quality not measured: {found['note']}")
    return blocks


def _amount(name: str, numbers: Payload) -> str:
    if name not in numbers:
        return "-"
    return size(numbers[name]) if "bytes" in name else f"{numbers[name]:,}"


def bench_report(found: Payload) -> list[Block]:
    """Return ``regraft.bench/1`` as blocks."""
    where = f"{found['device']}, {found['dtype']}, {found['threads']} threads, batch {found['batch']}"
    title = f"{found['package']} on {where}{', compiled' if found['compiled'] else ''}"
    rows = [
        (f"{name}, {speed['tokens']:,} tokens", f"{speed['measured']:,.1f}", _or_dash(speed["at_most"], ",.1f"))
        for name, speed in (("prefill", found["prefill"]), ("decode", found["decode"]))
    ]
    predicted = found["cache_predicted"]
    memory = [("cache", size(found["cache_measured"]), "-" if predicted is None else size(predicted))]
    memory.append(("weights", size(found["weights"]), ""))
    if found["peak"] is not None:
        memory.append(("peak on the device", size(found["peak"]), ""))
    machine = found["machine"]
    return [
        Heading(title, 1),
        table(("tokens/s", "measured", "at most"), rows),
        f"at most: this machine reads {machine['bytes_per_s'] / 1e9:.1f} GB/s, "
        f"multiplies {machine['flops_per_s'] / 1e9:,.0f} GFLOP/s",
        Heading("Memory"),
        table(("", "measured", "predicted"), memory),
    ]


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def passes_report(found: Sequence[Payload]) -> list[Block]:
    """Return the passes of ``regraft.passes/1`` as blocks."""
    rows = [(each["name"], each["preserves"], each["summary"]) for each in found]
    return [Heading("Passes", 1), table(("pass", "preserves", ""), rows, numbers=False)]


def pass_report(found: Payload) -> list[Block]:
    """Return one pass, ``regraft.pass/1``, as blocks."""
    rows = [(each["name"], each["type"], each["default"], each["text"]) for each in found["options"]]
    blocks: list[Block] = [Heading(f"{found['name']}: {found['summary']}", 1), f"preserves: {found['preserves']}"]
    if found["text"]:
        blocks += [Heading("What it does"), *found["text"].splitlines()]
    if rows:
        blocks += [Heading("Options"), table(("option", "type", "default", ""), rows, numbers=False)]
    if found["source"]:
        blocks += [Heading("Source"), *found["source"].splitlines()]
    return blocks


def doctor_report(found: Payload) -> list[Block]:
    """Return ``regraft.doctor/1`` as blocks."""
    rows = [
        ("python", f"{found['python']} on {found['platform']}"),
        ("cores", str(found["cores"])),
        ("memory", f"{size(found['memory_bytes'])}, {size(found['memory_available_bytes'])} available"),
        ("disk, here", f"{size(found['disk_free_bytes'])} free"),
        ("disk, temporary files", f"{size(found['temporary_free_bytes'])} free"),
        ("C++ compiler", found["compiler"] or "none"),
    ]
    rows += [("GPU", f"{g['name']}, {size(g['memory_bytes'])}, sm {g['capability']}") for g in found["gpus"]]
    if not found["gpus"]:
        rows.append(("GPU", "none that torch can use"))
    packages = [(name, version or "not installed") for name, version in found["packages"].items()]
    features = [
        ("yes" if each["available"] else "no", each["name"], f"needs {each['missing']}" if each["missing"] else "")
        for each in found["features"]
    ]
    return [
        Heading("This machine", 1),
        table(("", ""), rows, numbers=False),
        Heading("Packages"),
        table(("", ""), packages, numbers=False),
        Heading("Available"),
        table(("", "", ""), features, numbers=False),
    ]
