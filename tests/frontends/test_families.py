"""The published configs: exact counts, text that reads back, and the golden tiny models."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from regraft.frontends.blocks import ModelBuilder
from regraft.frontends.family import family_names, load_family, read_config
from regraft.frontends.folder import open_model
from regraft.frontends.lift import lift, lift_config
from regraft.frontends.tensors import Declared
from regraft.frontends.twin import golden_tensors
from regraft.ir.cost import cache_bytes, cost, parameters
from regraft.ir.interpret import Interpreter
from regraft.ir.kinds import block_kinds
from regraft.ir.op import Op
from regraft.ir.ops.pos import Rope
from regraft.ir.parse import parse_graph
from regraft.ir.source import TensorSource
from regraft.ir.text import print_graph
from tests.frontends.agreement import limit

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "data" / "relatives_golden.json").read_text(encoding="utf-8")
)
CONFIGS = ["Llama-3.1-8B", "Llama-3.2-1B", "Mistral-7B-v0.3", "Qwen3-0.6B", "Qwen3-8B", "Qwen3-30B-A3B"]
TINY = {"qwen3": "qwen3", "qwen3_moe": "qwen3_moe", "llama3_rope": "llama", "mistral_sliding": "mistral"}
CONTEXTS = {"4K": 4096, "32K": 32768, "128K": 131072}


@pytest.mark.parametrize("name", CONFIGS)
def test_counts_are_exact(name: str) -> None:
    graph = lift(open_model(f"builtin:{name}")).graph
    expected = GOLDEN["models"][name]
    found = parameters(graph)
    assert found.total == expected["params"]["params_total"]
    assert found.active == expected["params"]["params_active_per_token"]
    assert found.embedding == expected["params"]["params_embedding"]
    if not expected["params"]["tied"]:
        assert found.active_without_embedding == expected["params"]["params_active_excluding_embedding"]
    for label, context in CONTEXTS.items():
        assert cache_bytes(graph, context) == expected["kv_cache_bytes_bf16"][label]["window_capped"]
        flops = cost(graph, context=context).by_family["attn"].flops
        assert flops == expected["attention_flops_per_decoded_token"][label]["core"]


@pytest.mark.parametrize("name", CONFIGS)
def test_text_reads_back_to_the_same_graph(name: str) -> None:
    graph = lift(open_model(f"builtin:{name}")).graph
    text = print_graph(graph)
    again = parse_graph(text)
    assert print_graph(again) == text
    assert [op.key() for op in again.ops if not op.slots] == [op.key() for op in graph.ops if not op.slots]
    assert len(block_kinds(graph)) == 1
    graph.verify()


@pytest.mark.parametrize("name", [name for name in GOLDEN["rope"] if name in CONFIGS])
def test_rotary_tables(name: str) -> None:
    graph = lift(open_model(f"builtin:{name}")).graph
    rope = next(op for op in graph.ops if isinstance(op, Rope))
    torch.testing.assert_close(rope.frequencies(), torch.tensor(GOLDEN["rope"][name]["inv_freq"]), rtol=1e-6, atol=0)


def test_yarn_table() -> None:
    expected = GOLDEN["rope"]["gpt-oss-20b"]
    keys = {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0}
    config = read_config(
        {
            "model_type": "llama",
            "head_dim": 64,
            "rope_scaling": {**keys, "truncate": False, "original_max_position_embeddings": 4096},
        }
    )
    rope = next(op for op in lift_config(config, Declared("f32")).ops if isinstance(op, Rope))
    assert rope.amplitude == pytest.approx(expected["attention_factor"], rel=1e-15)
    torch.testing.assert_close(rope.frequencies(), torch.tensor(expected["inv_freq"]), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("name", TINY)
def test_golden_tiny_models(name: str) -> None:
    golden = GOLDEN["tiny_models"][name]
    graph = lift_config(read_config({**golden["config"], "model_type": TINY[name]}), Declared("f32"))
    weights = {key: torch.from_numpy(array) for key, array in golden_tensors(graph).items()}
    logits = Interpreter(graph, TensorSource(weights))(
        torch.tensor([[(7 * i * i + 3 * i + 5) % 64 for i in range(40)]])
    )[0]
    torch.testing.assert_close(logits[-1], torch.tensor(golden["logits_row0_last"]), rtol=0, atol=limit(logits))
    torch.testing.assert_close(
        logits[0, :8], torch.tensor(golden["logits_row0_pos0_first8"]), rtol=0, atol=limit(logits)
    )
    assert logits.argmax(-1).tolist() == golden["argmax_row0"]


def test_the_golden_formula_gives_its_example() -> None:
    example = GOLDEN["tiny_models"]["weights_rule"]["fill_example"]
    config = {**GOLDEN["tiny_models"]["qwen3"]["config"], "model_type": "qwen3"}
    tensors = golden_tensors(lift_config(read_config(config), Declared("f32")))
    assert tensors[example["name"]].ravel()[:4].tolist() == pytest.approx(example["first_4_elements"], abs=1e-7)


def test_a_window_holds_where_the_config_says() -> None:
    config = {"model_type": "qwen3", "num_hidden_layers": 6, "use_sliding_window": True, "max_window_layers": 4}
    graph = lift_config(read_config(config), Declared("bf16"))
    assert [memory.memory.window for memory in graph.memories()] == [None] * 4 + [4096] * 2
    assert [kind.name for kind in block_kinds(graph)] == ["full", "sliding"]
    unused = lift_config(read_config({**config, "use_sliding_window": False}), Declared("bf16"))
    assert {memory.memory.window for memory in unused.memories()} == {None}
    # Mistral's trap: absent is the class's default, null is none
    for given, window in (({}, 4096), ({"sliding_window": None}, None), ({"sliding_window": 8}, 8)):
        graph = lift_config(read_config({"model_type": "mistral", **given}), Declared("bf16"))
        assert {memory.memory.window for memory in graph.memories()} == {window}


def test_facts_of_the_graph() -> None:
    graph = lift(open_model("builtin:Llama-3.1-8B")).graph
    assert graph.meta == {
        "family": "llama",
        "model_type": "llama",
        "architecture": "LlamaForCausalLM",
        "dtype": "bf16",
        "vocab": 128256,
        "context": 131072,
        "eos": (128001,),
        "bos": 128000,
        "tied": False,
    }


def test_every_family_says_what_it_reads() -> None:
    assert {"llama", "mistral", "qwen3", "qwen3_5", "qwen3_5_moe", "qwen3_moe", "qwen3_next"} <= set(family_names())
    for name in family_names():
        family = load_family(name)
        assert family.family == name
        assert family.model_types
        assert family.architectures
        assert {"hidden_size", "num_hidden_layers", "vocab_size"} <= set(family.keys())


def test_defaults_are_those_of_transformers() -> None:
    import transformers

    classes = {
        "llama": transformers.LlamaConfig,
        "mistral": transformers.MistralConfig,
        "qwen3": transformers.Qwen3Config,
        "qwen3_moe": transformers.Qwen3MoeConfig,
    }
    for name, stock in classes.items():
        ours = read_config({"model_type": name})
        defaults = stock().to_dict()
        for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
            assert getattr(ours, key) == defaults[key], (name, key)
        for key in ("max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "hidden_act"):
            assert getattr(ours, key) == defaults[key], (name, key)
        for key in set(defaults) & (set(type(ours).keys()) - {"rope_parameters", "sliding_window", "layer_types"}):
            expected = defaults[key]
            found = getattr(ours, key)
            if key in ("bos_token_id", "eos_token_id"):
                expected = () if expected is None else (expected,)
            if key == "mlp_only_layers":
                expected = tuple(expected)
            if key in ("head_dim", "num_key_value_heads", "dtype"):
                continue
            assert found == expected, (name, key)
        assert ours.kv_heads == defaults["num_key_value_heads"]
        assert ours.head_width == defaults.get("head_dim", ours.head_width)


def test_each_kind_is_built_once_whatever_the_depth(monkeypatch: pytest.MonkeyPatch) -> None:
    model, built = open_model("builtin:Llama-3.1-8B"), Counter[str]()
    build = ModelBuilder.__call__

    def counted(self: ModelBuilder, op: type[Op], *given: Any, **rest: Any) -> Any:
        built[op.opname] += 1
        return build(self, op, *given, **rest)

    monkeypatch.setattr(ModelBuilder, "__call__", counted)
    counts: list[Counter[str]] = []
    for layers in (8, 80):
        built.clear()
        graph = lift(replace(model, config={**model.config, "num_hidden_layers": layers})).graph
        assert graph.layer_count() == layers
        counts.append(built.copy())
    assert counts[0] == counts[1]
    assert counts[0]["attn.attend"] == 1
