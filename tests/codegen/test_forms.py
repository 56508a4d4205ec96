"""Layers in two forms in one program: a single token goes one way, several the other, over the same cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import regraft
from regraft.codegen.package import emit
from regraft.codegen.torch.forms import Forms, either
from regraft.frontends.twin import write_twin
from regraft.ir.interpret import Interpreter
from regraft.ir.source import TensorSource
from regraft.passes.latent_forms import decoding_form
from regraft.passes.pipeline import run_pipeline
from regraft.passes.recipe import parse_pipeline
from regraft.programs import load_program
from tests.codegen.programs import small
from tests.frontends.agreement import twin_graph
from tests.frontends.cases import CASES

TOKENS = torch.arange(2 * 40).view(2, 40) * 37 % 128


@pytest.mark.parametrize("name", ["DeepSeek-V2-Lite", "DeepSeek-V3.2"])
def test_prefill_is_expanded_and_decode_is_absorbed(name: str, tmp_path: Path) -> None:
    graph, tensors = twin_graph(CASES[name])
    source = TensorSource(tensors)
    expected = Interpreter(graph, source)(TOKENS)
    limit = 1e-5 * max(1.0, float(expected.abs().max()) / 4)
    emit(Forms(graph, decoding_form(graph)), source, tmp_path / "package")
    model = load_program(tmp_path / "package", dtype="float32")
    with torch.no_grad():
        for sizes in ((40,), (30, *(1,) * 10), (1,) * 40, (7, 1, 16, 1, 1, 14)):
            cache = model.new_cache(2, 40)
            found = torch.cat([model(part, cache) for part in TOKENS.split(sizes, 1)], 1)
            assert float((found - expected).abs().max()) < limit
        cache = model.new_cache(2, 40)
        model(TOKENS[:, :20], cache, torch.tensor([20, 13]))
        step = model(TOKENS[:, 20:21], cache)
    assert float((step[0] - expected[0, 20:21]).abs().max()) < limit


def test_each_form_does_its_own_arithmetic(tmp_path: Path) -> None:
    # one matrix: expanded keys call it as a module, queries are multiplied from its other side
    graph, tensors = twin_graph(CASES["DeepSeek-V2-Lite"])
    emit(Forms(graph, decoding_form(graph)), TensorSource(tensors), tmp_path / "package")
    text = (tmp_path / "package" / "model.py").read_text(encoding="utf-8")
    kinds = text.count("class Full")
    assert text.count("self.k_b_proj(row_latent)") == text.count("grouped_linear_back(q_plain, self.k_b_proj.weight)")
    assert text.count("self.k_b_proj(row_latent)") == kinds
    assert text.count("has a form of fewer operations for a single token") == kinds
    assert max(map(len, text.splitlines())) <= 120


def test_expanded_rows_that_another_layer_reads_too(tmp_path: Path) -> None:
    # they are in no cache, so the layer that makes them gives them on in every call, and they stay expanded
    graph, tensors = twin_graph(CASES["DeepSeek-V3"])
    shared = run_pipeline(graph, parse_pipeline("share-kv{donor={1: 0}, refit=false}")).graph
    source = TensorSource(tensors)
    expected = Interpreter(shared, source)(TOKENS)
    emit(Forms(shared, decoding_form(shared)), source, tmp_path / "package")
    model = load_program(tmp_path / "package", dtype="float32")
    with torch.no_grad():
        cache = model.new_cache(2, 40)
        found = torch.cat([model(part, cache) for part in TOKENS.split((30, *(1,) * 10), 1)], 1)
    assert float((found - expected).abs().max()) < 1e-5 * max(1.0, float(expected.abs().max()) / 4)


@pytest.mark.parametrize("whole", [True, False])
def test_the_step_compiles_with_the_form_of_single_tokens(whole: bool, tmp_path: Path) -> None:
    graph, tensors = twin_graph(CASES["DeepSeek-V2-Lite"])
    source = TensorSource(tensors)
    expected = Interpreter(graph, source)(TOKENS)
    emit(Forms(graph, decoding_form(graph)), source, tmp_path / "package")
    model = load_program(tmp_path / "package", dtype="float32")
    model.compile(whole=whole, backend="eager")
    with torch.no_grad():
        cache = model.new_cache(2, 40)
        found = torch.cat([model(part, cache) for part in TOKENS.split((36, 1, 1, 1, 1), 1)], 1)
    assert float((found - expected).abs().max()) < 1e-5 * max(1.0, float(expected.abs().max()) / 4)


def test_models_without_latents_have_one_form() -> None:
    graph = small("windows and full")
    assert decoding_form(graph) is None


def test_build_writes_both_forms(tmp_path: Path) -> None:
    twin = write_twin(CASES["DeepSeek-V2-Lite"], tmp_path / "twin", seed=0)
    package = regraft.build(twin, tmp_path / "package")
    assert "grouped_linear_back" in (package / "model.py").read_text(encoding="utf-8")
    assert "grouped_linear" not in (package / "graph.rg").read_text(encoding="utf-8")
    assert regraft.verify(twin, against=package).passed


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (["a", "b"], ["a", "b"], ["a", "b"]),
        (["a", "x", "b"], ["a", "y", "b"], ["a", "if t:", "    x", "else:", "    y", "b"]),
        (["a", "x(", "    1,", ")", "b"], ["a", "b"], ["a", "if t:", "    x(", "        1,", "    )", "b"]),
        (["a", "b"], ["a", "y", "b"], ["a", "if not (t):", "    y", "b"]),
        (["x(", "    1,", ")"], ["x(", "    2,", ")"],
         ["if t:", "    x(", "        1,", "    )", "else:", "    x(", "        2,", "    )"]),
    ],
)  # fmt: skip
def test_what_two_bodies_share_stands_once(first: list[str], second: list[str], expected: list[str]) -> None:
    assert either("t", first, second) == expected
