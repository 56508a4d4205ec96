"""gpt-oss, Laguna, OpenELM and the plain relatives: published configs, golden tiny models, twins, bad configs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.codegen.package import emit
from regraft.frontends.family import read_config
from regraft.frontends.folder import open_model
from regraft.frontends.lift import lift, lift_config
from regraft.frontends.tensors import Declared
from regraft.frontends.twin import golden_tensors, twin_config, write_twin
from regraft.ir.cost import cache_bytes, cost, parameters
from regraft.ir.errors.config import ConfigError
from regraft.ir.interpret import Interpreter
from regraft.ir.kinds import block_kinds
from regraft.ir.ops.pos import Rope
from regraft.ir.source import TensorSource
from regraft.programs import load_program
from tests.frontends.agreement import LENGTH, Pair, check_text, limit

DATA = Path(__file__).parent.parent / "data"
RELATIVES: dict[str, Any] = json.loads((DATA / "relatives_golden.json").read_text(encoding="utf-8"))
LAGUNA: dict[str, Any] = json.loads((DATA / "laguna_golden.json").read_text(encoding="utf-8"))
PLAIN: dict[str, Any] = json.loads((DATA / "plain_configs.json").read_text(encoding="utf-8"))
PUBLISHED = {
    **{name: RELATIVES["models"][name] for name in ("gpt-oss-20b", "OpenELM-270M", "OpenELM-3B")},
    "laguna-XS.2": LAGUNA,
}
KINDS = {"gpt-oss-20b": ["sliding_moe", "full_moe"], "laguna-XS.2": ["full", "sliding_moe", "full_moe"]}
TINY = {**RELATIVES["tiny_models"], **LAGUNA["tiny_models"]}
CONTEXTS = {"4K": 4096, "32K": 32768, "128K": 131072}


def config_of(name: str) -> dict[str, Any]:
    return dict(open_model(f"builtin:{name}").config)


@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_exact(name: str) -> None:
    golden = PUBLISHED[name]
    whole = lift(open_model(f"builtin:{name}"))
    assert not whole.warnings
    found, expected = parameters(whole.graph), golden["params"]
    assert found.total == expected["params_total"]
    assert found.active == expected["params_active_per_token"]
    assert found.embedding == expected["params_embedding"]
    # OpenELM's files are float32, and the golden caches are bfloat16
    graph = lift_config(read_config({**config_of(name), "torch_dtype": "bfloat16"}), Declared("bf16"))
    flops = golden["attention_flops_per_decoded_token"]
    flops = flops.get("per_layer_budget_48_full_64_sliding", flops)
    for label, context in CONTEXTS.items():
        assert cache_bytes(graph, context) == golden["kv_cache_bytes_bf16"][label]["window_capped"]
        assert cost(graph, context=context).by_family["attn"].flops == flops[label]["core"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_text_reads_back(name: str) -> None:
    graph = lift(open_model(f"builtin:{name}")).graph
    check_text(graph)
    if name in KINDS:
        assert [kind.name for kind in block_kinds(graph)] == KINDS[name]


def test_rotary_tables() -> None:
    graph = lift(open_model("builtin:laguna-XS.2")).graph
    ropes = {op.channels: op for op in graph.ops if isinstance(op, Rope)}
    full, sliding = LAGUNA["rope"]["full_attention"], LAGUNA["rope"]["sliding_attention"]
    found = ropes[64].frequencies()
    torch.testing.assert_close(found, torch.tensor(full["inv_freq"]), rtol=2e-6, atol=0)
    assert ropes[64].amplitude == full["attention_factor"]
    found = ropes[128].frequencies()
    torch.testing.assert_close(found[:4], torch.tensor(sliding["inv_freq_first4"]), rtol=1e-6, atol=0)
    assert float(found[-1]) == pytest.approx(sliding["inv_freq_last"], rel=1e-6)
    oss = next(op for op in lift(open_model("builtin:gpt-oss-20b")).graph.ops if isinstance(op, Rope))
    golden = RELATIVES["rope"]["gpt-oss-20b"]
    torch.testing.assert_close(oss.frequencies(), torch.tensor(golden["inv_freq"]), rtol=1e-6, atol=1e-12)
    assert oss.amplitude == pytest.approx(golden["attention_factor"], rel=1e-15)


@pytest.mark.parametrize("name", PLAIN)
def test_plain_relatives_have_as_many_parameters_as_published(name: str) -> None:
    config = PLAIN[name]["config"]
    graph = lift_config(read_config(config), Declared("bf16"))
    assert parameters(graph).total == PLAIN[name]["total"]
    check_text(graph)
    small = lift_config(read_config(twin_config(config)), Declared("f32", published=True))
    assert parameters(small).total < 800_000


@pytest.mark.parametrize("name", ["OpenELM-270M", "OpenELM-3B"])
def test_openelm_widths_follow_from_the_multipliers(name: str) -> None:
    golden = RELATIVES["models"][name]
    config = {key: value for key, value in config_of(name).items() if key not in ("num_query_heads", "num_kv_heads")}
    ends = {"qkv_multipliers": [0.5, 1.0], "ffn_multipliers": [0.5, 4.0]}
    for given in (config, {**config, **ends}):
        read: Any = read_config(given)
        assert read.query_heads == golden["num_query_heads"]
        assert read.value_heads == golden["num_kv_heads"]
        assert read.widths == golden["ffn_dims"]


GOLDEN_CASES = {
    "gpt_oss": "gpt_oss",
    "openelm": "openelm",
    "laguna": "laguna",
    "laguna_softcap_perelement_gate": "laguna",
    "laguna_default_attention_factor": "laguna",
}


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_golden_tiny_models(name: str, tmp_path: Path) -> None:
    golden = TINY[name]
    graph = lift_config(read_config({**golden["config"], "model_type": GOLDEN_CASES[name]}), Declared("f32"))
    weights = TensorSource({name: torch.from_numpy(array) for name, array in golden_tensors(graph).items()})
    program = load_program(emit(graph, weights, tmp_path / "package"), dtype="float32")
    tokens = torch.tensor([[(7 * i * i + 3 * i + 5) % 64 for i in range(40)]])
    for model in (Interpreter(graph, weights), program):
        for size in (40, 7, 1):
            cache: Any = model.new_cache(1, 40)
            with torch.no_grad():
                logits = torch.cat([model(part, cache) for part in tokens.split(size, 1)], 1)[0]
            torch.testing.assert_close(logits[-1], torch.tensor(golden["logits_row0_last"]), rtol=0, atol=limit(logits))
            first = torch.tensor(golden["logits_row0_pos0_first8"])
            torch.testing.assert_close(logits[0, :8], first, rtol=0, atol=limit(logits))
            assert logits.argmax(-1).tolist() == golden["argmax_row0"]


@pytest.mark.parametrize("name", ["OpenELM-270M", "OpenELM-3B"])
def test_openelm_twins_decode_as_they_prefill(name: str, tmp_path: Path) -> None:
    """No transformers has this family: the golden model says what it computes, and a twin that every split does."""
    folder = write_twin(config_of(name), tmp_path / "twin")
    tokens = torch.randint(0, 128, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    model = open_model(folder)
    twin = Pair(folder, tokens, Interpreter(lift(model).graph, model.require_checkpoint())(tokens))
    twin.check_all(twin.interpreter)
    twin.check_all(twin.program)


# -- as published


def test_packed_experts_are_what_they_unpack_to(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_twin(config_of("gpt-oss-20b"), tmp_path / "twin")
    tensors = load_file(folder / "model.safetensors")
    packed, plain = dict(tensors), dict(tensors)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, columns, rows = tensors[name].shape
        draw = torch.Generator().manual_seed(len(name))
        blocks = torch.randint(0, 256, (experts, rows, columns // 32, 16), generator=draw, dtype=torch.uint8)
        scales = torch.randint(123, 127, (experts, rows, columns // 32), generator=draw, dtype=torch.uint8)
        del packed[name]
        packed |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        plain[name] = unpacked(blocks, scales).transpose(1, 2).contiguous()
    tokens = torch.arange(24)[None] * 5 % 128
    save_file(plain, folder / "model.safetensors")
    expected = Interpreter(lift(open_model(folder)).graph, open_model(folder).require_checkpoint())(tokens)
    save_file(packed, folder / "model.safetensors")
    lifted = lift(open_model(folder))
    assert not lifted.warnings
    found = Interpreter(lifted.graph, open_model(folder).require_checkpoint())(tokens)
    assert torch.equal(found, expected)


def unpacked(blocks: Tensor, scales: Tensor) -> Tensor:
    """Return the values of packed blocks, one at a time."""
    table = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
    values = [table[half] for byte in blocks.flatten().tolist() for half in (byte % 16, byte // 16)]
    wide = torch.tensor(values).view(*scales.shape, 32) * 2.0 ** (scales.double() - 127)[..., None]
    return wide.flatten(-2).float()


def test_packed_experts_are_announced_by_the_config() -> None:
    graph = lift(open_model("builtin:gpt-oss-20b")).graph
    assert graph["model.layers.0.mlp.experts.gate_up_proj_blocks"].tensor.sizes == (32, 5760, 90, 16)
    assert graph["model.layers.23.mlp.experts.down_proj_scales"].tensor.sizes == (32, 2880, 90)


def test_laguna_as_published_and_as_transformers_names_it() -> None:
    config = read_config(twin_config(config_of("laguna-XS.2")))
    published = lift_config(config, Declared("f32", published=True))
    converted = lift_config(config, Declared("f32"))
    names = set(published.values)
    assert "model.layers.2.mlp.experts.e_score_correction_bias" in names
    assert "model.layers.2.mlp.shared_expert.up_proj.weight" in names
    assert "model.layers.2.mlp.gate.e_score_correction_bias" in converted
    assert "model.layers.2.mlp.shared_experts.up_proj.weight" in converted


FACTORS = {"short_factor": [1.0, 2.0], "long_factor": [1.0, 2.0]}
BAD: dict[str, dict[str, Any]] = {
    "gating": {"model_type": "laguna", "gating": False},
    "layer_types has": {"model_type": "laguna", "layer_types": ["full_attention"]},
    "mlp_layer_types has": {"model_type": "laguna", "mlp_layer_types": ["dense"]},
    "num_attention_heads_per_layer has": {"model_type": "laguna", "num_attention_heads_per_layer": [48]},
    "dealt evenly": {"model_type": "laguna", "num_hidden_layers": 1, "num_attention_heads_per_layer": [12]},
    "moe_apply_router_weight_on_input": {"model_type": "laguna", "moe_apply_router_weight_on_input": True},
    "experts a token": {"model_type": "mixtral", "num_experts_per_tok": 9},
    "more experts than": {"model_type": "gpt_oss", "num_local_experts": 2},
    "swiglu_alpha": {"model_type": "gpt_oss", "swiglu_alpha": 1.5},
    "quantization_config.quant_method = 'awq'": {
        "model_type": "gpt_oss",
        "quantization_config": {"modules_to_not_convert": ["model.layers.*.self_attn"] * 9, "quant_method": "awq"},
    },
    "in blocks of": {"model_type": "gpt_oss", "hidden_size": 72, "quantization_config": {"quant_method": "mxfp4"}},
    "attention_bias": {"model_type": "qwen2", "attention_bias": False},
    "no_rope_layers has": {"model_type": "smollm3", "no_rope_layers": [1, 0]},
    "num_query_heads has": {"model_type": "openelm", "num_query_heads": [4]},
    "ffn_multipliers has": {"model_type": "openelm", "ffn_multipliers": [1.0, 2.0, 3.0]},
    "cannot be dealt": {
        "model_type": "openelm",
        "num_transformer_layers": 1,
        "num_query_heads": [4],
        "num_kv_heads": [3],
    },
    "a number or a list": {"model_type": "openelm", "ffn_multipliers": "wide"},
    "short_factor is missing": {"model_type": "phi3", "rope_scaling": {"rope_type": "longrope", "factor": 2.0}},
    "short_factor has 2 entries": {"model_type": "phi3", "rope_scaling": {"rope_type": "longrope", **FACTORS}},
    "supported: up to 4096, .* rope_scaling.factor = 32 ": {
        "model_type": "phi3",
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {"rope_type": "longrope", **FACTORS},
    },
    "use_bidirectional_attention": {"model_type": "gemma3_text", "use_bidirectional_attention": True},
    "query_pre_attn_scalar": {"model_type": "gemma2", "query_pre_attn_scalar": 0},
}


@pytest.mark.parametrize("message", BAD)
def test_what_does_not_fit_is_named(message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config(BAD[message])


FAMILIES = {
    "qwen2": "Qwen2Config",
    "mixtral": "MixtralConfig",
    "olmo2": "Olmo2Config",
    "smollm3": "SmolLM3Config",
    "glm4": "Glm4Config",
    "phi3": "Phi3Config",
    "granite": "GraniteConfig",
    "gemma2": "Gemma2Config",
    "gemma3_text": "Gemma3TextConfig",
    "gemma4_text": "Gemma4TextConfig",
    "gpt_oss": "GptOssConfig",
    "laguna": "LagunaConfig",
}
APART = {
    *("rope_parameters", "sliding_window", "layer_types", "mlp_layer_types", "num_attention_heads_per_layer", "dtype"),
    *("use_bidirectional_attention", "no_rope_layers", "gating", "per_layer_config"),
}


@pytest.mark.parametrize("model_type", FAMILIES)
def test_defaults_are_those_of_transformers(model_type: str) -> None:
    import transformers

    defaults = getattr(transformers, FAMILIES[model_type])().to_dict()
    ours: Any = read_config({"model_type": model_type})
    for name, key in type(ours).keys().items():
        spelled = next((each for each in key.names if each in defaults), None)
        if spelled is None or name in APART:
            continue
        found, expected = getattr(ours, name), defaults[spelled]
        if name == "hidden_act":
            assert {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}[found] == expected
        elif name in ("bos_token_id", "eos_token_id"):
            expected = expected if isinstance(expected, list) else [] if expected is None else [expected]
            assert list(found) == expected
        elif name in ("head_dim", "num_key_value_heads"):
            assert (ours.head_width if name == "head_dim" else ours.kv_heads) == expected or expected is None
        else:
            assert found == expected, name
