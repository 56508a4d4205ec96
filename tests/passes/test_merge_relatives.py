"""merge-kv-heads on twins of every family: exact where heads are copies, refused with the reason elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.ir.cost import cache_bytes
from regraft.ir.errors.recipe import StructureError
from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter
from regraft.ir.op import Value
from regraft.ir.ops.attn import KV
from regraft.ir.ops.core import Linear
from regraft.ir.ops.weight import Load, SliceWeight
from regraft.ir.source import TensorSource
from regraft.passes.fitting.fold import fitted_parameters, folded
from regraft.passes.fitting.sweep import Sweep, evaluate
from regraft.passes.matching.sites import attentions
from regraft.passes.pipeline import run_pipeline
from regraft.passes.recipe import parse_pipeline
from tests.codegen.programs import emitted, tokens_of
from tests.frontends.agreement import twin_graph
from tests.frontends.cases import CASES

MERGED = {
    "Llama-3.1-8B": CASES["Llama-3.1-8B"],
    "Mistral-7B-v0.3": CASES["Mistral-7B-v0.3"],
    "Qwen3-8B": CASES["Qwen3-8B"],
    "biases": CASES["qwen2"],
    "unrotated channels, interleaved": CASES["glm4"],
    "layers without rotation": CASES["smollm3"],
    "one projection for all": CASES["phi3"],
    "sinks": {"model_type": "gpt_oss", "attention_bias": False},
    "softcaps and windows": CASES["gemma2"],
    "gates by head, norms, unrotated channels": CASES["laguna-XS.2"],
    "gates by channel, norms": CASES["laguna, gates by channel, capped routing"],
    "norms of values too": CASES["gemma-4-31B"],
    "norms of values, shared memories": CASES["gemma-4-E4B"],
    "biases under norms": CASES["qwen3, later layers slide, biases"],
}
TOKENS = torch.randint(0, 128, (4, 24), generator=torch.Generator().manual_seed(0))
ALL = parse_pipeline("merge-kv-heads{heads=1, refit=false}")


def projected(value: Value) -> Linear:
    """Return the projection that makes a value's heads."""
    while not isinstance(value.op, Linear):
        assert value.op is not None
        value = next(iter(value.op.operands))
    return value.op


def pair_up(graph: Graph, weights: dict[str, Tensor]) -> None:
    """Let neighbours among key/value heads be copies: keys with the other sign, values three times as large."""
    for attention in attentions(graph).values():
        state: Any = attention.memory.op
        for value, factor in ((state.k, -1.0), (state.v, 3.0)):
            linear = projected(value)
            for loaded in (linear.weight, linear.bias):
                if loaded is None:
                    continue
                part = loaded.op if isinstance(loaded.op, SliceWeight) else None
                load = part.x.op if part is not None else loaded.op
                assert isinstance(load, Load)
                start = part.start if part is not None else 0
                rows = weights[load.source].narrow(0, start, loaded.tensor.sizes[0])
                heads = rows.view(attention.kv_heads, -1)
                heads[1::2] = factor * heads[0::2]


def logits(graph: Graph, lifted: Graph, weights: dict[str, Tensor]) -> Tensor:
    """Return the logits of a rewritten graph, fitted to the tokens, in float64."""
    source = TensorSource(weights)
    fits = dict(Sweep(graph, lifted, source, TOKENS, dtype="f64").solve(fitted_parameters(graph)))
    found = {value.name: tensor for value, tensor in fits.items()}
    rest = {v.name: evaluate(v, source) for v in graph.parameters() if v.name not in found}
    return Interpreter(folded(graph), TensorSource({**rest, **found}), "f64")(TOKENS)


@pytest.mark.parametrize("name", MERGED)
def test_copies_merge_exactly(name: str) -> None:
    torch.set_num_threads(1)
    graph, weights = twin_graph(MERGED[name])
    weights = {key: tensor.double() for key, tensor in weights.items()}
    pair_up(graph, weights)
    result = run_pipeline(graph, ALL)
    found = attentions(graph).values()
    merged = [each.layer for each in found if each.owner == each.layer and each.kv_heads == 2]
    assert [note.layer for note in result.steps[0].report.applied] == merged
    kept = {each.memory.name for each in found if each.layer not in merged and each.owner == each.layer}
    alone = sum(
        op.cost({"B": 1, "T": 1, "S": 24}).cache for op in graph.ops if op.is_state and op.results[0].name in kept
    )
    assert cache_bytes(result.graph, 24) * 2 == cache_bytes(graph, 24) + alone
    expected = Interpreter(graph, TensorSource(weights), "f64")(TOKENS)
    error = (logits(result.graph, graph, weights) - expected).norm() / expected.norm()
    assert error < 1e-6  # the graph's weights are float32
    mean = run_pipeline(graph, parse_pipeline("merge-kv-heads{heads=1, method=mean, refit=false}"))
    assert (logits(mean.graph, graph, weights) - expected).norm() > 0.01 * expected.norm()


@pytest.mark.parametrize(
    ("name", "layer", "reason"),
    [
        ("DeepSeek-V3", 0, "its memory holds no keys and values by head"),
        ("olmo2", 0, "core.norm %layers.0.attn.k_norm makes the heads in a way that cannot be cut"),
        ("ZAYA1-8B", 0, "attn.temper %layers.0.attn.k_temper"),
        ("Qwen3-Next-80B-A3B", 3, "core.slice %layers.3.attn.q"),
    ],
)
def test_what_cannot_merge_is_refused_with_the_reason(name: str, layer: int, reason: str) -> None:
    graph, _ = twin_graph(CASES[name])
    recipe = parse_pipeline(f"merge-kv-heads{{heads=1, method=mean, refit=false, layers={layer}}}")
    with pytest.raises(StructureError) as caught:
        run_pipeline(graph, recipe)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("name", "norm"),
    [("Llama-3.1-8B", "gauge"), ("gates by channel, norms", "gauge"), ("sinks", "gauge"), ("Qwen3-8B", "carry")],
)
def test_programs_do_as_the_interpreter_does(name: str, norm: str, tmp_path: Path) -> None:
    graph, _ = twin_graph(MERGED[name])
    recipe = parse_pipeline(f"merge-kv-heads{{heads=1, refit=false, norm={norm}}}")
    made = emitted(folded(run_pipeline(graph, recipe).graph), tmp_path / "program")
    tokens = tokens_of(2, 12, 128)
    expected = made.interpreter(tokens)
    cache = made.model.new_cache(2, 16)
    with torch.no_grad():
        whole = made.model(tokens)
        steps = torch.cat([made.model(part, cache) for part in tokens.split(5, 1)], 1)
    bound = 1e-5 * max(1.0, float(expected.abs().max()) / 4)
    torch.testing.assert_close(whole, expected, rtol=0, atol=bound)
    torch.testing.assert_close(steps, expected, rtol=0, atol=bound)


def test_memories_hold_what_they_held_of_fewer_heads() -> None:
    graph, _ = twin_graph(MERGED["sinks"])
    result = run_pipeline(graph, ALL)
    for before, after in zip(graph.memories(), result.graph.memories(), strict=True):
        assert isinstance(after.op, KV)
        assert after.memory.window == before.memory.window
        assert [field.shape[0] for field in after.memory.fields] == [1, 1]
