"""The header of a safetensors file: eight bytes of length, then JSON that says where each tensor lies.

Format: https://github.com/huggingface/safetensors, "Format". Parsed here rather than by the library, so that headers of
damaged files give an error with numbers in it, and files are planned before the first tensor is at hand.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from regraft.ir.errors.checkpoint import (
    ElementTypeError,
    JsonSyntaxError,
    PickleRefusedError,
    ShardHeaderError,
    TruncatedShardError,
)
from regraft.ir.errors.files import InputMissingError
from regraft.ir.json_files import parse_object
from regraft.ir.source import TensorInfo

DTYPES: dict[str, str] = {
    "F64": "f64",
    "F32": "f32",
    "F16": "f16",
    "BF16": "bf16",
    "F8_E4M3": "f8e4m3",
    "F8_E5M2": "f8e5m2",
    "F8_E8M0": "f8e8m0",
    "I64": "i64",
    "I32": "i32",
    "I16": "i16",
    "I8": "i8",
    "U8": "u8",
    "BOOL": "bool",
}
_NAMES = {ours: theirs for theirs, ours in DTYPES.items()}
HEADER_LIMIT = 100_000_000  # bytes, as in the safetensors library
NAME_LIMIT = 512
METADATA = "__metadata__"
BLOCK = 1 << 19  # bytes; stays in a core's own cache from reading to hashing and writing


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor and the place of its first byte in the file."""

    info: TensorInfo
    start: int


@dataclass(frozen=True)
class Header:
    """What a file holds: tensors by name, in the order of their bytes, after ``prefix``, the bytes before the first."""

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    prefix: bytes


def read_header(path: Path) -> Header:
    """Return the header of a safetensors file, checked against the file's size.

    Raises:
        InputMissingError: The file cannot be read.
        ShardHeaderError, PickleRefusedError, TruncatedShardError, ElementTypeError: It is not sound.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            first = file.read(8)
            if len(first) < 8:
                raise TruncatedShardError(file=path, found=size, expected="at least 8")
            length = int.from_bytes(first, "little")
            if first[:2] in (b"PK", b"\x80\x02", b"\x80\x04") and length > HEADER_LIMIT:
                raise PickleRefusedError(place=path, files="whatever its name says")
            if not 2 <= length <= HEADER_LIMIT:
                raise ShardHeaderError(file=path, problem=f"it claims a header of {length} bytes")
            if 8 + length > size:
                raise TruncatedShardError(file=path, found=size, expected=f"{8 + length} or more")
            text = file.read(length)
    except OSError as error:
        raise InputMissingError(path=path, reason=error.strerror) from None
    return _parse(path, first + text, size)


def file_digest_of(prefix: bytes, tensors: Iterable[bytes]) -> str:
    """Return the digest of a file from the digests of its tensors, in the order of their bytes.

    It is BLAKE3 of the bytes before the first tensor and of each tensor's BLAKE3 digest. So tensors are hashed as they
    are read or written, in any order and at the same time, and one that is copied is hashed once for both files.
    """
    from blake3 import blake3

    return blake3(prefix + b"".join(tensors)).hexdigest()


def shard_digest(path: Path) -> str:
    """Return the digest of a safetensors file that is read for that; see ``file_digest_of``.

    Raises:
        CheckpointError, InputMissingError: The file is not sound or cannot be read.
    """
    from blake3 import blake3

    header = read_header(path)
    buffer = memoryview(bytearray(BLOCK))
    digests: list[bytes] = []
    with path.open("rb", buffering=0) as file:
        file.seek(len(header.prefix))
        for entry in header.entries.values():
            digest, left = blake3(), entry.info.nbytes
            while left:
                count = file.readinto(buffer[:left])
                if not count:
                    raise TruncatedShardError(file=path, found=file.tell(), expected=file.tell() + left)
                digest.update(buffer[:count])
                left -= count
            digests.append(digest.digest())
    return file_digest_of(header.prefix, digests)


def build_header(tensors: Iterable[TensorInfo]) -> bytes:
    """Return the bytes before the first tensor of a file that holds ``tensors`` in this order.

    The tensors begin at a multiple of eight bytes. The metadata say ``{"format": "pt"}``, as transformers expects.
    """
    header: dict[str, Any] = {METADATA: {"format": "pt"}}
    offset = 0
    for info in tensors:
        end = offset + info.nbytes
        header[info.name] = {"dtype": _NAMES[info.dtype], "shape": list(info.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _parse(path: Path, prefix: bytes, size: int) -> Header:
    try:
        header = parse_object(prefix[8:], f"the header of {path.name}")
    except JsonSyntaxError as error:
        raise ShardHeaderError(file=path, problem=error.text, where=error.where) from None
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict):
        raise ShardHeaderError(file=path, problem=f"{METADATA} is no object")
    origin = len(prefix)
    entries = sorted((_entry(path, name, facts, origin) for name, facts in header.items()), key=lambda e: e.start)
    end = origin
    for entry in entries:
        if entry.start != end:
            problem = f"{entry.info.name} begins at byte {entry.start}, {end} expected: tensors overlap or leave a gap"
            raise ShardHeaderError(file=path, problem=problem)
        end += entry.info.nbytes
    if size < end:
        raise TruncatedShardError(file=path, found=size, expected=end)
    if size > end:
        raise ShardHeaderError(file=path, problem=f"{size - end} bytes follow the last tensor")
    known = cast("dict[Any, Any]", metadata)
    return Header({entry.info.name: entry for entry in entries}, {str(k): str(v) for k, v in known.items()}, prefix)


def _entry(path: Path, name: str, facts: object, origin: int) -> Entry:
    def refuse(problem: str) -> ShardHeaderError:
        return ShardHeaderError(file=path, problem=f"{name[:NAME_LIMIT]!r} {problem}")

    if not name or len(name) > NAME_LIMIT or not name.isprintable():
        raise refuse("is no name for a tensor")
    fields = cast("dict[str, object]", facts) if isinstance(facts, dict) else {}
    dtype, shape, span = fields.get("dtype"), _sizes(fields.get("shape")), _sizes(fields.get("data_offsets"))
    if not isinstance(dtype, str) or shape is None or span is None or len(span) != 2 or len(fields) != 3:
        raise refuse(f"is described by {str(fields)[:120]}, not by dtype, shape and two data_offsets")
    if dtype not in DTYPES:
        raise ElementTypeError(tensor=name, found=dtype[:40], legal=", ".join(DTYPES), where=str(path))
    info, (begin, end) = TensorInfo(name, DTYPES[dtype], shape), span
    if end - begin != info.nbytes:
        raise refuse(f"is {info} of {info.nbytes} bytes, its data_offsets are {begin} and {end}")
    return Entry(info, origin + begin)


def _sizes(value: object) -> tuple[int, ...] | None:
    """Return a list of natural numbers, or None for anything else."""
    items = cast("list[object]", value) if isinstance(value, list) else [None]
    sizes = tuple(item for item in items if type(item) is int and item >= 0)
    return sizes if len(sizes) == len(items) <= 16 else None
