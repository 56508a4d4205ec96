"""Totals dealt to layers: the best of all deals by single costs, measured whole, and `budget-heads` with a total."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from regraft.ir.errors.recipe import OptionConflictError, OptionRangeError, UndecidedError
from regraft.ir.interpret import Interpreter
from regraft.ir.source import TensorSource
from regraft.passes.fitting.measure import Measurements
from regraft.passes.fitting.spread import deal, even_deal, measured_deal
from regraft.passes.matching.sites import attentions
from regraft.passes.pipeline import PipelineResult, run_pipeline
from regraft.passes.recipe import parse_pipeline

COST = st.floats(0, 10)
TABLES = st.lists(st.dictionaries(st.integers(1, 6), COST, min_size=1, max_size=4), min_size=1, max_size=4)


@given(TABLES, st.integers(1, 20))
def test_a_deal_costs_least_of_all(options: list[dict[int, float]], total: int) -> None:
    table = dict(enumerate(options))
    all_deals = [each for each in product(*options) if sum(each) == total]
    least = min((sum(table[i][n] for i, n in enumerate(each)) for each in all_deals), default=math.inf)
    found = deal(table, total)
    assert (found is None) == (not all_deals)
    if found is not None:
        assert sum(found.values()) == total
        assert sum(table[layer][n] for layer, n in found.items()) == pytest.approx(least)


def test_an_even_deal_gives_layers_shares_of_what_they_have() -> None:
    assert even_deal({0: range(1, 9), 3: range(1, 9)}, 8) == {0: 4, 3: 4}
    assert even_deal({0: range(1, 5), 1: range(1, 13)}, 8) == {0: 2, 1: 6}
    assert even_deal({0: (2, 4), 1: (4, 8)}, 10) == {0: 2, 1: 8}
    assert even_deal({0: (2, 4), 1: (4, 8)}, 9) is None


@pytest.mark.parametrize(
    ("whole", "wanted"),
    [({(2, 0): 1.0, (1, 1): 2.0}, {0: 2, 1: 0}), ({(2, 0): 9.0, (1, 1): 1.0}, {0: 1, 1: 1}),
     ({(2, 0): 9.0, (1, 1): 8.0, (0, 2): 1.0}, {0: 0, 1: 2})],
)  # fmt: skip
def test_what_measures_best_as_a_whole_is_taken(whole: dict[tuple[int, ...], float], wanted: dict[int, int]) -> None:
    # by single costs (2, 0) is best; scaled to what it costs as a whole, (0, 2) is
    table = {0: {0: 1.0, 1: 0.9, 2: 0.0}, 1: {0: 0.1, 1: 0.9, 2: 0.0}}
    asked: list[tuple[int, ...]] = []

    def measure(deals: Sequence[dict[int, int]]) -> list[float]:
        asked.extend(tuple(each.values()) for each in deals)
        return [whole.get(tuple(each.values()), 10.0) for each in deals]

    assert measured_deal(table, 2, measure) == wanted
    assert set(whole) <= {*asked, (0, 2)}


# -- budget-heads


def measured(model: Any, pipeline: str) -> PipelineResult:
    measure = Measurements(model.graph, model.source, model.tokens)
    return run_pipeline(model.graph, parse_pipeline(pipeline), measure)


def silence(model: Any, layer: int, *heads: int) -> None:
    for head in heads:
        model.weight(layer, "o_proj")[:, 4 * head : 4 * head + 4] = 0.0


def test_heads_that_say_nothing_go_wherever_they_are(decoder: Any) -> None:
    model = decoder()
    silence(model, 0, 1)
    silence(model, 2, 0, 2, 3)
    found = measured(model, "budget-heads{total=8, refit=false, score=weight-norm}")
    assert found.recipe.passes[0].options()["keep"] == {0: [0, 2, 3], 2: [1]}
    again = run_pipeline(model.graph, found.recipe)
    assert again.graph.equals(found.graph)
    assert again.recipe == found.recipe


def test_a_deal_is_no_worse_than_the_even_one_where_it_is_judged(decoder: Any) -> None:
    model = decoder(layers=4)
    measure = Measurements(model.graph, model.source, model.tokens)
    even, dealt = (measured(model, f"budget-heads{{{each}}}").steps[0].step for each in ("heads=0.5", "total=0.5"))
    costs = measure.damage(model.graph, [even.rewrite, dealt.rewrite])
    assert 0 < costs[1] <= costs[0]


def test_a_total_splits_evenly_over_devices(decoder: Any) -> None:
    model = decoder()
    found = measured(model, "budget-heads{total=8},constraints{tensor_parallel=[2]}")
    counts = [attention.heads for attention in attentions(found.graph).values()]
    assert sum(counts) == 8
    assert all(count % 2 == 0 for count in counts)


def test_without_text_the_deal_is_even(decoder: Any) -> None:
    model = decoder()
    recipe = parse_pipeline("budget-heads{total=0.5}")
    with pytest.raises(UndecidedError, match="measured divergence"):
        run_pipeline(model.graph, recipe)
    graph = run_pipeline(model.graph, recipe, assume=True).graph
    assert [attention.heads for attention in attentions(graph).values()] == [2, 2, 2]


@pytest.mark.parametrize(
    ("pipeline", "error"),
    [
        ("budget-heads{total=2}", OptionRangeError),
        ("budget-heads{total=13}", OptionRangeError),
        ("budget-heads{total=7},constraints{tensor_parallel=[2]}", OptionRangeError),
        ("budget-heads{total=9, step=2}", OptionRangeError),
        ("budget-heads{total=8, heads=2}", OptionConflictError),
    ],
)
def test_totals_that_cannot_be(decoder: Any, pipeline: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        run_pipeline(decoder().graph, parse_pipeline(pipeline), assume=True)


# -- gradients


def loss(model: Any, tensors: dict[str, Tensor], window: Tensor) -> float:
    logits = Interpreter(model.graph, TensorSource(tensors), "f64")(window[None])
    return float(torch.nn.functional.cross_entropy(logits[0, :-1], window[1:]))


def test_gradients_of_gates_are_what_scaling_a_head_does(decoder: Any) -> None:
    model = decoder(layers=2, windows={1: 5})
    found = Measurements(model.graph, model.source, model.tokens).gate_gradients(
        model.graph, [each.attend for each in attentions(model.graph).values()]
    )
    name, head, step = "model.layers.1.o_proj.weight", 2, 1e-4
    wanted = 0.0
    for window in model.tokens:
        ends = []
        for sign in (1, -1):
            changed = {**model.tensors, name: model.tensors[name].clone()}
            changed[name][:, 4 * head : 4 * head + 4] *= 1 + sign * step
            ends.append(loss(model, changed, window))
        wanted += abs(ends[0] - ends[1]) / (2 * step) / len(model.tokens)
    assert float(found[1][head]) == pytest.approx(wanted, rel=1e-3)
    assert [tuple(each.shape) for each in found] == [(4,), (4,)]


@pytest.mark.parametrize("score", ["taylor", "loss-error", "measured"])
def test_heads_without_a_say_go_first(decoder: Any, score: str) -> None:
    model = decoder(gate=True)
    silence(model, 1, 2)
    silence(model, 2, 0, 3)
    found = measured(model, f"budget-heads{{heads=[4, 3, 2], score={score}, refit=false}}")
    assert found.recipe.passes[0].options()["keep"] == {1: [0, 1, 3], 2: [1, 2]}


def test_an_error_that_the_loss_cannot_see_costs_nothing(decoder: Any) -> None:
    # the logits do not see what the last layer writes along a direction that no row of the embedding has
    model = decoder(layers=1)
    model.tensors["model.embed.weight"][:, 5] = 0.0
    output = model.weight(0, "o_proj")
    output[:, 4:8] = 0.0
    output[5, 4:8] = 50.0
    output[:, 0:4] *= 3
    kept = [
        measured(model, f"budget-heads{{heads=3, score={score}}}").recipe.passes[0].options()["keep"]
        for score in ("output-error", "loss-error", "measured")
    ]
    assert kept[0] != kept[1]
    assert kept[1] == kept[2] == {0: [0, 2, 3]}


def test_measured_heads_go_one_by_one_at_the_least_divergence(decoder: Any) -> None:
    model = decoder(layers=2)
    found = measured(model, "budget-heads{heads=2, layers=1, score=measured}").recipe.passes[0].options()["keep"]
    measure = Measurements(model.graph, model.source, model.tokens)
    alive = [0, 1, 2, 3]
    while len(alive) > 2:
        sets = [[head for head in alive if head != gone] for gone in alive]
        steps = [parse_pipeline(f"budget-heads{{keep={{1: {each}}}}}").passes[0] for each in sets]
        costs = measure.damage(model.graph, [step.rewrite for step in steps])
        alive = sets[costs.index(min(costs))]
    assert found == {1: alive}
