"""`gqa-to-latent` and `to-latent` in numbers: exact where the algebra says so, and near where it is fitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.ir.cost import cache_bytes
from regraft.ir.errors.recipe import HeadListError, MissingKeyError, OptionConflictError, RankError, SpreadTargetError
from regraft.ir.graph import Graph
from regraft.ir.ops.latents import spread_ranks
from regraft.passes.fitting.measure import Measurements
from regraft.passes.pipeline import PipelineResult, run_pipeline
from regraft.passes.plan import make_plan
from regraft.passes.recipe import parse_pipeline
from tests.codegen.programs import emitted

FORMS: list[dict[str, Any]] = [
    {},
    {"bias": True},
    {"qk_norm": True, "bias": True},
    {"windows": {1: 5}, "gate": True},
    {"reads": {2: 0}},
    {"kv_heads": 1},
]


def measured(model: Any, pipeline: str) -> PipelineResult:
    return run_pipeline(model.graph, parse_pipeline(pipeline), Measurements(model.graph, model.source, model.tokens))


def rewritten(model: Any, pipeline: str) -> Graph:
    return measured(model, pipeline).graph


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def error(model: Any, pipeline: str) -> float:
    return distance(model.logits(rewritten(model, pipeline)), model.logits(model.graph))


@pytest.mark.parametrize("fields", FORMS)
def test_rows_before_rotation_are_the_same_function_in_as_many_bytes(decoder: Any, fields: dict[str, Any]) -> None:
    model = decoder(**fields)
    graph = rewritten(model, "gqa-to-latent")
    assert distance(model.logits(graph), model.logits(model.graph)) < 1e-12
    assert cache_bytes(graph, 24) == cache_bytes(model.graph, 24)
    again = run_pipeline(graph, parse_pipeline("gqa-to-latent"))
    assert again.graph.equals(graph)
    assert all("keeps rows already" in note.text or "not among" in note.text for note in again.steps[0].report.notes)


@pytest.mark.parametrize("fields", FORMS)
@pytest.mark.parametrize("before", ["", "gqa-to-latent,"])
def test_the_full_rank_is_exact_and_counts_what_is_carried(decoder: Any, fields: dict[str, Any], before: str) -> None:
    model = decoder(**fields)
    full = 12 if fields.get("kv_heads") != 1 else 8  # the input's width, or that of keys and values
    result = measured(model, f"{before}to-latent{{rank={full}}}")
    assert distance(model.logits(result.graph), model.logits(model.graph)) < 1e-12
    carried = 2 if fields.get("qk_norm") else 0
    per_token = 16 if full == 12 else 8
    assert cache_bytes(result.graph, 24) * per_token == cache_bytes(model.graph, 24) * (full + carried)


@pytest.mark.parametrize("normed", ["carried", "inside"])
def test_with_queries_and_keys_normed(decoder: Any, normed: str) -> None:
    model = decoder(qk_norm=True)
    full = {"carried": 12, "inside": 16}[normed]
    assert error(model, f"to-latent{{rank={full}, normed={normed}}}") < 1e-12
    with pytest.raises(RankError, match=f"legal: a rank from 1 to {full}"):
        rewritten(model, f"to-latent{{rank={full + 1}, normed={normed}}}")
    below = error(model, f"to-latent{{rank=9, normed={normed}}}")
    assert 1e-4 < below < 0.1


def make_low_rank(model: Any, rank: int) -> None:
    """Let keys and values of each layer be made of as many numbers."""
    for layer in [number for number in range(3) if f"model.layers.{number}.k_proj.weight" in model.tensors]:
        k, v = model.weight(layer, "k_proj"), model.weight(layer, "v_proj")
        both = torch.randn(16, rank, dtype=torch.float64) @ torch.randn(rank, 12, dtype=torch.float64) / rank
        k.copy_(both[:8])
        v.copy_(both[8:])


@pytest.mark.parametrize("fields", [{}, {"bias": True}, {"qk_norm": True}, {"reads": {2: 0}}])
@pytest.mark.parametrize("method", ["metric", "balanced-pca", "activation-pca", "weight-svd"])
def test_keys_and_values_of_low_rank_are_kept_exactly(decoder: Any, fields: dict[str, Any], method: str) -> None:
    model = decoder(**fields)
    make_low_rank(model, 5)
    assert error(model, f"to-latent{{rank=5, method={method}, refit=false}}") < 1e-9
    assert error(model, f"to-latent{{rank=4, method={method}, refit=false}}") > 1e-3


def test_each_method_does_what_it_says(decoder: Any) -> None:
    model = decoder()
    name = "model.layers.0.kv_a_proj.weight"
    x = model.run(model.graph, ["layers.0.attn.norm"])["layers.0.attn.norm"].flatten(0, 1)
    w = torch.cat((model.weight(0, "k_proj"), model.weight(0, "v_proj")))

    def rebuilt(method: str) -> Tensor:
        graph = rewritten(model, f"to-latent{{rank=6, method={method}, refit=false}}")
        found = model.interpreter(graph).weights
        up = torch.cat([found[f"model.layers.0.{side}_b_proj.weight"] for side in "kv"])
        return up @ found[name]

    def best(y: Tensor) -> float:  # Eckart and Young
        return float(torch.linalg.svdvals(y)[6:].square().sum())

    assert abs(float((w - rebuilt("weight-svd")).square().sum()) / best(w) - 1) < 1e-9
    assert abs(float((x @ (w - rebuilt("activation-pca")).T).square().sum()) / best(x @ w.T) - 1) < 1e-6
    y = x @ w.T
    y[:, :8] *= (y[:, 8:].square().sum() / y[:, :8].square().sum()).sqrt()
    both = x @ (w - rebuilt("balanced-pca")).T
    both[:, :8] *= (x @ w[8:].T).norm() / (x @ w[:8].T).norm()
    assert abs(float(both.square().sum()) / best(y) - 1) < 1e-6


def test_the_metric_and_the_refit_lose_less(decoder: Any) -> None:
    model = decoder(layers=2)
    found = [
        error(model, f"to-latent{{rank=7, {options}}}")
        for options in (
            "method=weight-svd, refit=false",
            "method=balanced-pca, refit=false",
            "method=balanced-pca",
            "ridge=1e-4",
        )
    ]
    assert found == sorted(found, reverse=True)
    assert 1e-3 < found[-1] < 0.9 * found[-2]


def test_a_total_is_dealt_where_it_is_worth_most(decoder: Any) -> None:
    model = decoder()
    make_low_rank(model, 4)
    model.weight(1, "k_proj").copy_(torch.randn(8, 12, dtype=torch.float64))
    result = measured(model, "to-latent{total=20, refit=false}")
    assert result.recipe.passes[0].options()["rank"] == {0: 4, 1: 12, 2: 4}
    assert distance(model.logits(result.graph), model.logits(model.graph)) < 1e-9
    again = run_pipeline(model.graph, result.recipe)
    assert again.graph.equals(result.graph)


def test_ranks_are_dealt_in_steps_up_to_the_full_ones() -> None:
    spectra = [[8.0, 4.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
    assert spread_ranks(spectra, 5, 1, [4, 4], 1) == [2, 3]
    assert spread_ranks(spectra, 6, 2, [4, 4], 2) == [2, 4]
    assert spread_ranks(spectra, 100, 1, [4, 3], 1) == [4, 3]


def test_the_balance_with_the_least_divergence_is_written_down(decoder: Any) -> None:
    model = decoder(layers=2)
    plan = make_plan(model.graph, parse_pipeline("to-latent{rank=6, balance=measured}"))
    assert not plan.result.decided
    result = measured(model, "to-latent{rank=6, balance=measured}")
    balance = result.recipe.passes[0].options(expanded=True)["balance"]
    assert balance in (0.1, 0.3, 1.0, 3.0)
    measure = Measurements(model.graph, model.source, model.tokens)
    passes = [parse_pipeline(f"to-latent{{rank={{0: 6, 1: 6}}, balance={b}}}").passes[0] for b in (0.1, 0.3, 1, 3)]
    damage = measure.damage(model.graph, [each.rewrite for each in passes])
    assert (0.1, 0.3, 1.0, 3.0)[damage.index(min(damage))] == balance


@pytest.mark.parametrize(
    ("rank", "expected"),
    [
        ("0.5", {0: 8, 1: 8, 2: 8}),
        ("[3, 0.25, 12]", {0: 3, 1: 4, 2: 12}),
        ("{sliding: 4, full: 8}", {0: 8, 1: 4, 2: 8}),
        ("{1: 5}", {1: 5}),
    ],
)
def test_ranks(decoder: Any, rank: str, expected: dict[int, int]) -> None:
    result = measured(decoder(windows={1: 4}), f"to-latent{{rank={rank}, method=weight-svd, refit=false}}")
    assert result.recipe.passes[0].options()["rank"] == expected


def test_a_share_counts_what_is_carried(decoder: Any) -> None:
    model = decoder(qk_norm=True)
    result = measured(model, "to-latent{rank=0.5, method=weight-svd, refit=false}")
    assert result.recipe.passes[0].options()["rank"] == {0: 6, 1: 6, 2: 6}
    assert 2 * cache_bytes(result.graph, 24) == cache_bytes(model.graph, 24)


@pytest.mark.parametrize(
    ("pipeline", "kind"),
    [
        ("to-latent", MissingKeyError),
        ("to-latent{rank=4, total=12}", OptionConflictError),
        ("to-latent{rank=13}", RankError),
        ("to-latent{total=37}", RankError),
        ("to-latent{total=2}", RankError),
        ("to-latent{rank=[1, 2]}", HeadListError),
        ("share-kv{donor={1: 0}, refit=false},gqa-to-latent,to-latent{rank=[1, 2, 3]}", HeadListError),
    ],
)
def test_refusals(decoder: Any, pipeline: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        run_pipeline(decoder().graph, parse_pipeline(pipeline))


def test_the_metric_needs_the_memory_as_it_was_lifted(decoder: Any) -> None:
    model = decoder(heads=2)  # one query head a KV head: with it goes the KV head
    pipeline = "budget-heads{keep={1: [0]}, refit=false},to-latent{rank=4, method=METHOD}"
    with pytest.raises(SpreadTargetError, match=r"%layers\.1\.attn\.memory"):
        run_pipeline(model.graph.copy(), parse_pipeline(pipeline.replace("METHOD", "metric").replace("[0]", "[1]")))
    assert error(model, pipeline.replace("METHOD", "balanced-pca")) < 1


def test_after_shared_memories_and_before_fewer_heads(decoder: Any) -> None:
    model = decoder(layers=4)
    whole = "share-kv{donor={1: 0}},to-latent{rank=12},budget-heads{keep={2: [0, 1, 3]}}"
    whole += ",window{window=64, layers=3, sinks=0, refit=false}"
    shared = "share-kv{donor={1: 0}},budget-heads{keep={2: [0, 1, 3]}}"
    found, expected = (model.logits(rewritten(model, pipeline)) for pipeline in (whole, shared))
    assert distance(found, expected) < 1e-9


@pytest.mark.parametrize("fields", FORMS[1:5])
@pytest.mark.parametrize("pipeline", ["gqa-to-latent", "to-latent{rank=6, method=weight-svd, refit=false}"])
def test_the_program_computes_the_same(decoder: Any, fields: dict[str, Any], pipeline: str, tmp_path: Path) -> None:
    model = decoder(**fields)
    graph = model.interpreter(rewritten(model, pipeline)).graph
    program = emitted(graph, tmp_path / "program", "f64")
    expected = program.interpreter(model.tokens)
    bound = 1e-12 * float(expected.abs().max())
    with torch.no_grad():
        assert (program.model(model.tokens) - expected).abs().max() < bound
        for size in (1, 5):
            cache = program.model.new_cache(6, 24)
            parts = [program.model(model.tokens[:, i : i + size], cache) for i in range(0, 24, size)]
            assert (torch.cat(parts, 1) - expected).abs().max() < bound
    assert cache.nbytes == 6 * cache_bytes(graph, 24)
