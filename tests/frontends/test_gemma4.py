"""Gemma 4: published configs, golden tiny models, twins against transformers."""

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
from regraft.frontends.twin import twin_config, write_twin
from regraft.ir.cost import cache_bytes, parameters
from regraft.ir.errors.checkpoint import UnknownTensorError
from regraft.ir.errors.config import ConfigError
from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter
from regraft.ir.kinds import block_kinds
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.core import Embed, Scale
from regraft.ir.ops.pos import Rope
from regraft.ir.source import TensorSource
from tests.frontends.agreement import check_text

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "data" / "gemma4_golden.json").read_text(encoding="utf-8")
)
CONFIGS = list(GOLDEN["variants"])
TINY = GOLDEN["tiny_reference_models"]["models"]


def config_of(name: str) -> dict[str, Any]:
    return dict(open_model(f"builtin:{name}").config)


@pytest.mark.parametrize("name", CONFIGS)
def test_counts_are_exact(name: str) -> None:
    graph = lift(open_model(f"builtin:{name}")).graph
    golden = GOLDEN["variants"][name]
    found = parameters(graph)
    assert found.total == golden["params"]["text_total"]
    assert found.active == (golden["params"]["active_per_token"] or golden["params"]["text_total"])
    parts = golden["params"]["components"]
    assert found.embedding == parts["embed_tokens"] + parts.get("ple_table", 0)
    assert found.active_without_embedding == found.active - found.embedding
    if found.active == found.total:
        assert found.active_without_embedding == golden["params"]["text_total_minus_all_embeddings"]
    assert found.buffers == golden["layers"]["num_hidden_layers"]
    for context, expected in golden["kv_cache_bytes_bf16_batch1"].items():
        assert cache_bytes(graph, int(context)) == expected["windowed_with_sharing"]


def cache_of(name: str, context: int, **changed: object) -> int:
    config = {**config_of(name)["text_config"], **changed}
    return cache_bytes(lift_config(read_config(config), Declared("bf16")), context)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_windows_and_sharing_save(name: str) -> None:
    for context, expected in GOLDEN["variants"][name]["kv_cache_bytes_bf16_batch1"].items():
        at, wide = int(context), {"sliding_window": 1 << 20}
        assert cache_of(name, at, num_kv_shared_layers=0) == expected["windowed_no_sharing"]
        assert cache_of(name, at, **wide) == expected["full_with_sharing"]
        assert cache_of(name, at, **wide, num_kv_shared_layers=0) == expected["full_no_sharing"]


@pytest.mark.parametrize("name", GOLDEN["article_check"])
def test_the_savings_of_the_article(name: str) -> None:
    check = GOLDEN["article_check"][name]
    width, context = check["assumed_uniform_head_dim"], check["context"]
    uniform = {"sliding_window": 1 << 20, "head_dim": width, "global_head_dim": width}
    whole, shared = cache_of(name, context, **uniform, num_kv_shared_layers=0), cache_of(name, context, **uniform)
    assert (whole, shared) == (check["gqa_total_bytes"], check["gqa_plus_sharing_bytes"])
    assert round((whole - shared) / 1e9, 1 if check["claimed_GB"] < 5 else 0) == check["claimed_GB"]


@pytest.mark.parametrize("name", CONFIGS)
def test_layers_are_those_of_the_golden_file(name: str) -> None:
    config, golden = read_config(config_of(name)), GOLDEN["variants"][name]["layers"]
    graph = lift_config(config, Declared("bf16"))
    sources = [int(op.memory.name.split(".")[1]) for op in graph.ops if isinstance(op, Attend)]
    assert sources == golden["kv_source_layer"]
    made = {int(memory.name.split(".")[1]): memory.memory for memory in graph.memories()}
    assert sorted(made) == list(range(golden["num_own_kv_layers"]))
    for layer, kept in made.items():
        assert kept.field("k").shape == (golden["num_kv_heads"][layer], golden["head_dim"][layer])
        assert kept.window == (
            None if layer in golden["full_attention_layers"] else GOLDEN["variants"][name]["sliding_window"]
        )


@pytest.mark.parametrize("name", CONFIGS)
def test_text_reads_back_and_left_out_parts_are_said(name: str) -> None:
    lifted = lift(open_model(f"builtin:{name}"))
    check_text(lifted.graph)
    kinds = [kind.name for kind in block_kinds(lifted.graph)]
    shared = ["sliding_reader", "full_reader"] if "E" in name else []
    assert kinds == (["sliding_moe", "full_moe"] if "A4B" in name else ["sliding", "full", *shared])
    (line,) = lifted.warnings
    assert "vision tower" in line
    assert ("audio tower" in line) == ("-E" in name)


def test_rotary_tables_and_constants() -> None:
    ropes = {op.channels: op for op in lift(open_model("builtin:gemma-4-E2B")).graph.ops if isinstance(op, Rope)}
    for width, key in ((256, "sliding_head_dim_256"), (512, "full_head_dim_512")):
        golden, found = GOLDEN["rope"][key], ropes[width].frequencies()
        assert len(found) == golden["length"]
        assert int((found != 0).sum()) == golden["nonzero"]
        for index, expected in golden["inv_freq_at"].items():
            assert float(found[int(index)]) == pytest.approx(expected, rel=1e-6, abs=0)
    for name, expected in GOLDEN["constants"]["embed_scale_bf16"].items():
        scale = next(op for op in lift(open_model(f"builtin:{name}")).graph.ops if isinstance(op, Scale))
        assert scale.factor == expected
        wide = lift_config(read_config({**config_of(name), "dtype": "float32"}), Declared("f32"))
        scale = next(op for op in wide.ops if isinstance(op, Scale))
        assert scale.factor == pytest.approx(GOLDEN["constants"]["embed_scale_fp32"][name], rel=1e-12)


def golden_weights(graph: Graph) -> dict[str, Tensor]:
    """Return the weights that specs/gemma4.md, section 12, gives its tiny models."""
    infos = {info.name: info.shape for info in expected_tensors(graph)}
    ranks = {name: rank for rank, name in enumerate(sorted(infos))}
    return {name: torch.from_numpy(_values(name, ranks[name], shape)) for name, shape in infos.items()}


def _values(name: str, rank: int, shape: tuple[int, ...]) -> Any:
    u = numpy.uint64
    with numpy.errstate(over="ignore"):
        z = numpy.arange(1, math.prod(shape) + 1, dtype=u) * u(0x9E3779B97F4A7C15)
        z += u((rank + 1) * 0xD1B54A32D192ED03 % 2**64)
        z = (z ^ z >> u(30)) * u(0xBF58476D1CE4E5B9)
        z = (z ^ z >> u(27)) * u(0x94D049BB133111EB)
        z ^= z >> u(31)
    v = 2 * ((z >> u(40)).astype(numpy.float64) / 2**24) - 1
    if name.endswith(("q_norm.weight", "k_norm.weight")) or (name.startswith("model.layers.") and "post_" in name):
        v = 0.5 * (1 + 0.3 * v)
    elif "layernorm" in name or name.endswith(("norm.weight", "router.scale", "per_expert_scale", "layer_scalar")):
        v = 1 + 0.3 * v
    else:
        v = v * math.sqrt(3 / shape[-1])
    return v.astype(numpy.float32).reshape(shape)


@pytest.mark.parametrize("name", TINY)
def test_golden_tiny_models(name: str) -> None:
    golden = TINY[name]
    graph = lift_config(read_config({**golden["text_config"], "model_type": "gemma4_text"}), Declared("f32"))
    weights = golden_weights(graph)
    assert len(weights) == golden["num_tensors"]
    for tensor, values in golden["weight_probe"].items():
        assert weights[tensor].flatten()[:3].tolist() == pytest.approx(values, abs=1e-7)
    tokens, expected = torch.tensor([golden["input_ids"]]), torch.tensor(golden["logits"])
    interpreter = Interpreter(graph, TensorSource(weights))
    torch.testing.assert_close(interpreter(tokens)[0], expected, rtol=0, atol=1e-5)
    cache = interpreter.new_cache()
    steps = torch.cat([interpreter(tokens[:, i : i + 1], cache) for i in range(tokens.shape[1])], 1)
    torch.testing.assert_close(steps[0], expected, rtol=0, atol=1e-5)


def test_each_layer_has_its_own_embedding() -> None:
    graph = lift_config(read_config(twin_config(config_of("gemma-4-E2B"))), Declared("f32"))
    slices = {v.name: v for v in graph.values.values() if v.name.startswith("ple.of_") and v.name[-1].isdecimal()}
    assert len(slices) == 8
    assert all(len(v.users) == 1 for v in slices.values())
    assert sum(isinstance(op, Embed) for op in graph.ops) == 2


def test_dead_and_foreign_tensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_twin(config_of("gemma-4-E2B"), tmp_path / "twin")
    tensors = load_file(folder / "model.safetensors")
    last = "model.layers.7.self_attn."
    for name, shape in ({"k_proj.weight": (32, 64), "v_proj.weight": (32, 64), "k_norm.weight": (32,)}).items():
        tensors[last + name] = torch.ones(shape)
    tensors["model.vision_tower.patch.weight"] = torch.ones(2, 2)
    published = {name.replace("model.layers", "model.language_model.layers"): t for name, t in tensors.items()}
    for name in (
        "embed_tokens",
        "embed_tokens_per_layer",
        "per_layer_model_projection",
        "per_layer_projection_norm",
        "norm",
    ):
        published[f"model.language_model.{name}.weight"] = published.pop(f"model.{name}.weight")
    save_file(published, folder / "model.safetensors")
    lifted = lift(open_model(folder))
    assert lifted.warnings == ("left out: the vision tower; the text decoder is lifted",)
    tokens = torch.arange(12)[None]
    found = Interpreter(lifted.graph, open_model(folder).require_checkpoint())(tokens)
    assert found.shape == (1, 12, 128)
    published["model.language_model.layers.0.self_attn.k_bias"] = torch.ones(2)
    save_file(published, folder / "model.safetensors")
    with pytest.raises(UnknownTensorError):
        lift(open_model(folder))


def test_the_published_tensors_are_those_that_are_read_and_the_dead_ones() -> None:
    class Published(Declared):
        def has(self, name: str) -> bool | None:
            return name in manifest

    manifest: dict[str, list[int]] = GOLDEN["e2b_checkpoint_text_tensors"]
    config = read_config(config_of("gemma-4-E2B"))
    tensors = Published("bf16")
    config.locate(tensors)
    read = {info.name: list(info.shape) for info in expected_tensors(lift_config(config, tensors))}
    assert {name: manifest[name] for name in read} == read
    dead = manifest.keys() - read.keys()
    assert len(dead) == 60
    assert all(map(config.inert_tensor, dead))
    assert not any(map(config.inert_tensor, read))


def test_both_forms_of_the_config_give_the_same_graph() -> None:
    config = config_of("gemma-4-31B")["text_config"]
    entry = {"head_dim": config["global_head_dim"], "num_key_value_heads": config["num_global_key_value_heads"]}
    mapped = {key: value for key, value in config.items() if "global" not in key}
    mapped["per_layer_config"] = {f"{i:02}": entry for i in range(60) if config["layer_types"][i] == "full_attention"}
    first, second = (lift_config(read_config(each), Declared("bf16")) for each in (config, mapped))
    assert first.equals(second)
    without = {key: value for key, value in config.items() if key not in ("layer_types", "rope_parameters")}
    assert lift_config(read_config(without), Declared("bf16")).equals(first)


BAD: dict[str, dict[str, Any]] = {
    "layer_types has": {"layer_types": ["full_attention"]},
    "num_kv_shared_layers": {"num_kv_shared_layers": 30},
    "calls for it": {"enable_moe_block": True},
    "experts a token": {
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 5,
        "moe_intermediate_size": 8,
    },
    "use_bidirectional_attention": {"use_bidirectional_attention": "all"},
    "per_layer_config": {"per_layer_config": {"99": {"head_dim": 8}}},
    "per_layer_config is": {"per_layer_config": {"5": {"width": 8}}},
    "query heads": {"per_layer_config": {"5": {"num_key_value_heads": 3}}},
    "attention_bias": {"attention_bias": True},
}


@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_is_named(message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(" is", "")):
        read_config({"model_type": "gemma4_text", **BAD[message]})


def test_an_unknown_key_beside_the_text_config_is_named() -> None:
    with pytest.raises(ConfigError, match="vision_sort"):
        read_config({**config_of("gemma-4-E2B"), "vision_sort": 1})
