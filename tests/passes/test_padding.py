"""`budget-heads` padded: the same function as with a map of heads, in groups of one size that a stock class holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from regraft.applying import apply
from regraft.ir.cost import cache_bytes
from regraft.ir.graph import Graph
from regraft.passes.matching.sites import attentions
from regraft.passes.pipeline import run_pipeline
from regraft.passes.recipe import parse_pipeline
from regraft.verifying import verify

ROOT = Path(__file__).parents[2]
UNEVEN = "budget-heads{{keep={{0: [0, 1, 2], 1: [3], 2: [1, 2, 3]}}, refit={refit}, layout={layout}}}"


def rewritten(model: Any, pipeline: str) -> Graph:
    return run_pipeline(model.graph, parse_pipeline(pipeline)).graph


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize(
    "fields", [{}, {"bias": True, "qk_norm": True}, {"gate": True}, {"windows": {1: 5}}, {"reads": {2: 0}}]
)
def test_heads_of_zeros_change_nothing(decoder: Any, fields: dict[str, Any]) -> None:
    model = decoder(**fields)
    mapped, padded = (rewritten(model, UNEVEN.format(refit="false", layout=each)) for each in ("map", "padded"))
    assert distance(model.logits(padded), model.logits(mapped)) < 1e-12
    found = attentions(padded)
    assert [(each.heads, each.kv_heads, each.attend.head_map) for each in found.values()] == [(4, 2, None)] * 3
    assert cache_bytes(padded, 24) == cache_bytes(model.graph, 24)


def test_a_fit_uses_what_the_heads_of_zeros_see(decoder: Any) -> None:
    model = decoder()
    end = "layers.2.attn.residual"
    wanted = model.run(model.graph, [end])[end]
    one = "budget-heads{{keep={{2: [1]}}, ridge=0, layout={layout}}}"
    mapped, padded = (
        distance(model.run(rewritten(model, one.format(layout=each)), [end])[end], wanted) for each in ("map", "padded")
    )
    assert 0.01 < padded < mapped


def test_groups_are_filled_to_the_largest_of_all_layers(decoder: Any) -> None:
    model = decoder(heads=6)
    keep = "budget-heads{keep={0: [0, 3], 1: [1, 2, 5], 2: [4]}, refit=false, layout=padded}"
    found = attentions(rewritten(model, keep))
    assert [each.heads for each in found.values()] == [4, 4, 4]
    part = "budget-heads{keep={0: [0, 3]}, refit=false, layout=padded}"
    assert [each.heads for each in attentions(rewritten(model, part)).values()] == [6, 6, 6]


def test_a_stock_class_loads_padded_heads(tmp_path: Path) -> None:
    source = ROOT / "examples" / "tiny-llama"
    recipe = "budget-heads{heads=7, score=weight-norm, refit=false, layout=padded}"
    report = apply(source, recipe, tmp_path / "out")
    assert report.stock == "LlamaForCausalLM"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_attention_heads"] in (8, 12)
    assert config["num_key_value_heads"] == 4
    assert report.predicted["weight_bytes"] == report.measured["weight_bytes"]
    assert verify(tmp_path / "out", against="transformers").passed
