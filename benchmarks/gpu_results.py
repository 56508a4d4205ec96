"""What was measured on GPUs: one JSON file for all devices, added to entry by entry, and a table of it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu_tables import beside, model_lines
from regraft.ir.files import write_atomic

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"
DOCUMENT = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- gpu: written by benchmarks/gpu.py -->", "<!-- gpu: end -->"

_HEAD = """A copy moves {copy:.2f} TB/s, a bf16 matrix product of 8192 makes {multiply:.0f} Tflop/s ({made}). Times are
medians of calls in a CUDA graph that find nothing in the cache; a share is that of the larger of bytes over the copy's
rate and operations over the product's. Errors are the largest of a result over its root mean square, against float64;
the plain form has the same inputs and dtype.
"""


class Results:
    """Entries of a device in the file; each change is written at once.

    Args:
        path: The file.
        device: The device's name; what others have in the file stays.
    """

    def __init__(self, path: Path, device: str) -> None:
        self.path, self.device = path, device

    def entries(self) -> dict[str, dict[str, Any]]:
        """Return the device's entries by key."""
        return _read(self.path).get(self.device, {})

    def put(self, key: str, entry: Mapping[str, Any]) -> None:
        """Add an entry, or replace it."""
        self._change(self.entries() | {key: dict(entry)})

    def drop(self, prefix: str) -> None:
        """Forget the entries whose keys start so."""
        self._change({key: entry for key, entry in self.entries().items() if not key.startswith(prefix)})

    def known(self, key: str, like: Mapping[str, Any]) -> bool:
        """Return whether an entry was finished under the same conditions."""
        entry = self.entries().get(key, {})
        return entry.get("status") in ("measured", "failed") and all(entry.get(name) == like[name] for name in like)

    def interrupted(self, reason: str | None) -> list[str]:
        """End what is marked as running: it has failed for a reason, or is forgotten; return its keys."""
        entries = self.entries()
        running = [key for key, entry in entries.items() if entry["status"] == "running"]
        for key in running:
            entry = entries.pop(key)
            if reason is not None:
                entries[key] = entry | {"status": "failed", "reason": reason}
        if running:
            self._change(entries)
        return running

    def _change(self, entries: Mapping[str, Any]) -> None:
        devices = _read(self.path) | {self.device: dict(sorted(entries.items()))}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, json.dumps({"devices": devices}, indent=1) + "\n")


def _read(path: Path) -> dict[str, dict[str, Any]]:
    return json.loads(path.read_bytes())["devices"] if path.exists() else {}


def write_table(results: Path = RESULTS, document: Path = DOCUMENT) -> None:
    """Write the tables of all devices into their place in a document; there is a heading if there is no document."""
    write_between(BEGIN, END, _lines(_read(results)), document)


def write_between(begin: str, end: str, lines: Iterable[str], document: Path = DOCUMENT) -> None:
    """Write lines between two others of a document; these are put at its end if it does not have them."""
    text = document.read_text(encoding="utf-8") if document.exists() else "# Performance\n"
    text = text if begin in text else f"{text}\n{begin}\n{end}\n"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    made = "\n".join(lines)
    write_atomic(document, f"{before}{begin}\n{made}\n{end}{after}")


def _lines(devices: Mapping[str, Mapping[str, dict[str, Any]]]) -> Iterator[str]:
    if not devices:
        yield "\nNo GPU has been measured yet: `python -m benchmarks.gpu` measures kernels, decoded tokens, prompts,"
        yield "cold starts and passes, part by part, and writes their tables here.\n"
    for device, entries in devices.items():
        yield f"\n## {device}\n"
        limits = entries.get("limits")
        if limits is not None and limits["status"] == "measured":
            yield _HEAD.format(
                copy=limits["copy_bytes_per_s"] / 1e12,
                multiply=limits["matmul_flops"] / 1e12,
                made=f"{limits['versions']}, {limits['date']}",
            )
        yield "| kernel | context | µs | share | error | of the plain form | beside, µs |"
        yield "|---|---|---|---|---|---|---|"
        for key, entry in entries.items():
            if key.startswith("kernels/"):
                yield _row(key, entry)
        yield from model_lines(entries)
    if devices:
        yield ""


def _row(key: str, entry: Mapping[str, Any]) -> str:
    name, _, context = key.removeprefix("kernels/").partition("@")
    label = f"{name} `{entry['kernel']}`"
    if entry["status"] != "measured":
        return f"| {label} | {context} | {entry['status']}: {entry.get('reason', '')[:80]} | | | | |"
    share = f"{100 * entry['share']:.0f} % of {entry['of']}"
    errors = f"{entry['error']:.1e} | {entry['plain_error']:.1e}"
    return f"| {label} | {context} | {entry['us']:.1f} | {share} | {errors} | {beside(entry)} |"
