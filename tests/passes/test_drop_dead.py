"""`drop-dead`: what is zero goes and nothing changes; what weights do not prove stays."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from regraft.ir.cost import cache_bytes, cost, parameters
from regraft.ir.errors.recipe import OptionTypeError, StructureError, UndecidedError
from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter
from regraft.ir.op import Value
from regraft.ir.ops.moe import Experts
from regraft.ir.source import TensorSource
from regraft.passes.fitting.measure import Measurements
from regraft.passes.matching.sites import attentions
from regraft.passes.pipeline import run_pipeline
from regraft.passes.recipe import parse_pipeline
from tests.passes.exactness import TOKENS, check_blocks, check_program, close, run, twin

DENSE = ["Llama-3.1-8B", "Qwen3-0.6B", "qwen2", "gemma2", "laguna-XS.2", "granite", "Qwen3-Next-80B-A3B"]
MIXED = ["Qwen3-30B-A3B", "mixtral", "gemma-4-26B-A4B", "laguna-XS.2", "ZAYA1-8B", "gpt-oss-20b"]


def without(source: TensorSource, *parts: tuple[str, int, slice]) -> TensorSource:
    """Return tensors with zeros: of those whose name matches, along an axis, within a slice."""
    tensors = {name: source.read(name).clone() for name in source.names()}
    for pattern, axis, where in parts:
        for name, tensor in tensors.items():
            if re.search(pattern, name):
                tensor[(slice(None),) * axis + (where,)] = 0
    return TensorSource(tensors)


def silenced(graph: Graph, source: TensorSource) -> TensorSource:
    """Return tensors of which head 0 has no columns, and the last key/value head no values."""
    width = next(iter(attentions(graph).values())).memory.memory.fields[1].shape[1]
    last = slice(-width, None)
    return without(source, (r"o_proj\.weight", 1, slice(width)), (r"v_proj\.(weight|bias)", 0, last))


def idled(graph: Graph, source: TensorSource) -> TensorSource:
    """Return tensors of which experts 1 and 2 give nothing."""
    return without(source, (r"experts\.down_proj(_bias)?$", 0, slice(1, 3)))


def measured(graph: Graph, source: TensorSource) -> Measurements:
    return Measurements(graph, source, None)


@pytest.mark.parametrize("name", DENSE)
def test_silent_heads_go_on_every_family(name: str) -> None:
    graph, source = twin(name)
    source = silenced(graph, source)
    result = run(graph, "drop-dead", measured(graph, source))
    before, after = attentions(graph), attentions(result.graph)
    for layer, each in before.items():
        readers = sum(group == each.kv_heads - 1 for group in each.attend.groups)
        assert after[layer].heads == each.heads - 1 - readers
        assert after[layer].kv_heads == each.kv_heads - (2 if each.heads == each.kv_heads else 1)
    assert cache_bytes(result.graph, 1000) < cache_bytes(graph, 1000)
    close(Interpreter(result.graph, source)(TOKENS), Interpreter(graph, source)(TOKENS))
    assert run(graph, str(result.recipe.passes[0])).graph.equals(result.graph)  # without weights
    check_blocks(name, "drop-dead", tensors=silenced, measure=measured)


@pytest.mark.parametrize("name", MIXED)
def test_idle_experts_go_on_every_family(name: str) -> None:
    graph, source = twin(name)
    source = idled(graph, source)
    result = run(graph, "drop-dead", measured(graph, source))
    mixtures = [op for op in graph.ops if isinstance(op, Experts)]
    one = sum(part.tensor.elements({}) // part.tensor.sizes[0] for part in _weights(mixtures[0]))
    assert parameters(graph).total - parameters(result.graph).total == 2 * len(mixtures) * one
    assert parameters(result.graph).buffers == parameters(graph).buffers
    assert cost(result.graph).total.flops <= cost(graph).total.flops
    assert cache_bytes(result.graph, 1000) == cache_bytes(graph, 1000)
    close(Interpreter(result.graph, source)(TOKENS), Interpreter(graph, source)(TOKENS))
    check_blocks(name, "drop-dead", tensors=idled, measure=measured)


def _weights(op: Experts) -> list[Value]:
    return [part for part in (op.gate_up, op.down, op.gate_up_bias, op.down_bias) if part is not None]


def test_experts_that_are_never_chosen() -> None:
    graph, source = twin("laguna-XS.2")
    tensors = {name: source.read(name).clone() for name in source.names()}
    (name,) = [name for name in tensors if "layers.2." in name and "correction_bias" in name][:1]
    bias = tensors[name] = torch.zeros_like(tensors[name])
    bias[3:] = 1.5  # five experts of eight stand above the first three, of which three are chosen
    source = TensorSource(tensors)
    result = run(graph, "drop-dead", measured(graph, source))
    assert str(result.recipe.passes[0]) == "drop-dead{heads={}, experts={2: [0, 1, 2]}}"
    close(Interpreter(result.graph, source)(TOKENS), Interpreter(graph, source)(TOKENS))
    bias[5:] = 0.5
    assert not run(graph, "drop-dead", measured(graph, source)).steps[0].report.applied


def test_without_weights_it_is_undecided() -> None:
    graph, _ = twin("Llama-3.1-8B")
    with pytest.raises(UndecidedError, match="zeros among the weights"):
        run(graph, "drop-dead")
    planned = run_pipeline(graph, parse_pipeline("drop-dead"), assume=True)
    assert planned.graph.equals(graph)
    assert {note.text for note in planned.steps[0].report.refused} == {"query heads, decided at apply, by the weights"}


def test_what_is_claimed_dead_is_checked_at_apply_and_the_plan_says_so() -> None:
    for name, step in (("Llama-3.1-8B", "heads={0: [1]}, experts={}"), ("mixtral", "heads={}, experts={0: [1]}")):
        planned = run_pipeline(twin(name)[0], parse_pipeline(f"drop-dead{{{step}}}"))
        (note,) = planned.steps[0].report.applied
        assert note.text.endswith(", if apply finds them dead")


@pytest.mark.parametrize(
    ("name", "step", "error", "text"),
    [
        ("Llama-3.1-8B", "heads={0: [1]}", StructureError, "heads 1 change something"),
        ("Llama-3.1-8B", "heads={0: [0, 1, 2, 3]}", StructureError, "of 4 cannot all go"),
        ("Llama-3.1-8B", "heads={0: []}", OptionTypeError, "numbers, such as"),
        ("Llama-3.1-8B", "experts={0: [1]}", StructureError, "it has no experts"),
        ("mixtral", "experts={0: [1]}", StructureError, "experts 1 change something"),
        ("DeepSeek-V3", "experts={2: [1]}", StructureError, "chosen by groups"),
    ],
)
def test_refusals(name: str, step: str, error: type[Exception], text: str) -> None:
    graph, source = twin(name)
    with pytest.raises(error, match=text):
        run(graph, f"drop-dead{{{step}}}", measured(graph, source))


@pytest.mark.parametrize("name", ["laguna-XS.2", "mixtral"])
def test_the_program(name: str, tmp_path: Path) -> None:
    graph, source = twin(name)
    source = idled(graph, silenced(graph, source))
    done = run(graph, "drop-dead", measured(graph, source)).graph
    check_program(done, source, Interpreter(graph, source)(TOKENS), tmp_path / "package")
