"""ZAYA1: counts, the golden tiny model, both layouts, and every way to call it against transformers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from regraft.frontends.family import read_config
from regraft.frontends.folder import open_model
from regraft.frontends.lift import expected_tensors, lift, lift_config
from regraft.frontends.tensors import Declared
from regraft.frontends.twin import twin_config
from regraft.ir.cost import cache_bytes, cost, parameters
from regraft.ir.errors import RegraftError
from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter
from regraft.ir.kinds import block_kinds
from regraft.ir.ops.core import Add, Linear, Norm
from regraft.ir.ops.seq import Tail
from regraft.ir.source import TensorSource
from regraft.verifying import verify
from tests.frontends.agreement import Pair, check_text
from tests.frontends.conftest import TwinOf

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "data" / "zaya_golden.json").read_text(encoding="utf-8")
)
CONFIG: dict[str, Any] = dict(open_model("builtin:ZAYA1-8B").config)
CONTEXTS = {"4K": 4096, "32K": 32768, "128K": 131072, "1M": 1 << 20}
OLD: dict[str, Any] = {  # ZAYA1-8B in its older form
    "model_type": "zaya",
    "architectures": ["ZayaForCausalLM"],
    "hidden_size": 2048,
    "num_hidden_layers": 80,
    "num_attention_heads": 8,
    "num_query_groups": 2,
    "kv_channels": 128,
    "norm_epsilon": 1e-5,
    "ffn_hidden_size": 4096,
    "num_experts": 16,
    "moe_router_topk": 1,
    "zaya_mlp_expansion": 256,
    "max_position_embeddings": 131072,
    "rope_theta": 5000000,
    "partial_rotary_factor": 0.5,
    "tie_word_embeddings": True,
    "vocab_size": 262272,
    "torch_dtype": "bfloat16",
    "cca": True,
    "zaya_use_eda": True,
    "zaya_use_mod": True,
    "scale_residual_merge": True,
    "residual_in_fp32": True,
    # what the published file has beside, most of it about how it was trained
    "activation_func": "swiglu",
    "activation_func_fp8_input_store": False,
    "add_bias_linear": False,
    "bias_activation_fusion": True,
    "gated_linear_unit": True,
    "head_dim": 128,
    "mamba_cache_dtype": "float32",
    "normalization": "RMSNorm",
    "num_key_value_heads": 2,
    "rope_scaling": False,
    "sliding_window": None,
}


@pytest.mark.parametrize("config", [CONFIG, OLD], ids=["native", "older"])
def test_counts_are_exact(config: dict[str, Any]) -> None:
    graph = lift_config(read_config(config), Declared("bf16"))
    found, counts = parameters(graph), GOLDEN["parameters"]
    assert found.total == counts["total"]
    assert found.buffers == counts["buffers_balancing_biases"]
    assert found.embedding == counts["embedding"]
    assert found.active == counts["active_per_token_including_embedding"]
    assert found.active_without_embedding == counts["active_per_token_excluding_embedding"]
    for label, context in CONTEXTS.items():
        assert cache_bytes(graph, context) == GOLDEN["cache"]["total_bytes_bf16_native"][label]
    step, flops = cost(graph, context=4096).by_family, GOLDEN["flops_per_token_per_layer"]
    assert step["seq"].flops == 40 * flops["convolutions"]
    assert step["attn"].flops == 40 * 4096 * flops["attention_core_per_key"]
    stored = "legacy_stored_keys" if config is OLD else "native_stored_keys"
    assert len(list(expected_tensors(graph))) == GOLDEN["checkpoint"][stored]
    check_text(graph)


def test_kinds() -> None:
    native, older = (lift_config(read_config(each), Declared("bf16")) for each in (CONFIG, OLD))
    assert [len(kind.numbers) for kind in block_kinds(native)] == [1, 39]
    assert [len(kind.numbers) for kind in block_kinds(older)] == [1, 1, 39, 39]


def golden_fill(name: str, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor of the golden model, by the rules that stand in the file."""
    seed = 0
    for byte in name.encode():
        seed = (seed * 31 + byte) % 2**32
    h = (torch.arange(math.prod(shape), dtype=torch.int64) * 2654435761 + seed) % 2**32
    h = ((h ^ (h >> 15)) * 2246822519) % 2**32
    h = ((h ^ (h >> 13)) * 3266489917) % 2**32
    noise = (2 * ((h ^ (h >> 16)).double() / 2**32) - 1).view(shape)
    for rule in GOLDEN["fill"]["rules_first_match_wins"]:
        ends = any(name.endswith(end) for end in rule.get("name_ends", ()))
        if ends or rule.get("ndim") == len(shape) or rule.get("name_contains", " ") in name or "otherwise" in rule:
            amplitude = math.sqrt(3 / shape[-1]) if isinstance(rule["amp"], str) else rule["amp"]
            return (rule["center"] + amplitude * noise).float()
    raise AssertionError(name)


def test_the_golden_tiny_model() -> None:
    golden = GOLDEN["tiny_case"]
    graph = lift_config(read_config({**golden["config"], "model_type": "zaya"}), Declared("f32"))
    weights = {info.name: golden_fill(info.name, info.shape) for info in expected_tensors(graph)}
    for name, values in golden["tensor_spot_checks"].items():
        torch.testing.assert_close(weights[name].flatten()[:3], torch.tensor(values), rtol=0, atol=1e-6)
    assert parameters(graph).total == golden["num_params"]
    logits = Interpreter(graph, TensorSource(weights))(torch.tensor([golden["input_ids"]]))[0]
    for place, values in golden["logits"].items():
        expected = torch.tensor(values)
        torch.testing.assert_close(logits[int(place)], expected, rtol=0, atol=golden["tolerance_max_abs"])
    assert logits.argmax(-1).tolist() == golden["argmax"]


# -- twins


@pytest.fixture(scope="module")
def published(twin_of: TwinOf) -> Pair:
    return twin_of("ZAYA1-8B")


def test_the_programs_cache_holds_what_is_predicted(published: Pair) -> None:
    assert published.program.new_cache(2, 50).nbytes == cache_bytes(published.graph, 50, batch=2)


def test_twins_of_older_configs() -> None:
    small = twin_config(OLD)
    assert twin_config(small) == small
    graph = lift_config(read_config(small), Declared("f32", published=True))
    assert parameters(graph).total < 300_000
    check_text(graph)


def zeros_before_each_convolution(pair: Pair) -> Graph:
    graph = pair.graph.copy()
    for op in [op for op in graph.ops if isinstance(op, Tail) and op.initial is not None]:
        (bare,) = graph.add(Tail({"x": (op.x,)}, {"rows": op.rows}), [graph.fresh(f"{op.out.name}_bare")])
        graph.replace_uses(op.out, bare)
    graph.sort()
    return graph


def normed_state(pair: Pair) -> Graph:
    graph = pair.graph.copy()
    for layer in (1, 2):
        carried = graph[f"layers.{layer}.moe.carried"]
        assert carried.op is not None
        graph.set_operand(carried.op, "x", graph[f"layers.{layer - 1}.moe.state_norm"])
    return graph


@pytest.mark.parametrize("wrong", [zeros_before_each_convolution, normed_state])
def test_a_wrong_connection_shows(published: Pair, wrong: Callable[[Pair], Graph]) -> None:
    changed = Interpreter(wrong(published), published.model.require_checkpoint())(published.tokens)
    assert (changed - published.interpreter(published.tokens)).abs().max() > 1e-3


def test_the_bias_comes_before_the_scale(published: Pair) -> None:
    source = published.model.require_checkpoint()
    weights = {name: source.read(name) for name in source.names()}
    for name, values in weights.items():
        if name.endswith("hidden_states_bias"):
            values.div_(weights[name.replace("_bias", "_scale")])
    changed = Interpreter(published.graph, TensorSource(weights))(published.tokens)
    assert (changed - published.interpreter(published.tokens)).abs().max() > 1e-3


# -- the class that skips


def test_transformers_loses_the_skip_class_bias_when_it_loads(published: Pair) -> None:
    import transformers

    source = published.model.require_checkpoint()
    loader = cast(Any, transformers.AutoModelForCausalLM)
    stock = loader.from_pretrained(published.folder, dtype=torch.float32, attn_implementation="eager")
    weights = {name: source.read(name) for name in source.names()}
    biases = [name for name in weights if name.endswith("balancing_biases")]
    loaded = dict(stock.named_buffers())
    assert all(float(loaded[name][-1]) == -1.0 != float(weights[name][-1]) for name in biases)
    with torch.no_grad():
        logits = stock(published.tokens).logits
    assert (logits - published.logits).abs().max() > 1e-3
    for name in biases:
        weights[name][-1] = -1.0
    published.check(Interpreter(published.graph, TensorSource(weights))(published.tokens), logits)


def test_verify_gives_it_back(published: Pair) -> None:
    report = verify(published.folder, against="transformers")
    assert report.passed
    assert "balancing_biases" in report.checks[-1].detail


def with_skip(pair: Pair, skip: str, weights: dict[str, Tensor], edges: list[str]) -> dict[str, Tensor]:
    config = {**json.loads((pair.folder / "config.json").read_text(encoding="utf-8")), "skip_expert": skip}
    graph = lift_config(read_config(config), Declared("f32"))
    return Interpreter(graph, TensorSource(weights)).run(pair.tokens, edges=edges)


def test_what_a_skipped_token_gives(published: Pair) -> None:
    """Nothing, as in transformers, or its normed input times its share, as in the original code."""
    source = published.model.require_checkpoint()
    weights = {name: source.read(name) for name in source.names()}
    edges = [f"layers.1.moe.{name}" for name in ("norm", "weights", "experts", "out")] + ["logits"]
    zero, identity = (with_skip(published, skip, weights, edges) for skip in ("zero", "identity"))
    skipped = zero["layers.1.moe.experts"][..., 0] == 8
    assert 0 < int(skipped.sum()) < skipped.numel()
    given = identity["layers.1.moe.weights"] * identity["layers.1.moe.norm"]
    assert not zero["layers.1.moe.out"][skipped].any()
    torch.testing.assert_close(identity["layers.1.moe.out"][skipped], given[skipped], rtol=0, atol=0)
    assert (zero["logits"] - identity["logits"]).abs().max() > 1e-3
    # where the bias keeps it from being chosen, as in the released weights, the two are the same
    for name, values in weights.items():
        if name.endswith("balancing_biases"):
            values[-1] = -1.0 + float(values[:-1].max()) - 1e-3
    zero, identity = (with_skip(published, skip, weights, ["logits"]) for skip in ("zero", "identity"))
    torch.testing.assert_close(zero["logits"], identity["logits"], rtol=0, atol=0)


# -- older checkpoints


def older(name: str, tensor: Tensor, last: int) -> dict[str, Tensor]:
    """Return a tensor of today's layout as older checkpoints have it (specs/zaya_cca.md, section 6.1)."""
    if name == "model.norm.weight":
        return {"model.final_norm.weight": tensor}
    if name.startswith("model.input_"):
        return {f"model.layers.0.res_scale.{name.removeprefix('model.input_')}": tensor}
    if not name.startswith("model.layers."):
        return {name: tensor}
    number, _, rest = name.removeprefix("model.layers.").partition(".")
    attention, experts = f"model.layers.{2 * int(number)}", f"model.layers.{2 * int(number) + 1}"
    if rest.startswith("post_mlp_residual_scale."):
        after = "model" if int(number) == last else f"model.layers.{2 * int(number) + 2}"
        return {f"{after}.res_scale.{rest.partition('.')[2]}": tensor}
    if rest.startswith("mlp.experts."):
        side = {"gate_up_proj": "linear_fc1", "down_proj": "linear_fc2"}[rest.rpartition(".")[2]]
        places = f"{experts}.zaya_block.experts.local_experts"
        return {f"{places}.{i}.{side}.weight": each.clone() for i, each in enumerate(tensor)}
    renamed = {
        "input_layernorm": f"{attention}.input_norm",
        "post_attention_layernorm": f"{experts}.input_norm",
        "post_attention_residual_scale": f"{experts}.res_scale",
        "self_attn.qkv_proj.q_proj": f"{attention}.self_attn.qkv.linear_q",
        "self_attn.qkv_proj.k_proj": f"{attention}.self_attn.qkv.linear_k",
        "self_attn.qkv_proj.v_proj_current": f"{attention}.self_attn.qkv.val_proj1",
        "self_attn.qkv_proj.v_proj_delayed": f"{attention}.self_attn.qkv.val_proj2",
        "self_attn.qkv_proj.conv_qk_depthwise": f"{attention}.self_attn.qkv.conv_qk.0",
        "self_attn.qkv_proj.conv_qk_grouped": f"{attention}.self_attn.qkv.conv_qk.1",
        "self_attn.qk_norm": f"{attention}.self_attn.qkv",
        "self_attn.o_proj": f"{attention}.self_attn.o_proj",
        "mlp.gate.router_mlp.norm": f"{experts}.zaya_block.router.rmsnorm_eda",
        "mlp.gate.router_mlp.fc1": f"{experts}.zaya_block.router.router_mlp.0",
        "mlp.gate.router_mlp.fc2": f"{experts}.zaya_block.router.router_mlp.2",
        "mlp.gate.router_mlp.out_proj": f"{experts}.zaya_block.router.router_mlp.4",
        "mlp.gate": f"{experts}.zaya_block.router",
    }
    for new, old in renamed.items():
        if rest.startswith(f"{new}."):
            return {f"{old}{rest.removeprefix(new)}": tensor}
    if rest.startswith("mlp.gate.down_proj"):
        return {f"{experts}.zaya_block.router.down_proj": tensor}
    raise AssertionError(name)


@pytest.fixture(scope="module")
def older_pair(published: Pair, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("older") / "twin"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(twin_config(OLD)), encoding="utf-8")
    source = published.model.require_checkpoint()
    tensors: dict[str, Tensor] = {}
    for name in source.names():
        tensors |= older(name, source.read(name), 2)
    save_file(tensors, folder / "model.safetensors")
    return Pair(folder, published.tokens, published.logits)


def test_older_checkpoints_give_the_same_logits(older_pair: Pair) -> None:
    older_pair.check_all(older_pair.interpreter)
    older_pair.check_all(older_pair.program)


def test_older_configs(older_pair: Pair) -> None:
    config = json.loads((older_pair.folder / "config.json").read_text(encoding="utf-8"))
    assert config["num_hidden_layers"] == 6
    assert config["ffn_hidden_size"] == 64
    assert not {"layer_types", "rope_parameters", "head_dim"} & set(config)
    listed = {key: value for key, value in OLD.items() if key not in ("num_query_groups", "ffn_hidden_size")}
    listed |= {"num_attention_heads": 16, "cca_num_q_heads": [8, 0] * 40, "num_query_groups_list": [2, 0] * 40}
    listed |= {"ffn_hidden_size_list": [0, 4096] * 40, "zaya_layers": ["a", 16] * 40, "num_hidden_layers": 40}
    listed |= {"zaya_mlp_expansion": [0, 256] * 40}
    del listed["num_experts"]
    first, second = (lift_config(read_config(each), Declared("bf16")) for each in (OLD, listed))
    assert first.equals(second)


# -- configs


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 81),
        ("ffn_hidden_size", 4097),
        ("ffn_hidden_size", "wide"),
        ("ffn_hidden_size_list", [0, 4096, 0, 2048]),
        ("cca_num_q_heads", [8, 0, 4, 0]),
        ("num_query_groups_list", [0, 0]),
        ("zaya_layers", ["a", 16, "a", 8]),
        ("zaya_layers", [16, "a"]),
        ("zaya_layers", "a"),
        ("rope_scaling", {"rope_type": "yarn", "factor": 2.0}),
        ("rope_parameters", {"rope_theta": 1e6}),
        ("rope_theta", None),
        ("moe_router_topk", 2),
        ("activation_func", "gelu"),
        ("gated_linear_unit", False),
        ("swa_layers", [4096, 0] * 40),
    ],
    ids=str,
)
def test_older_values_that_are_not_supported_are_named_as_they_stand(key: str, value: object) -> None:
    with pytest.raises(RegraftError, match=key):
        read_config({**OLD, key: value})


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"num_experts_per_tok": 2}, "num_experts_per_tok = 2"),
        ({"layer_types": ["hybrid_sliding"] * 40, "sliding_window": None}, "sliding_window"),
        ({"layer_types": ["hybrid"]}, "layer_types has 1 entries for 40 layers"),
        ({"lm_head_bias": True}, "lm_head_bias = true"),
        ({"cca_time0": 1}, "cca_time0"),
        ({"rope_parameters": {"hybrid": {"partial_rotary_factor": 0.79}}}, "101 of a head's 128 channels turn"),
        ({"zaya_use_eda": False}, "zaya_use_eda = false"),
        ({"skip_expert": "half"}, "zero, identity"),
        ({"num_attention_heads": 5}, "5 query heads"),
    ],
    ids=str,
)
def test_bad_values_are_named(change: dict[str, Any], part: str) -> None:
    with pytest.raises(RegraftError) as caught:
        lift_config(read_config({**CONFIG, **change}), Declared("bf16"))
    assert part in str(caught.value)


def test_defaults_are_those_of_transformers() -> None:
    import transformers

    ours, defaults = read_config({"model_type": "zaya"}), transformers.ZayaConfig().to_dict()
    for key in (type(ours).keys().keys() & defaults.keys()) - {"rope_parameters", "layer_types", "dtype"}:
        expected = (defaults[key],) if key in ("bos_token_id", "eos_token_id") else defaults[key]
        assert getattr(ours, key) == expected, key
    graphs = [lift_config(read_config({**each, "model_type": "zaya"}), Declared("bf16")) for each in ({}, CONFIG)]
    assert graphs[0].equals(graphs[1])


def test_a_folder_is_lifted_without_a_word(published: Pair) -> None:
    assert not lift(published.model).warnings


@pytest.mark.parametrize("config", [CONFIG, OLD], ids=["native", "older"])
def test_the_stream_stays_wide_in_a_narrow_model(config: dict[str, Any]) -> None:
    # specs/zaya_cca.md, section 8: float32 from the embedding to the last norm, whatever the model computes in
    graph = lift_config(read_config(config), Declared("bf16"))
    adds = [op for op in graph.ops if isinstance(op, Add) and op.out.tensor.shape[-1] == 2048]
    assert len(adds) == 80
    assert {op.out.tensor.dtype for op in adds} == {"f32"}
    assert {op.x.tensor.dtype for op in graph.ops if isinstance(op, Norm | Linear)} == {"bf16"}


def test_a_narrow_program_keeps_the_stream_wide(published: Pair) -> None:
    text = (published.folder.parent / "package" / "model.py").read_text(encoding="utf-8") if published.program else ""
    assert "widen(" in text
    narrow = Interpreter(published.graph, published.model.require_checkpoint(), "bf16")
    found = narrow.run(published.tokens, edges=["embed", "layers.1.out", "layers.1.attn.norm"])
    assert [found[name].dtype for name in ("embed", "layers.1.out")] == [torch.float32] * 2
    assert found["layers.1.attn.norm"].dtype == torch.bfloat16
