"""`key-from-value` in numbers: the same function with a smaller cache, on Gemma 4's larger models."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch

from regraft.codegen.package import emit
from regraft.frontends.folder import open_model
from regraft.frontends.lift import lift
from regraft.ir.cost import cache_bytes, parameters
from regraft.ir.errors.recipe import StructureError
from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter
from regraft.ir.ops.attn import Attend
from regraft.ir.parse import parse_graph
from regraft.ir.source import TensorSource
from regraft.ir.text import print_graph
from regraft.passes.pipeline import run_pipeline
from regraft.passes.recipe import parse_pipeline
from regraft.programs import load_program
from tests.frontends.agreement import twin_graph
from tests.frontends.cases import CASES

MODELS = ["gemma-4-26B-A4B", "gemma-4-31B"]
TOKENS = torch.arange(2 * 40).view(2, 40) * 37 % 128


@cache
def twin(name: str) -> tuple[Graph, TensorSource]:
    graph, tensors = twin_graph(CASES[name])
    return graph, TensorSource(tensors)


def rewritten(graph: Graph, pipeline: str) -> Graph:
    result = run_pipeline(graph, parse_pipeline(pipeline))
    assert parse_graph(print_graph(result.graph)).equals(result.graph)
    again = run_pipeline(result.original, result.recipe)
    assert again.graph.equals(result.graph)
    return result.graph


@pytest.mark.parametrize("rotated", ["kept", "read"])
@pytest.mark.parametrize("name", MODELS)
def test_it_is_the_same_function_and_so_is_the_program(name: str, rotated: str, tmp_path: Path) -> None:
    graph, source = twin(name)
    kept = rewritten(graph, f"key-from-value{{rotated={rotated}}}")
    edges = [op.out.name for op in graph.ops if isinstance(op, Attend)]
    found, wanted = (Interpreter(g, source, "f64").run(TOKENS, edges=edges) for g in (kept, graph))
    assert max(float((found[edge] - wanted[edge]).norm() / wanted[edge].norm()) for edge in edges) < 1e-12
    expected = Interpreter(graph, source)(TOKENS)
    limit = 1e-5 * max(1.0, float(expected.abs().max()) / 4)
    assert float((Interpreter(kept, source)(TOKENS) - expected).abs().max()) < limit
    emit(kept, source, tmp_path / "package")
    model = load_program(tmp_path / "package", dtype="float32")
    with torch.no_grad():
        for sizes in ((40,), (30, *(1,) * 10), (7, 1, 16, 16)):
            memory = model.new_cache(2, 40)
            logits = torch.cat([model(part, memory) for part in TOKENS.split(sizes, 1)], 1)
            assert float((logits - expected).abs().max()) < limit


@pytest.mark.parametrize(("rotated", "numbers"), [("kept", 640), ("read", 512)])
@pytest.mark.parametrize(("name", "layers", "heads"), [("gemma-4-26B-A4B", 5, 2), ("gemma-4-31B", 10, 4)])
def test_the_cache_to_the_byte(name: str, layers: int, heads: int, rotated: str, numbers: int) -> None:
    # specs/gemma4.md: heads of 512 with a key and a value each; 128 channels of a key turn
    graph = lift(open_model(f"builtin:{name}"), strict=False).graph
    kept = rewritten(graph, f"key-from-value{{rotated={rotated}}}")
    saved = layers * heads * (1024 - numbers) * 2
    for context in (1, 4096, 131072):
        assert cache_bytes(graph, context) - cache_bytes(kept, context) == saved * context
    assert parameters(kept) == parameters(graph)


def test_a_cache_of_the_interpreter_holds_as_much(tmp_path: Path) -> None:
    graph, source = twin("gemma-4-31B")
    sizes: list[int] = []
    for each in (graph, rewritten(graph, "key-from-value{rotated=read}")):
        interpreter = Interpreter(each, source)
        memory = interpreter.new_cache(2)
        interpreter(TOKENS, memory)
        held = sum(field.numel() * 4 for rows in memory.rows.values() for field in rows.fields.values())
        assert held == cache_bytes(each, 40, batch=2)
        sizes.append(held)
    assert sizes[1] < sizes[0]


def test_windowed_layers_have_keys_of_their_own() -> None:
    graph, _ = twin("gemma-4-31B")
    with pytest.raises(StructureError, match=r"layer 0: its keys .* do not come from its values") as caught:
        run_pipeline(graph, parse_pipeline("key-from-value{layers=0}"))
    assert "layers" in str(caught.value)


@pytest.mark.parametrize("name", ["gemma-4-E2B", "DeepSeek-V3"])
def test_other_models_are_refused(name: str) -> None:
    with pytest.raises(StructureError):
        run_pipeline(twin(name)[0], parse_pipeline("key-from-value"))
