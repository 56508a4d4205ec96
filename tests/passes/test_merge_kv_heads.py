"""`merge-kv-heads` in numbers: exact where heads are gauge copies, better than the baselines where they are not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.ir.cost import cache_bytes, parameters
from regraft.ir.errors.base import RegraftError
from regraft.ir.graph import Graph
from regraft.passes.fitting.measure import Measurements
from regraft.passes.pipeline import PipelineResult, run_pipeline
from regraft.passes.recipe import parse_pipeline

D = 4
COPIES = ((0, 3), (1, 2))


def rewritten(model: Any, pipeline: str) -> Graph:
    return run_pipeline(model.graph, parse_pipeline(pipeline)).graph


def measured(model: Any, pipeline: str) -> PipelineResult:
    return run_pipeline(model.graph, parse_pipeline(pipeline), Measurements(model.graph, model.source, model.tokens))


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_copies(model: Any, groups: tuple[tuple[int, ...], ...] = COPIES, turned: bool = False) -> None:
    """Let the heads of a group be gauge copies: keys differ by a complex factor a frequency, values by a linear map.

    With ``turned`` the factors are phases, which a norm whose weight is flat lets through.
    """
    for name, tensor in model.tensors.items():
        if turned and ("q_norm" in name or "k_norm" in name):
            tensor.fill_(1.5)
        if ".k_proj." in name:
            pairs = torch.complex(*tensor.view(4, 2, D // 2, -1).unbind(1))
            for group in groups:
                for head in group[1:]:
                    factor = torch.view_as_complex(random(D // 2, 1, 2, seed=head))
                    pairs[head] = (factor.sgn() if turned else factor) * pairs[group[0]]
            tensor.copy_(torch.stack((pairs.real, pairs.imag), 1).view(tensor.shape))
        elif ".v_proj." in name:
            heads = tensor.view(4, D, -1)
            for group in groups:
                for head in group[1:]:
                    heads[head] = random(D, D, seed=head) @ heads[group[0]]


def merging(groups: str, layers: tuple[int, ...] = (0, 1, 2), **options: str) -> str:
    listed = ", ".join(f"{layer}: {groups}" for layer in layers)
    rest = "".join(f", {key}={value}" for key, value in {"refit": "false", **options}.items())
    return f"merge-kv-heads{{groups={{{listed}}}{rest}}}"


PCA = merging("[[0, 3], [1, 2]]")


@pytest.mark.parametrize(
    "fields",
    [{}, {"bias": True}, {"heads": 8}, {"windows": {0: 6, 1: 6}}, {"reads": {1: 0, 2: 0}}, {"reads": {2: 0}}],
    ids=str,
)
def test_gauge_copies_merge_exactly(decoder: Any, fields: dict[str, Any]) -> None:
    model = decoder(**{"heads": 4, "kv_heads": 4, **fields})
    make_copies(model)
    owners = tuple(layer for layer in range(3) if layer not in fields.get("reads", {}))
    graph = rewritten(model, merging("[[0, 3], [1, 2]]", owners))
    original = model.logits(model.graph)
    assert distance(model.logits(graph), original) < 1e-12
    assert distance(model.logits(rewritten(model, merging("[[0, 3], [1, 2]]", owners, method="mean"))), original) > 0.01


@pytest.mark.parametrize("groups", ["[[0, 3], [1, 2]]", "[[0, 3], [1], [2]]"])
def test_turned_copies_under_norms_merge_exactly_by_a_gauge_after_them(decoder: Any, groups: str) -> None:
    model = decoder(heads=8, kv_heads=4, qk_norm=True)
    make_copies(model, turned=True)
    graph = rewritten(model, merging(groups, even="false"))
    assert distance(model.logits(graph), model.logits(model.graph)) < 1e-12


@pytest.mark.parametrize("fields", [{"windows": {0: 6}}, {"bias": True}, {"reads": {1: 0}}], ids=str)
@pytest.mark.parametrize("groups", ["[[0, 3], [1, 2]]", "[[0, 3], [1], [2]]"])
def test_copies_under_norms_merge_exactly_where_the_norms_factors_are_kept(
    decoder: Any, fields: dict[str, Any], groups: str
) -> None:
    model = decoder(heads=8, kv_heads=4, qk_norm=True, **fields)
    make_copies(model)
    for name, tensor in model.tensors.items():
        if "k_norm" in name:  # what follows the norm is then a complex multiple too
            tensor[D // 2 :] = tensor[: D // 2]
    owners = (0, 2) if "reads" in fields else (0, 1, 2)
    graph = rewritten(model, merging(groups, owners, norm="carry", even="false"))
    original = model.logits(model.graph)
    assert distance(model.logits(graph), original) < 1e-12
    assert distance(model.logits(rewritten(model, merging(groups, owners, even="false"))), original) > 1e-3
    kept = groups.count("[") - 1  # merged keys and values, and a factor of each old head
    rows = sum(min(24, fields.get("windows", {}).get(layer, 24)) for layer in owners)
    assert cache_bytes(graph, 24) == rows * 8 * (2 * kept * D + 4)
    interpreter = model.interpreter(graph)
    cache = interpreter.new_cache(6)
    steps = torch.cat([interpreter(model.tokens[:, i : i + 1], cache) for i in range(24)], 1)
    assert distance(steps, original) < 1e-12


def test_uneven_groups_have_a_head_map_and_merge_exactly(decoder: Any) -> None:
    model = decoder(heads=8, kv_heads=4)
    make_copies(model, ((0, 1, 3),))
    graph = rewritten(model, merging("[[0, 1, 3], [2]]", even="false"))
    attend: Any = graph["layers.1.attn.ctx"].op
    assert attend.head_map == (0, 0, 0, 0, 1, 1, 0, 0)
    assert distance(model.logits(graph), model.logits(model.graph)) < 1e-12


def test_gates_by_channel_keep_values_channel_by_channel(decoder: Any) -> None:
    model = decoder(heads=4, kv_heads=4, gate=True)
    make_copies(model)
    original = model.logits(model.graph)
    assert distance(model.logits(rewritten(model, PCA)), original) > 1e-3
    for layer in range(3):
        heads = model.weight(layer, "v_proj").view(4, D, -1)
        for first, second in COPIES:
            heads[second] = random(D, 1, seed=second) * heads[first]
    assert distance(model.logits(rewritten(model, PCA)), model.logits(model.graph)) < 1e-12


def test_copies_are_found_by_cost_and_put_in_order(decoder: Any) -> None:
    model = decoder(heads=8, kv_heads=4, layers=2)
    make_copies(model)
    result = measured(model, "merge-kv-heads{heads=2, refit=false}")
    assert result.recipe.passes[0].options()["groups"] == {0: [[0, 3], [1, 2]], 1: [[0, 3], [1, 2]]}
    assert [str(note) for note in result.steps[0].report.notes] == [
        f"layer {layer}: merges 4 KV heads into 2 by pca: 0, 3 | 1..2" for layer in range(2)
    ]
    attend: Any = result.graph["layers.0.attn.ctx"].op
    assert attend.head_map is None
    assert distance(model.logits(result.graph), model.logits(model.graph)) < 1e-12
    again = run_pipeline(model.graph, result.recipe)
    assert again.graph.equals(result.graph)


@pytest.mark.parametrize("qk_norm", [False, True])
def test_components_lose_less_than_turned_heads_and_those_less_than_means(decoder: Any, qk_norm: bool) -> None:
    model = decoder(heads=8, kv_heads=4, layers=2, qk_norm=qk_norm)
    make_copies(model)
    for name, tensor in model.tensors.items():
        if ".k_proj." in name or ".v_proj." in name:
            tensor.add_(random(*tensor.shape, seed=7), alpha=0.05)
    original = model.logits(model.graph)
    wanted = {method: merging("[[0, 3], [1, 2]]", (0, 1), method=method) for method in ("pca", "procrustes", "mean")}
    if qk_norm:
        wanted["stock"] = merging("[[0, 3], [1, 2]]", (0, 1), norm="stock")
    found = {name: distance(model.logits(rewritten(model, each)), original) for name, each in wanted.items()}
    assert 0.001 < found["pca"] < 0.7 * found["procrustes"]
    assert found["procrustes"] < found["mean"]
    assert not qk_norm or found["pca"] < found["stock"] < found["mean"]
    fitted = distance(
        model.logits(rewritten(model, wanted["procrustes"].replace("refit=false", "refit=true"))), original
    )
    assert fitted < 0.9 * found["procrustes"]


def test_norms_fitted_to_scores_stay_what_they_were_in_form(decoder: Any) -> None:
    model = decoder(heads=8, kv_heads=4, qk_norm=True)
    stock = rewritten(model, merging("[[0, 3], [1, 2]]", norm="stock"))
    mean = rewritten(model, merging("[[0, 3], [1, 2]]", method="mean"))
    assert [op.opname for op in stock.run_time()] == [op.opname for op in mean.run_time()]
    assert [v.name for v in stock.parameters()] == [v.name for v in model.graph.parameters()]


def test_sizes_are_as_predicted_and_decode_is_prefill(decoder: Any) -> None:
    model = decoder(heads=8, kv_heads=4, windows={1: 5})
    graph = rewritten(model, PCA)
    rows = 24 + 5 + 24
    assert cache_bytes(model.graph, 24) - cache_bytes(graph, 24) == rows * 2 * 2 * D * 8
    assert parameters(model.graph).total - parameters(graph).total == 3 * 2 * 2 * D * 12
    normed = decoder(heads=8, kv_heads=4, qk_norm=True)
    gauge = rewritten(normed, PCA)
    maps = 2 * D * 2 * D + 8 * D * D  # keys of two heads into each of two, and a turn of each query head
    assert parameters(normed.graph).total - parameters(gauge).total == 3 * (2 * D * 12 - maps)
    for each, work in ((model, graph), (normed, gauge)):
        interpreter = each.interpreter(work)
        cache = interpreter.new_cache(6)
        steps = torch.cat([interpreter(each.tokens[:, i : i + 1], cache) for i in range(24)], 1)
        assert distance(steps, interpreter(each.tokens)) < 1e-12


@pytest.mark.parametrize(
    ("pipeline", "heads"),
    [
        ("merge-kv-heads{heads=2, grouping=adjacent}", {0: 2, 1: 2, 2: 2}),
        ("merge-kv-heads{heads=0.5, grouping=adjacent}", {0: 2, 1: 2, 2: 2}),
        ("merge-kv-heads{heads=[4, 2, 1], grouping=adjacent}", {0: 4, 1: 2, 2: 1}),
        ("merge-kv-heads{heads={full: 1, sliding: 2}, grouping=adjacent}", {0: 1, 1: 2, 2: 1}),
        ("merge-kv-heads{heads={1: 1}, grouping=adjacent}", {1: 1}),
        ('merge-kv-heads{heads=1, layers="kind == full", grouping=adjacent}', {0: 1, 2: 1}),
        ("merge-kv-heads{heads=3, grouping=adjacent, even=false}", {0: 3, 1: 3, 2: 3}),
        ("merge-kv-heads{heads=2, grouping=adjacent},constraints{tensor_parallel=[2]}", {0: 2, 1: 2, 2: 2}),
        ("merge-kv-heads{heads=1}", {0: 1, 1: 1, 2: 1}),
    ],
)
def test_counts(decoder: Any, pipeline: str, heads: dict[int, int]) -> None:
    model = decoder(heads=8, kv_heads=4, windows={1: 5})
    result = run_pipeline(model.graph, parse_pipeline(pipeline))
    found = result.steps[0].step.options()
    assert found["heads"] == heads
    kept = {layer: result.graph[f"layers.{layer}.attn.memory"].memory.fields[0].shape[0] for layer in heads}
    assert kept == heads
    assert run_pipeline(model.graph, result.recipe).graph.equals(result.graph)


@pytest.mark.parametrize(
    ("pipeline", "message", "hint"),
    [
        ("merge-kv-heads", "heads is missing", "add heads: 2"),
        (
            "merge-kv-heads{heads=3}",
            "layer 0 has 4 KV heads, which cannot become 3",
            "1, 2, 4, or any with even: false",
        ),
        ("merge-kv-heads{heads=5, even=false}", "cannot become 5", "legal for layer 0: 1, 2, 3, 4"),
        ("merge-kv-heads{groups={0: [[0, 1], [2]]}}", "groups of 3 heads", "groups of its heads 0 to 3"),
        ("merge-kv-heads{groups={0: [[0, 1, 2], [3]]}}", "groups of 3, 1", "groups of 2 heads each"),
        ("merge-kv-heads{groups={0: [[0, 1], [1, 2]]}}", "expected each KV head once", ""),
        ("merge-kv-heads{groups={0: [[0, 1], [2, 3]]}, heads=2}", "heads and groups exclude each other", ""),
        ("merge-kv-heads{heads=[2, 2, 2]}", "heads lists 3 layers, 2 are selected", ""),
        ("merge-kv-heads{heads=2, layers=1}", "it reads the keys and values of layer 0", "name layer 0"),
        (
            "merge-kv-heads{heads={0: 1}},constraints{tensor_parallel=[2]}",
            "1 KV heads under 8 query heads do not split evenly over 2",
            "legal for layer 0: 2, 4 KV heads",
        ),
    ],
)
def test_refusals(decoder: Any, pipeline: str, message: str, hint: str) -> None:
    model = decoder(heads=8, kv_heads=4, reads={1: 0})
    with pytest.raises(RegraftError) as caught:
        run_pipeline(model.graph, parse_pipeline(pipeline))
    assert message in str(caught.value)
    assert hint in str(caught.value)
    assert "-->" in str(caught.value)


def test_what_is_at_hand_without_text(decoder: Any) -> None:
    model = decoder(heads=8, kv_heads=4)
    recipe = parse_pipeline("merge-kv-heads{heads=2}")
    with pytest.raises(RegraftError, match="the choice by cost needs data"):
        run_pipeline(model.graph, recipe)
    assumed = run_pipeline(model.graph, recipe, assume=True)
    assert "which ones decided at apply by cost" in str(assumed.steps[0].report.applied[0])
    assert cache_bytes(assumed.graph, 24) * 2 == cache_bytes(model.graph, 24)
    plain = recipe.passes[0]
    assert plain.needs_text == "the merge by pca"
    mean = parse_pipeline("merge-kv-heads{heads=2, method=mean, grouping=adjacent, refit=false}")
    assert mean.passes[0].needs_text == ""
    assert distance(model.logits(run_pipeline(model.graph, mean).graph), model.logits(model.graph)) > 0.01


SHARED = f"share-kv{{donor={{1: 0}}, ridge=0}},{merging('[[0, 3], [1, 2]]', (0,))}"
CUT = "budget-heads{keep={0: [0, 1, 2, 5, 6]}, refit=false}"


@pytest.mark.parametrize(
    ("pipeline", "fields", "copies"),
    [
        (SHARED, {}, COPIES),
        (SHARED, {"bias": True}, COPIES),
        (SHARED, {"qk_norm": True}, COPIES),
        (f"{CUT},{PCA}", {}, COPIES),
        (f"{merging('[[0, 1], [2, 3]]')},{CUT}", {}, ((0, 1), (2, 3))),
        (f"{PCA},{merging('[[0, 1]]')}", {}, ((0, 3, 1, 2),)),
    ],
)
def test_among_other_passes(
    decoder: Any, pipeline: str, fields: dict[str, Any], copies: tuple[tuple[int, ...], ...]
) -> None:
    """A merge of copies changes nothing, whatever passes before or after it do."""
    model = decoder(heads=8, kv_heads=4, **fields)
    make_copies(model, copies, turned="qk_norm" in fields)
    recipe = parse_pipeline(pipeline)
    others = replace(recipe, passes=tuple(step for step in recipe.passes if step.name != "merge-kv-heads"))
    merged, alone = run_pipeline(model.graph, recipe).graph, run_pipeline(model.graph, others).graph
    assert distance(model.logits(merged), model.logits(alone)) < 1e-9
    assert cache_bytes(merged, 24) < cache_bytes(alone, 24)
