"""Writing shards: layout, order, hashes, full disks, and runs that are killed."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from regraft.frontends.checkpoint import Checkpoint
from regraft.ir.errors.checkpoint import MissingTensorError, NotFiniteError
from regraft.ir.errors.files import DiskFullError
from regraft.ir.files import OutputFolder, file_digest
from regraft.ir.header import file_digest_of, shard_digest
from regraft.ir.sink import ShardWriter, plan_shards
from regraft.ir.source import TensorInfo, TensorSource, to_bytes


class Usage(NamedTuple):
    """What shutil.disk_usage returns."""

    total: int
    used: int
    free: int


TENSORS = {
    f"layers.{i}.{name}": torch.randn(*shape).to(dtype)
    for i in range(5)
    for name, shape, dtype in (
        ("q", (7, 9), torch.bfloat16),
        ("norm", (3,), torch.float32),
        ("mask", (5,), torch.bool),
        ("none", (0, 3), torch.float16),
    )
}
PLAN = [TensorSource(TENSORS).info(name) for name in TENSORS]


def digests(folder: Path) -> dict[str, str]:
    return {path.name: file_digest(path) for path in sorted(folder.iterdir())}


def write(target: Path, order: list[str], limit: int) -> dict[str, str]:
    with OutputFolder(target, "plan") as folder:
        with ShardWriter(folder, PLAN, limit) as writer:
            for name in order:
                writer.write(name, to_bytes(TENSORS[name]))
            found = writer.finish()
        folder.commit()
    return found


def test_one_file_is_read_by_the_library(tmp_path: Path) -> None:
    found = write(tmp_path / "out", list(TENSORS), 1 << 20)
    assert found == {"model.safetensors": shard_digest(tmp_path / "out" / "model.safetensors")}
    assert found == Checkpoint(tmp_path / "out").digests()
    loaded = load_file(tmp_path / "out" / "model.safetensors")
    assert set(loaded) == set(TENSORS)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS.items())
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


@settings(max_examples=20, deadline=None)
@given(order=st.permutations(list(TENSORS)), limit=st.sampled_from([1, 200, 300, 10**6]), threads=st.integers(1, 3))
def test_order_and_threads_do_not_matter(
    tmp_path_factory: pytest.TempPathFactory, order: list[str], limit: int, threads: int
) -> None:
    path = tmp_path_factory.mktemp("order")
    write(path / "plain", list(TENSORS), limit)
    with OutputFolder(path / "out", "plan") as folder:
        with ShardWriter(folder, PLAN, limit) as writer, ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda name: writer.copy(name, TensorSource(TENSORS), name), order))
            found = writer.finish()
        folder.commit()
    assert digests(path / "out") == digests(path / "plain")
    read = Checkpoint(path / "out")
    assert found == {file: shard_digest(path / "out" / file) for file in read.files}
    assert all(torch.equal(read.read(name), tensor) for name, tensor in TENSORS.items())


def test_the_digest_covers_header_and_numbers(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(3)}, path)
    header, _, data = path.read_bytes().partition(bytes(12))
    assert data == b""
    assert shard_digest(path) == file_digest_of(header, [blake3(bytes(12)).digest()])
    before = {shard_digest(path)}
    save_file({"b": torch.zeros(3)}, path)
    before.add(shard_digest(path))
    save_file({"a": torch.tensor([0.0, 0, 1])}, path)
    assert len(before | {shard_digest(path)}) == 3


def test_shards_are_filled_in_order_and_aligned() -> None:
    shards = plan_shards(PLAN, 300)
    assert [shard.name for shard in shards] == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert [info.name for shard in shards for info in sorted(shard.tensors, key=PLAN.index)] == list(TENSORS)
    for shard in shards:
        offset = len(shard.header)
        assert offset % 8 == 0
        assert sum(info.nbytes for info in shard.tensors) <= 300
        for info in shard.tensors:
            assert offset % info.itemsize == 0
            offset += info.nbytes
        assert offset == shard.size
    alone = plan_shards([TensorInfo("small", "u8", (1,)), TensorInfo("large", "u8", (99,))], 50)
    assert [len(shard.tensors) for shard in alone] == [1, 1]


def test_index_is_what_transformers_writes(tmp_path: Path) -> None:
    write(tmp_path / "out", list(TENSORS), 300)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": sum(info.nbytes for info in PLAN)}
    assert set(index["weight_map"]) == set(TENSORS)


def test_what_the_caller_gets_wrong_is_refused(tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "out", "plan") as folder, ShardWriter(folder, PLAN) as writer:
        with pytest.raises(ValueError, match=r"126 bytes; got 3"):
            writer.write("layers.0.q", b"abc")
        with pytest.raises(ValueError, match=r"layers\.0\.norm is f32"):
            writer.copy("layers.0.norm", TensorSource(TENSORS), "layers.0.q")
        writer.write("layers.0.q", to_bytes(TENSORS["layers.0.q"]))
        with pytest.raises(ValueError, match="delivered before"):
            writer.write("layers.0.q", to_bytes(TENSORS["layers.0.q"]))
        with pytest.raises(ValueError, match=r"19 tensors were not delivered, layers\.0\.norm among"):
            writer.finish()


def test_numbers_that_are_not_finite_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "model", list(TENSORS), 300)
    path = tmp_path / "in" / "model" / "model-00003-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-40] + b"\xff" * 40)
    source = Checkpoint(tmp_path / "in" / "model")
    (tmp_path / "out").mkdir()
    with (
        pytest.raises(NotFiniteError),
        OutputFolder(tmp_path / "out" / "model", "plan") as folder,
        ShardWriter(folder, PLAN, 300) as writer,
    ):
        for name in writer.pending():
            writer.copy(name, source, name)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_is_seen_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10, 9, 1))  # pyright: ignore[reportUnknownArgumentType, reportUnknownLambdaType]
    with pytest.raises(DiskFullError), OutputFolder(tmp_path / "out", "plan") as folder:
        ShardWriter(folder, PLAN)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_disk_that_fills_keeps_finished_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    plain = tmp_path / "plain"
    write(plain, list(TENSORS), 300)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DiskFullError), OutputFolder(tmp_path / "out", "plan") as folder:
        with ShardWriter(folder, PLAN, 300) as writer:
            names = list(writer.pending())
            for name in names[:12]:
                writer.write(name, to_bytes(TENSORS[name]))
            while len(folder.records) < 1:
                time.sleep(0.001)
            monkeypatch.setattr(os, call, full)
            for name in names[12:]:
                writer.write(name, to_bytes(TENSORS[name]))
            writer.finish()
    monkeypatch.undo()
    assert not (tmp_path / "out").exists()
    with OutputFolder(tmp_path / "out", "plan", resume=True) as folder:
        with ShardWriter(folder, PLAN, 300) as writer:
            assert 0 < len(writer.pending()) < len(PLAN)
            for name in writer.pending():
                writer.write(name, to_bytes(TENSORS[name]))
            writer.finish()
        folder.commit()
    assert digests(tmp_path / "out") == digests(plain)


def test_a_finished_shard_that_was_damaged_is_written_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), OutputFolder(tmp_path / "out", "plan") as folder:
        with ShardWriter(folder, PLAN, 300) as writer:
            for name in writer.pending():
                writer.write(name, to_bytes(TENSORS[name]))
            writer.finish()
            raise KeyboardInterrupt
    path = tmp_path / "out.partial" / "model-00002-of-00003.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with OutputFolder(tmp_path / "out", "plan", resume=True) as folder, ShardWriter(folder, PLAN, 300) as writer:
        assert set(writer.pending()) == {info.name for info in writer.shards[1].tensors}
        with pytest.raises(KeyError):
            writer.write("layers.0.q", b"")
        for name in writer.pending():
            writer.write(name, to_bytes(TENSORS[name]))
        writer.finish()
        folder.commit()
    write(tmp_path / "plain", list(TENSORS), 300)
    assert digests(tmp_path / "out") == digests(tmp_path / "plain")


def test_tensor_source_names_the_nearest() -> None:
    with pytest.raises(MissingTensorError, match=r"layers\.0\.q"):
        TensorSource(TENSORS).read("layers.0.qq")


SCRIPT = """
import sys
from pathlib import Path
from regraft.frontends.checkpoint import Checkpoint
from regraft.ir.sink import ShardWriter
from regraft.ir.files import OutputFolder

source = Checkpoint(Path(sys.argv[1]))
with OutputFolder(Path(sys.argv[2]), "plan", resume=True) as folder:
    with ShardWriter(folder, [source.info(name) for name in source.names()], 20_000) as writer:
        print("ready", flush=True)
        for name in writer.pending():
            writer.copy(name, source, name)
        writer.finish()
    folder.write("config.json", "{}")
    folder.commit()
"""


@pytest.mark.parametrize("attempts", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_killed_at_random_moments_and_resumed_gives_the_same_bytes(tmp_path: Path, attempts: int) -> None:
    rng = random.Random(attempts)
    tensors = {f"w{i}": torch.randn(rng.randint(1, 2000)) for i in range(300)}
    source = TensorSource(tensors)
    with OutputFolder(tmp_path / "in", "plan") as folder:
        with ShardWriter(folder, [source.info(name) for name in tensors]) as writer:
            for name in tensors:
                writer.copy(name, source, name)
            writer.finish()
        folder.commit()

    def run(out: Path, kill_after: float | None) -> bool:
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / "in"), str(out)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            assert process.stdout.readline() == "ready\n"
            moments.append(time.monotonic())
            try:
                process.wait(kill_after)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
        return process.returncode == 0

    moments: list[float] = []
    assert run(tmp_path / "whole", None)
    took = time.monotonic() - moments[0]
    expected = digests(tmp_path / "whole")
    kills = 0
    for attempt in range(attempts):
        out = tmp_path / f"out{attempt}"
        while not run(out, rng.uniform(0, took) if kills < 5 * (attempt + 1) else None):
            kills += 1
            if out.exists():  # killed after the last step
                break
        assert digests(out) == expected
    assert kills > 0, "no run was killed: the moments are too late"
