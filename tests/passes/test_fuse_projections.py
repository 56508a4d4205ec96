"""`fuse-projections`: the same numbers from one product; as many parameters, the same cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from regraft.ir.cost import cache_bytes, cost, parameters
from regraft.ir.errors.recipe import StructureError
from regraft.ir.interpret import Interpreter
from regraft.ir.ops.core import Linear
from regraft.passes.fitting.measure import Measurements
from regraft.passes.pipeline import run_pipeline
from regraft.passes.recipe import parse_pipeline
from tests.frontends.cases import CASES
from tests.passes.exactness import TOKENS, check_blocks, check_program, close, distance, run, twin


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("gpt-oss-20b", "mixtral")])
def test_every_family_stays_what_it_is(name: str) -> None:
    graph, source = twin(name)
    result = run(graph, "fuse-projections")
    assert result.steps[0].report.applied
    close(Interpreter(result.graph, source)(TOKENS), Interpreter(graph, source)(TOKENS))
    assert parameters(result.graph) == parameters(graph)
    assert cache_bytes(result.graph, 1000) == cache_bytes(graph, 1000)
    assert cost(result.graph).total.flops == cost(graph).total.flops
    assert result.steps[0].before.weight_bytes == result.steps[0].after.weight_bytes


@pytest.mark.parametrize("name", ["Qwen3-0.6B", "qwen2", "gemma-4-E2B", "laguna-XS.2", "ZAYA1-8B", "DeepSeek-V3"])
def test_each_block_in_float64(name: str) -> None:
    check_blocks(name, "fuse-projections")


def test_names_are_those_of_published_fused_checkpoints() -> None:
    graph = run(twin("Llama-3.1-8B")[0], "fuse-projections").graph
    names = {v.name for v in graph.parameters()}
    assert {"model.layers.0.self_attn.qkv_proj.weight", "model.layers.0.mlp.gate_up_proj.weight"} <= names
    assert sum(isinstance(op, Linear) for op in graph.in_layer(0)) == 4
    biased = run(twin("qwen2")[0], "fuse-projections").graph
    assert "model.layers.0.self_attn.qkv_proj.bias" in {v.name for v in biased.parameters()}


def test_what_was_one_tensor_is_that_again() -> None:
    graph = run(twin("phi3")[0], "fuse-projections").graph
    fused = [v.op for v in graph.parameters() if "qkv_proj" in v.name or "gate_up_proj" in v.name]
    assert [op.opname for op in fused if op] == ["weight.load"] * 2 * graph.layer_count()


def test_readers_of_other_memories_have_one_map() -> None:
    graph, _ = twin("gemma-4-E2B")
    notes = run(graph, "fuse-projections{maps=attention}").steps[0].report.refused
    assert {note.text for note in notes} == {"its queries, keys and values are no maps of one value"}
    with pytest.raises(StructureError, match="are no maps of one value"):
        run(graph, f"fuse-projections{{maps=attention, layers={notes[0].layer}}}")
    with pytest.raises(StructureError, match="layer 0: its queries, keys and values are no maps of one value"):
        run(graph, "fuse-projections,fuse-projections")


def test_after_other_passes() -> None:
    graph, source = twin("Qwen3-0.6B")
    expected = Interpreter(graph, source)(TOKENS)
    done = run(graph, "fold-norms,fuse-projections,cse,dce").graph
    close(Interpreter(done, source)(TOKENS), expected)


@pytest.mark.parametrize(
    "step",
    [
        "share-kv{groups=2}",
        "share-kv{groups=2, level=map}",
        "share-kv{groups=2, level=input}",
        "share-kv{groups=2, level=latent, rank=0.5}",
        "to-latent{rank=0.5, layers=1}",
        "to-cca{width=2}",
    ],
)
def test_after_passes_that_fit_what_is_fused(decoder: Any, step: str) -> None:
    """A map whose weight is fitted to the others' results stays alone; what is fused is fitted as it was."""
    model = decoder(layers=4)
    plain, fused = (
        run_pipeline(model.graph, parse_pipeline(pipeline), Measurements(model.graph, model.source, model.tokens))
        for pipeline in (step, f"{step},fuse-projections")
    )
    assert fused.steps[-1].report.applied
    assert distance(model.logits(fused.graph), model.logits(plain.graph)) < 1e-9


@pytest.mark.parametrize("name", ["qwen2", "ZAYA1-8B"])
def test_the_program(name: str, tmp_path: Path) -> None:
    graph, source = twin(name)
    done = run(graph, "fuse-projections").graph
    check_program(done, source, Interpreter(graph, source)(TOKENS), tmp_path / "package")
