"""`share-kv` in numbers: exact where layers are copies, and a refit that is the least-squares optimum."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.ir.cost import cache_bytes, parameters
from regraft.ir.errors.recipe import MissingKeyError, OptionConflictError
from regraft.ir.graph import Graph
from regraft.passes.pipeline import run_pipeline
from regraft.passes.recipe import parse_pipeline

RAW = "share-kv{donor={1: 0}, refit=false}"
FITTED = "share-kv{donor={1: 0}, ridge=0}"


def rewritten(model: Any, pipeline: str) -> Graph:
    return run_pipeline(model.graph, parse_pipeline(pipeline)).graph


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def make_copies(model: Any) -> None:
    """Let layers 0 and 1 see the same stream, and make keys and values of it in the same way."""
    model.weight(0, "o_proj").zero_()
    for name, tensor in model.tensors.items():
        if any(f"layers.1.{part}" in name for part in ("norm", "k_", "v_")):
            tensor.copy_(model.tensors[name.replace("layers.1", "layers.0")])


@pytest.mark.parametrize("fields", [{}, {"bias": True}, {"qk_norm": True}])
@pytest.mark.parametrize("pipeline", [RAW, "share-kv{donor={1: 0}, ridge=1e-6}"])
def test_a_copy_of_the_donor_reads_it_exactly(decoder: Any, fields: dict[str, Any], pipeline: str) -> None:
    model = decoder(**fields)
    make_copies(model)
    assert distance(model.logits(rewritten(model, pipeline)), model.logits(model.graph)) < 1e-11


def test_any_other_layer_changes_and_the_refit_makes_up_for_a_part(decoder: Any) -> None:
    model = decoder()
    original = model.logits(model.graph)
    raw, fitted = (distance(model.logits(rewritten(model, p)), original) for p in (RAW, FITTED))
    assert 0.01 < fitted < 0.9 * raw


def test_values_that_differ_by_a_linear_map_are_refitted_exactly(decoder: Any) -> None:
    # S2 in specs/passes_math.md: the output projection absorbs any map of a head's values
    model = decoder()
    make_copies(model)
    value = model.weight(1, "v_proj")
    for head in range(2):
        rows = slice(4 * head, 4 * head + 4)
        value[rows] = torch.randn(4, 4, dtype=torch.float64) @ value[rows]
    original = model.logits(model.graph)
    assert distance(model.logits(rewritten(model, RAW)), original) > 0.01
    assert distance(model.logits(rewritten(model, FITTED)), original) < 1e-8
    gauge = "share-kv{donor={1: 0}, level=gauge, refit=false, ridge=0}"
    assert distance(model.logits(rewritten(model, gauge)), original) < 1e-8


@pytest.mark.parametrize("fields", [{}, {"bias": True}, {"qk_norm": True}])
def test_keys_that_differ_by_a_complex_factor_are_met_exactly(decoder: Any, fields: dict[str, Any]) -> None:
    # S3: a factor for each KV head and frequency passes the rotation; queries take its conjugate
    model = decoder(**fields)
    make_copies(model)
    turn, size = torch.randn(2, 2, 1, dtype=torch.float64), torch.rand(2, 2, 1, dtype=torch.float64) + 0.5
    if fields.get("qk_norm"):
        size = torch.ones_like(size)  # a norm lets only the phase through, and that only where its weight is flat
        for side in "qk":
            for layer in (0, 1):
                model.weight(layer, f"{side}_norm").fill_(1.5)
    for name in ("model.layers.1.k_proj.weight", "model.layers.1.k_proj.bias"):
        if name in model.tensors:
            key = model.tensors[name]
            pairs = torch.complex(*key.reshape(2, 2, 2, -1).unbind(1)) * torch.polar(size, turn)
            key.copy_(torch.stack((pairs.real, pairs.imag), 1).reshape(key.shape))
    original = model.logits(model.graph)
    assert distance(model.logits(rewritten(model, RAW)), original) > 0.01
    assert distance(model.logits(rewritten(model, "share-kv{donor={1: 0}, level=raw}")), original) > 0.01
    assert distance(model.logits(rewritten(model, "share-kv{donor={1: 0}, ridge=0}")), original) < 1e-8


@pytest.mark.parametrize("target", ["drift", "original"])
def test_the_refit_is_the_least_squares_solution(decoder: Any, target: str) -> None:
    model = decoder()
    graph = rewritten(
        model, f"share-kv{{donor={{2: 0}}, ridge=0, target={target}}},share-kv{{donor={{1: 0}}, refit=false}}"
    )
    edges = ["layers.2.attn.merged", "layers.1.attn.residual", "layers.2.attn.residual", "layers.2.attn.out"]
    found, wanted = model.run(graph, edges), model.run(model.graph, edges)
    z = found["layers.2.attn.merged"].flatten(0, 1)
    if target == "drift":
        y = (wanted["layers.2.attn.residual"] - found["layers.1.attn.residual"]).flatten(0, 1)
    else:
        y = wanted["layers.2.attn.out"].flatten(0, 1)
    expected = torch.linalg.lstsq(z, y).solution.T
    assert distance(model.fitted(graph)["model.layers.2.o_proj.weight"], expected) < 1e-8


def test_the_drift_target_also_makes_up_for_earlier_layers(decoder: Any) -> None:
    model = decoder(layers=4)
    end = "layers.3.attn.residual"
    wanted = model.run(model.graph, [end])[end]
    errors = [
        distance(model.run(rewritten(model, f'share-kv{{layers="1..3", target={t}, ridge=0}}'), [end])[end], wanted)
        for t in ("drift", "original")
    ]
    assert errors[0] < 0.95 * errors[1]


def test_the_ridge_draws_to_the_old_weight(decoder: Any) -> None:
    model = decoder()
    old = model.weight(1, "o_proj")
    name = "model.layers.1.o_proj.weight"
    far, near = (
        distance(model.fitted(rewritten(model, f"share-kv{{donor={{1: 0}}, ridge={r}}}"))[name], old)
        for r in ("0.0001", "10000")
    )
    assert near < 1e-3 < far


def test_sizes_are_as_predicted_and_decode_is_prefill(decoder: Any) -> None:
    model = decoder(windows={0: 8, 1: 8})
    graph = rewritten(model, RAW)
    assert cache_bytes(model.graph, 24) - cache_bytes(graph, 24) == 8 * 2 * 2 * 4 * 8
    assert parameters(model.graph).total - parameters(graph).total == 2 * 8 * 12
    interpreter = model.interpreter(graph)
    whole = interpreter(model.tokens)
    cache = interpreter.new_cache(6)
    steps = torch.cat([interpreter(model.tokens[:, i : i + 1], cache) for i in range(24)], 1)
    assert distance(steps, whole) < 1e-12
    assert set(cache.rows) == {"layers.0.attn.memory", "layers.2.attn.memory"}


@pytest.mark.parametrize(
    ("pipeline", "donors"),
    [
        ('share-kv{layers="4..7"}', {4: 3, 5: 3, 6: 3, 7: 3}),
        ('share-kv{layers="4..7", donor=2}', {4: 2, 5: 2, 6: 2, 7: 2}),
        ('share-kv{layers="layer >= 6"}', {6: 5, 7: 5}),
        ("share-kv{layers=[5, 7]}", {5: 4, 7: 6}),
        ("share-kv{layers=[[0, 1, 2], [6, 7]]}", {1: 0, 2: 0, 7: 6}),
        ("share-kv{groups=3}", {1: 0, 2: 0, 4: 3, 5: 3, 7: 6}),
        ('share-kv{groups=2, layers="4..7"}', {5: 4, 7: 6}),
        ("share-kv{donor={7: 6, 6: 5, 5: 0}}", {5: 0, 6: 0, 7: 0}),
        ("share-kv{layers=all, donor=4}", {5: 4, 6: 4, 7: 4}),
        ("share-kv{donor={7: 6}},share-kv{donor={6: 2}}", {6: 2, 7: 2}),
    ],
)
def test_donors(decoder: Any, pipeline: str, donors: dict[int, int]) -> None:
    result = run_pipeline(decoder(layers=8).graph, parse_pipeline(pipeline))
    chosen = result.steps[-1].step.options()["donor"]
    assert chosen == donors
    again = run_pipeline(result.original, result.recipe)
    assert again.graph.equals(result.graph)
    assert again.recipe == result.recipe


@pytest.mark.parametrize(
    ("pipeline", "error"),
    [
        ("share-kv", MissingKeyError),
        ("share-kv{groups=2, donor=0}", OptionConflictError),
        ("share-kv{layers=[[0, 1]], groups=2}", OptionConflictError),
        ("share-kv{layers=2, donor={1: 0}}", OptionConflictError),
    ],
)
def test_options_that_do_not_go_together(decoder: Any, pipeline: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        run_pipeline(decoder().graph, parse_pipeline(pipeline))
