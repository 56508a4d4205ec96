"""Target ``triton`` for DeepSeek V4: residual streams between sublayers, rows that are pooled of several tokens."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from regraft.codegen.package import emit
from regraft.codegen.torch.forms import Forms
from regraft.frontends.family import read_config
from regraft.frontends.folder import open_model
from regraft.frontends.lift import lift_config
from regraft.frontends.tensors import Declared
from regraft.frontends.twin import random_tensors, twin_config
from regraft.ir.forms.rows_and_pool import rows_and_pool_form
from regraft.ir.graph import Graph, layer_of
from regraft.ir.interpret import Interpreter
from regraft.ir.op import Value
from regraft.ir.ops.compress import Compressed
from regraft.ir.ops.core import Embed, Norm
from regraft.ir.ops.hyper import Spread
from regraft.ir.ops.kernels import EmbedStep, Kernel, PoolStep, RouteStep, RowsAndPool, StreamsStep
from regraft.ir.ops.memory import ReadRows, RowPositions
from regraft.ir.ops.pos import Rope
from regraft.ir.parse import parse_graph
from regraft.ir.source import TensorSource
from regraft.ir.text import print_graph
from regraft.passes import fusion
from regraft.passes.fusion import fuse_decode
from regraft.passes.fusion.pool import group_pool
from regraft.passes.fusion.streams import carry_streams, group_routed_streams, group_streams
from regraft.programs import load_program
from tests.codegen.programs import tokens_of
from tests.codegen.test_triton import stepped
from tests.passes.exactness import run, twin

OURS = (group_routed_streams, group_pool, group_streams)


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
    assert (stepped(program.model, tokens[:1, :16], 14, interpreted=True) - wanted[:1, :16]).abs().max() < bound


def test_idle_rows_stay_where_they_are(program: Program) -> None:
    tokens = tokens_of(3, 14, 128)
    expected, stands = program.interpreter(tokens), torch.tensor([6, 6, 6])
    type(program.model).run.__globals__["INTERPRETED"] = False
    cache = program.model.new_cache(3, 14)
    program.model(tokens[:, :6], cache)
    for call in range(8):
        lengths = torch.tensor([1, 0 if call % 2 else 1, 0 if call % 3 == 1 else 1])
        logits = program.model(tokens.gather(1, stands[:, None]), cache, lengths)
        for row in lengths.nonzero().flatten().tolist():
            assert (logits[row, 0] - expected[row, stands[row]]).abs().max() < 2e-5
        stands = stands + lengths
    assert stands.tolist() == [14, 10, 11]


def test_kernels_read_tokens_side_by_side(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def step(tokens: torch.Tensor, start: torch.Tensor, count: torch.Tensor, *rest: object) -> torch.Tensor:
        seen.extend((tokens, count))
        return torch.zeros(3, 1, 1)

    monkeypatch.setattr(program.model, "step", step)
    tokens, lengths = tokens_of(3, 14, 128)[:, 2:3], torch.ones(3, 2, dtype=torch.int64)[:, 0]
    program.model(tokens, program.model.new_cache(3, 14), lengths)
    assert torch.equal(seen[0], tokens)
    assert all(x.is_contiguous() for x in seen)


def kernels(graph: Graph, kind: type[Kernel]) -> Counter[int | None]:
    """Return how many kernels of a kind each layer of a graph has."""
    return Counter(layer_of(op.results[0].name) for op in graph.run_time() if isinstance(op, kind))


def test_each_layer_has_two_boundaries_and_pools_once(program: Program) -> None:
    layers = program.graph.layer_count()
    assert kernels(program.fused, StreamsStep) == {**dict.fromkeys(range(layers), 2), None: 1}
    pooled = {layer_of(op.out.name) for op in program.graph.run_time() if isinstance(op, Compressed)}
    assert kernels(program.fused, PoolStep) == dict.fromkeys(pooled, 1)
    plain = [op for op in program.fused.run_time() if not isinstance(op, Kernel)]
    left = ("hyper.read", "hyper.write", "hyper.collapse", "moe.route", "state.compressed")
    assert not [op for op in plain if op.opname in left or isinstance(op, RowPositions)]


def routers(graph: Graph) -> list[int]:
    """Return the layers whose routers stand apart from the boundary before them."""
    fused = fuse_decode(graph)
    fused.verify()
    return sorted(layer for layer in kernels(fused, RouteStep) if layer is not None)


def test_routers_ride_in_the_boundary_before_them() -> None:
    graph = flash()
    assert routers(graph) == []
    graph.set_outputs([*graph.outputs, graph["layers.1.moe.logits"]])
    assert routers(graph) == [1], "somebody else reads its logits"


def test_a_step_is_kernels_alone() -> None:
    fused = fuse_decode(flash())
    assert [op for op in fused.run_time() if not isinstance(op, Kernel)] == []
    (front,) = [op for op in fused.run_time() if isinstance(op, EmbedStep)]
    assert [type(op) for op in front.stands_for] == [Embed, Spread]


def steps_that_pool(graph: Graph) -> Counter[int | None]:
    """Return how many kernels of each layer of a graph's step pool rows, alone or beside maps."""
    fused = fuse_decode(graph)
    return kernels(fused, PoolStep) + kernels(fused, RowsAndPool)


def test_rows_are_pooled_beside_maps_that_do_not_wait_for_them() -> None:
    graph = flash()
    fused = fuse_decode(graph)
    fused.verify()
    assert parse_graph(print_graph(fused)).equals(fused)
    assert not kernels(fused, PoolStep)
    found = [op for op in fused.run_time() if isinstance(op, RowsAndPool)]
    assert len(found) == sum(map(len, pooled_layers(graph).values()))
    for op in found:
        form = rows_and_pool_form(op.stands_for)
        assert form is not None
        assert {linear.x.name.rpartition(".")[2] for linear in form.rows.linears} == {"q_latent"}
        assert rows_and_pool_form(form.mapped) is None


def turn(graph: Graph, layer: int) -> Rope:
    """Return what turns the first pooled rows of a layer."""
    return next(op for op in graph.in_layer(layer) if isinstance(op, Rope) and isinstance(op.pos.op, RowPositions))


def norm(graph: Graph, layer: int) -> Norm:
    """Return what norms the first pooled rows of a layer."""
    return next(op for op in graph.in_layer(layer) if isinstance(op, Norm) and pooled_rows(op.x))


def pooled_rows(x: Value) -> bool:
    """Return whether a value holds pooled rows as they are read."""
    return isinstance(x.op, ReadRows) and isinstance(x.op.memory.op, Compressed)


def pooled_layers(graph: Graph) -> dict[int, list[int]]:
    """Return the layers whose rows are made of so many tokens each, by these."""
    found: dict[int, list[int]] = {}
    for op in graph.run_time():
        if isinstance(op, Compressed) and op.out.name.endswith("pool.memory"):
            found.setdefault(op.rate, []).append(layer_of(op.out.name) or 0)
    return found


def test_rows_of_two_memories_that_are_not_alike_are_pooled_apart() -> None:
    graph = flash()
    near = pooled_layers(graph)[4]
    graph.set_attribute(turn(graph, near[0]), "base", 7.0)
    graph.set_attribute(norm(graph, near[1]), "eps", 0.5)
    made = steps_that_pool(graph)
    assert [made[layer] for layer in near] == [2, 2, *[1] * (len(near) - 2)]


def test_rows_that_no_kernel_makes_stay() -> None:
    graph = flash()
    near, far = pooled_layers(graph).values()
    graph.set_attribute(turn(graph, near[0]), "offset", 1.5)  # the other memory's rows are pooled alone
    graph.set_attribute(turn(graph, far[0]), "layout", "halves")
    made = steps_that_pool(graph)
    assert (made[near[0]], made[far[0]]) == (1, 0)


def test_carried_streams_mean_the_same() -> None:
    graph = flash()
    carried = carry_streams(graph)
    carried.verify()
    assert carried is not graph
    source, tokens = weights_of(graph), tokens_of(2, 9, 128)
    assert torch.equal(Interpreter(graph, source, "f64")(tokens), Interpreter(carried, source, "f64")(tokens))


@pytest.mark.parametrize(("name", "boundaries"), [("DeepSeek-V3", 2), ("gemma-4-E2B", 4), ("gpt-oss-20b", 2)])
def test_streams_that_a_model_is_given(name: str, boundaries: int, tmp_path: Path) -> None:
    graph, source = twin(name)
    graph = run(graph, "add-hyper-connections").graph
    fused = fuse_decode(graph)
    found = kernels(fused, StreamsStep)
    assert {found[layer] for layer in range(graph.layer_count())} == {
        boundaries
    }  # Gemma's layers scale what they write
    assert not kernels(fused, RouteStep)
    emit(Forms(graph, fused=fused), source, tmp_path / "package", target="triton")
    tokens, model = tokens_of(2, 9), load_program(tmp_path / "package", dtype="float32")
    assert (stepped(model, tokens, 5, interpreted=False) - Interpreter(graph, source)(tokens)).abs().max() < 2e-5


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
