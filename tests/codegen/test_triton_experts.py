"""Target ``triton`` for mixtures of experts: a router's launch and the two of its experts, whatever is around them."""

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
from regraft.ir.builder import Builder
from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter
from regraft.ir.op import Value
from regraft.ir.ops.core import Add, Embed, Linear, Norm
from regraft.ir.ops.kernels import ExpertsStep, Kernel, RouteStep
from regraft.ir.ops.moe import Experts, Route
from regraft.ir.parse import parse_graph
from regraft.ir.source import TensorSource
from regraft.ir.text import print_graph
from regraft.passes.fusion import fuse_decode
from regraft.passes.fusion.prefill import fuse_prefill
from regraft.passes.latent_forms import decoding_form
from regraft.programs import load_program
from tests.codegen.programs import source_of, tokens_of
from tests.codegen.test_triton import stepped
from tests.ir.models import LayerSpec, decoder
from tests.kernels.touched import Run, touched

FAMILIES = (
    "DeepSeek-V3",
    "Qwen3-30B-A3B",
    "Qwen3-Next-80B-A3B",
    "ZAYA1-8B",
    "gemma-4-26B-A4B",
    "gpt-oss-20b",
    "laguna-XS.2",
)
LAUNCHES = {  # of a step: a token's row, the layers, the head
    "Qwen3-30B-A3B": 1 + 2 * 6 + 1,
    "ZAYA1-8B": 1 + 3 * 7 + 1,
    "gemma-4-26B-A4B": 1 + 4 * 6 + 1,
    "laguna-XS.2": 1 + 2 * 5 + 4 * 6 + 1,
}


def family(name: str) -> Graph:
    """Return the graph of a family's small twin."""
    return lift_config(read_config(twin_config(open_model(f"builtin:{name}").config)), Declared("f32"))


def built(graph: Graph, source: TensorSource, folder: Path) -> tuple[Any, Graph, Interpreter]:
    """Return a graph's program, its fused step, and its interpreter."""
    step = decoding_form(graph)
    fused = fuse_decode(graph if step is None else step)
    emit(Forms(graph, step, fused, fuse_prefill(graph)), source, folder, target="triton")
    return load_program(folder, dtype="float32"), fused, Interpreter(graph, source)


def one_step(model: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, Run]:
    """Return the logits of the last of some tokens, which kernels compute, and what ran."""
    names = type(model).run.__globals__
    names["INTERPRETED"] = False
    cache = model.new_cache(1, tokens.shape[1])
    model(tokens[:, :-1], cache)
    names["INTERPRETED"] = True
    with touched() as run:
        logits = model(tokens[:, -1:], cache)
    return logits, run


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_step_has_no_other_mixtures(name: str, tmp_path: Path) -> None:
    graph = family(name)
    source = TensorSource({key: torch.from_numpy(array) for key, array in random_tensors(graph, 0).items()})
    model, fused, interpreter = built(graph, source, tmp_path / "package")
    kinds = Counter(type(op) for op in fused.run_time())
    mixtures = sum(isinstance(op, Experts) for op in graph.ops)
    assert (kinds[RouteStep], kinds[ExpertsStep]) == (mixtures, mixtures)
    assert not kinds[Route] | kinds[Experts]
    assert not any(op.opname.endswith("norm") for op in fused.run_time() if ".moe." in op.results[0].name)
    tokens = tokens_of(2, 9, 128)
    wanted = interpreter(tokens)
    bound = 1e-5 * max(1.0, float(wanted.abs().max()) / 4)
    assert (stepped(model, tokens, 5, interpreted=False) - wanted).abs().max() < bound
    if name in LAUNCHES:
        logits, run = one_step(model, tokens[:1])
        assert (logits - wanted[:1, -1:]).abs().max() < bound
        assert len(run.launches) == LAUNCHES[name]
        counters = run.operations.count("aten::zeros")  # made once
        assert len(run.operations) - counters <= 2, "where the token stands, and that it came"


def odd(what: str) -> Graph:
    """Return a decoder of one mixture that is not as families have it."""
    graph = Graph("odd", {"family": "test", "eos": (1, 2)})
    b = Builder(graph, "f32")
    tokens, _ = b.tokens()
    x = b(Embed, "embed", tokens, b.weight("embed.weight", 40, 16))
    with b.scope("layers.0"):
        h = b(Norm, "norm", x, weight=b.weight("layers.0.norm.weight", 16), eps=1e-6)
        skips = what == "an input"
        logits = b(Linear, "logits", h, b.weight("layers.0.gate.weight", 5 if skips else 4, 16))
        weights, experts = b.many(Route, ["weights", "experts"], logits, chosen=2, normalize=True)
        parts = b.weight("layers.0.gate_up", 4, 12, 16), b.weight("layers.0.down", 4, 16, 6)
        y = b(Experts, "mixed", h, weights, experts, *parts, skip="identity" if skips else "none")
        y = b(Add, "sum", y, other(b, what, h, logits)) if not skips else y
        x = b(Add, "out", x, y)
    graph.set_outputs([b(Linear, "scores", x, b.weight("head.weight", 40, 16))])
    graph.verify()
    return graph


def other(b: Builder, what: str, h: Value, logits: Value) -> Value:
    """Return what is added to a mixture."""
    if what == "logits":
        return b(Linear, "back", logits, b.weight("layers.0.back.weight", 16, 4))
    return h if what == "a norm" else b(Linear, "beside", h, b.weight("layers.0.beside.weight", 16, 16))


@pytest.mark.parametrize("what", ["a norm", "logits", "a map", "an input"])
def test_what_others_read_stays_outside(what: str, tmp_path: Path) -> None:
    graph = odd(what)
    source, tokens = source_of(graph), tokens_of(2, 5)
    model, fused, interpreter = built(graph, source, tmp_path / "package")
    fused.verify()
    assert parse_graph(print_graph(fused)).equals(fused)
    same = [Interpreter(each, source, "f64")(tokens) for each in (graph, fused)]
    assert torch.equal(*same)
    kernels = [op for op in fused.run_time() if isinstance(op, Kernel)]
    assert {RouteStep, ExpertsStep} <= {type(op) for op in kernels}
    for interpreted in (False, True):
        assert (stepped(model, tokens, 4, interpreted=interpreted) - interpreter(tokens)).abs().max() < 1e-5


def test_many_tokens_are_dealt_by_expert(tmp_path: Path) -> None:
    graph = decoder([LayerSpec(moe=True)] * 2)
    model, _, interpreter = built(graph, source_of(graph), tmp_path / "package")
    tokens = tokens_of(1, 7)
    type(model).run.__globals__["INTERPRETED"] = True
    with touched() as run:
        logits = model(tokens, model.new_cache(1, 8))
    assert (logits - interpreter(tokens)).abs().max() < 1e-5
    ours = [launch.name for launch in run.launches if launch.name.startswith("grouped")]
    assert ours == ["grouped_experts_hidden_kernel", "grouped_experts_kernel", "grouped_experts_sum_kernel"] * 2
