"""Target ``triton`` for DeepSeek V4: residual streams between sublayers, rows that are pooled of several tokens."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from regraft.codegen.package import emit
from regraft.codegen.torch_forms import Forms
from regraft.frontends.family import read_config
from regraft.frontends.folder import open_model
from regraft.frontends.lift import lift_config
from regraft.frontends.tensors import Declared
from regraft.frontends.twin import random_tensors, twin_config
from regraft.ir.graph import Graph, layer_of
from regraft.ir.interpret import Interpreter
from regraft.ir.ops.kernels import StreamsStep
from regraft.ir.parse import parse_graph
from regraft.ir.source import TensorSource
from regraft.passes import fusion
from regraft.passes.fusion import fuse_decode
from regraft.passes.fusion.streams import carry_streams, group_streams
from regraft.programs import load_program
from tests.codegen.programs import tokens_of
from tests.codegen.test_triton import stepped

OURS = (group_streams,)


def flash() -> Graph:
    """Return the graph of a small DeepSeek V4 Flash."""
    return lift_config(read_config(twin_config(open_model("builtin:DeepSeek-V4-Flash").config)), Declared("f32"))


def weights_of(graph: Graph) -> TensorSource:
    """Return random tensors for a graph."""
    return TensorSource({name: torch.from_numpy(array) for name, array in random_tensors(graph, 0).items()})


class Program:
    """A small DeepSeek V4 whose step is made of the kernels of this file alone, others' matter being plain ops."""

    def __init__(self, folder: Path) -> None:
        self.graph = flash()
        source = weights_of(self.graph)
        self.fused = fuse_decode(self.graph)
        emit(Forms(self.graph, fused=self.fused), source, folder, target="triton")
        self.model: Any = load_program(folder, dtype="float32")
        self.interpreter = Interpreter(self.graph, source)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Program:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fusion, "DECODE", OURS)
        return Program(tmp_path_factory.mktemp("program") / "package")


def test_a_step_is_the_graphs(program: Program) -> None:
    tokens = tokens_of(2, 37, 128)  # past several rows of every rate
    wanted = program.interpreter(tokens)
    bound = 1e-5 * max(1.0, float(wanted.abs().max()) / 4)
    assert (stepped(program.model, tokens, 3, interpreted=False) - wanted).abs().max() < bound
    assert (stepped(program.model, tokens[:, :17], 14, interpreted=True) - wanted[:, :17]).abs().max() < bound


def test_each_layer_has_two_boundaries(program: Program) -> None:
    found = Counter(layer_of(op.results[0].name) for op in program.fused.run_time() if isinstance(op, StreamsStep))
    assert found == {**dict.fromkeys(range(program.graph.layer_count()), 2), None: 1}
    assert not [op for op in program.fused.run_time() if op.opname in ("hyper.read", "hyper.write", "hyper.collapse")]


def test_carried_streams_mean_the_same() -> None:
    graph = flash()
    carried = carry_streams(graph)
    carried.verify()
    assert carried is not graph
    source, tokens = weights_of(graph), tokens_of(2, 9, 128)
    assert torch.equal(Interpreter(graph, source, "f64")(tokens), Interpreter(carried, source, "f64")(tokens))


ONE_LAYER = """graph @one {{family = "test"}} (%x: f32[B, T, 6], %made: f32[B, T, 6]) {{
  %fn = weight.load {{dtype = "f32", shape = [8, 12]}}
  %base = weight.load {{dtype = "f32", shape = [8]}}
  %scale = weight.load {{dtype = "f32", shape = [3]}}
  {start}
  %layers.0.u, %layers.0.p, %layers.0.c = hyper.read %s, %fn, %base, %scale {{eps = 0.1, floor = 0.1, iterations = 2}}
  %layers.0.made = core.add %layers.0.u, %made
  %layers.0.out = hyper.write %s, %layers.0.made, %layers.0.p, %layers.0.c
  return {returned}
}}"""


@pytest.mark.parametrize(
    ("start", "returned"),
    [
        ("%s = core.unflatten %twice {parts = 2}", "%layers.0.out"),
        ("%s = core.repeat %x {parts = 2}", "%layers.0.out"),
        ("%s = core.repeat %x {parts = 2}\n  %u = core.flatten %s", "%layers.0.out, %u"),
    ],
    ids=["streams of their own", "streams are the result", "somebody else reads the streams"],
)
def test_streams_that_are_more_than_joints_of_layers_stay(start: str, returned: str) -> None:
    text = ONE_LAYER.format(start=start, returned=returned)
    text = text.replace("%made: f32[B, T, 6])", "%made: f32[B, T, 6], %twice: f32[B, T, 12])")
    graph = parse_graph(text)
    assert carry_streams(graph) is graph
    kernels = [op for op in fuse_decode(graph).run_time() if isinstance(op, StreamsStep)]
    assert [len(op.stands_for) for op in kernels] == [1, 1]
