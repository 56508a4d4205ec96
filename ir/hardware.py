"""Facts about devices: those of ``hardware.json``, and of files that have the same keys; sheet numbers, plain units."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, cast

from regraft.ir.errors.base import nearest
from regraft.ir.errors.usage import DeviceKeyError, UnknownDeviceError
from regraft.ir.json_files import read_object


@dataclass(frozen=True)
class Device:
    """A device.

    Attributes:
        key: What it is called here.
        name: Its full name.
        memory_bytes: Memory.
        bandwidth_bytes_per_s: Sheet bandwidth of the memory.
        usable_bandwidth_fraction: What share of that a plain streaming copy reaches.
        bf16_dense_flops: Sheet operations a second of bf16 matrix products, two for a multiply-add; none where the
            vendor gives no figure.
        arch: What code for it is compiled for: ``sm_90``, ``gfx942``.
        sm_count: Processors, each with registers and shared memory of its own.
        registers_per_sm: Registers of 32 bits of one.
        max_shared_memory_per_block_bytes: Shared memory that one program may have.
        l2_bytes: The last cache before the memory.
    """

    key: str
    name: str
    memory_bytes: int
    bandwidth_bytes_per_s: int
    usable_bandwidth_fraction: float = 1.0
    bf16_dense_flops: int | None = None
    arch: str = ""
    sm_count: int | None = None
    registers_per_sm: int | None = None
    max_shared_memory_per_block_bytes: int | None = None
    l2_bytes: int | None = None


_REQUIRED = tuple(field.name for field in fields(Device) if field.default is MISSING and field.name != "key")
_TEXTS = ("key", "name", "arch", "source")
_INTEGERS = (
    "memory_bytes",
    "bandwidth_bytes_per_s",
    "bf16_dense_flops",
    "fp8_dense_flops",
    "sm_count",
    "registers_per_sm",
    "max_shared_memory_per_block_bytes",
    "l2_bytes",
    "device_reported_bandwidth_bytes_per_s",
)
_KEYS = (*_TEXTS, *_INTEGERS, "usable_bandwidth_fraction", "measured")


@cache
def devices() -> dict[str, Device]:
    """Return the known devices by key, in the table's order."""
    table = read_object(Path(__file__).with_name("hardware.json"))
    return {row["key"]: _device(row) for row in table["devices"]}


def device(key: str) -> Device:
    """Return the device called ``key``, such as ``h200-sxm``, or the one that a file ``*.json`` describes.

    Such a file is one object with the keys of a device of ``hardware.json``. It must have ``name``, ``memory_bytes``
    and ``bandwidth_bytes_per_s``.

    Raises:
        UnknownDeviceError: There is none of this name.
        InputMissingError, JsonSyntaxError, JsonSizeError: The file cannot be read.
        DeviceKeyError: It has a key too many or too few, or a value that no device has.
    """
    if key.endswith(".json"):
        return _read_device(Path(key))
    known = devices()
    if key not in known:
        raise UnknownDeviceError(name=key, near=nearest(key, list(known)), legal=", ".join(known))
    return known[key]


def _read_device(file: Path) -> Device:
    row = read_object(file, 1 << 20)
    found = [(name, "is missing") for name in _REQUIRED if name not in row]
    found += [(name, problem) for name, value in row.items() if (problem := _problem(name, value))]
    for name, problem in found:
        optional = ", ".join(key for key in _KEYS if key not in _REQUIRED)
        raise DeviceKeyError(where=str(file), key=name, problem=problem, needed=", ".join(_REQUIRED), optional=optional)
    return _device({"key": file.stem, **row})


def _problem(name: str, value: object) -> str:
    """Return what is wrong with a device's key or value, or nothing."""
    if name not in _KEYS:
        return f"is unknown; {nearest(name, _KEYS)}"
    if name in _TEXTS:
        fits, must = isinstance(value, str) and bool(value.strip()), "a text"
    elif name == "measured":
        fits, must = isinstance(value, dict), "an object"
    elif value is None:
        fits, must = name not in _REQUIRED, "a number"
    elif name in _INTEGERS:
        fits, must = _number(value) and 1 <= cast(float, value) < 1e30, "a number of at least 1"
    else:
        fits, must = _number(value) and 0 < cast(float, value) <= 1, "a number above 0 and at most 1"
    text = json.dumps(value, ensure_ascii=False)
    return "" if fits else f"is {text if len(text) <= 40 else f'{text[:37]}...'}, and must be {must}"


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _device(row: Mapping[str, Any]) -> Device:
    given: dict[str, Any] = {}
    for field in fields(Device):
        value = row.get(field.name)
        if value is not None:
            given[field.name] = int(value) if field.name in _INTEGERS else value
    return Device(**given)
