"""`add-head-gates`: the same function at the start, with gates that learn from the first step on."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from regraft.ir.cost import cache_bytes, parameters
from regraft.ir.errors.recipe import StructureError
from regraft.ir.interpret import Interpreter
from regraft.passes.matching.sites import attentions
from tests.passes.conftest import Model
from tests.passes.exactness import TOKENS, check_blocks, check_gradients, check_program, close, distance, run, twin

TWINS = [
    *("Llama-3.1-8B", "Qwen3-0.6B", "Mistral-7B-v0.3", "gemma-4-E2B", "laguna-XS.2", "gpt-oss-20b", "olmo2"),
    *("ZAYA1-8B", "DeepSeek-V3", "Qwen3-Next-80B-A3B"),
]


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("options", ["", "{gate=sigmoid, by=channel}"])
def test_every_family_stays_what_it_is(name: str, options: str) -> None:
    graph, source = twin(name)
    done = run(graph, f"add-head-gates{options}").graph
    close(Interpreter(done, source)(TOKENS), Interpreter(graph, source)(TOKENS))
    gates = {layer: each.heads * (each.memory.memory.fields[-1].shape[-1] if options else 1)
             for layer, each in attentions(graph).items()}  # fmt: skip
    assert parameters(done).total - parameters(graph).total == 64 * sum(gates.values())
    assert cache_bytes(done, 1000) == cache_bytes(graph, 1000)


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "Qwen3-0.6B", "gemma-4-E2B", "laguna-XS.2", "ZAYA1-8B"])
def test_each_block_in_float64(name: str) -> None:
    check_blocks(name, "add-head-gates")
    check_blocks(name, "add-head-gates{gate=sigmoid, by=channel}")


def test_on_selected_layers_after_and_before_other_passes() -> None:
    graph, source = twin("Qwen3-0.6B")
    expected = Interpreter(graph, source)(TOKENS)
    recipe = "fold-norms,add-head-gates{layers=1},permute-heads{order={1: [3, 0, 2, 1]}},add-head-gates{layers=1}"
    done = run(graph, recipe)
    close(Interpreter(done.graph, source)(TOKENS), expected)
    assert [note.layer for note in done.steps[1].report.applied] == [1]
    with pytest.raises(StructureError, match="layer 0: it has no attention"):
        run(twin("Qwen3-Next-80B-A3B")[0], "add-head-gates{layers=0}")


@pytest.mark.parametrize("gate", ["softplus", "sigmoid"])
def test_a_fit_before_them_comes_out_the_same(decoder: Callable[..., Model], gate: str) -> None:
    model = decoder()
    fitted = "budget-heads{keep={1: [0, 2, 3]}}"
    plain, gated = (run(model.graph, recipe).graph for recipe in (fitted, f"{fitted},add-head-gates{{gate={gate}}}"))
    weights = [model.fitted(graph)["model.layers.1.o_proj.weight"] for graph in (plain, gated)]
    closed = {"softplus": math.log(2), "sigmoid": 0.5}[gate]
    assert distance(weights[1] * closed, weights[0]) < 1e-11
    assert distance(model.logits(gated), model.logits(plain)) < 1e-11


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "laguna-XS.2", "gemma-4-E2B"])
def test_the_program_learns(name: str, tmp_path: Path) -> None:
    graph, source = twin(name)
    done = run(graph, "add-head-gates").graph
    model = check_program(done, source, Interpreter(graph, source)(TOKENS), tmp_path / "package")
    check_gradients(model, "g_proj_2" if name == "laguna-XS.2" else "g_proj")
