"""The pipeline and the plan: on every family, in order, verified, and the same again from what they wrote down."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from regraft.ir.cost import cache_bytes, parameters
from regraft.ir.errors.graph import GraphError
from regraft.ir.errors.recipe import RefitTargetError
from regraft.ir.graph import Graph
from regraft.ir.ops.attn import Attend
from regraft.ir.parse import parse_graph
from regraft.ir.text import print_graph
from regraft.model import lift
from regraft.passes.base import Pass, Preserves, Report
from regraft.passes.pipeline import CONTEXT, run_pipeline
from regraft.passes.plan import make_plan
from regraft.passes.recipe import Recipe, parse_pipeline, parse_recipe

COMPOSED = 'share-kv{groups=2, refit=false},budget-heads{heads=0.5, score=weight-norm, layers="layer < 4"},dce,cse'
MODELS = ["Llama-3.2-1B", "Mistral-7B-v0.3", "Qwen3-0.6B", "Qwen3-30B-A3B"]


@pytest.mark.parametrize("name", MODELS)
def test_a_recipe_on_every_family(name: str) -> None:
    graph = lift(f"builtin:{name}").graph
    text = print_graph(graph)
    plan = make_plan(graph, parse_pipeline(COMPOSED))
    assert print_graph(graph) == text
    result = plan.result
    result.graph.verify()
    assert parse_graph(print_graph(result.graph)).equals(result.graph)
    assert [step.decided for step in result.steps] == [True, False, True, True]
    assert plan.after.cache_bytes * 2 == plan.before.cache_bytes
    assert plan.after.cache_bytes == cache_bytes(result.graph, CONTEXT)
    assert plan.after.parameters == parameters(result.graph).total < plan.before.parameters
    assert plan.after.decode_flops < plan.before.decode_flops
    cut = {
        len(op.groups) for layer in range(4) for op in result.graph.in_layer(layer, Attend) if isinstance(op, Attend)
    }
    whole = {len(op.groups) for op in result.graph.in_layer(4, Attend) if isinstance(op, Attend)}
    assert {2 * heads for heads in cut} == whole


@pytest.mark.parametrize("name", MODELS)
def test_refits_on_every_family(name: str) -> None:
    graph = lift(f"builtin:{name}").graph
    result = run_pipeline(graph, parse_pipeline("share-kv{groups=2},budget-heads{heads=0.75}"), assume=True)
    share, budget = result.steps
    assert {note.text.partition(",")[2].strip() for note in share.report.applied} == {
        "queries turned to its keys, output projection refitted (drift, ridge 0.0001)"
    }
    assert len(share.report.applied) == graph.layer_count() // 2
    assert len(budget.report.applied) == graph.layer_count()
    assert not budget.report.refused
    assert parse_graph(print_graph(result.graph)).equals(result.graph)


def test_the_plan_as_data() -> None:
    graph = lift("builtin:Qwen3-0.6B").graph
    recipe = parse_pipeline("share-kv{groups=4},budget-heads{heads=12},calibration{text=builtin:sample, tokens=4096}")
    found = json.loads(json.dumps(make_plan(graph, recipe).to_json()))
    assert found["schema"] == "regraft.plan/1"
    assert found["decided"] is False
    assert found["after"]["cache_bytes"] * 4 == found["before"]["cache_bytes"]
    share, budget = found["steps"]
    assert share["preserves"] == budget["preserves"] == "refit"
    assert (share["decided"], budget["decided"]) == (True, False)
    assert share["layers"][1] == {
        "where": "layer 1",
        "layer": 1,
        "applied": True,
        "text": "reads %layers.0.attn.memory, queries turned to its keys, "
        "output projection refitted (drift, ridge 0.0001)",
    }
    assert budget["layers"][0]["text"].startswith("keeps 12 of 16 query heads, decided at apply by output-error")
    assert found["disk_bytes"] > found["after"]["weight_bytes"] > 10**9
    assert found["memory_bytes"] > 3 * 151936 * 1024 * 2
    assert parse_recipe(json.dumps(found["expanded"])).calibration == recipe.calibration


def test_the_lock_gives_the_same_graph_again(decoder: Callable[..., Any]) -> None:
    graph = decoder(layers=4).graph
    result = run_pipeline(graph, parse_pipeline("share-kv{groups=2},budget-heads{keep={2: [0, 3]}},dce"))
    again = run_pipeline(graph, parse_recipe(result.recipe.to_lock()))
    assert again.graph.equals(result.graph)
    assert again.recipe == result.recipe


def test_graphs_are_dumped_after_each_pass(decoder: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "dump"
    result = run_pipeline(decoder().graph, parse_pipeline("share-kv{donor={1: 0}, refit=false},dce"), dump=folder)
    assert [path.name for path in sorted(folder.iterdir())] == ["00-lifted.rg", "01-share-kv.rg", "02-dce.rg"]
    text = (folder / "01-share-kv.rg").read_text(encoding="utf-8")
    assert text.startswith("// after share-kv{layers=1, donor={1: 0}, level=raw, refit=false}, pass 1 of 2\n")
    assert parse_graph((folder / "02-dce.rg").read_text(encoding="utf-8")).equals(result.graph)


@dataclass(frozen=True)
class Clumsy(Pass):
    """Break a graph."""

    name: ClassVar[str] = "clumsy"
    preserves: ClassVar[Preserves] = "exact"

    def rewrite(self, graph: Graph) -> Report:
        attend = graph["layers.1.attn.ctx"].op
        assert attend is not None
        graph.set_attribute(attend, "head_map", (0, 1, 2, 3))
        return Report(())


def test_a_pass_that_breaks_the_graph_is_named(decoder: Callable[..., Any]) -> None:
    recipe = Recipe((*parse_pipeline("dce").passes, Clumsy(), *parse_pipeline("cse").passes))
    with pytest.raises(GraphError) as caught:
        run_pipeline(decoder().graph, recipe)
    assert str(caught.value) == (
        "error[RG032]: attn.attend %layers.1.attn.ctx: head_map [0, 1, 2, 3] does not fit 4 query heads over "
        "2 key/value heads\n"
        "  --> layers.1.attn\n"
        "  = note: broken by: clumsy, pass 2 of 3\n"
        "  = help: one entry a query head, each from 0 to 2 - 1"
    )


def test_a_target_must_be_an_edge_of_the_original(decoder: Callable[..., Any]) -> None:
    model = decoder()

    @dataclass(frozen=True)
    class Rename(Clumsy):
        def rewrite(self, graph: Graph) -> Report:
            graph.rename(graph["layers.1.attn.residual"], "layers.1.attn.stream")
            return Report(())

    with pytest.raises(RefitTargetError):
        run_pipeline(model.graph, Recipe((Rename(), *parse_pipeline("share-kv{donor={1: 0}}").passes)))
