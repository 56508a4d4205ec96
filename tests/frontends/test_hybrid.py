"""Qwen3-Next, Qwen3.5 and 3.6: counts, golden tiny models, and every way to call them against transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from regraft.codegen.package import emit
from regraft.frontends.family import read_config
from regraft.frontends.folder import open_model
from regraft.frontends.lift import lift, lift_config
from regraft.frontends.tensors import Declared
from regraft.frontends.twin import golden_tensors, twin_config, write_twin
from regraft.ir.cost import cache_bytes, cost, parameters
from regraft.ir.errors import RegraftError
from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter
from regraft.ir.kinds import block_kinds
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.core import Activation, Norm, Scale, Slice
from regraft.ir.ops.moe import Route
from regraft.ir.ops.pos import Rope
from regraft.ir.ops.seq import Conv, Decay
from regraft.ir.parse import parse_graph
from regraft.ir.source import TensorSource
from regraft.ir.text import print_graph
from regraft.programs import load_program

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
LENGTH = 70
TOKENS = torch.randint(0, 128, (2, LENGTH), generator=torch.Generator().manual_seed(0))


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


@pytest.mark.parametrize("name", CONFIGS)
def test_twins_are_small_and_read_back(name: str) -> None:
    small = twin_config(open_model(f"builtin:{name}").config)
    graph = lift_config(read_config(small), Declared("f32", published=True))
    assert parameters(graph).total < 300_000
    assert [kind.name for kind in block_kinds(graph)] == list(KINDS[name])
    text = print_graph(graph)
    assert print_graph(parse_graph(text)) == text
    assert twin_config(small) == small


@pytest.mark.parametrize("name", TINY)
def test_golden_tiny_models(name: str) -> None:
    golden = GOLDEN["tiny_models"][name]
    graph = lift_config(read_config({**golden["config"], "model_type": TINY[name]}), Declared("f32"))
    weights = {key: torch.from_numpy(array) for key, array in golden_tensors(graph, zero_centred=True).items()}
    tokens = torch.tensor([[(7 * i * i + 3 * i + 5) % 64 for i in range(40)]])
    logits = Interpreter(graph, TensorSource(weights))(tokens)[0]
    torch.testing.assert_close(logits[-1], torch.tensor(golden["logits_row0_last"]), rtol=0, atol=5e-5)
    torch.testing.assert_close(logits[0, :8], torch.tensor(golden["logits_row0_pos0_first8"]), rtol=0, atol=5e-5)
    assert logits.argmax(-1).tolist() == golden["argmax_row0"]


# -- against transformers


def original_logits(folder: Path) -> Tensor:
    import transformers

    loader = cast(Any, transformers.AutoModelForCausalLM)
    model = loader.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        return model(TOKENS).logits


class Twin:
    """A twin's folder, our interpreter of it, and the original's logits for `TOKENS`."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = write_twin(open_model(f"builtin:{name}").config, folder, seed=1)
        model = open_model(self.folder)
        lifted = lift(model)
        assert not lifted.warnings
        self.graph = lifted.graph
        self.source = model.require_checkpoint()
        self.interpreter = Interpreter(self.graph, self.source)
        self.logits = original_logits(self.folder)

    def check(self, found: Tensor, expected: Tensor) -> None:
        limit = 1e-5 * max(1.0, float(self.logits.abs().max()) / 4)
        torch.testing.assert_close(found, expected, rtol=0, atol=limit)


@pytest.fixture(scope="module", params=CONFIGS)
def twin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Twin:
    return Twin(request.param, tmp_path_factory.mktemp("model") / "twin")


@pytest.fixture(scope="module")
def sparse_twin(tmp_path_factory: pytest.TempPathFactory) -> Twin:
    """The twin that has every mechanism."""
    return Twin(CONFIGS[-1], tmp_path_factory.mktemp("model") / "twin")


def test_prefill(twin: Twin) -> None:
    assert twin.logits.std() >= 1
    twin.check(twin.interpreter(TOKENS), twin.logits)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_chunks(twin: Twin, size: int) -> None:
    cache, tokens = twin.interpreter.new_cache(2), TOKENS[:, :24] if size == 1 else TOKENS
    found = [twin.interpreter(part, cache) for part in tokens.split(size, 1)]
    twin.check(torch.cat(found, 1), twin.logits[:, : tokens.shape[1]])


def test_a_ragged_batch_gives_what_its_rows_give(twin: Twin) -> None:
    tokens, cache = TOKENS.clone(), twin.interpreter.new_cache(2)
    tokens[1, 23:] = 0
    found = twin.interpreter(tokens[:, :60], cache, torch.tensor([60, 23]))
    twin.check(found[0], twin.logits[0, :60])
    twin.check(found[1, :23], twin.logits[1, :23])
    following = torch.stack((TOKENS[0, 60:65], TOKENS[1, 23:28]))
    found = twin.interpreter(following, cache)
    twin.check(found[0], twin.logits[0, 60:65])
    twin.check(found[1], twin.logits[1, 23:28])


@pytest.fixture(scope="module")
def program(twin: Twin) -> Any:
    """The emitted program, in float32."""
    package = emit(twin.graph, twin.source, twin.folder.parent / "package", target="torch")
    return load_program(package, dtype="float32")


def test_the_program_agrees_with_the_interpreter(twin: Twin, program: Any) -> None:
    expected = twin.interpreter(TOKENS)
    with torch.no_grad():
        twin.check(program(TOKENS), expected)
    for sizes in ([LENGTH], [1, 7, LENGTH - 8], [64, *[1] * (LENGTH - 64)]):
        cache = program.new_cache(2, LENGTH)
        twin.check(torch.cat([program(part, cache) for part in TOKENS.split(sizes, 1)], 1), expected)


def test_the_programs_rows_go_on_where_they_stand(twin: Twin, program: Any) -> None:
    expected, cache = twin.interpreter(TOKENS), program.new_cache(2, LENGTH)
    done = [0, 0]
    for lengths in ([0, 3], [1, 0], [0, 1], [40, 23], [5, 9]):
        rows = [TOKENS[row, done[row] : done[row] + max(lengths)] for row in range(2)]
        found = program(torch.stack(rows), cache, torch.tensor(lengths))
        for row, count in enumerate(lengths):
            twin.check(found[row, :count], expected[row, done[row] : done[row] + count])
            done[row] += count


def test_the_programs_cache_holds_what_is_predicted(twin: Twin, program: Any) -> None:
    assert program.new_cache(2, 50).nbytes == cache_bytes(twin.graph, 50, batch=2)


WRONG: dict[str, tuple[type[Any], str, dict[str, Any]]] = {
    "another scale": (Attend, "", {"scale": 0.21}),
    "another base": (Rope, "", {"base": 1e4}),
    "twice the channels turn": (Rope, "", {"channels": 16}),
    "plain norms": (Norm, ".attn.norm", {"offset": 0.0}),
    "a zero-centred norm of DeltaNet's output": (Norm, ".ctx_norm", {"offset": 1.0}),
    "another gate of attention": (Activation, ".open", {"kind": "softplus"}),
    "no activation after the convolution": (Activation, ".mixed", {"kind": "sigmoid"}),
    "queries not scaled": (Scale, ".attn.q", {"factor": 0.25}),
    "another write rate": (Activation, ".beta", {"kind": "tanh"}),
    "the gate for the query": (Slice, ".attn.q", {"start": 32, "stop": 64}),
    "another gate of the shared expert": (Activation, ".shared_share", {"kind": "tanh"}),
    "shares not normalised": (Route, "", {"normalize": False}),
}


def logits_of(graph: Graph, twin: Twin) -> Tensor:
    return Interpreter(graph, twin.source)(TOKENS[:1, :20])


@pytest.mark.parametrize("wrong", WRONG)
def test_a_single_wrong_choice_shows_on_the_twin(sparse_twin: Twin, wrong: str) -> None:
    twin = sparse_twin
    kind, suffix, attributes = WRONG[wrong]
    graph = twin.graph.copy()
    changed = [op for op in graph.ops if isinstance(op, kind) and op.results[0].name.endswith(suffix)]
    assert changed
    for op in changed:
        for name, value in attributes.items():
            graph.set_attribute(op, name, value)
    graph.retype()
    if "queries" in wrong:  # a norm follows DeltaNet's output: its eps alone sees a scale
        assert (logits_of(graph, twin) - logits_of(twin.graph, twin)).abs().max() > 1e-5
        return
    assert (logits_of(graph, twin) - logits_of(twin.graph, twin)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "operand"), [(Conv, "weight"), (Decay, "a_log"), (Decay, "dt_bias")], ids=["taps", "a_log", "dt_bias"]
)
def test_every_weight_of_the_rule_shows(sparse_twin: Twin, kind: type[Any], operand: str) -> None:
    twin = sparse_twin
    names = {op.slots[operand][0].name for op in twin.graph.ops if isinstance(op, kind)}
    weights = {name: twin.source.read(name) for name in twin.source.names()}
    for name in names:
        weights[name] = weights[name].flip(-1) if operand == "weight" else torch.zeros_like(weights[name])
    changed = Interpreter(twin.graph, TensorSource(weights))(TOKENS[:1, :20])
    assert (changed - logits_of(twin.graph, twin)).abs().max() > 1e-3


# -- checkpoints as published


def rewritten(twin: Twin, folder: Path, change: Any) -> Path:
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
def test_layouts_of_checkpoints(twin: Twin, tmp_path: Path, change: Any) -> None:
    folder = rewritten(twin, tmp_path / "other", change)
    model = open_model(folder)
    lifted = lift(model)
    tower = "the vision tower and " if "3.6" in twin.name else ""
    left_out = f"left out: {tower}the multi-token prediction module; the text decoder is lifted"
    assert lifted.warnings == ((left_out,) if change is multimodal else ())
    logits = Interpreter(lifted.graph, model.require_checkpoint())(TOKENS[:, :16])
    torch.testing.assert_close(logits, twin.interpreter(TOKENS[:, :16]), rtol=0, atol=0)


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
