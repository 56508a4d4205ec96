"""`budget-heads` with a refit of the MLP's last projection, which makes up for more than the output projection can."""

from __future__ import annotations

from typing import Any

import torch

from regraft.passes.base import Constraints
from regraft.passes.fitting.damage import Damage, Edit
from regraft.passes.pipeline import run_pipeline
from regraft.passes.recipe import parse_pipeline
from tests.passes.exactness import twin

KEEP = "budget-heads{keep={0: [0, 1], 1: [0, 1]}, mlp=%s}"


def test_the_mlp_makes_up_for_more() -> None:
    graph, source = twin("Llama-3.1-8B")
    torch.manual_seed(0)
    tokens = torch.randint(0, 128, (50, 40))

    def edit(mlp: str) -> Edit:
        (step,) = parse_pipeline(KEEP % mlp).passes
        return step.decide(graph, None, Constraints()).rewrite

    without, fitted = Damage(graph, graph, source, tokens, tokens).measure([edit("false"), edit("true")])
    assert 0 < fitted < 0.95 * without
    notes = run_pipeline(graph, parse_pipeline(KEEP % "true")).steps[0].report.applied
    assert all(note.text.endswith("MLP too") or "MLP too;" in note.text for note in notes)


def test_a_layer_without_an_mlp_says_so(decoder: Any) -> None:
    result = run_pipeline(decoder().graph, parse_pipeline("budget-heads{keep={2: [0, 3]}, mlp=true}"))
    (note,) = result.steps[0].report.applied
    assert "MLP as it was (nothing is added to the stream after the attention)" in note.text
