"""`fold-norms`: the same function on every family, less one weight a norm, or the same tensors for a stock class."""

from __future__ import annotations

from pathlib import Path

import pytest

import regraft
from regraft.frontends.folder import open_model
from regraft.frontends.lift import lift
from regraft.frontends.twin import write_twin
from regraft.ir.cost import cache_bytes, parameters
from regraft.ir.errors.recipe import StructureError
from regraft.ir.interpret import Interpreter
from regraft.ir.ops.core import Norm
from tests.frontends.cases import CASES
from tests.passes.exactness import TOKENS, check_blocks, check_program, close, run, twin


@pytest.mark.parametrize("name", CASES)
def test_every_family_stays_what_it_is(name: str) -> None:
    graph, source = twin(name)
    result = run(graph, "fold-norms")
    assert result.steps[0].report.applied
    close(Interpreter(result.graph, source)(TOKENS), Interpreter(graph, source)(TOKENS))


@pytest.mark.parametrize("name", ["Qwen3-0.6B", "Llama-3.1-8B", "gemma2", "gemma-4-26B-A4B", "laguna-XS.2", "ZAYA1-8B"])
def test_each_block_in_float64(name: str) -> None:
    check_blocks(name, "fold-norms")


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "Qwen3-Next-80B-A3B"])
def test_parameters_and_cache_are_as_predicted(name: str) -> None:
    graph, _ = twin(name)
    result = run(graph, "fold-norms")
    gone = [op for op in graph.ops if isinstance(op, Norm) and op.weight is not None]
    left = [op for op in result.graph.ops if isinstance(op, Norm) and op.weight is not None]
    widths = sum(op.weight.tensor.sizes[0] for op in gone if op.weight) - sum(
        op.weight.tensor.sizes[0] for op in left if op.weight
    )
    assert parameters(graph).total - parameters(result.graph).total == widths > 0
    assert result.steps[0].before.weight_bytes - result.steps[0].after.weight_bytes == 4 * widths
    assert cache_bytes(result.graph, 1000) == cache_bytes(graph, 1000)


def test_ones_keep_the_tensors_of_a_stock_model() -> None:
    graph, source = twin("gemma2")
    result = run(graph, "fold-norms{leave=ones}")
    shapes = [{v.name: v.type for v in g.parameters()} for g in (graph, result.graph)]
    assert shapes[0] == shapes[1]
    found = Interpreter(result.graph, source)
    close(found(TOKENS), Interpreter(graph, source)(TOKENS))
    assert not found.weights["model.layers.0.input_layernorm.weight"].any()  # Gemma adds one to it
    assert found.weights["model.layers.0.post_attention_layernorm.weight"].any()


def test_with_ones_a_stock_class_holds_it(tmp_path: Path) -> None:
    folder = write_twin(CASES["Llama-3.1-8B"], tmp_path / "twin")
    assert regraft.apply(folder, "fold-norms{leave=ones}", tmp_path / "out").stock == "LlamaForCausalLM"
    model = open_model(tmp_path / "out")
    expected = Interpreter(lift(open_model(folder)).graph, open_model(folder).require_checkpoint())(TOKENS)
    close(Interpreter(lift(model).graph, model.require_checkpoint())(TOKENS), expected)


def test_the_last_norm_of_a_tied_model_keeps_its_weight() -> None:
    graph, _ = twin("Qwen3-0.6B")
    result = run(graph, "fold-norms")
    refused = {str(note) for note in result.steps[0].report.refused}
    assert any("embed_tokens.weight of core.linear %logits serves core.embed" in note for note in refused)
    assert any("pos.rope %layers.0.attn.q_rope reads core.norm %layers.0.attn.q_norm" in note for note in refused)
    untied = run(twin("Llama-3.1-8B")[0], "fold-norms").graph["norm"].op
    assert isinstance(untied, Norm)
    assert untied.weight is None


def test_after_other_passes_and_twice() -> None:
    graph, source = twin("Qwen3-0.6B")
    expected = Interpreter(graph, source)(TOKENS)
    for recipe in ("cse,fold-norms,dce", "fold-norms{layers=0},fold-norms{layers=1}"):
        close(Interpreter(run(graph, recipe).graph, source)(TOKENS), expected)
    with pytest.raises(StructureError, match="has no weight"):
        run(graph, "fold-norms{layers=0},fold-norms{layers=0}")


@pytest.mark.parametrize("name", ["Qwen3-0.6B", "gemma2"])
def test_the_program(name: str, tmp_path: Path) -> None:
    graph, source = twin(name)
    done = run(graph, "fold-norms").graph
    check_program(done, source, Interpreter(graph, source)(TOKENS), tmp_path / "package")
