"""Facts about devices, from ``hardware.json``: vendors' sheet numbers, in plain units."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from regraft.ir.errors.base import nearest
from regraft.ir.errors.usage import UnknownDeviceError


@dataclass(frozen=True)
class Device:
    """A device: its key and full name, memory in bytes, sheet bandwidth in bytes a second."""

    key: str
    name: str
    memory_bytes: int
    bandwidth_bytes_per_s: int
    usable_bandwidth_fraction: float


@cache
def devices() -> dict[str, Device]:
    """Return the known devices by key, in the table's order."""
    table = json.loads(Path(__file__).with_name("hardware.json").read_text(encoding="utf-8"))
    fields = Device.__dataclass_fields__
    return {row["key"]: Device(**{name: row[name] for name in fields}) for row in table["devices"]}


def device(key: str) -> Device:
    """Return the device called ``key``, such as ``h200-sxm``.

    Raises:
        UnknownDeviceError: There is none.
    """
    known = devices()
    if key not in known:
        raise UnknownDeviceError(name=key, near=nearest(key, list(known)), legal=", ".join(known))
    return known[key]
