"""Writing safetensors shards: laid out before the first number is known, filled in any order, hashed on the way.

Where a tensor's bytes go is known from the plan, so tensors come in any order and from several threads, which hash them
too. A thread of the writer follows: it has the disk write what is there, so that little is left at the end, and notes
each file in the folder's journal once it is durable. Nothing is held in memory.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from regraft.ir.files import OutputFolder, writing
from regraft.ir.header import build_header, file_digest_of, shard_digest
from regraft.ir.source import Bytes, Source, TensorInfo

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 5_000_000_000
FLUSH_BYTES = 1 << 28  # bytes that gather before the disk is told to write them


@dataclass(frozen=True)
class Shard:
    """A file to be: its name, the bytes before its tensors, and its tensors in order."""

    name: str
    header: bytes
    tensors: tuple[TensorInfo, ...]

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + sum(info.nbytes for info in self.tensors)


def plan_shards(tensors: Sequence[TensorInfo], limit: int = SHARD_BYTES) -> list[Shard]:
    """Return the files that will hold ``tensors``, filled in the given order up to ``limit`` bytes of tensors each.

    In a file, tensors of wider elements come first, so that every tensor begins at a multiple of its element's size. A
    tensor larger than ``limit`` gets a file of its own.
    """
    groups: list[list[TensorInfo]] = [[]]
    filled = 0
    for info in tensors:
        if groups[-1] and filled + info.nbytes > limit:
            groups.append([])
            filled = 0
        groups[-1].append(info)
        filled += info.nbytes
    shards: list[Shard] = []
    for number, group in enumerate(groups, 1):
        name = SINGLE if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        order = tuple(sorted(group, key=lambda info: -info.itemsize))
        shards.append(Shard(name, build_header(order), order))
    return shards


class _File:
    """A shard that is being written: its descriptor, where its tensors go, and how far it has come."""

    def __init__(self, shard: Shard, path: Path) -> None:
        self.shard = shard
        self.path = path
        self.descriptor = -1
        self.digests: dict[str, bytes] = {}
        self.unflushed = 0
        self.offsets: dict[str, int] = {}
        offset = len(shard.header)
        for info in shard.tensors:
            self.offsets[info.name] = offset
            offset += info.nbytes

    @property
    def whole(self) -> bool:
        """Whether every tensor has been delivered."""
        return len(self.digests) == len(self.offsets)

    def open(self) -> int:
        """Return the descriptor of the file, begun with its header when it is first asked for."""
        if self.descriptor < 0:
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            self.descriptor = os.open(self.path, flags, 0o666)
            _write_at(self.descriptor, memoryview(self.shard.header), 0)
        return self.descriptor

    def close(self) -> None:
        """Close the file."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class ShardWriter:
    """A sink of tensors that writes safetensors files, and an index where there is more than one.

    Use as a context manager inside that of its folder, and call ``finish`` last. Of a folder that is resumed, files
    that are noted as finished and still have their digest are kept.

    Args:
        folder: Where the files go.
        tensors: Every tensor that will be delivered; their order decides the layout.
        shard_bytes: Bytes of tensors in one file.

    Raises:
        DiskFullError: The disk has no room for what is still to be written.
    """

    def __init__(self, folder: OutputFolder, tensors: Sequence[TensorInfo], shard_bytes: int = SHARD_BYTES) -> None:
        self._folder = folder
        self.shards = plan_shards(tensors, shard_bytes)
        self.digests: dict[str, str] = {}
        kept = {record["shard"]: record["digest"] for record in folder.records if "shard" in record}
        self._files: list[_File] = []
        for shard in self.shards:
            path = folder.path / shard.name
            if shard.name in kept and path.is_file() and shard_digest(path) == kept[shard.name]:
                self.digests[shard.name] = kept[shard.name]
            else:
                path.unlink(missing_ok=True)
                self._files.append(_File(shard, path))
        folder.reserve(sum(file.shard.size for file in self._files))
        self._by_name = {info.name: (file, info) for file in self._files for info in file.shard.tensors}
        self._changed = threading.Condition()
        self._failure: BaseException | None = None
        self._closed = False
        self._follower = threading.Thread(target=self._follow, name="regraft-hash", daemon=True)
        self._follower.start()

    def __enter__(self) -> Self:
        """Return the writer."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._follower.join()
        for file in self._files:
            file.close()

    def pending(self) -> Sequence[str]:
        """Return the tensors still to be delivered, in the order of the files."""
        with self._changed:
            return [name for name, (file, _) in self._by_name.items() if name not in file.digests]

    def write(self, name: str, data: Bytes) -> None:
        """Deliver a tensor's bytes, row-major and little-endian.

        Raises:
            DiskFullError, OutputError: They cannot be written.
        """
        from blake3 import blake3

        file, info = self._expect(name)
        view = memoryview(data).cast("B")
        if len(view) != info.nbytes:
            raise ValueError(f"{name} is {info}, {info.nbytes} bytes; got {len(view)}")
        with writing(file.path, info.nbytes):
            _write_at(self._begin(file), view, file.offsets[name])
        self._deliver(file, info, blake3(view).digest())

    def copy(self, name: str, source: Source, original: str) -> None:
        """Deliver the bytes of the tensor ``original`` of ``source``, block by block.

        Raises:
            DiskFullError, OutputError: They cannot be written; also what reading raises.
        """
        file, info = self._expect(name)
        found = source.info(original)
        if (found.dtype, found.shape) != (info.dtype, info.shape):
            raise ValueError(f"{name} is {info}, {original} is {found}")
        offset = file.offsets[name]
        for block in source.blocks(original):
            with writing(file.path, info.nbytes):
                _write_at(self._begin(file), block, offset)
            offset += len(block)
        self._deliver(file, info, source.digest(original))

    def finish(self) -> dict[str, str]:
        """Wait until every file is durable, write the index, and return each file's digest."""
        missing = self.pending()
        if missing:
            raise ValueError(f"{len(missing)} tensors were not delivered, {missing[0]} among them")
        self._follower.join()
        self._raise_failure()
        if len(self.shards) > 1:
            self._folder.write(INDEX, _index(self.shards))
        return {shard.name: self.digests[shard.name] for shard in self.shards}

    def _expect(self, name: str) -> tuple[_File, TensorInfo]:
        file, info = self._by_name[name]
        if name in file.digests:
            raise ValueError(f"{name} was delivered before")
        return file, info

    def _begin(self, file: _File) -> int:
        if file.descriptor >= 0:
            return file.descriptor
        with self._changed:
            return file.open()

    def _deliver(self, file: _File, info: TensorInfo, digest: bytes) -> None:
        with self._changed:
            file.digests[info.name] = digest
            file.unflushed += info.nbytes
            self._changed.notify_all()
        self._raise_failure()

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _follow(self) -> None:
        """Make one file after the other durable, and note it."""
        try:
            for file in self._files:
                with writing(file.path, file.shard.size):
                    if not self._flush(file):
                        return
                digest = file_digest_of(file.shard.header, (file.digests[info.name] for info in file.shard.tensors))
                self.digests[file.shard.name] = digest
                self._folder.record(shard=file.shard.name, digest=digest)
        except BaseException as error:  # it belongs to the thread that delivers
            self._failure = error

    def _flush(self, file: _File) -> bool:
        """Write a file to the disk, in steps as it grows; False where the writer is closed before it is whole."""
        whole = False
        while not whole:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or file.whole or file.unflushed >= FLUSH_BYTES)
                whole, file.unflushed = file.whole, 0
                if self._closed and not whole:
                    return False
            os.fsync(self._begin(file))
        file.close()
        return True


def _write_at(descriptor: int, view: memoryview, offset: int) -> None:
    while view:
        count = os.pwrite(descriptor, view, offset)
        view, offset = view[count:], offset + count


def _index(shards: Sequence[Shard]) -> str:
    """Return the text of the index, as transformers writes it."""
    total = sum(info.nbytes for shard in shards for info in shard.tensors)
    placed = {info.name: shard.name for shard in shards for info in shard.tensors}
    return json.dumps({"metadata": {"total_size": total}, "weight_map": placed}, indent=2, sort_keys=True) + "\n"
