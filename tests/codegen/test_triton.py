"""Target ``triton``: packages whose step is made of kernels, on the CPU as plain functions and in the interpreter."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import regraft
from regraft.codegen.package import emit
from regraft.codegen.torch.forms import Forms
from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter
from regraft.ir.ops.kernels import Kernel
from regraft.ir.parse import parse_graph
from regraft.ir.text import print_graph
from regraft.passes.fusion import fuse_decode
from regraft.programs import load_program
from tests.codegen.programs import DECODERS, source_of, tokens_of
from tests.ir.models import decoder

if TYPE_CHECKING:
    from collections.abc import Generator

    from torch import Tensor


def built(graph: Graph, folder: Path) -> tuple[Any, Interpreter]:
    """Return the program of a graph with random weights, and its interpreter."""
    source = source_of(graph)
    emit(Forms(graph, fused=fuse_decode(graph)), source, folder, target="triton")
    return load_program(folder, dtype="float32"), Interpreter(graph, source)


def stepped(model: Any, tokens: Tensor, prompt: int, *, interpreted: bool) -> Tensor:
    """Return the logits of a prompt and of steps after it."""
    type(model).run.__globals__["INTERPRETED"] = interpreted
    cache = model.new_cache(len(tokens), tokens.shape[1] + 3)
    parts = [model(tokens[:, :prompt], cache)]
    parts += [model(tokens[:, at : at + 1], cache) for at in range(prompt, tokens.shape[1])]
    return torch.cat(parts, 1)


@pytest.mark.parametrize("name", DECODERS)
def test_a_step_by_kernels_is_the_graphs(name: str, tmp_path: Path) -> None:
    model, interpreter = built(decoder(DECODERS[name]), tmp_path / "package")
    tokens = tokens_of(2, 11)
    wanted = interpreter(tokens)
    bound = 1e-5 * max(1.0, float(wanted.abs().max()) / 4)
    assert (stepped(model, tokens, 3, interpreted=False) - wanted).abs().max() < bound
    assert (stepped(model, tokens[:1], 9, interpreted=True) - wanted[:1]).abs().max() < bound


def test_an_idle_row_of_a_batch_stays_where_it_is(tmp_path: Path) -> None:
    model, interpreter = built(decoder(DECODERS["windows and full"]), tmp_path / "package")
    tokens = tokens_of(2, 12)
    cache = model.new_cache(2, 16)
    for interpreted in (False, True):
        type(model).run.__globals__["INTERPRETED"] = interpreted
        cache = model.new_cache(2, 16)
        model(tokens[:, :6], cache)
        model(tokens[:, 6:7], cache, lengths=torch.tensor([1, 0]))
        found = model(tokens[:, 7:8], cache, lengths=torch.tensor([1, 1]))
        assert (found[0] - interpreter(tokens[:1, :8])[0, -1:]).abs().max() < 2e-5
        alone = torch.cat((tokens[1:, :6], tokens[1:, 7:8]), 1)
        assert (found[1] - interpreter(alone)[0, -1:]).abs().max() < 2e-5


@pytest.mark.parametrize("name", DECODERS)
def test_a_fused_graph_means_what_the_plain_one_does(name: str) -> None:
    graph = decoder(DECODERS[name])
    fused = fuse_decode(graph)
    fused.verify()
    assert parse_graph(print_graph(fused)).equals(fused)
    source, tokens = source_of(graph), tokens_of(2, 7)
    one, other = Interpreter(graph, source, "f64"), Interpreter(fused, source, "f64")
    assert torch.equal(one(tokens), other(tokens))
    plain = [op for op in fused.run_time() if not isinstance(op, Kernel)]
    assert {op.opname for op in plain} <= {"core.embed", "moe.route", "moe.experts", "core.add"}


def test_parameters_that_are_still_to_be_fitted_are_loaded_in_a_step() -> None:
    graph = regraft.opt("builtin:Llama-3.2-1B", "to-latent{rank=0.5}").graph
    assert any(op.reads_run_time for op in graph.ops)
    fused = fuse_decode(graph)
    fused.verify()
    assert not any(op.reads_run_time for op in fused.ops)
    assert {v.name for v in fused.parameters()} == {v.name for v in graph.parameters()}


def test_kernels_are_launched_where_tokens_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton launches on the current device, whatever its arguments' is."""
    model = built(decoder(DECODERS["llama-like"]), tmp_path / "package")[0]
    names, current, asked = type(model).run.__globals__, list[torch.device](), set[bool]()

    @contextmanager
    def device_of(tensor: Tensor) -> Generator[None]:
        current.append(tensor.device)
        yield
        current.pop()

    def on_kernels(x: Tensor) -> bool:
        asked.add(current == [x.device])
        return False

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setitem(names, "on_kernels", on_kernels)
    tokens, cache = tokens_of(1, 3), model.new_cache(1, 6)
    for call in (lambda: model(tokens[:, :1], cache), names["Decoder"](model, tokens, context=6).step):
        call()
        assert asked == {True}
        asked.clear()
