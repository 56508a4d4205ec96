"""Target ``triton``: steps of DeepSeek V4 and V3.2, whose attention is to rows that are chosen or pooled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.codegen.package import emit
from regraft.codegen.torch.forms import Forms
from regraft.frontends.folder import open_model
from regraft.ir.graph import Graph, layer_of
from regraft.ir.interpret import Interpreter
from regraft.ir.ops.kernels import IndexStep, Kernel, SparseStep
from regraft.ir.parse import parse_graph
from regraft.ir.source import TensorSource
from regraft.ir.text import print_graph
from regraft.passes.fusion import fuse_decode
from regraft.passes.latent_forms import decoding_form
from regraft.programs import load_program
from tests.frontends.agreement import twin_graph
from tests.kernels.touched import touched

LENGTH = 24  # pooled rows are of 4 and of 8 tokens: the last token ends one of each
MODELS = ("DeepSeek-V4-Flash", "DeepSeek-V3.2")
LAUNCHES = {  # of each kind of layer, by its memories
    "window": 9,  # two boundaries of streams, four maps, two of experts, attention
    "window and every 8": 9,  # what pools stands beside a map
    "window and every 4": 11,  # and what chooses, in two
    "latent, dense": 9,
    "latent": 10,
}
LAYERS = {
    "DeepSeek-V4-Flash": {"window": 2, "window and every 4": 4, "window and every 8": 2},
    "DeepSeek-V3.2": {"latent, dense": 2, "latent": 2},
}


@dataclass(frozen=True)
class Twin:
    """A model's twin: its graph, that of a step, its program and its interpreter's logits of some tokens."""

    name: str
    graph: Graph
    fused: Graph
    tensors: dict[str, Tensor]
    model: Any
    tokens: Tensor
    wanted: Tensor


@pytest.fixture(scope="module", params=MODELS)
def twin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Twin:
    graph, tensors = twin_graph(dict(open_model(f"builtin:{request.param}").config))
    source, folder = TensorSource(tensors), tmp_path_factory.mktemp("twin") / "package"
    step = decoding_form(graph)
    fused = fuse_decode(step or graph)
    emit(Forms(graph, step, fused), source, folder, target="triton")
    tokens = torch.randint(0, 128, (3, LENGTH), generator=torch.Generator().manual_seed(0))
    wanted = Interpreter(graph, source)(tokens)
    return Twin(request.param, graph, fused, tensors, load_program(folder, dtype="float32"), tokens, wanted)


def bound(twin: Twin) -> float:
    return 1e-5 * max(1.0, float(twin.wanted.abs().max()) / 4)


def interpreted(twin: Twin, value: bool) -> None:
    type(twin.model).run.__globals__["INTERPRETED"] = value


def test_steps_by_plain_functions_are_the_graphs(twin: Twin) -> None:
    interpreted(twin, False)
    cache = twin.model.new_cache(3, LENGTH + 2)
    parts = [twin.model(twin.tokens[:, :2], cache)]
    parts += [twin.model(twin.tokens[:, at : at + 1], cache) for at in range(2, LENGTH)]
    assert (torch.cat(parts, 1) - twin.wanted).abs().max() < bound(twin)


def test_an_idle_sequence_stays_where_it_is(twin: Twin) -> None:
    """Its rows of this step go where its next token's will."""
    interpreted(twin, False)
    cache = twin.model.new_cache(2, LENGTH)
    twin.model(twin.tokens[:2, :15], cache)
    for row in (0, 1):
        alone = torch.tensor([1 - row, row])
        found = twin.model(twin.tokens[:2, 15:16], cache, lengths=alone)
        assert (found[row] - twin.wanted[row, 15:16]).abs().max() < bound(twin)
    found = twin.model(twin.tokens[:2, 16:17], cache)
    assert (found - twin.wanted[:2, 16:17]).abs().max() < bound(twin)


def test_steps_by_kernels_are_the_graphs_and_within_their_launches(twin: Twin) -> None:
    interpreted(twin, False)
    cache = twin.model.new_cache(1, LENGTH)
    twin.model(twin.tokens[:1, : LENGTH - 1], cache)
    interpreted(twin, True)
    count = torch.ones(1, dtype=torch.int64)
    with touched() as run:
        found = twin.model.run_step(twin.tokens[:1, -1:].contiguous(), cache.lengths, count, cache.layers, LENGTH)
    interpreted(twin, False)
    assert (found - twin.wanted[:1, -1:]).abs().max() < bound(twin)
    around = ("embed", "write_and_collapse", "head", "lm_head")
    launches = [each.name for each in run.launches if not each.name.startswith(around)]
    assert len(launches) == sum(LAUNCHES[kind] * count for kind, count in LAYERS[twin.name].items()), launches


def test_layers_are_kernels_alone(twin: Twin) -> None:
    fused = twin.fused
    fused.verify()
    assert parse_graph(print_graph(fused)).equals(fused)
    plain = [op for op in fused.run_time() if layer_of(op.results[0].name) is not None and not isinstance(op, Kernel)]
    assert not plain
    attends = [op for op in fused.ops if isinstance(op, SparseStep)]
    indices = [op for op in fused.ops if isinstance(op, IndexStep)]
    assert (len(attends), len(indices)) == ((8, 4) if "V4" in twin.name else (4, 4))


def test_a_fused_graph_means_what_the_plain_one_does(twin: Twin) -> None:
    plain, source = decoding_form(twin.graph) or twin.graph, TensorSource(twin.tensors)
    one, other = Interpreter(plain, source, "f64"), Interpreter(twin.fused, source, "f64")
    assert torch.equal(one(twin.tokens), other(twin.tokens))
