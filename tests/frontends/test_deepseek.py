"""DeepSeek V2, V3 and V3.2: exact counts, golden tiny models, twins against transformers, float8 checkpoints."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from regraft.frontends.family import read_config
from regraft.frontends.folder import open_model
from regraft.frontends.lift import expected_tensors, lift, lift_config
from regraft.frontends.tensors import Declared
from regraft.frontends.twin import random_tensors, twin_config
from regraft.ir.cost import cache_bytes, cost, parameters
from regraft.ir.errors.base import RegraftError
from regraft.ir.header import build_header
from regraft.ir.interpret import Interpreter
from regraft.ir.kinds import block_kinds
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.pos import Rope
from regraft.ir.ops.quantized import Dequantize
from regraft.ir.parse import parse_graph
from regraft.ir.source import TensorInfo, TensorSource
from regraft.ir.text import print_graph
from tests.frontends import agreement
from tests.frontends.cases import builtin

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "data" / "mla_golden.json").read_text(encoding="utf-8")
)
CONFIGS = ["DeepSeek-V2-Lite", "DeepSeek-V3", "DeepSeek-V3.2"]
TINY = ["deepseek_v2", "deepseek_v3", "deepseek_v32"]
CONTEXTS = {"4K": 4096, "32K": 32768, "128K": 131072, "1M": 1 << 20}


# -- the published configs


@pytest.mark.parametrize("name", CONFIGS)
def test_counts_are_exact(name: str) -> None:
    lifted = lift(open_model(f"builtin:{name}"))
    golden, found = GOLDEN["models"][name], parameters(lifted.graph)
    expected = golden["parameters"]
    assert found.total == expected["total"]
    assert found.active == expected["active_including_embedding"]
    assert found.active_without_embedding == expected["active_excluding_embedding"]
    assert found.embedding == expected["embedding"]
    assert found.buffers == expected.get("buffers_e_score_correction_bias", 0)
    held = golden.get("cache") or golden["cache_with_bf16_indexer_keys"]
    for label, context in CONTEXTS.items():
        assert cache_bytes(lifted.graph, context) == held["kv_bytes_bf16"][label]
    attend = next(op for op in lifted.graph.ops if isinstance(op, Attend))
    assert attend.scale == pytest.approx(golden["softmax_scale"], rel=1e-15)
    further = "left out: layer 61 for multi-token prediction; the text decoder is lifted"
    assert list(lifted.warnings) == ([] if name == "DeepSeek-V2-Lite" else [further])


def test_yarn_table() -> None:
    expected = GOLDEN["yarn_v3"]
    rope = next(op for op in lift(open_model("builtin:DeepSeek-V3")).graph.ops if isinstance(op, Rope))
    assert (rope.channels, rope.layout, rope.amplitude) == (expected["dim"], "interleaved", 1.0)
    found = rope.frequencies()
    torch.testing.assert_close(found[:4], torch.tensor(expected["inv_freq_first"]), rtol=1e-6, atol=0)
    torch.testing.assert_close(found[10:25], torch.tensor(expected["inv_freq_10_to_24"]), rtol=1e-6, atol=0)
    assert float(found[-1]) == pytest.approx(expected["inv_freq_last"], rel=1e-6)


def test_what_an_index_costs_and_saves() -> None:
    context, expected = 131072, GOLDEN["dsa"]
    sparse = cost(lift(open_model("builtin:DeepSeek-V3.2")).graph, context=context).by_family
    dense = cost(lift(open_model("builtin:DeepSeek-V3")).graph, context=context).by_family
    assert sparse["seq"].flops == 61 * expected["indexer_flops_per_key"] * context
    assert sparse["attn"].flops == 61 * expected["naive_core_flops_per_key_v3"] * 2048
    assert dense["attn"].flops == 61 * expected["naive_core_flops_per_key_v3"] * context


@pytest.mark.parametrize("name", CONFIGS)
def test_text_reads_back_to_the_same_graph(name: str) -> None:
    graph = lift(open_model(f"builtin:{name}")).graph
    agreement.check_text(graph)
    assert [(kind.name, len(kind.layers)) for kind in block_kinds(graph)] == [
        ("full", 1 if name == "DeepSeek-V2-Lite" else 3),
        ("full_moe", 26 if name == "DeepSeek-V2-Lite" else 58),
    ]


# -- the golden tiny models


def filled(info: TensorInfo) -> Tensor:
    """Return a tensor of the golden models, by the rule that the file states."""
    name, shape, mask = info.name, info.shape, 0xFFFFFFFF
    if name.endswith(("e_score_correction_bias", "_bias", ".bias")):
        centre, amplitude = 0.0, 0.2
    elif len(shape) == 1:
        centre, amplitude = 1.0, 0.3
    else:
        centre, amplitude = 0.0, 1.0 if name.endswith("embed_tokens.weight") else math.sqrt(3 / shape[-1])
    seed = 0
    for byte in name.encode():
        seed = (seed * 31 + byte) & mask
    x = (numpy.arange(math.prod(shape), dtype=numpy.uint64) * 2654435761 + seed) & mask
    for shift, factor in ((15, 2246822519), (13, 3266489917), (16, 1)):
        x = ((x ^ (x >> numpy.uint64(shift))) * numpy.uint64(factor)) & mask
    values = centre + amplitude * (2 * (x.astype(numpy.float64) / 2**32) - 1)
    return torch.from_numpy(values.astype(numpy.float32).reshape(shape))


@pytest.mark.parametrize("name", TINY)
def test_golden_tiny_models(name: str) -> None:
    golden = GOLDEN["tiny_cases"][name]
    graph = lift_config(read_config({**golden["config"], "model_type": name}), Declared("f32"))
    found = parameters(graph)
    assert found.total == golden["num_params"]
    weights = {info.name: filled(info) for info in expected_tensors(graph)}
    for tensor, first in golden["tensor_spot_checks"].items():
        assert weights[tensor].flatten()[: len(first)].tolist() == pytest.approx(first, abs=1e-6)
    logits = Interpreter(graph, TensorSource(weights))(torch.tensor([golden["input_ids"]]))[0]
    for row, expected in golden["logits"].items():
        assert (logits[int(row)] - torch.tensor(expected)).abs().max() <= golden["tolerance_max_abs"]
    assert logits.argmax(-1).tolist() == golden["argmax"]


# -- checkpoints in float8


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A twin of V3 in float8 with scales for blocks of 16 by 16, an MTP layer beside it; and its own tensors."""
    config = twin_config(builtin("DeepSeek-V3"))
    graph = lift_config(read_config(config), Declared("f32", published=True))
    stored: dict[str, Tensor] = {}
    plain: dict[str, Tensor] = {}
    for name, array in random_tensors(graph, 3, gain=0.7).items():
        value = torch.from_numpy(array)
        if value.ndim < 2 or "embed_tokens" in name or "lm_head" in name or name.endswith("mlp.gate.weight"):
            stored[name] = plain[name] = value
            continue
        rows, columns = value.shape
        blocks = torch.nn.functional.pad(value, (0, -columns % 16, 0, -rows % 16)).unflatten(1, (-1, 16))
        blocks = blocks.unflatten(0, (-1, 16))
        scales = blocks.abs().amax((1, 3)) / 448
        codes = (blocks / scales[:, None, :, None]).to(torch.float8_e4m3fn)
        plain[name] = (codes.float() * scales[:, None, :, None]).flatten(2).flatten(0, 1)[:rows, :columns]
        stored[name] = codes.view(torch.uint8).flatten(2).flatten(0, 1)[:rows, :columns].view(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = scales
    stored["model.layers.4.eh_proj.weight"] = torch.zeros(64, 128)
    quantization = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [16, 16]}
    config |= {"quantization_config": quantization, "num_nextn_predict_layers": 1}
    folder = tmp_path_factory.mktemp("packed")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    _write(folder / "model.safetensors", stored)
    return folder, plain


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    names = {torch.float32: "f32", torch.float8_e4m3fn: "f8e4m3"}
    infos = [TensorInfo(name, names[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()]
    data = [tensor.contiguous().view(torch.uint8).numpy().tobytes() for tensor in tensors.values()]
    path.write_bytes(b"".join([build_header(infos), *data]))


def test_a_float8_checkpoint_is_its_own_dequantised_one(packed: tuple[Path, dict[str, Tensor]]) -> None:
    folder, plain = packed
    model = open_model(folder)
    lifted = lift(model)
    assert lifted.warnings == ("left out: layer 4 for multi-token prediction; the text decoder is lifted",)
    assert any(isinstance(op, Dequantize) for op in lifted.graph.ops)
    text = print_graph(lifted.graph)
    assert print_graph(parse_graph(text)) == text
    tokens = torch.randint(0, 128, (1, 16), generator=torch.Generator().manual_seed(0))
    found = Interpreter(lifted.graph, model.require_checkpoint())(tokens)
    config = read_config(twin_config(builtin("DeepSeek-V3")))
    graph = lift_config(config, Declared("f32", published=True))
    assert torch.equal(found, Interpreter(graph, TensorSource(plain))(tokens))
    assert parameters(lifted.graph) == parameters(graph)


def test_scales_of_another_shape_are_refused(packed: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    config = json.loads((packed[0] / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"]["weight_block_size"] = [32, 32]
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "model.safetensors").symlink_to(packed[0] / "model.safetensors")
    with pytest.raises(RegraftError, match="scale_inv"):
        lift(open_model(tmp_path))


# -- configs that do not fit


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("DeepSeek-V3", {"num_key_value_heads": 64}, "128 heads and 64 key/value heads"),
        ("DeepSeek-V3", {"qk_rope_head_dim": 63}, "63 channels turn"),
        ("DeepSeek-V3", {"n_group": 7}, "256 experts in 7 groups"),
        ("DeepSeek-V3", {"topk_group": 9}, "9 groups kept of 8"),
        ("DeepSeek-V3", {"num_experts_per_tok": 200}, "200 experts a token of 4 groups of 32"),
        ("DeepSeek-V3", {"scoring_func": "softmax"}, "scoring_func"),
        ("DeepSeek-V3", {"moe_layer_freq": 2}, "moe_layer_freq"),
        ("DeepSeek-V3", {"quantization_config": {"quant_method": "awq"}}, "quantization_config.quant_method = 'awq'"),
        ("DeepSeek-V3", {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128]}}, "two positive"),
        ("DeepSeek-V2-Lite", {"topk_method": "noaux_tc"}, "greedy, group_limited_greedy"),
        ("DeepSeek-V2-Lite", {"norm_topk_prob": True}, "norm_topk_prob"),
        ("DeepSeek-V3.2", {"index_head_dim": 32}, "index heads of 32 channels, of which 64 turn"),
        ("DeepSeek-V3.2", {"q_lora_rank": None}, "the indexer reads the queries' latent"),
        ("DeepSeek-V3.2", {"rope_interleave": False}, "rope_interleave"),
        ("DeepSeek-V3.2", {"mlp_layer_types": ["dense"]}, "1 entries for 61 layers"),
    ],
)
def test_a_value_that_does_not_fit_is_named(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RegraftError, match=message):
        read_config(builtin(name, **changes))
