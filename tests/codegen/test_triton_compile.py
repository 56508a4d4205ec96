"""Target ``triton``: what no kernel computes is compiled, each class of layers once."""

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
from regraft.passes import fusion
from regraft.passes.fusion import fuse_decode
from regraft.passes.fusion.pool_heads import group_pool_heads
from regraft.passes.fusion.prefill import fuse_prefill
from regraft.programs import load_program
from tests.codegen.programs import tokens_of
from tests.codegen.test_compile import Recorder
from tests.codegen.test_triton import built
from tests.codegen.test_triton_prefill import built_of
from tests.frontends.agreement import twin_graph
from tests.ir.models import FULL, LayerSpec, decoder


def unfused(folder: Path) -> tuple[Any, Interpreter]:
    """Return the program of a decoder whose rows are pooled by no kernel, and its interpreter.

    Kernels are plain functions there.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fusion, "DECODE", tuple(rule for rule in fusion.DECODE if rule is not group_pool_heads))
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


def prompted(model: Any, recorder: Recorder) -> None:
    """Compile a model's calls of many tokens; the kernels in them are there, and are computed by plain functions."""
    torch.compiler.reset()
    names = type(model).run.__globals__
    names["INTERPRETED"] = False
    names["in_blocks"] = lambda x: x.shape[1] > 1
    model.compile(backend=recorder, fullgraph=True)


def called(recorder: Recorder) -> set[str]:
    """Return the kernels that compiled graphs call."""
    targets = [str(node.target) for graph in recorder.graphs for node in graph.graph.nodes]
    return {target.split(".")[1] for target in targets if target.startswith("regraft_")}


def test_prompts_are_compiled_class_by_class(tmp_path: Path) -> None:
    """The graphs of a class are whole, and serve prompts of all lengths and all its layers."""
    layers = [LayerSpec(window=4), FULL, LayerSpec(window=4), LayerSpec(moe=True)]
    model, interpreter = built_of(decoder(layers), tmp_path / "package")
    recorder = Recorder()
    prompted(model, recorder)
    for length in (5, 7):
        tokens = tokens_of(3, length + 2)
        wanted, cache = interpreter(tokens), model.new_cache(3, 20)
        assert close(model(tokens[:, :length], cache), wanted[:, :length])
        assert close(model(tokens[:, length:], cache), wanted[:, length:])
    assert called(recorder) == {"flash", "flash_4", "grouped_experts"}
    assert len(recorder.graphs) <= 3 * 2  # classes; calls that begin and calls that go on
    before = recorder.calls
    tokens = tokens_of(2, 6)
    assert close(model(tokens), interpreter(tokens))  # gradients are wanted
    assert recorder.calls == before


@pytest.mark.parametrize(
    "name",
    [
        "Qwen3-Next-80B-A3B",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("DeepSeek-V3.2", "DeepSeek-V4-Flash", "ZAYA1-8B")),
    ],
)
def test_prompts_of_known_models_compile_whole(name: str, tmp_path: Path) -> None:
    graph, tensors = twin_graph(dict(open_model(f"builtin:{name}").config))
    source = TensorSource(tensors)
    forms = Forms(graph, fused=fuse_decode(graph), prefill=fuse_prefill(graph))
    emit(forms, source, tmp_path / "package", target="triton")
    model: Any = load_program(tmp_path / "package", dtype="float32")
    recorder = Recorder()
    prompted(model, recorder)
    tokens = tokens_of(3, 40)
    wanted = Interpreter(graph, source)(tokens)
    for parts in ((11, 18), (13, 24)):
        cache = model.new_cache(3, 48)
        found = torch.cat([model(part, cache) for part in tokens[:, : sum(parts)].split(parts, 1)], 1)
        assert close(found, wanted[:, : sum(parts)])
    classes = {type(layer) for layer in model.layers}
    # calls that begin and calls that go on; layers of a class that get something of others or not; equal sizes apart
    assert len(recorder.graphs) <= 4 * len(classes)
    assert recorder.calls == 4 * len(model.layers)
    assert called(recorder)


@pytest.mark.slow
def test_prompts_compiled_by_inductor(tmp_path: Path) -> None:
    torch.compiler.reset()
    model, interpreter = built_of(decoder([LayerSpec(window=4), FULL] * 2), tmp_path / "package")
    names = type(model).run.__globals__
    names["INTERPRETED"] = False
    names["in_blocks"] = lambda x: x.shape[1] > 1
    model.compile()
    tokens, cache = tokens_of(2, 18), model.new_cache(2, 18)
    found = torch.cat([model(tokens[:, :11], cache), model(tokens[:, 11:], cache)], 1)
    assert close(found, interpreter(tokens))
