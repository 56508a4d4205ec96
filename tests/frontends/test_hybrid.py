"""Qwen3-Next, Qwen3.5 and 3.6: counts, golden tiny models, and every way to call them against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from regraft.frontends.family import read_config
from regraft.frontends.folder import open_model
from regraft.frontends.lift import lift, lift_config
from regraft.frontends.tensors import Declared
from regraft.frontends.twin import golden_tensors
from regraft.ir.cost import cache_bytes, cost, parameters
from regraft.ir.errors import RegraftError
from regraft.ir.interpret import Interpreter
from regraft.ir.kinds import block_kinds
from regraft.ir.parse import parse_graph
from regraft.ir.source import TensorSource
from regraft.ir.text import print_graph
from tests.frontends.agreement import LENGTH, Pair, limit
from tests.frontends.conftest import TwinOf

GOLDEN: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "data" / "relatives_golden.json").read_text(encoding="utf-8")
)
CONFIGS = ["Qwen3-Next-80B-A3B", "Qwen3.6-27B", "Qwen3.6-35B-A3B"]
KINDS = {
    "Qwen3-Next-80B-A3B": {"delta_moe": 36, "full_moe": 12},
    "Qwen3.6-27B": {"delta": 48, "full": 16},
    "Qwen3.6-35B-A3B": {"delta_moe": 30, "full_moe": 10},
}
TINY = {"qwen3_next": "qwen3_next", "qwen3_5_dense": "qwen3_5_text", "qwen3_5_moe": "qwen3_5_moe_text"}
CONTEXTS = {"4K": 4096, "32K": 32768, "128K": 131072}


@pytest.mark.parametrize("name", CONFIGS)
def test_counts_are_exact(name: str) -> None:
    lifted = lift(open_model(f"builtin:{name}"))
    graph, expected = lifted.graph, GOLDEN["models"][name]
    found, counts = parameters(graph), expected["params"]
    assert found.total == counts["params_total"]
    assert found.active == counts["params_active_per_token"]
    assert found.embedding == counts["params_embedding"]
    assert found.active_without_embedding == counts["params_active_excluding_embedding"]
    held = expected["kv_cache_bytes_bf16"]
    fixed = held["linear_state_bytes_total_fp32_recurrent"] + held["linear_conv_state_bytes_total_bf16_k_minus_1"]
    for label, context in CONTEXTS.items():
        assert cache_bytes(graph, context) == held[label]["window_capped"] + fixed
        flops = cost(graph, context=context).by_family["attn"].flops
        assert flops == expected["attention_flops_per_decoded_token"][label]["core"]
    assert {kind.name: len(kind.numbers) for kind in block_kinds(graph)} == KINDS[name]
    left_out = "left out: the vision tower and the multi-token prediction module; the text decoder is lifted"
    assert lifted.warnings == ((left_out,) if "3.6" in name else ())
    text = print_graph(graph)
    assert print_graph(parse_graph(text)) == text
    graph.verify()


@pytest.mark.parametrize("name", TINY)
def test_golden_tiny_models(name: str) -> None:
    golden = GOLDEN["tiny_models"][name]
    graph = lift_config(read_config({**golden["config"], "model_type": TINY[name]}), Declared("f32"))
    weights = {key: torch.from_numpy(array) for key, array in golden_tensors(graph, zero_centred=True).items()}
    tokens = torch.tensor([[(7 * i * i + 3 * i + 5) % 64 for i in range(40)]])
    logits = Interpreter(graph, TensorSource(weights))(tokens)[0]
    torch.testing.assert_close(logits[-1], torch.tensor(golden["logits_row0_last"]), rtol=0, atol=limit(logits))
    torch.testing.assert_close(
        logits[0, :8], torch.tensor(golden["logits_row0_pos0_first8"]), rtol=0, atol=limit(logits)
    )
    assert logits.argmax(-1).tolist() == golden["argmax_row0"]


# -- twins


@pytest.fixture(scope="module", params=CONFIGS)
def twin(request: pytest.FixtureRequest, twin_of: TwinOf) -> Pair:
    return twin_of(request.param)


def test_the_programs_rows_go_on_where_they_stand(twin: Pair) -> None:
    expected, cache = twin.logits, twin.program.new_cache(2, LENGTH)
    done = [0, 0]
    for lengths in ([0, 3], [1, 0], [0, 1], [40, 23], [5, 9]):
        rows = [twin.tokens[row, done[row] : done[row] + max(lengths)] for row in range(2)]
        found = twin.program(torch.stack(rows), cache, torch.tensor(lengths))
        for row, count in enumerate(lengths):
            twin.check(found[row, :count], expected[row, done[row] : done[row] + count])
            done[row] += count


def test_the_programs_cache_holds_what_is_predicted(twin: Pair) -> None:
    assert twin.program.new_cache(2, 50).nbytes == cache_bytes(twin.graph, 50, batch=2)


# -- checkpoints as published


def rewritten(twin: Pair, folder: Path, change: Any) -> Path:
    folder.mkdir()
    tensors = load_file(twin.folder / "model.safetensors")
    save_file(change(tensors), folder / "model.safetensors")
    (folder / "config.json").write_text((twin.folder / "config.json").read_text(encoding="utf-8"), encoding="utf-8")
    return folder


def fused(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the same with each layer's experts in two tensors."""
    kept = {name: tensor for name, tensor in tensors.items() if ".experts." not in name}
    layers = {name.partition(".experts.")[0] for name in tensors if ".experts." in name}
    for layer in layers:
        parts = {
            side: torch.stack([tensors[f"{layer}.experts.{i}.{side}_proj.weight"] for i in range(8)])
            for side in ("gate", "up", "down")
        }
        kept[f"{layer}.experts.gate_up_proj"] = torch.cat((parts["gate"], parts["up"]), 1)
        kept[f"{layer}.experts.down_proj"] = parts["down"]
    return kept


def multimodal(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the same with a tower and a prediction module beside it."""
    tower = {"model.visual.blocks.0.norm1.weight": torch.ones(4)}
    prefixed = any(name.startswith("model.language_model.") for name in tensors)
    return {**tensors, **(tower if prefixed else {}), "mtp.fc.weight": torch.ones(4, 8)}


def text_only(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the same under the names of a text model."""
    return {name.replace("model.language_model.", "model."): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("change", [fused, multimodal, text_only])
def test_layouts_of_checkpoints(twin: Pair, tmp_path: Path, change: Any) -> None:
    folder = rewritten(twin, tmp_path / "other", change)
    model = open_model(folder)
    lifted = lift(model)
    tower = "the vision tower and " if "qwen3_5" in lifted.family else ""
    left_out = f"left out: {tower}the multi-token prediction module; the text decoder is lifted"
    assert lifted.warnings == ((left_out,) if change is multimodal else ())
    logits = Interpreter(lifted.graph, model.require_checkpoint())(twin.tokens[:, :16])
    torch.testing.assert_close(logits, twin.interpreter(twin.tokens[:, :16]), rtol=0, atol=0)


# -- configs


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"linear_num_value_heads": 5}, ["5 value heads for 16 key heads"]),
        ({"layer_types": ["linear_attention"]}, ["layer_types has 1 entries for 32 layers"]),
        ({"layer_types": ["mamba"]}, ["linear_attention, full_attention"]),
        ({"attn_output_gate": False}, ["attn_output_gate = false", "supported: true"]),
        ({"attention_bias": True}, ["attention_bias = true", "supported: false"]),
        ({"partial_rotary_factor": 0.02}, ["partial_rotary_factor"]),
        ({"linear_conv_kernel_dim": 1}, ["linear_conv_kernel_dim"]),
    ],
    ids=str,
)
def test_bad_values_are_named(change: dict[str, object], parts: list[str]) -> None:
    with pytest.raises(RegraftError) as caught:
        lift_config(read_config({"model_type": "qwen3_5_text", **change}), Declared("bf16"))
    for part in parts:
        assert part in str(caught.value)


def test_bad_multimodal_configs() -> None:
    for config in ({"text_config": 3}, {"text_config": {}, "fusion_depth": 3}):
        with pytest.raises(RegraftError, match=r"text_config|fusion_depth"):
            read_config({"model_type": "qwen3_5", **config})


def test_defaults_are_those_of_transformers() -> None:
    import transformers

    classes = {
        "qwen3_next": transformers.Qwen3NextConfig,
        "qwen3_5_text": cast(Any, transformers).Qwen3_5TextConfig,
        "qwen3_5_moe_text": cast(Any, transformers).Qwen3_5MoeTextConfig,
    }
    for name, stock in classes.items():
        ours, defaults = read_config({"model_type": name}), stock().to_dict()
        read = type(ours).keys().keys() & defaults.keys()
        for key in read - {"rope_parameters", "layer_types", "dtype", "mlp_only_layers"}:
            expected = defaults[key]
            if key in ("bos_token_id", "eos_token_id"):
                expected = () if expected is None else (expected,)
            assert getattr(ours, key) == expected, (name, key)
        kinds = [cast(Any, ours).mixes(layer) for layer in range(len(defaults["layer_types"]))]
        assert kinds == defaults["layer_types"]
        assert ours.rope.channels == 64
