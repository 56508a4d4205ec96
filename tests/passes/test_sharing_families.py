"""`share-kv` and `budget-heads` on families' twins: programs of what they make, and reasons where they do not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from regraft.ir.errors.recipe import StructureError
from regraft.passes.fitting.fold import folded
from regraft.passes.pipeline import run_pipeline
from regraft.passes.recipe import parse_pipeline
from tests.codegen.programs import emitted
from tests.passes.exactness import TOKENS, twin

MAPPED = "share-kv{choose=1, donor=measured, level=map}"
PADDED = "budget-heads{heads=0.75, layout=padded}"


@pytest.mark.parametrize("name", ["Qwen3-0.6B", "gemma-4-26B-A4B", "laguna-XS.2", "qwen2"])
def test_programs_map_rows_and_have_heads_of_zeros(name: str, tmp_path: Path) -> None:
    check_program(name, f"{MAPPED},{PADDED}", tmp_path)


@pytest.mark.parametrize("name", ["gemma-4-26B-A4B", "glm4", "smollm3"])
def test_programs_read_across_heads(name: str, tmp_path: Path) -> None:
    check_program(name, "share-kv{choose=1, donor=measured, level=cross}", tmp_path)


def check_program(name: str, pipeline: str, tmp_path: Path) -> None:
    graph = run_pipeline(twin(name)[0], parse_pipeline(pipeline), assume=True).graph
    program = emitted(folded(graph), tmp_path / "program")
    expected = program.interpreter(TOKENS)
    bound = 1e-5 * max(1.0, float(expected.abs().max()) / 4)
    with torch.no_grad():
        cache = program.model.new_cache(2, 40)
        parts = [program.model(part, cache) for part in TOKENS.split((30, 9, 1), 1)]
    assert float((torch.cat(parts, 1) - expected).abs().max()) < bound


@pytest.mark.parametrize(
    ("name", "pipeline", "reason"),
    [
        ("gpt-oss-20b", "share-kv{choose=1, donor=measured}", "has a bias, which a refit does not fit"),
        ("DeepSeek-V3", MAPPED, "no keys and values side by side"),
        ("qwen2", "share-kv{choose=1, donor=measured, level=input}", "biases, which the fit does not fit"),
        ("gpt-oss-20b", "budget-heads{total=0.75}", "has a bias, which a refit does not fit"),
        ("olmo2", "budget-heads{total=0.75}", "makes the heads in a way that cannot be cut"),
    ],
)
def test_where_no_layer_allows_it_the_first_says_why(name: str, pipeline: str, reason: str) -> None:
    with pytest.raises(StructureError, match=reason):
        run_pipeline(twin(name)[0], parse_pipeline(pipeline), assume=True)
