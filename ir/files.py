"""Writing that leaves whole files and folders, or none.

A folder is written beside its target as ``NAME.partial`` and renamed at the end. What is finished in it is noted in
``NAME.partial.journal``, so that a run that was killed continues where it stood.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import shutil
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from regraft.ir.errors.base import RegraftError
from regraft.ir.errors.files import DiskFullError, InputMissingError, OutputExistsError
from regraft.ir.errors.output import OutputBusyError, OutputError, PartialExistsError, PartialPlanError

BLOCK = 1 << 18  # bytes; stays in a core's own cache between reading and hashing


@contextmanager
def writing(path: Path, needed: int = 0) -> Generator[None]:
    """Turn what the system says while ``path`` is written into coded errors.

    Raises:
        DiskFullError: The disk, the user's share of it, or what a file may hold is full.
        OutputError: Anything else, with the system's reason.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(path, needed) from None
        if error.errno == errno.EFBIG:
            most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
            raise DiskFullError(path=path, needed="more", free=f"{_size(most)} a file (ulimit -f)") from None
        raise OutputError(path=path, reason=error.strerror or error) from None


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that it is there whole or not at all; an older one of that name is replaced.

    Text is written as UTF-8.

    Raises:
        DiskFullError, OutputError: It cannot be written.
    """
    content = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with writing(path, len(content)):
            _write_synced(temporary, content)
            temporary.replace(path)
            sync_folder(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def file_digest(path: Path) -> str:
    """Return the BLAKE3 digest of a file, 64 hexadecimal digits, as ``b3sum`` prints it.

    Raises:
        InputMissingError: It cannot be read.
    """
    from blake3 import blake3

    digest = blake3()
    block = memoryview(bytearray(BLOCK))
    try:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(block):
                digest.update(block[:count])
    except OSError as error:
        raise InputMissingError(path=path, reason=error.strerror) from None
    return digest.hexdigest()


def sync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class OutputFolder:
    """A folder that appears under its name only when it is complete.

    Use as a context manager, and call ``commit`` last. When the block is left by an interrupt or a crash, the
    unfinished folder stays for ``resume``; when the disk fails, it stays if something in it is finished; after any
    other coded error, which is the input's fault, nothing is left.

    Args:
        target: The folder to make; its parent must exist.
        plan: Names everything that decides the bytes (a digest, say); a run continues only one of the same plan.
        resume: Continue an unfinished run, if there is one.

    Attributes:
        path: The unfinished folder.
        records: What ``record`` noted, in earlier runs and in this one.

    Raises:
        OutputExistsError: The target exists.
        PartialExistsError: An unfinished run is there, and ``resume`` is not given.
        PartialPlanError: It is there and has another plan.
        OutputBusyError: It belongs to a process that is still running.
    """

    def __init__(self, target: Path, plan: str, *, resume: bool = False) -> None:
        if not target.name:  # "." and "/"
            raise OutputExistsError(path=target)
        self.target = target
        self.path = target.with_name(f"{target.name}.partial")
        self._journal_path = target.with_name(f"{target.name}.partial.journal")
        self._lock = threading.Lock()
        if os.path.lexists(target):
            raise OutputExistsError(path=target)
        if self.path.exists() and not resume:
            raise PartialExistsError(path=self.path)
        with writing(self.path):
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            self._journal = os.open(self._journal_path, flags, 0o666)
        try:
            self.records = self._begin(plan)
        except BaseException:
            if not os.fstat(self._journal).st_size:
                self._journal_path.unlink(missing_ok=True)
            os.close(self._journal)
            raise

    def __enter__(self) -> Self:
        """Return the folder."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._journal)
        stays = isinstance(error, DiskFullError | OutputError | OutputExistsError) and self.records
        if isinstance(error, RegraftError) and not stays:
            shutil.rmtree(self.path, ignore_errors=True)
            self._journal_path.unlink(missing_ok=True)

    def reserve(self, needed: int) -> None:
        """Check that the disk has room for ``needed`` more bytes.

        Raises:
            DiskFullError: It has not.
        """
        if shutil.disk_usage(self.path).free < needed:
            raise _disk_full(self.path, needed)

    def record(self, **facts: Any) -> None:
        """Note durably that something is finished; ``records`` has it in later runs."""
        self.records.append(facts)
        self._append(facts)

    def write(self, name: str, data: bytes | str) -> Path:
        """Write a small file into the folder, durably, and return its path."""
        path = self.path / name
        with writing(path, len(data)):
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_synced(path, data.encode() if isinstance(data, str) else data)
        return path

    def copy(self, source: Path, name: str) -> Path:
        """Copy a small file into the folder, durably, and return its path.

        Raises:
            InputMissingError: ``source`` cannot be read.
        """
        try:
            data = source.read_bytes()
        except OSError as error:
            raise InputMissingError(path=source, reason=error.strerror) from None
        return self.write(name, data)

    def remove(self, name: str) -> None:
        """Remove a file or a folder from the unfinished folder, if it is there."""
        path = self.path / name
        with writing(path):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def commit(self) -> Path:
        """Give the folder its name, and return it."""
        with writing(self.target):
            for folder in (self.path, *(path for path in self.path.rglob("*") if path.is_dir())):
                sync_folder(folder)
            if os.path.lexists(self.target):
                raise OutputExistsError(path=self.target)
            self.path.rename(self.target)
            sync_folder(self.target.parent)
            self._journal_path.unlink(missing_ok=True)
        return self.target

    def _begin(self, plan: str) -> list[dict[str, Any]]:
        """Take the journal and make the folder; return what is finished in it.

        The journal is begun before the folder is made, so that a folder without one is not ours to continue.
        """
        try:
            fcntl.flock(self._journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise OutputBusyError(path=self.path) from None
        records, sound = _read_journal(os.pread(self._journal, os.fstat(self._journal).st_size, 0))
        if self.path.exists():
            if records[:1] != [{"plan": plan}]:
                raise PartialPlanError(path=self.path)
            os.ftruncate(self._journal, sound)
            return records[1:]
        os.ftruncate(self._journal, 0)
        self._append({"plan": plan})
        with writing(self.path):
            self.path.mkdir()
            sync_folder(self.path.parent)
        return []

    def _append(self, facts: Mapping[str, Any]) -> None:
        line = json.dumps(facts, sort_keys=True) + "\n"
        with self._lock, writing(self._journal_path, len(line)):
            _write_all(self._journal, line.encode())
            os.fsync(self._journal)


def _read_journal(data: bytes) -> tuple[list[dict[str, Any]], int]:
    """Return the whole lines of a journal, and how many bytes they take; a torn last line is left out."""
    records: list[dict[str, Any]] = []
    sound = 0
    for line in data.splitlines(keepends=True):
        try:
            record: object = json.loads(line)
        except ValueError:
            break
        if not line.endswith(b"\n") or not isinstance(record, dict):
            break
        records.append(cast("dict[str, Any]", record))
        sound += len(line)
    return records, sound


def _write_synced(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
    try:
        _write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _disk_full(path: Path, needed: int) -> DiskFullError:
    place = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    return DiskFullError(path=path, needed=_size(needed) if needed else "more", free=_size(free))


def _size(count: int) -> str:
    """Return bytes in decimal units, as disks are sold."""
    value, units = float(count), ["bytes", "kB", "MB", "GB", "TB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.4g} {units[0]}"
