"""Checkpoints: sound ones are read as the safetensors library reads them, damaged ones are refused with numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from regraft.frontends.checkpoint import Checkpoint, check_tensors, nearest_tensor
from regraft.frontends.finite import all_finite, count_nonfinite
from regraft.ir.errors import RegraftError
from regraft.ir.errors.checkpoint import (
    DuplicateTensorError,
    ElementTypeError,
    IndexFormatError,
    IndexMismatchError,
    MissingShardError,
    MissingTensorError,
    NotFiniteError,
    NoWeightsError,
    OutsideFolderError,
    PickleRefusedError,
    ShardHeaderError,
    TensorMismatchError,
    TruncatedShardError,
)
from regraft.ir.header import DTYPES, read_header, shard_digest
from regraft.ir.source import TensorInfo, TensorSource, to_bytes

TENSORS = {
    "a.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b.weight": torch.linspace(-1, 1, 8).to(torch.bfloat16).reshape(4, 2),
    "c.empty": torch.zeros(0, 4),
    "d.scalar": torch.tensor(7),
}


def sharded(folder: Path, shards: dict[str, dict[str, torch.Tensor]], **weight_map: str) -> Path:
    placed = {name: file for file, tensors in shards.items() for name in tensors} | weight_map
    for file, tensors in shards.items():
        save_file(tensors, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    return folder


def raw_file(path: Path, header: dict[str, Any] | bytes, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: str = "F32", shape: object = (1,), offsets: object = (0, 4)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_reads_one_file_like_the_library(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    assert set(checkpoint.names()) == set(TENSORS)
    for name, tensor in TENSORS.items():
        read = checkpoint.read(name)
        assert read.dtype == tensor.dtype
        assert torch.equal(read, tensor)
        assert checkpoint.raw(name) == to_bytes(tensor)
        assert checkpoint.info(name).shape == tuple(tensor.shape)
    assert checkpoint.info("b.weight") == TensorInfo("b.weight", "bf16", (4, 2))
    assert checkpoint.info("b.weight").nbytes == 16
    assert checkpoint.where("a.weight") == f"{tmp_path}/model.safetensors: a.weight"
    part = bytearray(8)
    checkpoint.readinto("a.weight", 4, part)
    assert part == to_bytes(TENSORS["a.weight"])[4:12]


def test_stamp_changes_with_a_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    before = Checkpoint(tmp_path).stamp()
    assert Checkpoint(tmp_path).stamp() == before
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    assert Checkpoint(tmp_path).stamp() != before


def test_what_is_read_is_a_copy(tmp_path: Path) -> None:
    save_file({"w": torch.ones(3)}, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    checkpoint.read("w").zero_()
    assert checkpoint.read("w").tolist() == [1, 1, 1]


def test_reads_shards_through_the_index_and_leaves_other_files_alone(tmp_path: Path) -> None:
    sharded(tmp_path, {"m-1.safetensors": {"a": torch.ones(2)}, "m-2.safetensors": {"b": torch.zeros(3)}})
    save_file({"a": torch.ones(9)}, tmp_path / "consolidated.safetensors")
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.files == ("m-1.safetensors", "m-2.safetensors")
    assert checkpoint.read("b").tolist() == [0, 0, 0]
    assert checkpoint.digests() == {file: shard_digest(tmp_path / file) for file in checkpoint.files}


def test_follows_the_links_of_the_hugging_face_cache(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    snapshot = tmp_path / "snapshots" / "1234"
    snapshot.mkdir(parents=True)
    save_file({"a": torch.ones(2)}, tmp_path / "blobs" / "cafe")
    (snapshot / "m-1.safetensors").symlink_to("../../blobs/cafe")
    (snapshot / "model.safetensors.index.json").write_text('{"weight_map": {"a": "m-1.safetensors"}}')
    assert Checkpoint(snapshot).read("a").tolist() == [1, 1]


def test_reads_headers_without_torch_and_without_numbers(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    code = (
        "import sys, pathlib; from regraft.frontends.checkpoint import Checkpoint;"
        "print(Checkpoint(pathlib.Path(sys.argv[1])).info('a.weight'), 'torch' in sys.modules, 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert done.stdout == "f32[2, 3] False False\n"


@pytest.mark.parametrize(("name", "ours"), DTYPES.items())
def test_every_element_type_of_the_table(tmp_path: Path, name: str, ours: str) -> None:
    size = TensorInfo("w", ours, (3,)).nbytes
    raw_file(tmp_path / "model.safetensors", {"w": entry(name, [3], [0, size])}, bytes(size))
    tensor = Checkpoint(tmp_path).read("w")
    assert tensor.element_size() * 3 == size
    assert TensorSource({"w": tensor}).info("w") == TensorInfo("w", ours, (3,))


def test_missing_shard(tmp_path: Path) -> None:
    sharded(tmp_path, {"m-1.safetensors": {"a": torch.ones(2)}}, b="m-2.safetensors", c="m-2.safetensors")
    with pytest.raises(MissingShardError) as caught:
        Checkpoint(tmp_path).names()
    assert caught.value.text == "m-2.safetensors is missing, and model.safetensors.index.json puts 2 tensors in it"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("cut", [1, 24])
def test_truncated_shard(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(100)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    with pytest.raises(TruncatedShardError, match=f"has {len(whole) - cut} bytes, its header calls for {len(whole)}"):
        Checkpoint(tmp_path).info("a")


@pytest.mark.parametrize("length", [0, 3, 8, 20])
def test_file_that_ends_in_its_header(tmp_path: Path, length: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(TruncatedShardError):
        Checkpoint(tmp_path).names()


def test_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(100)}, path)
    checkpoint = Checkpoint(tmp_path)
    checkpoint.info("a")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(TruncatedShardError):
        checkpoint.raw("a")
    with pytest.raises(TruncatedShardError):
        checkpoint.readinto("a", 396, bytearray(4))


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ({"w": entry(shape=[2])}, "is f32[2] of 8 bytes, its data_offsets are 0 and 4"),
        ({"w": entry(shape=[-1])}, "is described by"),
        ({"w": entry(shape=[1.5])}, "is described by"),
        ({"w": entry(shape=[True])}, "is described by"),
        ({"w": entry(shape="1")}, "is described by"),
        ({"w": entry(shape=[1] * 17)}, "is described by"),
        ({"w": entry(offsets=[0])}, "is described by"),
        ({"w": {**entry(), "extra": 1}}, "is described by"),
        ({"w": 3}, "is described by"),
        ({"w": entry(offsets=[4, 8])}, "w begins at byte"),
        ({"w": entry(), "v": entry()}, "tensors overlap or leave a gap"),
        ({"w": entry(shape=[0], offsets=[0, 0])}, "4 bytes follow the last tensor"),
        ({"": entry()}, "is no name for a tensor"),
        ({"a\nb": entry()}, "is no name for a tensor"),
        ({"a" * 600: entry()}, "is no name for a tensor"),
        ({"__metadata__": 3, "w": entry()}, "__metadata__ is no object"),
        (b'{"w": {}, "w": {}}', "stands twice"),
        (b"[]", "not an object"),
        (b"{,}", "no sound JSON"),
    ],
)
def test_unsound_headers(tmp_path: Path, header: dict[str, Any] | bytes, problem: str) -> None:
    raw_file(tmp_path / "model.safetensors", header, bytes(4))
    with pytest.raises(ShardHeaderError) as caught:
        Checkpoint(tmp_path).names()
    assert problem in caught.value.text


def test_absurd_header_length(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((1 << 40).to_bytes(8, "little") + b"{}")
    with pytest.raises(ShardHeaderError, match=f"a header of {1 << 40} bytes"):
        Checkpoint(tmp_path).names()


def test_unknown_element_type(tmp_path: Path) -> None:
    raw_file(tmp_path / "model.safetensors", {"w": entry("F4", [2], [0, 1])}, bytes(1))
    with pytest.raises(ElementTypeError, match="w has elements of type F4") as caught:
        Checkpoint(tmp_path).names()
    assert caught.value.exit_code == 3


def test_missing_tensor_names_the_nearest(tmp_path: Path) -> None:
    save_file({f"layers.{i}.q_proj.weight": torch.ones(1) for i in range(40)}, tmp_path / "model.safetensors")
    with pytest.raises(MissingTensorError, match=r"did you mean layers\.7\.q_proj\.weight\?"):
        Checkpoint(tmp_path).info("layers.7.qproj.weight")
    assert nearest_tensor("zzz", ["a", "b"]) == "none of its 2 tensors is called alike"


@pytest.mark.parametrize(
    "file", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..", "", "a\\b.safetensors"]
)
def test_index_that_points_outside(tmp_path: Path, file: str) -> None:
    sharded(tmp_path, {}, w=file)
    with pytest.raises(OutsideFolderError, match="no plain file name") as caught:
        Checkpoint(tmp_path)
    assert repr(file) in str(caught.value)


@pytest.mark.parametrize("text", ["{}", '{"weight_map": []}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}'])
def test_index_without_a_map(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(IndexFormatError):
        Checkpoint(tmp_path)


def test_index_that_disagrees(tmp_path: Path) -> None:
    sharded(tmp_path, {"m-1.safetensors": {"a": torch.ones(2)}}, b="m-1.safetensors")
    with pytest.raises(IndexMismatchError, match="the index puts b there"):
        Checkpoint(tmp_path).names()
    sharded(tmp_path, {"m-1.safetensors": {"a": torch.ones(2), "b": torch.ones(1)}})
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"a": "m-1.safetensors"}}')
    with pytest.raises(IndexMismatchError, match="b is there, and the index does not say so"):
        Checkpoint(tmp_path).names()


def test_the_same_tensor_twice(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "m-1.safetensors")
    save_file({"a": torch.ones(2)}, tmp_path / "m-2.safetensors")
    with pytest.raises(DuplicateTensorError, match=r"a is in m-1\.safetensors and in m-2\.safetensors"):
        Checkpoint(tmp_path).names()


def test_pickles_are_refused_and_never_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    torch.save({"a": Bomb()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(PickleRefusedError, match=r"pickles only \(pytorch_model\.bin\)"):
        Checkpoint(tmp_path)
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "model.safetensors")
    with pytest.raises(PickleRefusedError):
        Checkpoint(tmp_path).names()
    (tmp_path / "model.safetensors").unlink()
    sharded(tmp_path, {}, a="pytorch_model.bin")
    with pytest.raises(PickleRefusedError):
        Checkpoint(tmp_path)
    assert not (tmp_path / "exploded").exists()


def test_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(NoWeightsError):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_nan_and_infinity_are_refused_and_counted(tmp_path: Path, dtype: torch.dtype, bad: float) -> None:
    weight = torch.randn(1000).to(dtype)
    save_file({"w": weight}, tmp_path / "model.safetensors")
    assert torch.equal(Checkpoint(tmp_path).read("w"), weight)
    weight[[3, 700]] = bad
    save_file({"w": weight}, tmp_path / "model.safetensors")
    with pytest.raises(NotFiniteError, match="w: 2 of 1000 values are NaN or infinite"):
        Checkpoint(tmp_path).read("w")
    assert Checkpoint(tmp_path, check_finite=False).read("w").isfinite().sum() == 998


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_byte_as_an_eight_bit_float(dtype: torch.dtype) -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    finite = codes.view(dtype).float().isfinite()
    name = {torch.float8_e4m3fn: "f8e4m3", torch.float8_e5m2: "f8e5m2"}[dtype]
    assert [all_finite(bytes([code]), name) for code in range(256)] == finite.tolist()
    assert count_nonfinite(bytes(range(256)), name) == int((~finite).sum())


@given(st.binary(min_size=0, max_size=64).map(lambda data: data[: len(data) // 8 * 8]))
@pytest.mark.parametrize("dtype", ["f64", "f32", "f16", "bf16"])
def test_finite_agrees_with_torch(dtype: str, data: bytes) -> None:
    torch_type = {"f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]
    expected = torch.frombuffer(bytearray(data), dtype=torch_type).isfinite() if data else torch.ones(0).bool()
    assert all_finite(data, dtype) == bool(expected.all())
    assert count_nonfinite(data, dtype) == int((~expected).sum())


def test_check_tensors() -> None:
    source = TensorSource({"a": torch.ones(2, 3), "b": torch.ones(1)})
    a, b = TensorInfo("a", "bf16", (2, 3)), TensorInfo("b", "f32", (1,))
    check_tensors(source, [a, b])
    with pytest.raises(TensorMismatchError, match=r"a is f32\[2, 3\], the config calls for f32\[3, 2\]"):
        check_tensors(source, [TensorInfo("a", "f32", (3, 2)), b])
    with pytest.raises(TensorMismatchError, match=r"b is f32\[1\], the config calls for i64\[1\]"):
        check_tensors(source, [a, TensorInfo("b", "i64", (1,))])
    with pytest.raises(MissingTensorError, match="c is not in the checkpoint"):
        check_tensors(source, [a, b, TensorInfo("c", "f32", (1,))])


HEADERS = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 1 << 70) | st.text(max_size=4) | st.sampled_from(["F32", "BF16", "X"]),
    lambda leaf: (
        st.lists(leaf, max_size=3)
        | st.dictionaries(st.sampled_from(["w", "dtype", "shape", "data_offsets", "__metadata__"]), leaf, max_size=4)
        | st.fixed_dictionaries({"dtype": leaf, "shape": leaf, "data_offsets": leaf})
    ),
    max_leaves=12,
)


@settings(max_examples=200)
@given(header=HEADERS, data=st.binary(max_size=16), length=st.none() | st.integers(0, 1 << 64 - 1))
def test_any_header_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, header: object, data: bytes, length: int | None
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    _read_or_refuse(path)


@settings(max_examples=200)
@given(position=st.integers(0, 400), byte=st.integers(0, 255), cut=st.integers(0, 400))
def test_any_damaged_byte_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, position: int, byte: int, cut: int
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    save_file(TENSORS, path)
    data = bytearray(path.read_bytes())
    data[position % len(data)] = byte
    path.write_bytes(data[: len(data) - (cut if cut < len(data) else 0)])
    _read_or_refuse(path)


def _read_or_refuse(path: Path) -> None:
    try:
        for each in read_header(path).entries.values():
            assert each.start + each.info.nbytes <= path.stat().st_size
    except RegraftError as error:
        assert str(error).startswith("error[RG3")
