"""Checkpoints: the safetensors files of a model folder, read one tensor at a time.

Only headers are read until a number is needed, and numbers with ``pread`` into memory of our own: nothing stays mapped,
so that a file that shrinks meanwhile is an error and not a crash, and memory is what the caller holds.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

from regraft.frontends.finite import all_finite, count_nonfinite
from regraft.ir.errors.checkpoint import (
    DuplicateTensorError,
    IndexFormatError,
    IndexMismatchError,
    MissingShardError,
    MissingTensorError,
    NotFiniteError,
    NoWeightsError,
    OutsideFolderError,
    PickleRefusedError,
    TensorMismatchError,
    TruncatedShardError,
)
from regraft.ir.errors.files import InputMissingError
from regraft.ir.header import BLOCK, Entry, Header, file_digest_of, read_header
from regraft.ir.json_files import read_object
from regraft.ir.sink import INDEX, SINGLE
from regraft.ir.source import Bytes, Source, TensorInfo, from_bytes
from regraft.ir.types import FLOATS

if TYPE_CHECKING:
    import torch

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class Checkpoint:
    """The weights of a Hugging Face folder: ``model.safetensors``, an index with its files, or ``*.safetensors``.

    A source of tensors. Safe to use from several threads.

    Args:
        folder: The model's folder; links in it are followed, as the Hugging Face cache needs.
        check_finite: Refuse NaN and infinities when numbers are read.

    Raises:
        NoWeightsError: The folder has no weights.
        PickleRefusedError: It has them as pickles only.
    """

    def __init__(self, folder: Path, *, check_finite: bool = True) -> None:
        self.folder = folder
        self._check_finite = check_finite
        self.index: Path | None = None
        self._placed: dict[str, str] | None = None
        self._digests: dict[str, bytes] = {}
        if (folder / SINGLE).exists():
            self.files: tuple[str, ...] = (SINGLE,)
        elif (folder / INDEX).exists():
            self.index = folder / INDEX
            self._placed = _read_index(self.index)
            self.files = tuple(sorted(set(self._placed.values())))
        else:
            self.files = tuple(sorted(path.name for path in folder.glob("*.safetensors")))
        if not self.files:
            raise _no_weights(folder)

    def names(self) -> Sequence[str]:
        """Return every tensor's name, in the order of the files' bytes."""
        return list(self._entries)

    def info(self, name: str) -> TensorInfo:
        """Return a tensor's element type and shape; reads headers only."""
        return self._find(name)[1].info

    def where(self, name: str) -> str:
        """Return the file and the tensor, for messages."""
        return f"{self._find(name)[0]}: {name}"

    def blocks(self, name: str) -> Iterator[memoryview]:
        """Yield a tensor's bytes in pieces; each is valid until the next is asked for.

        Raises:
            TruncatedShardError: The file has become shorter.
            NotFiniteError: There are NaN or infinities.
        """
        path, entry = self._find(name)
        buffer = memoryview(bytearray(min(BLOCK, entry.info.nbytes)))
        yield from self._read(path, entry, lambda start, end: buffer[: end - start])

    def readinto(self, name: str, offset: int, buffer: Bytes) -> None:
        """Fill ``buffer`` with a tensor's bytes from ``offset`` on, whatever they are.

        Raises:
            TruncatedShardError: The file has become shorter.
        """
        path, entry = self._find(name)
        view = memoryview(buffer)
        if not 0 <= offset <= offset + len(view) <= entry.info.nbytes:
            raise ValueError(f"{name} has {entry.info.nbytes} bytes, asked for {len(view)} from {offset}")
        with _opened(path) as descriptor:
            _read_block(path, descriptor, view, entry.start + offset)

    def raw(self, name: str) -> bytearray:
        """Return a copy of a tensor's bytes.

        Raises:
            TruncatedShardError: The file has become shorter.
            NotFiniteError: There are NaN or infinities.
        """
        path, entry = self._find(name)
        data = bytearray(entry.info.nbytes)
        view = memoryview(data)
        for _ in self._read(path, entry, lambda start, end: view[start:end]):
            pass
        return data

    def read(self, name: str) -> torch.Tensor:
        """Return a copy of a tensor, in its own element type.

        Raises:
            NotFiniteError: There are NaN or infinities.
        """
        return from_bytes(self.raw(name), self.info(name))

    def digest(self, name: str) -> bytes:
        """Return the BLAKE3 digest of a tensor's bytes; reads it, unless it has been read before."""
        if name not in self._digests:
            for _ in self.blocks(name):
                pass
        return self._digests[name]

    def digests(self) -> dict[str, str]:
        """Return the digest of every file, as ``shard_digest`` defines it; reads what has not been read before."""
        return {
            file: file_digest_of(header.prefix, (self.digest(name) for name in header.entries))
            for file, header in self._headers.items()
        }

    def stamp(self) -> str:
        """Return a line that changes when a file does: names, sizes and times of change, without reading the files."""
        facts = ((file, (self.folder / file).stat()) for file in self.files)
        return " ".join(f"{file}:{fact.st_size}:{fact.st_mtime_ns}" for file, fact in facts)

    @cached_property
    def _headers(self) -> Mapping[str, Header]:
        return {file: self._header(file) for file in self.files}

    @cached_property
    def _entries(self) -> Mapping[str, tuple[Path, Entry]]:
        found: dict[str, tuple[Path, Entry]] = {}
        for file, header in self._headers.items():
            for name, entry in header.entries.items():
                if name in found:
                    raise DuplicateTensorError(
                        tensor=name, first=found[name][0].name, second=file, where=str(self.folder)
                    )
                found[name] = (self.folder / file, entry)
        if self.index and self._placed is not None:
            _compare(self.index, self._placed, self._headers)
        return found

    def _header(self, file: str) -> Header:
        path = self.folder / file
        if self.index and self._placed is not None and not path.exists():
            raise MissingShardError(
                file=file, index=self.index.name, count=Counter(self._placed.values())[file], where=str(path)
            )
        return read_header(path)

    def _find(self, name: str) -> tuple[Path, Entry]:
        if name not in self._entries:
            raise MissingTensorError(tensor=name, near=nearest_tensor(name, self._entries), where=str(self.folder))
        return self._entries[name]

    def _read(self, path: Path, entry: Entry, place: Callable[[int, int], memoryview]) -> Iterator[memoryview]:
        """Read a tensor into ``place(start, end)`` block by block, look at each block, and note the digest of all."""
        from blake3 import blake3

        info, digest = entry.info, blake3()
        with _opened(path) as descriptor:
            for start in range(0, info.nbytes, BLOCK):
                block = place(start, min(start + BLOCK, info.nbytes))
                _read_block(path, descriptor, block, entry.start + start)
                if self._check_finite and not all_finite(block, info.dtype):
                    raise self._not_finite(path, descriptor, entry)
                digest.update(block)
                yield block
        self._digests[info.name] = digest.digest()

    def _not_finite(self, path: Path, descriptor: int, entry: Entry) -> NotFiniteError:
        info, count = entry.info, 0
        for start in range(0, info.nbytes, BLOCK):
            block = memoryview(bytearray(min(BLOCK, info.nbytes - start)))
            _read_block(path, descriptor, block, entry.start + start)
            count += count_nonfinite(block, info.dtype)
        total = info.nbytes // info.itemsize
        return NotFiniteError(tensor=info.name, count=count, total=total, where=f"{path}: {info.name}")


def check_tensors(source: Source, expected: Iterable[TensorInfo]) -> None:
    """Check that a source holds what a model needs; reads headers only.

    Any of f64, f32, f16 and bf16 serves where one of them is expected: a checkpoint keeps its own element type.

    Raises:
        MissingTensorError, TensorMismatchError: It does not.
    """
    for wanted in expected:
        found = source.info(wanted.name)
        fits = found.dtype == wanted.dtype or (found.dtype in FLOATS and wanted.dtype in FLOATS)
        if found.shape != wanted.shape or not fits:
            raise TensorMismatchError(tensor=wanted.name, found=found, expected=wanted, where=source.where(wanted.name))


def nearest_tensor(name: str, names: Iterable[str]) -> str:
    """Return a phrase that offers tensors of similar names, of the same layer where there are any."""
    everything = list(names)
    layers = {part for part in name.split(".") if part.isdecimal()}
    alike = [each for each in everything if layers <= set(each.split("."))] or everything
    close = get_close_matches(name, alike[:2000], n=3)
    return f"did you mean {' or '.join(close)}?" if close else f"none of its {len(everything)} tensors is called alike"


@contextmanager
def _opened(path: Path) -> Generator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise InputMissingError(path=path, reason=error.strerror) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _read_block(path: Path, descriptor: int, block: memoryview, offset: int) -> None:
    done = 0
    while done < len(block):
        try:
            count = os.preadv(descriptor, [block[done:]], offset + done)
        except OSError as error:
            raise InputMissingError(path=path, reason=error.strerror) from None
        if not count:
            found = os.fstat(descriptor).st_size
            raise TruncatedShardError(file=path, found=found, expected=f"{offset + len(block)} or more")
        done += count


def _read_index(path: Path) -> dict[str, str]:
    """Return which file holds which tensor, every file a plain name in the index's own folder."""
    index = read_object(path)
    placed = index.get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise IndexFormatError(index=path.name, problem="weight_map is no object with tensors", where=str(path))
    for tensor, file in cast("dict[str, object]", placed).items():
        if not isinstance(file, str):
            raise IndexFormatError(index=path.name, problem=f"the file of {tensor} is no string", where=str(path))
        if not file.isprintable() or file in ("", ".", "..") or "/" in file or "\\" in file:
            raise OutsideFolderError(index=path.name, file=file, where=str(path))
        if not file.endswith(".safetensors"):
            if file.endswith(PICKLES):
                raise PickleRefusedError(place=path.name, files=file, where=str(path))
            raise IndexFormatError(index=path.name, problem=f"{file} is no .safetensors", where=str(path))
    return cast("dict[str, str]", placed)


def _compare(index: Path, placed: Mapping[str, str], headers: Mapping[str, Header]) -> None:
    for name, file in placed.items():
        if name not in headers[file].entries:
            problem = f"the index puts {name} there"
            raise IndexMismatchError(index=index.name, file=file, problem=problem, where=str(index))
    for file, header in headers.items():
        for name in header.entries:
            if placed.get(name) != file:
                problem = f"{name} is there, and the index does not say so"
                raise IndexMismatchError(index=index.name, file=file, problem=problem, where=str(index))


def _no_weights(folder: Path) -> NoWeightsError | PickleRefusedError:
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES) if folder.is_dir() else []
    if pickles:
        shown = ", ".join(pickles[:3]) + (", ..." if len(pickles) > 3 else "")
        return PickleRefusedError(place=folder, files=shown)
    return NoWeightsError(place=folder)
