"""`budget-heads` in numbers: exact where heads say nothing, the predicted error where they do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.ir.cost import cache_bytes, parameters
from regraft.ir.errors.recipe import (
    HeadBudgetError,
    HeadListError,
    LayerMissingError,
    MissingKeyError,
    OptionConflictError,
    TensorParallelError,
)
from regraft.ir.graph import Graph
from regraft.passes.budget_heads import BudgetHeads
from regraft.passes.fitting.head_scores import Shares, activation_norms, eliminate, keep_largest, weight_norms
from regraft.passes.fitting.measure import Measurements
from regraft.passes.pipeline import PipelineResult, run_pipeline
from regraft.passes.recipe import parse_pipeline


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def measured(model: Any, pipeline: str) -> PipelineResult:
    measure = Measurements(model.graph, model.source, model.tokens)
    return run_pipeline(model.graph, parse_pipeline(pipeline), measure)


def rewritten(model: Any, pipeline: str) -> Graph:
    return run_pipeline(model.graph, parse_pipeline(pipeline)).graph


def silence(model: Any, layer: int, *heads: int) -> None:
    for head in heads:
        model.weight(layer, "o_proj")[:, 4 * head : 4 * head + 4] = 0.0


@pytest.mark.parametrize("fields", [{}, {"bias": True, "qk_norm": True}, {"gate": True}, {"windows": {1: 5}}])
@pytest.mark.parametrize("score", ["output-error", "activation-norm", "weight-norm"])
def test_silent_heads_are_found_and_cut_exactly(decoder: Any, fields: dict[str, Any], score: str) -> None:
    model = decoder(**fields)
    silence(model, 1, 2)
    silence(model, 2, 0, 3)
    result = measured(model, f"budget-heads{{heads=[4, 3, 2], score={score}, refit=false}}")
    assert result.recipe.passes[0].options()["keep"] == {1: [0, 1, 3], 2: [1, 2]}
    assert distance(model.logits(result.graph), model.logits(model.graph)) < 1e-12
    assert cache_bytes(result.graph, 24) == cache_bytes(model.graph, 24)


def test_reports_say_what_became_of_each_layer(decoder: Any) -> None:
    result = run_pipeline(
        decoder().graph, parse_pipeline("budget-heads{keep={0: [0, 1, 3], 1: [2, 3], 2: [0, 3]}, refit=false}")
    )
    assert [str(note) for note in result.steps[0].report.notes] == [
        "layer 0: keeps query heads 0..1, 3 of 4; head map explicit",
        "layer 1: keeps query heads 2..3 of 4; KV head 0 of %layers.1.attn.memory dropped",
        "layer 2: keeps query heads 0, 3 of 4",
    ]


def test_a_group_without_heads_takes_its_keys_and_values_along(decoder: Any) -> None:
    model = decoder()
    silence(model, 1, 0, 1)
    graph = rewritten(model, "budget-heads{keep={1: [2, 3]}, refit=false}")
    assert distance(model.logits(graph), model.logits(model.graph)) < 1e-12
    assert parameters(model.graph).total - parameters(graph).total == 2 * 8 * 12 + 2 * 4 * 12
    assert cache_bytes(model.graph, 24) - cache_bytes(graph, 24) == 24 * 2 * 4 * 8


def test_the_same_where_another_layer_reads_the_memory(decoder: Any) -> None:
    model = decoder(reads={2: 1})
    silence(model, 1, 0, 1)
    silence(model, 2, 0, 1, 3)
    original = model.logits(model.graph)
    one = rewritten(model, "budget-heads{keep={1: [2, 3]}, refit=false}")
    both = rewritten(model, "budget-heads{keep={1: [2, 3], 2: [2]}, refit=false}")
    after = rewritten(model, "budget-heads{keep={1: [2, 3]}, refit=false},budget-heads{keep={2: [2]}, refit=false}")
    for graph in (one, both, after):
        assert distance(model.logits(graph), original) < 1e-12
    assert cache_bytes(one, 24) == cache_bytes(model.graph, 24)
    assert cache_bytes(model.graph, 24) - cache_bytes(both, 24) == 24 * 2 * 4 * 8
    assert cache_bytes(after, 24) == cache_bytes(both, 24)


def test_the_refit_has_the_error_that_the_score_predicts(decoder: Any) -> None:
    model = decoder()
    graph = rewritten(model, "budget-heads{keep={1: [1, 2]}, ridge=0}")
    end = "layers.1.attn.residual"
    difference = (model.run(graph, [end])[end] - model.run(model.graph, [end])[end]).flatten(0, 1)
    found = float(difference.pow(2).sum()) / len(difference)
    z = model.run(model.graph, ["layers.1.attn.merged"])["layers.1.attn.merged"].flatten(0, 1)
    c, o = z.T @ z / len(z), model.weight(1, "o_proj").T
    gone, kept = [0, 1, 2, 3, 12, 13, 14, 15], list(range(4, 12))
    rest = c[gone][:, gone] - c[gone][:, kept] @ torch.linalg.solve(c[kept][:, kept], c[kept][:, gone])
    predicted = float(torch.trace(o[gone].T @ rest @ o[gone]))
    assert found == pytest.approx(predicted, rel=1e-8)
    raw = rewritten(model, "budget-heads{keep={1: [1, 2]}, refit=false}")
    assert (model.run(raw, [end])[end] - model.run(model.graph, [end])[end]).norm() > 1.1 * difference.norm()


def test_equation_2(decoder: Any) -> None:
    model = decoder()
    fitted = model.fitted(rewritten(model, "budget-heads{keep={0: [1, 3]}, ridge=0.01}"))[
        "model.layers.0.o_proj.weight"
    ]
    z = model.run(model.graph, ["layers.0.attn.merged"])["layers.0.attn.merged"].flatten(0, 1)
    c, o = z.T @ z / len(z), model.weight(0, "o_proj").T
    kept = [*range(4, 8), *range(12, 16)]
    amount = 0.01 * c[kept][:, kept].trace() / 8
    left = c[kept][:, kept] + amount * torch.eye(8, dtype=torch.float64)
    assert distance(fitted.T, torch.linalg.solve(left, c[kept] @ o + amount * o[kept])) < 1e-10


def test_fits_compose_and_the_last_one_stands(decoder: Any) -> None:
    model = decoder()
    share, budget = "share-kv{donor={1: 0}, ridge=0}", "budget-heads{keep={1: [0, 3]}, ridge=0}"
    first, second = (rewritten(model, f"{a},{b}") for a, b in ((share, budget), (budget, share)))
    assert distance(model.logits(first), model.logits(second)) < 1e-8
    kept = rewritten(model, f"{share},budget-heads{{keep={{1: [0, 3]}}, refit=false}}")
    assert distance(model.logits(kept), model.logits(first)) < 1e-12


def test_decode_is_prefill_with_a_head_map(decoder: Any) -> None:
    model = decoder(qk_norm=True)
    interpreter = model.interpreter(rewritten(model, "budget-heads{keep={0: [0, 1, 3], 2: [3]}, refit=false}"))
    cache = interpreter.new_cache(6)
    steps = torch.cat([interpreter(model.tokens[:, i : i + 1], cache) for i in range(24)], 1)
    assert distance(steps, interpreter(model.tokens)) < 1e-12


@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ("heads=3", {0: 3, 1: 3, 2: 3}),
        ("heads=0.5", {0: 2, 1: 2, 2: 2}),
        ("heads=0.1", {0: 1, 1: 1, 2: 1}),
        ("heads=1.0", {0: 4, 1: 4, 2: 4}),
        ("heads=[1, 0.75, 3]", {0: 1, 1: 3, 2: 3}),
        ("heads={full: 3, sliding: 2}", {0: 3, 1: 2, 2: 3}),
        ("heads={full: 3, 2: 1}", {0: 3, 2: 1}),
        ("heads={sliding: 0.25}", {1: 1}),
        ("heads=2, layers=1..2", {1: 2, 2: 2}),
        ("heads=[2, 3], layers=[0, 2]", {0: 2, 2: 3}),
        ('heads=2, layers="window == 5 or layer == 0"', {0: 2, 1: 2}),
    ],
)
def test_counts(decoder: Any, options: str, counts: dict[int, int]) -> None:
    model = decoder(windows={1: 5})
    recipe = parse_pipeline(f"budget-heads{{{options}, score=weight-norm}}")
    assert run_pipeline(model.graph, recipe, assume=True).recipe.passes[0].options()["heads"] == counts
    result = measured(model, recipe.to_pipeline())
    assert {layer: len(op.groups) for layer, op in heads_of(result.graph).items() if layer in counts} == counts
    again = run_pipeline(model.graph, result.recipe)
    assert again.graph.equals(result.graph)
    assert again.recipe == result.recipe


def heads_of(graph: Graph) -> dict[int, Any]:
    return {layer: graph[f"layers.{layer}.attn.ctx"].op for layer in range(graph.layer_count())}


@pytest.mark.parametrize(
    ("pipeline", "error"),
    [
        ("budget-heads", MissingKeyError),
        ("budget-heads{heads=5}", HeadBudgetError),
        ("budget-heads{heads={3: 1}}", LayerMissingError),
        ("budget-heads{heads={2: 1}, layers=0..1}", LayerMissingError),
        ("budget-heads{heads=[1, 2]}", HeadListError),
        ("budget-heads{heads=2, keep={0: [1, 2]}}", OptionConflictError),
        ("budget-heads{heads={0: 3}, keep={0: [1, 2]}}", OptionConflictError),
        ("budget-heads{heads={1: 3}, keep={0: [1, 2]}}", OptionConflictError),
        ("budget-heads{heads=1},constraints{tensor_parallel=[2]}", TensorParallelError),
    ],
)
def test_what_a_model_does_not_allow(decoder: Any, pipeline: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        run_pipeline(decoder().graph, parse_pipeline(pipeline), assume=True)


def test_heads_go_evenly_over_devices(decoder: Any) -> None:
    model = decoder()
    silence(model, 1, 0, 1)  # alone they would both go
    result = measured(model, "budget-heads{heads=2, layers=1, refit=false},constraints{tensor_parallel=[1, 2]}")
    (step,) = result.recipe.passes
    assert isinstance(step, BudgetHeads)
    assert step.keep is not None
    first, second = step.keep[1]
    assert first in (0, 1)
    assert second in (2, 3)


@pytest.mark.parametrize("score", ["output-error", "activation-norm", "weight-norm"])
def test_choices_are_made_on_what_earlier_passes_fitted(decoder: Any, score: str) -> None:
    model = decoder(layers=4)
    first = 'share-kv{layers="1..2"}'
    both = measured(model, f"{first},budget-heads{{heads=2, score={score}}}")
    step = both.recipe.passes[1]
    assert isinstance(step, BudgetHeads)
    assert step.keep is not None
    fitted = model.interpreter(rewritten(model, first))
    edges = [f"layers.{layer}.attn.merged" for layer in range(4)]
    found = fitted.run(model.tokens, edges=edges)
    for layer in range(4):
        z = found[edges[layer]].flatten(0, 1)
        o = fitted.weights[f"model.layers.{layer}.o_proj.weight"].T.contiguous()
        shares, c = Shares((0, 0, 1, 1), 2), z.T @ z / len(z)
        if score == "output-error":
            expected = eliminate(c, o, 2, shares, step.ridge)
        elif score == "activation-norm":
            expected = keep_largest(activation_norms(c, o, 4), 2, shares)
        else:
            values = model.weight({1: 0, 2: 0}.get(layer, layer), "v_proj")
            expected = keep_largest(weight_norms(o, values, (0, 0, 1, 1)), 2, shares)
        assert step.keep[layer] == tuple(expected)
