"""`window` in numbers: exact while nothing is forgotten, and what is forgotten is what the identity says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.ir.cost import cache_bytes
from regraft.ir.errors.recipe import OptionRangeError, ShortWindowsError, StructureError
from regraft.ir.graph import Graph
from regraft.passes.fitting.measure import Measurements
from regraft.passes.pipeline import run_pipeline
from regraft.passes.recipe import parse_pipeline

LENGTH, ROW = 24, 2 * (4 + 4) * 8  # tokens of the small decoders' text, bytes of a row of their memories


def rewritten(model: Any, pipeline: str, measure: Measurements | None = None) -> Graph:
    return run_pipeline(model.graph, parse_pipeline(pipeline), measure).graph


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("sinks", [0, 3])
@pytest.mark.parametrize("local", ["", ", local={0: [1], 1: [0]}"])
def test_nothing_changes_while_nothing_is_forgotten(decoder: Any, sinks: int, local: str) -> None:
    model = decoder(gate=bool(sinks))
    graph = rewritten(model, f"window{{window={LENGTH - sinks}, sinks={sinks}, refit=false{local}}}")
    assert distance(model.logits(graph), model.logits(model.graph)) < 1e-12


@pytest.mark.parametrize(
    "fields", [{}, {"qk_norm": True, "gate": True}, {"windows": {0: 20, 2: 18}}, {"reads": {2: 1}}]
)
def test_what_is_forgotten_changes_the_rest_and_the_refit_makes_up_for_a_part(
    decoder: Any, fields: dict[str, Any]
) -> None:
    model = decoder(**fields)
    original = model.logits(model.graph)
    raw, fitted = (
        model.logits(rewritten(model, f"window{{window=6, sinks=2, refit={refit}}}")) for refit in ("false", "true")
    )
    assert distance(raw[:, :8], original[:, :8]) < 1e-12
    assert 0.01 < distance(fitted, original) < 0.97 * distance(raw, original)


def test_the_output_error_is_the_forgotten_mass_times_the_difference_of_means(decoder: Any) -> None:
    # equation (7) of specs/passes_math.md, for one layer whose input is the original's
    model = decoder(layers=1, heads=1, kv_heads=1)
    graph = rewritten(model, "window{window=5, sinks=1, refit=false}")
    edges = ["layers.0.attn.q_rope", "layers.0.attn.k_rope", "layers.0.attn.v", "layers.0.attn.ctx"]
    found = model.run(model.graph, edges)
    q, k, v, whole = (found[name].squeeze(2) for name in edges)
    seen = model.run(graph, edges[3:])[edges[3]].squeeze(2)
    age = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    shares = (q @ k.transpose(1, 2) / 2).masked_fill(age < 0, -torch.inf).softmax(-1)
    hidden = (age >= 5) & (torch.arange(LENGTH) >= 1)
    lost = (shares * hidden).sum(-1, keepdim=True)
    inside = (shares * ~hidden) @ v / (1 - lost)
    outside = (shares * hidden) @ v / lost.clamp(min=1e-300)
    assert torch.allclose(whole - seen, lost * (outside - inside), rtol=0, atol=1e-12)
    assert float(lost.max()) > 0.1


def test_a_fitted_sink_has_the_mean_weight_of_what_is_forgotten(decoder: Any) -> None:
    model = decoder(layers=1)
    graph = rewritten(model, "window{window=5, sink=fitted, refit=false}")
    name = "layers.0.attn.sink"
    edges = ["layers.0.attn.q_rope", "layers.0.attn.k_rope"]
    found = model.run(model.graph, edges)
    q, k = (found[name] for name in edges)
    scores = torch.einsum("bthd,bshd->bhts", q, k[:, :, [0, 0, 1, 1]]) / 2
    hidden = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH) >= 5
    wanted = (scores.exp() * hidden).sum(-1)[..., 5:].mean((0, 2)).log()
    assert torch.allclose(model.fitted(graph)[name], wanted, rtol=0, atol=1e-12)
    raw = rewritten(model, "window{window=5, sinks=0, refit=false}")
    original = model.logits(model.graph)
    assert 0.01 < distance(model.logits(graph), original) != distance(model.logits(raw), original)


def test_the_cache_is_as_predicted(decoder: Any) -> None:
    model = decoder(layers=2)
    whole = cache_bytes(model.graph, 100)
    assert whole == 2 * 100 * ROW
    assert cache_bytes(rewritten(model, "window{window=10, sinks=4, layers=1}"), 100) == (100 + 14) * ROW
    split = rewritten(model, "window{window=10, sinks=4, local={1: [0]}}")
    assert cache_bytes(split, 100) == 100 * ROW + (100 + 14) * ROW // 2


def test_layers_and_heads_are_chosen_by_what_each_costs_alone(decoder: Any) -> None:
    model = decoder(layers=3)
    model.weight(1, "o_proj").mul_(0.01)  # this layer matters least
    model.weight(0, "o_proj")[:, 8:].mul_(0.01)  # and of layer 0, the heads that read KV head 1
    measure = Measurements(model.graph, model.source, model.tokens)
    result = run_pipeline(model.graph, parse_pipeline("window{window=5, choose=1, refit=false}"), measure)
    assert str(result.recipe.passes[0]) == "window{window=5, layers=1, sinks=4, refit=false}"
    again = run_pipeline(model.graph, parse_pipeline(result.recipe.to_pipeline(expanded=True)))
    assert again.graph.equals(result.graph)
    result = run_pipeline(model.graph, parse_pipeline("window{window=5, layers=0, full_heads=1, refit=false}"), measure)
    assert "local={0: [1]}" in str(result.recipe.passes[0])


def test_a_window_that_the_model_never_outruns_is_remarked(decoder: Any) -> None:
    model = decoder()
    model.graph.meta["context"] = 64
    for options, remarked in (("window=60", True), ("window=59", False), ("window=64, sinks=0", True)):
        plan = run_pipeline(model.graph, parse_pipeline(f"window{{{options}, refit=false}}"))
        told = [note.text for note in plan.steps[0].report.applied]
        assert all(("made for 64 tokens, up to which nothing changes" in each) is remarked for each in told)


def test_layers_that_cannot_are_named_with_those_that_can(decoder: Any) -> None:
    model = decoder(layers=3)
    narrow = rewritten(model, "window{window=4, layers=[1, 2], refit=false}")
    with pytest.raises(StructureError) as caught:
        run_pipeline(narrow, parse_pipeline("window{window=5, layers=all, refit=false}"))
    assert "help: leave layers 1..2 out (the pass fits 0)" in str(caught.value)
    with pytest.raises(StructureError) as caught:
        run_pipeline(rewritten(model, "window{window=4, refit=false}"), parse_pipeline("window{window=5, layers=1}"))
    assert "help: leave the pass out, as no layer of this model fits it" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "legal"),
    [("choose=4", "from 1 to 3"), ("full_heads=2", "from 1 to 1"), ("local={1: [2]}", "for layer 1 from 0 to 1")],
)
def test_counts_that_do_not_fit_name_those_that_do(decoder: Any, options: str, legal: str) -> None:
    with pytest.raises(OptionRangeError, match=legal):
        rewritten(decoder(), f"window{{window=5, {options}, refit=false}}")


def test_text_as_short_as_the_window_shows_nothing() -> None:
    recipe = parse_pipeline("window{window=1024},calibration{text=builtin:sample}")
    with pytest.raises(ShortWindowsError, match="512 tokens show nothing of what changes from 1029 tokens on"):
        recipe.check_calibration()


@pytest.mark.parametrize(
    "then",
    ["budget-heads{heads=1, score=weight-norm, refit=false}", "merge-kv-heads{heads=1, method=mean, refit=false}"],
)
def test_heads_that_are_parted_are_not_counted_as_if_they_were_all(decoder: Any, then: str) -> None:
    """A count would be taken for that of one of the two parts, which may hold it already."""
    with pytest.raises(StructureError, match="layer 0: some heads attend in one way"):
        rewritten(decoder(), f"window{{window=5, local={{0: [1]}}, refit=false}},{then}")
