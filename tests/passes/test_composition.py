"""Fitted passes one after another on twins: predicted, emitted, measured; what one fits stands as the next goes on."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from regraft.codegen.package import emit
from regraft.frontends.family import read_config
from regraft.frontends.folder import open_model
from regraft.frontends.lift import lift_config
from regraft.frontends.tensors import Declared
from regraft.frontends.twin import random_tensors, twin_config
from regraft.ir.cost import cache_bytes, parameters
from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter
from regraft.ir.ops.weight import Load
from regraft.ir.parse import parse_graph
from regraft.ir.source import TensorSource
from regraft.ir.text import print_graph
from regraft.passes.fitting.fold import fitted_parameters, folded
from regraft.passes.fitting.measure import Measurements
from regraft.passes.fitting.sweep import Sweep, evaluate
from regraft.passes.pipeline import PipelineResult, run_pipeline
from regraft.passes.plan import make_plan
from regraft.passes.recipe import parse_pipeline
from regraft.programs import load_program

FAMILIES = ["Qwen3-0.6B", "Llama-3.2-1B", "Mistral-7B-v0.3", "gemma-4-E2B", "gemma-4-31B", "laguna-XS.2"]
STEPS = ["share-kv{groups=2}", "to-latent{rank=0.5}", "budget-heads{heads=0.5}", "window{window=8, sinks=2}"]
LENGTH = 48
TOKENS = torch.randint(0, 100, (16, LENGTH), generator=torch.Generator().manual_seed(0))


@cache
def twin(name: str) -> tuple[Graph, TensorSource]:
    torch.set_num_threads(1)
    graph = lift_config(read_config(twin_config(dict(open_model(f"builtin:{name}").config))), Declared("f32"))
    return graph, TensorSource({key: torch.from_numpy(each) for key, each in random_tensors(graph, 0).items()})


def converted(name: str, pipeline: str) -> tuple[PipelineResult, Graph, TensorSource]:
    """Carry a recipe out, fitted on some of the tokens, and return what it gives as a model of its own."""
    graph, source = twin(name)
    result = run_pipeline(graph, parse_pipeline(pipeline), Measurements(graph, source, TOKENS[:12]))
    wanted = fitted_parameters(result.graph)
    fits = dict(Sweep(result.graph, graph, source, TOKENS[:12]).solve(wanted)) if wanted else {}
    weights = {v.name: fits[v] if v in fits else evaluate(v, source) for v in result.graph.parameters()}
    return result, folded(result.graph), TensorSource(weights)


def divergence(found: Tensor, expected: Tensor) -> float:
    mine, theirs = found.log_softmax(-1), expected.log_softmax(-1)
    return float((theirs.exp() * (theirs - mine)).sum(-1).mean())


@pytest.mark.parametrize("name", FAMILIES)
def test_four_fitted_passes_in_one_recipe(name: str, tmp_path: Path) -> None:
    graph, source = twin(name)
    pipeline = ",".join(STEPS)
    result, after, weights = converted(name, pipeline)
    assert all(step.report.applied for step in result.steps)
    assert parse_graph(print_graph(result.graph)).equals(result.graph)
    plan = make_plan(graph, parse_pipeline(pipeline))
    assert plan.after.cache_bytes == cache_bytes(after, 4096) < plan.before.cache_bytes / 4
    assert plan.after.parameters == parameters(after).total
    held_out, original = TOKENS[12:], Interpreter(graph, source)(TOKENS[12:])
    run = Interpreter(after, weights)
    logits = run(held_out)
    assert 1e-3 < divergence(logits, original) < divergence(original.flip(-1), original)
    cache_ = run.new_cache(4)
    run(held_out, cache_)
    assert cache_.nbytes == cache_bytes(after, LENGTH, batch=4)
    emit(after, weights, tmp_path / "package")
    program = load_program(tmp_path / "package", dtype="float32")
    rounding = float((Interpreter(after, weights, "f64")(held_out) - logits).abs().max())  # fitted maps enlarge it
    limit = max(1e-5 * max(1.0, float(logits.abs().max()) / 4), 4 * rounding)
    assert limit < 1e-4
    with torch.no_grad():
        torch.testing.assert_close(program(held_out), logits, rtol=0, atol=limit)
        kept = program.new_cache(4, LENGTH)
        steps = [program(part, kept) for part in held_out.split((30, 7, *(1,) * 11), 1)]
    torch.testing.assert_close(torch.cat(steps, 1), logits, rtol=0, atol=limit)


@pytest.mark.parametrize("name", ["Qwen3-0.6B", "laguna-XS.2"])
def test_what_a_pass_fits_is_not_moved_by_heads_that_go_later(name: str) -> None:
    _, _, alone = converted(name, ",".join(STEPS[:2]))
    result, _, cut = converted(name, ",".join(STEPS[:3]))
    down = [each for each in alone.names() if "kv_a_proj" in each and "layers.0." in each]
    assert down
    for each in down:
        assert torch.equal(alone.read(each), cut.read(each))
    set_aside = set(result.graph.ops) - set(result.graph.run_time()) - {op for op in result.graph.ops if op.weight_time}
    assert set_aside
    assert not [op for op in folded(result.graph).ops if op.weight_time and not isinstance(op, Load)]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_whole_recipe_costs_about_what_its_steps_cost(name: str) -> None:
    # specs/passes_math.md, section 7: single edits rank well, and underestimate their sum by up to about five times
    graph, source = twin(name)
    original = Interpreter(graph, source)(TOKENS[12:])

    def cost(pipeline: str) -> float:
        _, after, weights = converted(name, pipeline)
        return divergence(Interpreter(after, weights)(TOKENS[12:]), original)

    single = sum(cost(step) for step in STEPS)
    assert 0.1 * single < cost(",".join(STEPS)) < 10 * single


@pytest.mark.parametrize("name", ["Qwen3-0.6B", "gemma-4-E2B"])
def test_fits_are_to_all_tokens_where_later_layers_see_the_last_ones_alone(name: str) -> None:
    steps = "share-kv{last=1},budget-heads{heads=0.5}"
    _, whole, fitted = converted(name, steps)
    result, cut, same = converted(name, f"{steps},last-tokens-only")
    assert parse_graph(print_graph(result.graph)).equals(result.graph)
    for key in fitted.names():
        assert torch.equal(fitted.read(key), same.read(key)), key
    found, expected = Interpreter(cut, same)(TOKENS[12:], last=2), Interpreter(whole, fitted)(TOKENS[12:])[:, -2:]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max()) / 4))
