"""Target ``triton`` for Gated DeltaNet: a step's layers launch kernels alone, one of them for the rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.codegen.package import emit
from regraft.codegen.torch.forms import Forms
from regraft.frontends.family import read_config
from regraft.frontends.folder import open_model
from regraft.frontends.lift import lift_config
from regraft.frontends.tensors import Declared
from regraft.frontends.twin import random_tensors, twin_config
from regraft.ir.forms.delta import delta_form
from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter
from regraft.ir.ops.core import Slice
from regraft.ir.ops.kernels import DeltaStep, Kernel, ShortConvStep
from regraft.ir.ops.seq import Delta
from regraft.ir.parse import parse_graph
from regraft.ir.source import TensorSource
from regraft.ir.text import print_graph
from regraft.passes.fusion import fuse_decode
from regraft.programs import load_program
from tests.codegen.programs import tokens_of
from tests.codegen.test_triton import stepped
from tests.kernels.touched import touched

LAUNCHES = {  # of a layer of the rule: projections, rule with its convolution, output, and what follows
    "Qwen3-Next-80B-A3B": 3 + 3,
    "Qwen3.6-27B": 3 + 2,
}


def graph_of(name: str) -> Graph:
    """Return a small model of a family."""
    return lift_config(read_config(twin_config(open_model(f"builtin:{name}").config)), Declared("f32"))


def program(graph: Graph, tokens: Tensor, folder: Path) -> tuple[Any, Tensor, float]:
    """Return a graph's program, with random weights, the exact logits, and twice what float32 does to them."""
    source = TensorSource({name: torch.from_numpy(array) for name, array in random_tensors(graph, 0).items()})
    emit(Forms(graph, fused=fuse_decode(graph)), source, folder, target="triton")
    exact = Interpreter(graph, source, "f64")(tokens)
    bound = 2 * float((Interpreter(graph, source)(tokens) - exact).abs().max())
    return load_program(folder, dtype="float32"), exact, bound


@pytest.mark.parametrize("name", LAUNCHES)
def test_a_step_launches_kernels_alone(name: str, tmp_path: Path) -> None:
    graph = graph_of(name)
    fused = fuse_decode(graph)
    assert parse_graph(print_graph(fused)).equals(fused)
    assert all(isinstance(op, Kernel | Slice) for op in fused.run_time())  # slices are views
    rules = [op for op in fused.ops if isinstance(op, DeltaStep)]
    assert len(rules) == sum(isinstance(op, Delta) for op in graph.ops)
    tokens, one = tokens_of(1, 9), torch.ones(1, dtype=torch.int64)
    model, wanted, bound = program(graph, tokens, tmp_path / "package")
    assert (stepped(model, tokens, 3, interpreted=False) - wanted).abs().max() < bound
    held = model.new_cache(1, 12)
    model(tokens[:, :7], held)
    type(model).run.__globals__["INTERPRETED"] = True
    model(tokens[:, 7:8], held)  # the first step makes the counters that programs meet at
    with torch.no_grad(), touched() as run:
        logits = model.run_step(tokens[:, 8:].contiguous(), held.lengths, one, held.layers, 12)
    assert (logits - wanted[:, 8:]).abs().max() < bound
    assert run.operations == []
    launched = [launch.name for launch in run.launches]
    first, second = [at for at, each in enumerate(launched) if each == "delta_kernel"][:2]
    assert second - first == LAUNCHES[name]


def test_a_row_without_a_token_keeps_its_matrices_and_tails(tmp_path: Path) -> None:
    tokens = tokens_of(2, 9)
    model, wanted, bound = program(graph_of("Qwen3.6-27B"), tokens, tmp_path / "package")
    names = type(model).run.__globals__
    names["INTERPRETED"] = False
    held = model.new_cache(2, 9)
    model(tokens[:, :3], held)
    model(tokens[:, 3:4], held, lengths=torch.tensor([1, 0]))
    model(torch.stack((tokens[0, 4:5], tokens[1, 3:4])), held, lengths=torch.tensor([0, 1]))
    names["INTERPRETED"] = True
    fourth = model(tokens[:, 4:5], held)
    assert (fourth - wanted[:, 4:5]).abs().max() < bound


RULE = """
graph @rule (%tokens: i64[B, T]) {
  %t = weight.load : f32[8, 20]
  %log = weight.load : f32[2]
  %bias = weight.load : f32[2]
  %x = core.embed %tokens, %t
  %a = core.slice %x {start = 0, stop = 2}
  %qs = core.slice %x {start = 2, stop = 6}
  %q = core.unflatten %qs {parts = 1}
  %ks = core.slice %x {start = 6, stop = 10}
  %kh = core.unflatten %ks {parts = 1}
  %k = core.norm %kh {eps = 1e-06}
  %vs = core.slice %x {start = 10, stop = 16}
  %v = core.unflatten %vs {parts = 2}
  %g = seq.decay %a, %log, %bias
  %o, %m = state.delta %q, %k, %v, %g, %a
  END
}
"""
"""What follows, and how many ops the rule's kernel then stands for; with q, k, v and the decay these are 9."""
ENDS = {
    "%y = core.norm %o {eps = 1e-06}\n  return %y": 10,
    "%y = core.mul %o, %v\n  return %y": 0,  # the values would leave the kernel and come back
    "%y = core.mul %o, %o\n  return %y": 9,
    "%y = core.norm %o {eps = 1e-06}\n  %z = core.add %y, %o\n  return %z": 9,
    "%y = core.norm %o {eps = 1e-06}\n  %z = core.mul %y, %y\n  return %y, %z": 10,
    "%y = core.norm %o {eps = 1e-06, clamp = true}\n  return %y": 9,
    "%y = core.scale %k {factor = 2.0}\n  return %y, %o": 0,
    "return %o": 9,
}


@pytest.mark.parametrize("end", ENDS)
def test_it_takes_what_nothing_else_reads(end: str) -> None:
    graph = parse_graph(RULE.replace("END", end))
    fused = fuse_decode(graph)
    fused.verify()
    rules = [op for op in fused.ops if isinstance(op, DeltaStep)]
    assert [len(op.stands_for) for op in rules] == ([ENDS[end]] if ENDS[end] else [])
    assert all(delta_form(op.stands_for) is not None for op in rules)


CONVOLVED = """
graph @convolved (%tokens: i64[B, T]) {
  %t = weight.load : f32[8, 14]
  %u = weight.load : f32[8, 2]
  %log = weight.load : f32[2]
  %bias = weight.load : f32[2]
  %taps = weight.load : f32[14, 1, 3]
  %x = core.embed %tokens, %t
  %a = core.embed %tokens, %u
  %tail = state.tail %x {rows = 2}
  %c = seq.conv %tail, %taps {groups = 14}
  %w = core.activation %c {kind = "silu"}
  %qs = core.slice %w {start = 0, stop = 4}
  %q = core.unflatten %qs {parts = 1}
  %ks = core.slice %w {start = 4, stop = 8}
  %k = core.unflatten %ks {parts = 1}
  %vs = core.slice %w {start = 8, stop = 14}
  %v = core.unflatten %vs {parts = 2}
  %g = seq.decay %a, %log, %bias
  %o, %m = state.delta %q, %k, %v, %g, %a
  return %o
}
"""
FRONTS = {  # what is other, and which kernels the convolution and the rule then are
    "return -> return": ["kernel.delta"],
    "return %o -> return %o, %w": ["kernel.short_conv", "kernel.delta"],
    "{start = 4, stop = 8} -> {start = 0, stop = 4}": ["kernel.short_conv", "kernel.delta"],
    'kind = "silu" -> kind = "tanh"': ["kernel.short_conv", "kernel.delta"],
}


@pytest.mark.parametrize("change", FRONTS)
def test_it_takes_the_convolution_that_is_for_it_alone(change: str) -> None:
    before, _, after = change.partition(" -> ")
    graph = parse_graph(CONVOLVED.replace(before, after))
    fused = fuse_decode(graph)
    fused.verify()
    assert [op.opname for op in fused.run_time() if isinstance(op, DeltaStep | ShortConvStep)] == FRONTS[change]
