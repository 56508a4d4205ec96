"""`merge-duplicate-heads`: copies of a head are one; nearly equal ones stay apart; weights decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from regraft.ir.cost import cache_bytes, parameters
from regraft.ir.errors.recipe import OptionTypeError, StructureError, UndecidedError
from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter
from regraft.ir.source import TensorSource
from regraft.passes.fitting.measure import Measurements
from regraft.passes.matching.sites import attentions
from regraft.passes.pipeline import run_pipeline
from regraft.passes.recipe import parse_pipeline
from tests.passes.exactness import TOKENS, check_blocks, check_program, close, distance, run, twin

TWINS = [
    *("Llama-3.1-8B", "Qwen3-0.6B", "qwen2", "gemma-4-E2B", "gpt-oss-20b", "laguna-XS.2"),
    *("laguna, gates by channel, capped routing", "Qwen3-Next-80B-A3B"),
]


def doubled(graph: Graph, source: TensorSource) -> TensorSource:
    """Return tensors of which, in every attention, head 1 has the rows of head 0."""
    tensors = {name: source.read(name).clone() for name in source.names()}
    for layer, each in attentions(graph).items():
        for side in ("q_proj.weight", "q_proj.bias", "g_proj.weight", "sinks"):
            rows = tensors.get(f"model.layers.{layer}.self_attn.{side}")
            if rows is not None:
                by_head = rows.unflatten(0, (each.heads, -1))
                by_head[1] = by_head[0]
    return TensorSource(tensors)


def measured(graph: Graph, source: TensorSource) -> Measurements:
    return Measurements(graph, source, None)


@pytest.mark.parametrize("name", TWINS)
def test_copies_merge_on_every_family(name: str) -> None:
    graph, source = twin(name)
    source = doubled(graph, source)
    result = run(graph, "merge-duplicate-heads", measured(graph, source))
    before, after = attentions(graph), attentions(result.graph)
    assert [each.heads - after[layer].heads for layer, each in before.items()] == [1] * len(before)
    close(Interpreter(result.graph, source)(TOKENS), Interpreter(graph, source)(TOKENS))
    assert cache_bytes(result.graph, 1000) == cache_bytes(graph, 1000)
    again = run(graph, str(result.recipe.passes[0]))
    assert again.graph.equals(result.graph)  # without weights
    check_blocks(name, "merge-duplicate-heads", tensors=doubled, measure=measured)


def test_parameters_are_as_predicted() -> None:
    graph, source = twin("Llama-3.1-8B")
    result = run(graph, "merge-duplicate-heads", measured(graph, doubled(graph, source)))
    assert parameters(graph).total - parameters(result.graph).total == graph.layer_count() * 2 * 16 * 64


def test_near_copies_stay_apart() -> None:
    graph, source = twin("Llama-3.1-8B")
    source = doubled(graph, source)
    rows = source.read("model.layers.0.self_attn.q_proj.weight")
    rows[0, 0] = torch.nextafter(rows[0, 0], torch.tensor(1e9))
    tensors = {name: source.read(name) for name in source.names()}
    tensors["model.layers.0.self_attn.q_proj.weight"] = rows
    result = run(graph, "merge-duplicate-heads", measured(graph, TensorSource(tensors)))
    assert [note.layer for note in result.steps[0].report.refused] == [0]
    with pytest.raises(StructureError, match="layer 0: heads 0, 1 are not equal"):
        run(graph, "merge-duplicate-heads{heads={0: [[0, 1]]}}", measured(graph, TensorSource(tensors)))


def test_near_copies_merge_within_a_tolerance(decoder: Any) -> None:
    model = decoder()
    rows = model.weight(1, "q_proj").unflatten(0, (4, -1))
    rows[1] = rows[0] * 1.01
    measure = Measurements(model.graph, model.source, model.tokens)
    assert not run(model.graph, "merge-duplicate-heads", measure).steps[0].report.applied
    assert not run(model.graph, "merge-duplicate-heads{tolerance=0.009, refit=false}", measure).steps[0].report.applied
    lost: list[float] = []
    for fit in ("false", "true"):
        result = run(model.graph, f"merge-duplicate-heads{{tolerance=0.011, refit={fit}}}", measure)
        assert result.recipe.passes[0].options()["heads"] == {1: [[0, 1]]}
        assert result.steps[0].preserves == ("structural" if fit == "false" else "refit")
        again = run_pipeline(model.graph, result.recipe)
        assert again.graph.equals(result.graph)
        lost.append(distance(model.logits(result.graph), model.logits(model.graph)))
    assert 0 < lost[1] < lost[0] < 0.01  # one of the eight heads has scores that are off by a hundredth
    rows[1] = rows[0]
    result = run(model.graph, "merge-duplicate-heads{tolerance=0.011}", measure)
    assert distance(model.logits(result.graph), model.logits(model.graph)) < 1e-12  # there is nothing to make up for


def test_without_weights_it_is_undecided() -> None:
    graph, _ = twin("Llama-3.1-8B")
    with pytest.raises(UndecidedError, match="equal weights"):
        run(graph, "merge-duplicate-heads")
    planned = run_pipeline(graph, parse_pipeline("merge-duplicate-heads"), assume=True)
    assert planned.graph.equals(graph)
    assert {note.text for note in planned.steps[0].report.refused} == {"decided at apply, by equal weights"}
    planned = run_pipeline(graph, parse_pipeline("merge-duplicate-heads{heads={0: [[0, 1]]}}"))
    (note,) = planned.steps[0].report.applied
    assert note.text == "equal query heads merged: 0 and 1, if apply finds their weights equal"


@pytest.mark.parametrize(
    ("step", "error", "text"),
    [
        ("heads={0: [[0, 2]]}", StructureError, "heads 0, 2 read different key/value heads"),
        ("heads={0: [[0, 9]]}", StructureError, "there is no head 9"),
        ("heads={0: [[0]]}", OptionTypeError, "sets of two heads or more"),
        ("heads={0: [[0, 1], [1, 2]]}", OptionTypeError, "no head twice"),
    ],
)
def test_refusals(step: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        run(twin("Llama-3.1-8B")[0], f"merge-duplicate-heads{{{step}}}")


def test_a_fitted_output_is_refused() -> None:
    graph, _ = twin("Llama-3.1-8B")
    with pytest.raises(StructureError, match="merge them before the pass that fits it"):
        run(graph, "budget-heads{keep={0: [0, 1, 2]}},merge-duplicate-heads{heads={0: [[0, 1]]}}")


def test_the_program(tmp_path: Path) -> None:
    graph, source = twin("laguna-XS.2")
    source = doubled(graph, source)
    done = run(graph, "merge-duplicate-heads", measured(graph, source)).graph
    check_program(done, source, Interpreter(graph, source)(TOKENS), tmp_path / "package")
