"""What the fits of a model read, so that its evaluation reads something else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from regraft.ir.json_files import read_object
from regraft.passes.fitting.text import Reading

LOCK = "regraft.lock.json"


def readings(folder: Path | None) -> tuple[Reading, ...]:
    """Return what all fits of a model folder or package read, as its lock file says; nothing where there is none.

    Raises:
        JsonSyntaxError: The lock file is no JSON object.
    """
    if folder is None or not (folder / LOCK).is_file():
        return ()
    inputs = read_object(folder / LOCK).get("inputs")
    listed = cast("Mapping[str, object]", inputs).get("readings") if isinstance(inputs, dict) else None
    if not isinstance(listed, list):
        return ()
    found = [
        _reading(cast("Mapping[str, object]", each)) for each in cast("list[object]", listed) if isinstance(each, dict)
    ]
    return tuple(reading for reading in found if reading is not None)


def _reading(entry: Mapping[str, object]) -> Reading | None:
    match entry:
        case {"sha256": str(sha256), "tokens": int(tokens), "seed": int(seed), "context": int(context)}:
            return Reading(sha256, tokens, seed, context) if tokens > 0 and context > 1 else None
        case _:
            return None
