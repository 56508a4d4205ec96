"""Target ``triton``: what no kernel computes of a step is compiled, each class of layers once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.codegen.package import emit
from regraft.codegen.torch.forms import Forms
from regraft.frontends.folder import open_model
from regraft.ir.interpret import Interpreter
from regraft.ir.source import TensorSource
from regraft.passes.fusion import fuse_decode
from regraft.programs import load_program
from tests.codegen.programs import tokens_of
from tests.codegen.test_compile import Recorder
from tests.codegen.test_triton import built
from tests.frontends.agreement import twin_graph
from tests.ir.models import FULL, LayerSpec, decoder


def unfused(folder: Path) -> tuple[Any, Interpreter]:
    """Return the program of a decoder that attends to pooled rows by head, for which no kernel is, and its interpreter.

    Kernels are plain functions there.
    """
    model, interpreter = built(decoder([LayerSpec(window=5, rate=3), FULL] * 2), folder)
    type(model).run.__globals__["INTERPRETED"] = False
    return model, interpreter


def stepped(model: Any, tokens: Tensor) -> Tensor:
    cache = model.new_cache(len(tokens), tokens.shape[1])
    parts = [model(tokens[:, :4], cache)]
    parts += [model(tokens[:, at : at + 1], cache) for at in range(4, tokens.shape[1])]
    return torch.cat(parts, 1)


def close(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()) / 4))


def test_classes_with_other_operations_than_kernels_are_compiled(tmp_path: Path) -> None:
    torch.compiler.reset()
    model, interpreter = unfused(tmp_path / "package")
    mixed = type(model).run.__globals__["MIXED"]
    assert [isinstance(layer, mixed) for layer in model.layers] == [True, False, True, False]
    recorder = Recorder()
    for _ in range(2):
        model.compile(backend=recorder)
    tokens = tokens_of(2, 10)
    assert close(stepped(model, tokens), interpreter(tokens))
    assert len(recorder.graphs) == 1
    assert recorder.calls == 6 * 2


def test_kernels_alone_are_left_as_they_are(tmp_path: Path) -> None:
    graph, tensors = twin_graph(dict(open_model("builtin:Qwen3-Next-80B-A3B").config))
    emit(Forms(graph, fused=fuse_decode(graph)), TensorSource(tensors), tmp_path / "package", target="triton")
    model: Any = load_program(tmp_path / "package", dtype="float32")
    type(model).run.__globals__["INTERPRETED"] = False
    recorder = Recorder()
    model.compile(backend=recorder)
    stepped(model, tokens_of(1, 6))
    assert not recorder.graphs


@pytest.mark.slow
def test_compiled_by_inductor(tmp_path: Path) -> None:
    torch.compiler.reset()
    model, interpreter = unfused(tmp_path / "package")
    model.compile()
    tokens = tokens_of(2, 10)
    assert close(stepped(model, tokens), interpreter(tokens))
