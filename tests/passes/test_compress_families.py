"""`compress-seq` on twins of real families: as they are up to the window, and their programs agree in any calls."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from regraft.codegen.package import emit
from regraft.frontends.family import read_config
from regraft.frontends.folder import open_model
from regraft.frontends.lift import lift_config
from regraft.frontends.tensors import Declared
from regraft.frontends.twin import random_tensors, twin_config
from regraft.ir.cost import cache_bytes
from regraft.ir.interpret import Interpreter
from regraft.ir.source import TensorSource
from regraft.passes.pipeline import run_pipeline
from regraft.passes.recipe import parse_pipeline
from regraft.programs import load_program

BOUND, WINDOW, RATE = 1e-5, 9, 4
WHOLE = WINDOW + RATE - 1
CASES = {  # the form, and the layers that can be compressed
    "Llama-3.1-8B": ("gates=true, overlap=true, keys=middle", [0, 1]),
    "Qwen3-8B": ("sinks=4", [0, 1]),
    "Mistral-7B-v0.3": ("chosen=1", [0, 1]),
    "gemma-4-26B-A4B": ("gates=true, chosen=1, index=light", [2, 3]),
    "laguna-XS.2": ("keys=middle, sinks=4", [0, 1, 4, 5]),
    "gpt-oss-20b": ("overlap=true, chosen=1", [1, 3]),
}


def worst(found: Tensor, expected: Tensor) -> float:
    return float((found.detach() - expected).abs().max()) / max(1.0, float(expected.abs().max()) / 4)


@pytest.mark.parametrize("name", CASES)
def test_twins_are_as_they_are_up_to_the_window(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    form, layers = CASES[name]
    graph = lift_config(read_config(twin_config(open_model(f"builtin:{name}").config)), Declared("f32"))
    source = TensorSource({key: torch.from_numpy(array) for key, array in random_tensors(graph, 0).items()})
    result = run_pipeline(graph, parse_pipeline(f"compress-seq{{rate={RATE}, window={WINDOW}, refit=false, {form}}}"))
    assert [note.layer for note in result.steps[0].report.applied] == layers
    tokens = torch.arange(60).view(2, 30) * 17 % 128
    original, expected = (Interpreter(each, source)(tokens) for each in (graph, result.graph))
    assert worst(expected[:, :WHOLE], original[:, :WHOLE]) <= BOUND
    assert worst(expected, original) > 0.1
    program = load_program(emit(result.graph, source, tmp_path / "program"), dtype="float32")
    cache = program.new_cache(2, 30)
    assert cache.nbytes == cache_bytes(result.graph, 30, 2)
    assert worst(program(tokens), expected) <= BOUND
    assert worst(torch.cat([program(part, cache) for part in tokens.split((1, 7, 1, 21), 1)], 1), expected) <= BOUND
