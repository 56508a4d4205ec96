"""Target ``triton``: what no kernel computes of a step is compiled, each class of layers once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.codegen.package import emit
from regraft.codegen.torch_forms import Forms
from regraft.frontends.folder import open_model
from regraft.ir.interpret import Interpreter
from regraft.ir.source import TensorSource
from regraft.passes.fusion import DECODE
from regraft.passes.fusion.delta import group_delta
from regraft.passes.fusion.groups import Grouping
from regraft.programs import load_program
from tests.codegen.programs import tokens_of
from tests.codegen.test_compile import Recorder
from tests.frontends.agreement import twin_graph


def built(name: str, folder: Path) -> tuple[Any, Interpreter]:
    """Return the program of a model's twin without a kernel for the delta rule, and its interpreter."""
    graph, tensors = twin_graph(dict(open_model(f"builtin:{name}").config))
    source, grouping = TensorSource(tensors), Grouping(graph)
    for rule in DECODE:
        if rule is not group_delta:
            rule(grouping)
    emit(Forms(graph, fused=grouping.fused()), source, folder, target="triton")
    model = load_program(folder, dtype="float32")
    type(model).run.__globals__["INTERPRETED"] = False  # kernels as plain functions
    return model, Interpreter(graph, source)


def stepped(model: Any, tokens: Tensor) -> Tensor:
    cache = model.new_cache(len(tokens), tokens.shape[1])
    parts = [model(tokens[:, :4], cache)]
    parts += [model(tokens[:, at : at + 1], cache) for at in range(4, tokens.shape[1])]
    return torch.cat(parts, 1)


def close(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()) / 4))


def test_classes_with_other_operations_than_kernels_are_compiled(tmp_path: Path) -> None:
    torch.compiler.reset()
    model, interpreter = built("Qwen3-Next-80B-A3B", tmp_path / "package")
    mixed = type(model).run.__globals__["MIXED"]
    layers = sum(isinstance(layer, mixed) for layer in model.layers)
    assert 0 < layers <= len(model.layers)
    recorder = Recorder()
    for _ in range(2):
        model.compile(backend=recorder)
    tokens = tokens_of(2, 10)
    assert close(stepped(model, tokens), interpreter(tokens))
    assert len(recorder.graphs) == len(mixed)
    assert recorder.calls == 6 * layers


def test_kernels_alone_are_left_as_they_are(tmp_path: Path) -> None:
    model, _ = built("Qwen3-8B", tmp_path / "package")
    recorder = Recorder()
    model.compile(backend=recorder)
    stepped(model, tokens_of(1, 6))
    assert not recorder.graphs


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Qwen3-Next-80B-A3B", "Qwen3.6-35B-A3B"])
def test_compiled_by_inductor(name: str, tmp_path: Path) -> None:
    torch.compiler.reset()
    model, interpreter = built(name, tmp_path / "package")
    model.compile()
    tokens = tokens_of(2, 10)
    assert close(stepped(model, tokens), interpreter(tokens))
