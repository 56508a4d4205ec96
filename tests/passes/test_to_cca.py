"""`to-cca` in numbers: exact at the full width and where what goes says nothing, near elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from regraft.ir.cost import cache_bytes
from regraft.ir.errors.recipe import MissingKeyError, RankError, StructureError
from regraft.passes.fitting.fold import folded
from regraft.passes.pipeline import run_pipeline
from regraft.passes.plan import make_plan
from regraft.passes.recipe import parse_pipeline
from tests.codegen.programs import emitted
from tests.passes.test_latents import distance, error, measured, rewritten


@pytest.mark.parametrize("fields", [{}, {"windows": {0: 5}}, {"kv_heads": 1}])
@pytest.mark.parametrize("taps", [1, 3])
def test_the_full_width_is_exact(decoder: Any, fields: dict[str, Any], taps: int) -> None:
    model = decoder(**fields)
    graph = rewritten(model, f"to-cca{{width=4, taps={taps}}}")
    assert distance(model.logits(graph), model.logits(model.graph)) < 1e-12
    tails = 3 * (taps - 1) * 4 * (4 + fields.get("kv_heads", 2)) * 8  # queries and keys of each layer
    assert cache_bytes(graph, 24) == cache_bytes(model.graph, 24) + tails


def test_what_says_nothing_goes_without_a_trace(decoder: Any) -> None:
    model = decoder()
    for layer in range(3):
        silent = layer % 2  # of two frequencies; its pair of channels is (silent, silent + 2)
        for head in range(2):
            model.weight(layer, "k_proj")[[4 * head + silent, 4 * head + silent + 2]] = 0.0
            value = model.weight(layer, "v_proj")[4 * head : 4 * head + 4]
            value[2:] = torch.randn(2, 2, dtype=torch.float64) @ value[:2]
    result = measured(model, "to-cca{width=2, refit=false}")
    assert result.recipe.passes[0].options()["kept"] == {0: [1], 1: [0], 2: [1]}
    assert distance(model.logits(result.graph), model.logits(model.graph)) < 1e-8
    assert cache_bytes(model.graph, 24) - cache_bytes(result.graph, 24) == 3 * (24 * 2 * 4 - 4 - 8) * 8
    assert run_pipeline(model.graph, result.recipe).graph.equals(result.graph)


def test_the_refit_makes_up_for_a_part(decoder: Any) -> None:
    model = decoder(layers=2)
    raw, fitted = (error(model, f"to-cca{{width=2, refit={refit}}}") for refit in ("false", "true"))
    assert 0.01 < fitted < 0.95 * raw


def test_plans_have_the_size_of_what_is_decided_later(decoder: Any) -> None:
    model = decoder()
    plan = make_plan(model.graph, parse_pipeline("to-cca{width=0.5}"))
    assert not plan.result.decided
    assert plan.after.cache_bytes == cache_bytes(rewritten(model, "to-cca{width=0.5}"), 4096)


@pytest.mark.parametrize(
    ("fields", "pipeline", "kind"),
    [
        ({}, "to-cca", MissingKeyError),
        ({}, "to-cca{width=6}", RankError),
        ({}, "to-cca{width=2, kept={0: [0], 1: [0], 2: [2]}}", RankError),
        ({}, "to-cca{width=4, kept={0: [0]}, layers=0}", RankError),
        ({"qk_norm": True}, "to-cca{width=2}", StructureError),
        ({"bias": True}, "to-cca{width=2}", StructureError),
        ({"gate": True}, "to-cca{width=2}", StructureError),
        ({"reads": {2: 0}}, "to-cca{width=2, layers=0}", StructureError),
    ],
)
def test_refusals(decoder: Any, fields: dict[str, Any], pipeline: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        run_pipeline(decoder(**fields).graph, parse_pipeline(pipeline))


def test_the_program_computes_the_same(decoder: Any, tmp_path: Path) -> None:
    model = decoder(windows={1: 5})
    graph = folded(model.interpreter(rewritten(model, "to-cca{width=2}")).graph)
    program = emitted(graph, tmp_path / "program", "f64")
    expected = program.interpreter(model.tokens)
    with torch.no_grad():
        cache = program.model.new_cache(6, 24)
        found = torch.cat([program.model(model.tokens[:, i : i + 5], cache) for i in range(0, 24, 5)], 1)
    assert (found - expected).abs().max() < 1e-12 * expected.abs().max()
    assert cache.nbytes == 6 * cache_bytes(graph, 24)
