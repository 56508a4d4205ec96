"""`to-latent` in DeepSeek's layout: a norm of the latent that changes nothing, one rank and one set of frequencies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from regraft.ir.cost import cache_bytes
from regraft.ir.errors.recipe import OptionConflictError, RankError, StructureError
from regraft.ir.ops.core import Norm
from regraft.passes.pipeline import run_pipeline
from regraft.passes.plan import make_plan
from regraft.passes.recipe import parse_pipeline
from tests.codegen.programs import emitted
from tests.passes.test_latents import distance, error, measured, rewritten

LAYOUT = "to-latent{rank=6, rope=4, layout=deepseek}"
BOUND = 1e-10  # as without the norm: the constant is 2⁴⁰, so that it takes |latent|² / 2⁸¹ of the latent's length away


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_with_all_frequencies_and_the_full_rank_the_norm_changes_nothing(decoder: Any, kv_heads: int) -> None:
    model = decoder(kv_heads=kv_heads)
    full = min(12, 8 * kv_heads)
    pipeline = f"to-latent{{rank={full}, rope={4 * kv_heads}, layout=deepseek, refit=false}}"
    assert error(model, pipeline) < BOUND
    assert error(model, pipeline.replace(f"rank={full}", "rank=2")) > 1e-4


@pytest.mark.parametrize("refit", ["true", "false"])
def test_the_layout_is_the_same_function_in_one_more_number_a_token(decoder: Any, refit: str) -> None:
    model = decoder()
    own, theirs = (
        rewritten(model, f"to-latent{{rank=6, rope=4, {option}, refit={refit}}}")
        for option in ("alike=true", "layout=deepseek")
    )
    assert distance(model.logits(theirs), model.logits(own)) < BOUND
    assert distance(model.logits(own), model.logits(model.graph)) > 1e-4
    assert cache_bytes(theirs, 24) - cache_bytes(own, 24) == 3 * 24 * 8
    norms = [op for op in theirs.run_time() if isinstance(op, Norm) and op.out.name.endswith("latent_norm")]
    assert len(norms) == 3


def test_what_is_decided_is_written_down_and_sizes_are_as_predicted(decoder: Any) -> None:
    model = decoder()
    plan = make_plan(model.graph, parse_pipeline(LAYOUT))
    result = measured(model, LAYOUT)
    kept = result.recipe.passes[0].options()["kept"]
    assert isinstance(kept, dict)
    assert len({str(each) for each in kept.values()}) == 1
    assert plan.after.cache_bytes == cache_bytes(result.graph, 4096)
    assert run_pipeline(model.graph, result.recipe).graph.equals(result.graph)


@pytest.mark.parametrize(
    ("fields", "options", "kind"),
    [
        ({}, "rank=6, rope=0", OptionConflictError),
        ({}, "rank=6", OptionConflictError),
        ({}, "rank=6, rope=4, form=absorbed", OptionConflictError),
        ({}, "total=18, rope=4", OptionConflictError),
        ({}, "rank=6, rope=4, layers=1", OptionConflictError),
        ({}, "rank=[6, 6, 5], rope=4", OptionConflictError),
        ({}, "rank=6, rope=4, kept={0: [0, 1], 1: [0, 0], 2: [0, 1]}", OptionConflictError),
        ({}, "rank=13, rope=4", RankError),
        ({"qk_norm": True}, "rank=6, rope=4", StructureError),
        ({"bias": True}, "rank=6, rope=4", StructureError),
        ({"gate": True}, "rank=6, rope=4", StructureError),
        ({"windows": {1: 5}}, "rank=6, rope=4", StructureError),
        ({"reads": {2: 0}}, "rank=6, rope=4", StructureError),
    ],
)
def test_refusals(decoder: Any, fields: dict[str, Any], options: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        run_pipeline(decoder(**fields).graph, parse_pipeline(f"to-latent{{{options}, layout=deepseek}}"))


def test_the_program_computes_the_same(decoder: Any, tmp_path: Path) -> None:
    model = decoder()
    graph = model.interpreter(rewritten(model, LAYOUT)).graph
    program = emitted(graph, tmp_path / "program", "f64")
    expected = program.interpreter(model.tokens)
    bound = 1e-12 * float(expected.abs().max())
    with torch.no_grad():
        assert (program.model(model.tokens) - expected).abs().max() < bound
        cache = program.model.new_cache(6, 24)
        parts = [program.model(model.tokens[:, i : i + 1], cache) for i in range(24)]
        assert (torch.cat(parts, 1) - expected).abs().max() < bound
    assert cache.nbytes == 6 * cache_bytes(graph, 24)
