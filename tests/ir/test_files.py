"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from regraft.ir.errors.checkpoint import NoWeightsError
from regraft.ir.errors.files import DiskFullError, InputMissingError, OutputExistsError
from regraft.ir.errors.output import OutputBusyError, OutputError, PartialExistsError, PartialPlanError
from regraft.ir.files import OutputFolder, file_digest, write_atomic


class Usage(NamedTuple):
    """What shutil.disk_usage returns."""

    total: int
    used: int
    free: int


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_write_atomic_replaces_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    write_atomic(path, "first")
    write_atomic(path, b"second \xff")
    assert path.read_bytes() == b"second \xff"
    assert names(tmp_path) == {"out.txt"}
    assert path.stat().st_mode & 0o077 == 0o666 & ~_umask() & 0o077


def test_write_atomic_keeps_the_old_file_when_the_disk_fills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.txt"
    write_atomic(path, "old")
    monkeypatch.setattr(os, "fsync", _full)
    with pytest.raises(DiskFullError) as caught:
        write_atomic(path, "new")
    assert caught.value.exit_code == 7
    assert path.read_text() == "old"
    assert names(tmp_path) == {"out.txt"}


def test_write_atomic_says_why_it_cannot(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="No such file or directory"):
        write_atomic(tmp_path / "none" / "out.txt", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="Is a directory"):
        write_atomic(tmp_path / "folder", "x")
    assert names(tmp_path) == {"folder"}


def test_digest_is_blake3(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"")
    assert (
        file_digest(path) == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    )  # BLAKE3's own test vector
    with pytest.raises(InputMissingError):
        file_digest(tmp_path / "y")


def test_a_folder_appears_at_commit_with_nothing_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with OutputFolder(target, "plan") as folder:
        folder.write("a.txt", "a")
        folder.write("deep/b.txt", b"b")
        folder.write("scratch/c", "c")
        folder.write("d", "d")
        for name in ("scratch", "d", "none"):
            folder.remove(name)
        folder.record(shard="x")
        assert names(tmp_path) == {"out.partial", "out.partial.journal"}
        assert folder.commit() == target
    assert names(tmp_path) == {"out"}
    assert names(target) == {"a.txt", "deep"}


def test_an_existing_target_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    with pytest.raises(OutputExistsError, match="out exists"):
        OutputFolder(target, "plan")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(OutputExistsError):
        OutputFolder(tmp_path / "link", "plan")
    assert names(tmp_path) == {"out", "link"}


def test_a_target_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(OutputExistsError), OutputFolder(target, "plan") as folder:
        folder.record(shard="x")
        target.mkdir()
        folder.commit()
    assert names(target) == set()
    assert "out.partial" in names(tmp_path), "what is finished can still be used"


def test_an_interrupted_folder_continues(tmp_path: Path) -> None:
    target = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), OutputFolder(target, "plan") as folder:
        folder.write("a.txt", "a")
        folder.record(shard="x", digest="1")
        raise KeyboardInterrupt
    assert not target.exists()
    with pytest.raises(PartialExistsError, match=r"out\.partial"):
        OutputFolder(target, "plan")
    with pytest.raises(PartialPlanError):
        OutputFolder(target, "another plan", resume=True)
    with (tmp_path / "out.partial.journal").open("a") as journal:
        journal.write('{"torn": ')
    with OutputFolder(target, "plan", resume=True) as folder:
        assert folder.records == [{"shard": "x", "digest": "1"}]
        folder.record(shard="y")
        folder.commit()
    assert names(tmp_path) == {"out"}
    assert names(target) == {"a.txt"}


def test_resume_without_an_earlier_run_begins(tmp_path: Path) -> None:
    (tmp_path / "out.partial.journal").write_text('{"plan": "stale"}\n')
    with OutputFolder(tmp_path / "out", "plan", resume=True) as folder:
        assert folder.records == []
        folder.commit()
    assert names(tmp_path) == {"out"}


def test_a_partial_folder_of_somebody_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.txt").write_text("mine")
    with pytest.raises(PartialPlanError):
        OutputFolder(tmp_path / "out", "plan", resume=True)
    assert names(tmp_path) == {"out.partial"}
    assert names(tmp_path / "out.partial") == {"thesis.txt"}


def test_two_processes_do_not_write_the_same_folder(tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "out", "plan") as folder:
        with pytest.raises(OutputBusyError):
            OutputFolder(tmp_path / "out", "plan", resume=True)
        folder.commit()


def test_an_error_of_the_input_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(NoWeightsError), OutputFolder(tmp_path / "out", "plan") as folder:
        folder.record(shard="x")
        raise NoWeightsError(place="somewhere")
    assert names(tmp_path) == set()


def test_a_full_disk_is_seen_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 0, 3_500_000))  # pyright: ignore[reportUnknownArgumentType, reportUnknownLambdaType]
    with (
        pytest.raises(DiskFullError, match=r"5 GB needed, 3\.5 MB free"),
        OutputFolder(tmp_path / "out", "p") as folder,
    ):
        folder.reserve(5_000_000_000)
    assert names(tmp_path) == set()


def test_a_disk_that_fills_leaves_what_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DiskFullError), OutputFolder(tmp_path / "out", "plan") as folder:
        folder.record(shard="x")
        monkeypatch.setattr(os, "write", _full)
        folder.write("a.txt", "a")
    monkeypatch.undo()
    with OutputFolder(tmp_path / "out", "plan", resume=True) as folder:
        assert folder.records == [{"shard": "x"}]
        folder.commit()


def test_copy_takes_a_file_over(tmp_path: Path) -> None:
    source = tmp_path / "tokenizer.json"
    source.write_bytes(hashlib.sha256(b"").digest())
    with OutputFolder(tmp_path / "out", "plan") as folder:
        folder.copy(source, "tokenizer.json")
        folder.commit()
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == source.read_bytes()


def _full(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
