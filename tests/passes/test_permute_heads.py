"""`permute-heads`: any order is the same function; the one by key/value head needs no map."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from regraft.ir.cost import cache_bytes, parameters
from regraft.ir.errors.recipe import OptionTypeError, StructureError
from regraft.ir.interpret import Interpreter
from regraft.passes.matching.sites import attentions
from tests.passes.conftest import Model
from tests.passes.exactness import TOKENS, check_blocks, check_program, close, distance, run, twin

TWINS = [
    *("Llama-3.1-8B", "Qwen3-0.6B", "Mistral-7B-v0.3", "qwen2", "gpt-oss-20b", "laguna-XS.2", "gemma-4-E2B"),
    *("laguna, gates by channel, capped routing", "gemma2", "granite", "Qwen3-Next-80B-A3B", "Qwen3.6-27B"),
]
CUT = "budget-heads{keep={0: [0, 2, 3]}, refit=false}"


@pytest.mark.parametrize("name", TWINS)
def test_any_order_is_the_same_function(name: str) -> None:
    graph, source = twin(name)
    layer = next(layer for layer, each in attentions(graph).items() if each.heads == 4)
    recipe = f"permute-heads{{order={{{layer}: [3, 0, 2, 1]}}}}"
    done = run(graph, recipe).graph
    groups = attentions(graph)[layer].attend.groups
    assert attentions(done)[layer].attend.groups == tuple(groups[head] for head in (3, 0, 2, 1))
    close(Interpreter(done, source)(TOKENS), Interpreter(graph, source)(TOKENS))
    assert parameters(done) == parameters(graph)
    assert cache_bytes(done, 1000) == cache_bytes(graph, 1000)
    back = run(graph, f"{recipe},permute-heads")
    assert attentions(back.graph)[layer].attend.head_map is None
    assert bool(back.steps[1].report.applied) == (max(groups) > 0)
    close(Interpreter(back.graph, source)(TOKENS), Interpreter(graph, source)(TOKENS))
    check_blocks(name, recipe)


def test_uneven_groups_stay_a_map_in_order() -> None:
    graph, source = twin("Qwen3-0.6B")
    cut = run(graph, CUT).graph
    done = run(graph, f"{CUT},permute-heads{{order={{0: [2, 0, 1]}}}}")
    assert attentions(done.graph)[0].attend.head_map == (1, 0, 1)
    sorted_again = run(done.graph, "permute-heads").graph
    assert attentions(sorted_again)[0].attend.head_map == (0, 1, 1)
    for each in (done.graph, sorted_again):
        close(Interpreter(each, source)(TOKENS), Interpreter(cut, source)(TOKENS))


def test_a_fit_before_comes_out_the_same(decoder: Callable[..., Model]) -> None:
    model = decoder(gate=True)
    fitted = "budget-heads{keep={1: [0, 2, 3]}}"
    plain, moved = (
        run(model.graph, recipe).graph for recipe in (fitted, f"{fitted},permute-heads{{order={{1: [2, 0, 1]}}}}")
    )
    assert distance(model.logits(moved), model.logits(plain)) < 1e-11


def test_the_expanded_recipe_lists_what_changes() -> None:
    graph, _ = twin("Qwen3-0.6B")
    result = run(graph, "permute-heads{order={0: [3, 0, 2, 1], 1: [0, 1, 2, 3]}}")
    assert str(result.recipe.passes[0]) == "permute-heads{order={0: [3, 0, 2, 1]}}"
    assert {note.text for note in result.steps[0].report.refused} == {"its heads stay in order"}


@pytest.mark.parametrize(
    ("step", "error", "text"),
    [
        ("permute-heads{order={0: [0, 0, 1, 2]}}", OptionTypeError, "each query head of a layer once"),
        ("permute-heads{order={0: [1, 0]}}", StructureError, "it has 4 query heads, and the order names 2"),
        ("permute-heads{order={0: [1, 0, 2, 3]}, layers=1}", StructureError, "it is not among the layers"),
    ],
)
def test_refusals(step: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        run(twin("Qwen3-0.6B")[0], step)


def test_attention_whose_heads_mix_is_refused() -> None:
    with pytest.raises(StructureError, match="layer 0: "):
        run(twin("ZAYA1-8B")[0], "permute-heads{order={0: [3, 0, 2, 1]}}")


def test_the_program(tmp_path: Path) -> None:
    graph, source = twin("laguna-XS.2")
    layer = next(layer for layer, each in attentions(graph).items() if each.heads == 4)
    done = run(graph, f"permute-heads{{order={{{layer}: [3, 0, 2, 1]}}}}").graph
    check_program(done, source, Interpreter(graph, source)(TOKENS), tmp_path / "package")
