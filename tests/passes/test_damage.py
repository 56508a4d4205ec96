"""What single edits cost: the same numbers as from carrying each of them out, whole."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter
from regraft.passes.base import Constraints
from regraft.passes.fitting.damage import Damage, Edit
from regraft.passes.fitting.measure import Measurements
from regraft.passes.pipeline import run_pipeline
from regraft.passes.recipe import parse_pipeline

EDITS = (
    "share-kv{donor={2: 0}, refit=false}",
    "share-kv{donor={1: 0}}",
    "share-kv{donor={2: 1}}",
    "budget-heads{keep={1: [0, 3]}}",
)


def edit(graph: Graph, pipeline: str) -> Edit:
    (step,) = parse_pipeline(pipeline).passes
    return step.decide(graph, None, Constraints()).rewrite


def divergence(original: Tensor, edited: Tensor) -> float:
    theirs, mine = original.float().log_softmax(-1), edited.float().log_softmax(-1)
    return float((theirs.exp() * (theirs - mine)).sum(-1).double().mean())


def carried_out(model: Any, pipeline: str, fit: Tensor, judge: Tensor) -> float:
    model.tokens = fit
    graph = run_pipeline(model.graph, parse_pipeline(pipeline)).graph
    edited = model.interpreter(graph)
    return divergence(Interpreter(model.graph, model.source, "f64")(judge), edited(judge))


@pytest.mark.parametrize("fields", [{}, {"windows": {0: 5, 1: 5, 2: 5}}, {"qk_norm": True, "gate": True}])
def test_an_edit_costs_what_it_costs_carried_out(decoder: Any, fields: dict[str, Any]) -> None:
    model = decoder(**fields)
    fit, judge = model.tokens[:4], model.tokens[4:]
    measured = Damage(model.graph, model.graph, model.source, fit, judge, batch=3, dtype="f64").measure(
        [edit(model.graph, each) for each in EDITS]
    )
    for each, found in zip(EDITS, measured, strict=True):
        assert found == pytest.approx(carried_out(model, each, fit, judge), rel=1e-5)
    assert min(measured) > 1e-3


def test_edits_come_after_what_was_fitted_before(decoder: Any) -> None:
    model = decoder()
    first = "share-kv{donor={1: 0}}"
    graph = run_pipeline(model.graph, parse_pipeline(first)).graph
    second = "budget-heads{keep={2: [0, 3]}}"
    fit, judge = model.tokens[:4], model.tokens[4:]
    measured = Damage(graph, model.graph, model.source, fit, judge, dtype="f64").measure(
        [edit(graph, second), lambda graph: None]
    )
    together = carried_out(model, f"{first},{second}", fit, judge)
    assert measured == pytest.approx([together, carried_out(model, first, fit, judge)], rel=1e-5)


def test_measurements_split_the_text(decoder: Any) -> None:
    model = decoder()
    measure = Measurements(model.graph, model.source, model.tokens)
    found = measure.damage(model.graph, [edit(model.graph, EDITS[1])])
    fit, judge = model.tokens[:5], model.tokens[5:]
    assert found == Damage(model.graph, model.graph, model.source, fit, judge).measure([edit(model.graph, EDITS[1])])


def test_a_graph_is_left_as_it_is(decoder: Any) -> None:
    model = decoder()
    before = model.graph.copy()
    measure = Measurements(model.graph, model.source, model.tokens)
    assert measure.damage(model.graph, [lambda graph: None]) == [0.0]
    assert model.graph.equals(before)
