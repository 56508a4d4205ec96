"""JSON files that others wrote: read strictly, refused with a place."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NoReturn, cast

from regraft.ir.errors.checkpoint import JsonSizeError, JsonSyntaxError
from regraft.ir.errors.files import InputMissingError

LIMIT = 64 << 20  # bytes; the largest index of a published model has about 10 MB


def read_object(path: Path, limit: int = LIMIT) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        InputMissingError: The file cannot be read.
        JsonSizeError: It has more than ``limit`` bytes.
        JsonSyntaxError: It is no JSON, or no object, or has a key twice, NaN, an infinite or an absurdly long number.
    """
    try:
        size = path.stat().st_size
        if size > limit:
            raise JsonSizeError(file=path, found=size, limit=limit)
        data = path.read_bytes()
    except OSError as error:
        raise InputMissingError(path=path, reason=error.strerror) from None
    return parse_object(data, str(path))


def parse_object(data: bytes | bytearray | memoryview, file: str) -> dict[str, Any]:
    """Return the object that ``data`` spells; ``file`` is its name in messages.

    Raises:
        JsonSyntaxError: As for ``read_object``.
    """
    text = ""
    try:
        text = str(data, "utf-8")
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_constant, parse_float=_float, parse_int=_integer
        )
    except json.JSONDecodeError as error:
        line = text.splitlines()[error.lineno - 1] if error.pos < len(text) else ""
        raise JsonSyntaxError(
            file=file,
            problem=error.msg[:1].lower() + error.msg[1:],
            where=f"{file}:{error.lineno}:{error.colno}",
            excerpt=_excerpt(line, error.colno - 1),
        ) from None
    except UnicodeDecodeError as error:
        raise JsonSyntaxError(file=file, problem=f"byte {error.start} is not UTF-8") from None
    except RecursionError:
        raise JsonSyntaxError(file=file, problem="it is nested too deeply") from None
    except _Refused as error:
        raise JsonSyntaxError(file=file, problem=str(error)) from None
    if not isinstance(value, dict):
        raise JsonSyntaxError(file=file, problem="it holds a single value or a list, not an object")
    return cast("dict[str, Any]", value)


class _Refused(Exception):
    """A value that JSON parsers take and this one does not."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise _Refused(f"the key {twice!r} stands twice in one object")
    return found


def _constant(name: str) -> NoReturn:
    raise _Refused(f"{name} is no JSON number")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _Refused(f"the number {digits[:40]} is too large")
    return value


def _integer(digits: str) -> int:
    if len(digits) > 40:
        raise _Refused(f"the number {digits[:40]}... is too long")
    return int(digits)


def _excerpt(line: str, column: int) -> tuple[str, ...]:
    """Return the part of a line round a column, and a marker under it."""
    start = max(0, column - 60)
    shown = line[start : column + 40].replace("\t", " ")
    return (shown, " " * (column - start) + "^") if shown.strip() else ()
