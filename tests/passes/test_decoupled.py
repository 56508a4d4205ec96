"""`to-latent` with one rotated key for all heads: exact where everything goes on turning, near where little is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from regraft.ir.cost import cache_bytes
from regraft.ir.errors.recipe import OptionConflictError, RankError, StructureError
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.pos import Rope
from regraft.passes.pipeline import run_pipeline
from regraft.passes.plan import make_plan
from regraft.passes.recipe import parse_pipeline
from tests.codegen.programs import emitted
from tests.passes.test_latents import distance, error, measured, rewritten

FORMS: list[dict[str, Any]] = [{}, {"qk_norm": True, "bias": True}, {"windows": {0: 5}, "gate": True}, {"kv_heads": 1}]


@pytest.mark.parametrize("fields", FORMS)
@pytest.mark.parametrize("form", ["reconstruct", "absorbed"])
def test_with_all_frequencies_and_the_full_rank_it_is_exact(decoder: Any, fields: dict[str, Any], form: str) -> None:
    model = decoder(**fields)
    kv_heads = int(fields.get("kv_heads", 2))
    full = 16 if "qk_norm" in fields else min(12, 8 * kv_heads)
    pipeline = f"to-latent{{rank={full}, rope={4 * kv_heads}, form={form}, refit=false}}"
    graph = rewritten(model, pipeline)
    assert distance(model.logits(graph), model.logits(model.graph)) < 1e-10
    stored = full + 4 * kv_heads
    assert cache_bytes(graph, 24) * 8 * kv_heads == cache_bytes(model.graph, 24) * stored
    less = error(model, pipeline.replace(f"rope={4 * kv_heads}", f"rope={4 * kv_heads - 2}"))
    assert 1e-6 < less < 0.2


def test_the_absorbed_form_is_the_same_function_in_the_same_rows(decoder: Any) -> None:
    model = decoder(qk_norm=True)
    plain, absorbed = (rewritten(model, f"to-latent{{rank=6, rope=2, form={f}}}") for f in ("reconstruct", "absorbed"))
    assert distance(model.logits(absorbed), model.logits(plain)) < 1e-12
    assert cache_bytes(absorbed, 24) == cache_bytes(plain, 24)
    back = run_pipeline(absorbed, parse_pipeline("expand-mla")).graph
    assert sorted(op.opname for op in back.run_time()) == sorted(op.opname for op in plain.run_time())
    widths = {op.q.tensor.shape[-1] for op in absorbed.ops if isinstance(op, Attend)}
    assert widths == {6 + 2}


def test_frequencies_that_never_differ_are_not_kept(decoder: Any) -> None:
    # all frequencies of layer 1 but the first barely turn over the text: without energy x spread they would be kept
    model = decoder(layers=1, heads=2, kv_heads=2)
    for op in model.graph.ops:
        if isinstance(op, Rope):
            model.graph.set_attribute(op, "base", 1e12)
    model.weight(0, "k_proj")[[1, 3, 5, 7]] *= 10
    result = measured(model, "to-latent{rank=12, rope=4, refit=false}")
    assert result.recipe.passes[0].options()["kept"] == {0: [0, 0]}
    assert distance(model.logits(result.graph), model.logits(model.graph)) < 1e-3
    slow = "to-latent{rank=12, rope=4, kept={0: [1, 1]}, refit=false}"
    assert error(model, slow) > 0.05


def test_what_a_frequency_carries_decides_and_is_written_down(decoder: Any) -> None:
    model = decoder()
    pipeline = parse_pipeline("to-latent{rank=6, rope=4}")
    plan = make_plan(model.graph, pipeline)
    assert not plan.result.decided
    result = measured(model, "to-latent{rank=6, rope=4}")
    kept = result.recipe.passes[0].options()["kept"]
    assert isinstance(kept, dict)
    assert all(isinstance(each, list) and len(each) == 2 for each in kept.values())
    assert plan.after.cache_bytes == cache_bytes(result.graph, 4096)
    assert run_pipeline(model.graph, result.recipe).graph.equals(result.graph)


def test_more_channels_lose_less(decoder: Any) -> None:
    model = decoder(layers=1)
    found = [error(model, f"to-latent{{rank=12, rope={rope}, refit=false}}") for rope in (0, 2, 4, 6, 8)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 0.01
    assert found[-1] < 1e-12


@pytest.mark.parametrize(
    ("fields", "pipeline", "kind"),
    [
        ({}, "to-latent{rank=6, rope=3}", RankError),
        ({}, "to-latent{rank=6, rope=10}", RankError),
        ({}, "to-latent{rank=6, rope=4, kept={0: [0, 0], 1: [0, 2], 2: [0, 1]}}", RankError),
        ({}, "to-latent{rank=6, rope=4, kept={0: [0]}, layers=0}", RankError),
        ({}, "to-latent{rank=6, kept={0: [0]}}", OptionConflictError),
        ({}, "to-latent{rank=6, alike=true}", OptionConflictError),
        ({"reads": {2: 0}}, "to-latent{rank=6, rope=4}", StructureError),
    ],
)
def test_refusals(decoder: Any, fields: dict[str, Any], pipeline: str, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        run_pipeline(decoder(**fields).graph, parse_pipeline(pipeline))


@pytest.mark.parametrize("form", ["reconstruct", "absorbed"])
def test_the_program_computes_the_same(decoder: Any, form: str, tmp_path: Path) -> None:
    model = decoder(windows={1: 5}, qk_norm=True)
    graph = model.interpreter(rewritten(model, f"to-latent{{rank=6, rope=2, form={form}}}")).graph
    program = emitted(graph, tmp_path / "program", "f64")
    expected = program.interpreter(model.tokens)
    bound = 1e-12 * float(expected.abs().max())
    with torch.no_grad():
        assert (program.model(model.tokens) - expected).abs().max() < bound
        cache = program.model.new_cache(6, 24)
        parts = [program.model(model.tokens[:, i : i + 1], cache) for i in range(24)]
        assert (torch.cat(parts, 1) - expected).abs().max() < bound
    assert cache.nbytes == 6 * cache_bytes(graph, 24)
