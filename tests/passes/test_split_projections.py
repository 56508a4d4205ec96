"""`split-projections`: the same numbers from a map for each part; then passes apply that need queries by themselves."""

from __future__ import annotations

from pathlib import Path

import pytest

from regraft.ir.cost import cache_bytes, cost, parameters
from regraft.ir.errors.recipe import StructureError
from regraft.ir.interpret import Interpreter
from regraft.ir.source import TensorSource
from regraft.passes.matching.sites import attentions
from tests.passes.exactness import TOKENS, check_blocks, check_program, close, run, twin

PARTED = ("Qwen3-Next-80B-A3B", "Qwen3.6-27B")


@pytest.mark.parametrize("name", PARTED)
def test_families_whose_projections_make_several_things(name: str, tmp_path: Path) -> None:
    graph, source = twin(name)
    done = run(graph, "split-projections").graph
    expected = Interpreter(graph, source)(TOKENS)
    close(Interpreter(done, source)(TOKENS), expected)
    assert parameters(done) == parameters(graph)
    assert cache_bytes(done, 1000) == cache_bytes(graph, 1000)
    assert cost(done).total.flops == cost(graph).total.flops
    check_blocks(name, "split-projections")
    check_program(done, source, expected, tmp_path / "package")


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "qwen2", "laguna-XS.2", "ZAYA1-8B", "DeepSeek-V3"])
def test_what_was_fused_is_parted_again(name: str) -> None:
    graph, source = twin(name)
    done = run(graph, "fuse-projections,split-projections").graph
    close(Interpreter(done, source)(TOKENS), Interpreter(graph, source)(TOKENS))
    assert parameters(done) == parameters(graph)
    check_blocks(name, "fuse-projections,split-projections")


def test_tensors_have_the_names_of_checkpoints() -> None:
    graph, _ = twin("Llama-3.1-8B")
    done = run(graph, "fuse-projections,split-projections").graph
    assert {v.name for v in done.parameters()} == {v.name for v in graph.parameters()}


def test_heads_merge_once_gates_are_parted_from_queries() -> None:
    graph, source = twin("Qwen3-Next-80B-A3B")
    tensors = {name: source.read(name).clone() for name in source.names()}
    for layer, each in attentions(graph).items():
        for part in "kv":
            rows = tensors[f"model.layers.{layer}.self_attn.{part}_proj.weight"].unflatten(0, (each.kv_heads, -1))
            rows[1] = rows[0]
    source = TensorSource(tensors)
    merge = "merge-kv-heads{heads=1, method=mean, refit=false}"
    with pytest.raises(StructureError, match="which split-projections makes one of its own"):
        run(graph, merge)
    done = run(graph, f"split-projections,{merge}").graph
    assert {each.kv_heads for each in attentions(done).values()} == {1}
    close(Interpreter(done, source)(TOKENS), Interpreter(graph, source)(TOKENS))


def test_a_layer_without_such_a_map_is_refused() -> None:
    graph, _ = twin("Qwen3-Next-80B-A3B")
    assert {note.layer for note in run(graph, "split-projections{layers=2}").steps[0].report.applied} == {2}
    with pytest.raises(StructureError, match="no layer has maps to split"):
        run(twin("Llama-3.1-8B")[0], "split-projections")
