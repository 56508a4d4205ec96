"""Twins packed as the models are published: codes and scales read by hand, and held to transformers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from regraft.frontends.checkpoint import Checkpoint
from regraft.frontends.family import read_config
from regraft.frontends.folder import open_model
from regraft.frontends.lift import lift, lift_config
from regraft.frontends.tensors import Stored
from regraft.frontends.twin import twin_config, write_twin
from regraft.ir.errors.base import RegraftError
from regraft.ir.errors.checkpoint import MissingTensorError, NotFiniteError, TensorMismatchError
from regraft.ir.errors.config import NotQuantizedError
from regraft.ir.header import build_header
from regraft.ir.interpret import Interpreter
from regraft.ir.ops.quantized import Dequantize, Fp4, Mxfp4, Unpack
from regraft.ir.source import TensorInfo, TensorSource, to_bytes
from regraft.verifying import verify
from tests.frontends.agreement import check_text
from tests.frontends.cases import builtin

Bytes = NDArray[numpy.uint8]
Array = NDArray[numpy.float64]
TOKENS = torch.randint(0, 128, (1, 24), generator=torch.Generator().manual_seed(0))
CASES: dict[str, tuple[dict[str, Any], set[type[Unpack]]]] = {
    "V3.2": (builtin("DeepSeek-V3.2"), {Dequantize}),
    "V4": (builtin("DeepSeek-V4-Flash"), {Dequantize, Fp4}),
    "V4, experts in float8": (builtin("DeepSeek-V4-Pro", expert_dtype="fp8"), {Dequantize}),
    "gpt-oss": (builtin("gpt-oss-20b"), {Mxfp4}),
}
NIBBLES = numpy.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the packed twin of a case."""
    made: dict[str, Path] = {}

    def of(case: str) -> Path:
        if case not in made:
            made[case] = write_twin(CASES[case][0], tmp_path_factory.mktemp("twin") / "twin", packed=True)
        return made[case]

    return of


Packed = Callable[[str], Path]


# -- what the bytes say, by the formats' definitions


def stored(source: Checkpoint, name: str) -> Bytes:
    shape = source.info(name).shape
    return numpy.frombuffer(source.raw(name), numpy.uint8).reshape(*shape, -1).squeeze(-1)


def float8(codes: Bytes) -> Array:
    """Return e4m3: a sign, four bits of exponent with bias 7, three of mantissa."""
    wide = codes.astype(numpy.int64)
    exponent, mantissa = wide >> 3 & 15, wide & 7
    size = numpy.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    return numpy.where(wide & 128, -size, size)


def float4(codes: Bytes) -> Array:
    """Return e2m1, two in a byte, the low nibble first."""
    return NIBBLES[numpy.stack((codes & 15, codes >> 4), -1)].reshape(*codes.shape[:-1], -1)


def power(codes: Bytes) -> Array:
    return 2.0 ** (codes.astype(numpy.float64) - 127)


def blockwise(values: Array, scales: Array, block: tuple[int, int]) -> Array:
    """Multiply each value by the scale of its block."""
    result = numpy.empty_like(values)
    for row, column in numpy.ndindex(*values.shape):
        result[row, column] = values[row, column] * scales[row // block[0], column // block[1]]
    return result


def plain(source: Checkpoint) -> dict[str, Tensor]:
    """Return a packed twin's tensors as they would be published unpacked."""
    found: dict[str, Tensor] = {}
    for name in source.names():
        stem, kind = name.removesuffix(".weight"), source.info(name).dtype
        if name.endswith("_blocks"):
            values = float4(stored(source, name)) * power(stored(source, name.replace("_blocks", "_scales")))[..., None]
            found[name.removesuffix("_blocks")] = torch.from_numpy(values.reshape(*values.shape[:-2], -1)).float().mT
        elif kind == "i8":
            scales = power(stored(source, f"{stem}.scale"))
            found[name] = torch.from_numpy(float4(stored(source, name)) * scales.repeat(32, -1)).float()
        elif kind == "f8e4m3":
            inverse = f"{name}_scale_inv"
            known = inverse in source.names()
            scales = source.read(inverse).double().numpy() if known else power(stored(source, f"{stem}.scale"))
            values = blockwise(float8(stored(source, name)), scales, (16, 24))
            found[name] = torch.from_numpy(values).float()
        elif kind in ("f32", "i64") and not name.endswith("_scale_inv"):
            found[name] = source.read(name)
    return found


@pytest.mark.parametrize("case", CASES)
def test_a_packed_twin_is_what_its_bytes_say(case: str, packed: Packed) -> None:
    config, ops = CASES[case]
    model = open_model(packed(case))
    lifted = lift(model)
    assert {type(op) for op in lifted.graph.ops if isinstance(op, Unpack)} == ops
    check_text(lifted.graph)
    tensors = TensorSource(plain(model.require_checkpoint()))
    graph = lift_config(read_config(twin_config(config)), Stored(tensors, "f32"))
    assert not any(isinstance(op, Unpack) for op in graph.ops)
    found = Interpreter(lifted.graph, model.require_checkpoint())(TOKENS)
    expected = Interpreter(graph, tensors)(TOKENS)
    assert (found - expected).abs().max() < 1e-6
    assert expected.std() > 1


@pytest.mark.parametrize("case", ["V3.2", "V4", "gpt-oss"])
def test_a_packed_twin_agrees_with_transformers(case: str, packed: Packed) -> None:
    report = verify(packed(case), against="transformers", tokens=24)
    assert report.passed, report.checks
    assert [check.name for check in report.checks[-4:]] == [
        "prefill = itself dequantised",
        "decode = itself dequantised",
        "prefill = transformers",
        "decode = transformers",
    ]


@pytest.mark.parametrize("case", ["V3.2", "V4"])
def test_tiles_are_several_and_ragged(case: str, packed: Packed) -> None:
    graph = lift(open_model(packed(case))).graph
    sizes = {op.x.tensor.sizes[-2:] for op in graph.ops if isinstance(op, Dequantize)}
    assert {op.block for op in graph.ops if isinstance(op, Dequantize)} == {(16, 24)}
    assert any(rows % 16 and rows > 16 for rows, _ in sizes)
    assert any(columns % 24 and columns > 24 for _, columns in sizes)


def test_the_layout_is_the_published_one(packed: Packed) -> None:
    """The kinds of tensors that specs/deepseek_v4.md, section 15, has in float8 and in float4."""
    source = open_model(packed("V4")).require_checkpoint()
    kinds: dict[str, set[str]] = {}
    for name in source.names():
        kinds.setdefault(source.info(name).dtype, set()).add(re.sub(r"\.\d+", "", name))
    attention = [f"layers.attn.{part}.weight" for part in ("wq_a", "wq_b", "wkv", "wo_a", "wo_b", "indexer.wq_b")]
    experts = {f"layers.ffn.experts.w{n}.weight" for n in (1, 2, 3)}
    shared = {f"layers.ffn.shared_experts.w{n}.weight" for n in (1, 2, 3)}
    assert kinds["f8e4m3"] == {*attention, *shared}
    assert kinds["i8"] == experts
    assert kinds["f8e8m0"] == {name.replace(".weight", ".scale") for name in kinds["f8e4m3"] | kinds["i8"]}
    assert kinds["i64"] == {"layers.ffn.gate.tid2eid"}
    assert {"embed.weight", "norm.weight", "head.weight", "hc_head_fn", "layers.attn.attn_sink"} < kinds["f32"]


def test_a_model_that_is_not_published_quantised_has_no_packed_twin(tmp_path: Path) -> None:
    with pytest.raises(NotQuantizedError, match="no quantization_config"):
        write_twin(builtin("Llama-3.2-1B"), tmp_path / "twin", packed=True)
    assert not (tmp_path / "twin").exists()


# -- checkpoints that are not sound


SCALES = {
    "V3.2": "model.layers.1.self_attn.q_b_proj.weight_scale_inv",
    "V4": "layers.1.attn.wq_b.scale",
    "gpt-oss": "model.layers.1.mlp.experts.down_proj_scales",
}
EXPERT = {"V3.2": "model.layers.2.mlp.experts.3.up_proj.weight_scale_inv", "V4": "layers.1.ffn.experts.3.w3.scale"}
CODES = {
    "V3.2": "model.layers.1.self_attn.q_b_proj.weight",
    "V4": "layers.1.ffn.experts.3.w3.weight",
    "gpt-oss": "model.layers.1.mlp.experts.down_proj_blocks",
}


def rewritten(folder: Path, out: Path, changes: Mapping[str, Tensor | None], dtype: str = "") -> Path:
    """Write a twin anew with other tensors, None for one that goes; ``dtype`` is that of the others."""
    source = Checkpoint(folder)
    tensors = {name: (source.info(name), source.raw(name)) for name in source.names() if name not in changes}
    for name, tensor in changes.items():
        if tensor is not None:
            info = TensorInfo(name, dtype or source.info(name).dtype, tuple(tensor.shape))
            tensors[name] = info, bytearray(to_bytes(tensor))
    data = [build_header(info for info, _ in tensors.values()), *(raw for _, raw in tensors.values())]
    out.mkdir()
    (out / "config.json").write_bytes((folder / "config.json").read_bytes())
    (out / "model.safetensors").write_bytes(b"".join(data))
    return out


def refused(folder: Path, kind: type[RegraftError], *words: str) -> None:
    with pytest.raises(kind) as caught:
        lift(open_model(folder))
    assert all(word in caught.value.text for word in words), caught.value.text


@pytest.mark.parametrize(("case", "scales"), [*SCALES.items(), *EXPERT.items()])
def test_missing_scales_are_named(case: str, scales: str, packed: Packed, tmp_path: Path) -> None:
    refused(rewritten(packed(case), tmp_path / "twin", {scales: None}), MissingTensorError, scales)


@pytest.mark.parametrize(("case", "scales"), [*SCALES.items(), *EXPERT.items()])
def test_scales_of_another_shape_are_named(case: str, scales: str, packed: Packed, tmp_path: Path) -> None:
    found = Checkpoint(packed(case)).read(scales)
    folder = rewritten(packed(case), tmp_path / "twin", {scales: found[..., :-1].contiguous()})
    refused(folder, TensorMismatchError, scales, f"{found.shape[-1]}]", "the config calls for")


@pytest.mark.parametrize(("case", "codes"), CODES.items())
def test_codes_of_another_type_are_named(case: str, codes: str, packed: Packed, tmp_path: Path) -> None:
    found = Checkpoint(packed(case)).read(codes)
    folder = rewritten(packed(case), tmp_path / "twin", {codes: found.view(torch.uint8).to(torch.int16)}, "i16")
    refused(folder, TensorMismatchError, codes, "i16")


@pytest.mark.parametrize("case", SCALES)
def test_scales_that_are_no_numbers_are_refused(case: str, packed: Packed, tmp_path: Path) -> None:
    """The last one of a tensor: infinite where it is a float, and 255 where it is an exponent."""
    found = Checkpoint(packed(case)).read(SCALES[case])
    raw = found if found.dtype is torch.float32 else found.view(torch.uint8)
    raw[..., -1, -1] = torch.inf if found.dtype is torch.float32 else 255
    folder = rewritten(packed(case), tmp_path / "twin", {SCALES[case]: found})
    model = open_model(folder)
    with pytest.raises(NotFiniteError, match=SCALES[case]):
        Interpreter(lift(model).graph, model.require_checkpoint())(TOKENS)


@pytest.mark.parametrize(("case", "scales"), SCALES.items())
def test_a_scale_counts(case: str, scales: str, packed: Packed, tmp_path: Path) -> None:
    """The last one of a matrix, that of the ragged block, four times as large."""
    found = Checkpoint(packed(case)).read(scales)
    raw = found if found.dtype is torch.float32 else found.view(torch.uint8)
    last = raw[..., -1, -1]
    last.copy_(last * 4 if found.dtype is torch.float32 else last + 2)
    folder = rewritten(packed(case), tmp_path / "twin", {scales: found})
    models = [open_model(each) for each in (packed(case), folder)]
    right, wrong = (Interpreter(lift(each).graph, each.require_checkpoint())(TOKENS) for each in models)
    assert (wrong - right).abs().max() > 1e-3
