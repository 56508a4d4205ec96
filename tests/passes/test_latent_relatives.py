"""Latents on twins of every family: exact at the full rank, as programs too, and among other passes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from regraft.ir.cost import cache_bytes
from regraft.ir.errors.recipe import StructureError
from regraft.ir.interpret import Interpreter
from regraft.ir.source import TensorSource
from regraft.passes.fitting.fold import fitted_parameters, folded
from regraft.passes.fitting.sweep import Sweep, evaluate
from regraft.passes.pipeline import run_pipeline
from regraft.passes.recipe import parse_pipeline
from tests.passes.exactness import TOKENS, check_blocks, check_program, close, run, twin

FAMILIES = {  # and what the cache is of what it was at the full rank: the input is narrower than keys and values
    "Llama-3.2-1B": 1.0,
    "Mistral-7B-v0.3": 1.0,
    "Qwen3-0.6B": 11 / 16,
    "Qwen3.6-27B": None,
    "gemma-4-26B-A4B": None,
    "gemma-4-E2B": 1.0,
    "laguna-XS.2": 11 / 16,
    "gpt-oss-20b": 2 / 3,
    "ZAYA1-8B": 1.0,
    "qwen3, later layers slide, biases": 1.0,
    "glm4": 1.0,
    "granite": 0.5,
    "phi3": 1.0,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_exact_on_every_family(name: str) -> None:
    share = FAMILIES[name]
    check_blocks(name, "gqa-to-latent")
    check_blocks(name, "to-latent{rank=1.0}")
    graph, source = twin(name)
    full = run(graph, "to-latent{rank=1.0}").graph
    close(Interpreter(full, source)(TOKENS), Interpreter(graph, source)(TOKENS))
    assert cache_bytes(run(graph, "gqa-to-latent").graph, 40) == cache_bytes(graph, 40)
    assert cache_bytes(full, 40) <= cache_bytes(graph, 40)
    assert share is None or cache_bytes(full, 40) == share * cache_bytes(graph, 40)


@pytest.mark.parametrize("name", ["gemma-4-26B-A4B", "gemma-4-E2B", "laguna-XS.2", "glm4"])
def test_programs_turn_rows_as_they_read_them(name: str, tmp_path: Path) -> None:
    graph, source = twin(name)
    done = run(graph, "to-latent{rank=1.0}").graph
    tensors = {value.name: evaluate(value, source) for value in done.parameters()}
    expected = Interpreter(graph, source)(TOKENS)
    check_program(folded(done), TensorSource(tensors), expected, tmp_path / "program")


@pytest.mark.parametrize("name", ["DeepSeek-V3", "DeepSeek-V4-Flash"])
def test_memories_that_are_no_keys_and_values_are_refused(name: str) -> None:
    for pipeline in ("gqa-to-latent", "to-latent{rank=8}"):
        with pytest.raises(StructureError, match="layer 0"):
            run(twin(name)[0], pipeline)


COMPOSED = """share-kv{groups=2, refit=false},to-latent{rank=0.5},budget-heads{heads=0.5, score=weight-norm},
window{layers="kind == full", window=16, sinks=2, refit=false}"""


@pytest.mark.parametrize("name", ["Llama-3.2-1B", "Mistral-7B-v0.3", "Qwen3-0.6B", "gemma-4-E2B", "laguna-XS.2"])
def test_among_other_passes(name: str) -> None:
    graph, source = twin(name)
    pipeline = " ".join(COMPOSED.split())
    if name.startswith(("Mistral", "gemma", "laguna")):
        pipeline = pipeline.partition(",window")[0]
    result = run_pipeline(graph, parse_pipeline(pipeline), assume=True)
    before, after = (cache_bytes(g, 4096) for g in (graph, result.graph))
    assert 0 < after < 0.5 * before
    sweep = Sweep(result.graph, graph, source, torch.randint(0, 128, (4, 32)))
    fitted = {value.name: tensor for value, tensor in sweep.solve(fitted_parameters(result.graph))}
    assert any("kv_a_proj" in name for name in fitted)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in fitted.values())
