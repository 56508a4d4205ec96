"""Small decoders in float64 for the passes' numbers: attention only, every part optional, weights random."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from regraft.ir.builder import Builder
from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter
from regraft.ir.op import Value
from regraft.ir.ops.attn import KV, Attend
from regraft.ir.ops.core import Activation, Add, Embed, Flatten, Linear, Mul, Norm, Unflatten
from regraft.ir.ops.pos import Rope
from regraft.ir.source import TensorSource
from regraft.ir.types import MemoryType
from regraft.passes.fitting.fold import fitted_parameters
from regraft.passes.fitting.sweep import Sweep

M, D, VOCAB = 12, 4, 40


@dataclass
class Model:
    """A graph, its tensors, and some tokens."""

    graph: Graph
    tensors: dict[str, Tensor]
    tokens: Tensor

    @property
    def source(self) -> TensorSource:
        return TensorSource(self.tensors)

    def weight(self, layer: int, name: str) -> Tensor:
        """Return a projection of a layer, to be changed in place."""
        return self.tensors[f"model.layers.{layer}.{name}.weight"]

    def fitted(self, graph: Graph) -> dict[str, Tensor]:
        """Return the parameters of ``graph`` that are fitted to the tokens."""
        wanted = fitted_parameters(graph)
        if not wanted:
            return {}
        sweep = Sweep(graph, self.graph, self.source, self.tokens, dtype="f64")
        return {value.name: tensor for value, tensor in sweep.solve(wanted)}

    def run(self, graph: Graph, edges: Sequence[str]) -> dict[str, Tensor]:
        """Run ``graph``, fitted, over the tokens, and return some of its values."""
        return self.interpreter(graph).run(self.tokens, edges=list(edges))

    def logits(self, graph: Graph) -> Tensor:
        return self.interpreter(graph)(self.tokens)

    def interpreter(self, graph: Graph) -> Interpreter:
        fitted = self.fitted(graph)
        work = graph.copy()
        for name in fitted:
            value = work[name]
            work.rename(value, f"{name}.expression")
            build = Builder(work, "f64")
            loaded = build.weight(name, *value.tensor.sizes)
            work.replace_uses(value, loaded, lambda op: not op.weight_time)
            op = work.ops.pop()
            work.ops.insert(0, op)
        work.drop_dead()
        work.verify()
        return Interpreter(work, TensorSource({**self.tensors, **fitted}), "f64")


@dataclass
class Layers:
    """What a decoder is made of."""

    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    windows: Mapping[int, int] = field(default_factory=dict[int, int])
    reads: Mapping[int, int] = field(default_factory=dict[int, int])
    bias: bool = False
    qk_norm: bool = False
    gate: bool = False


def _projection(b: Builder, x: Value, layer: int, name: str, heads: int, bias: bool) -> Value:
    rows = heads * D
    weight = b.weight(f"model.layers.{layer}.{name}_proj.weight", rows, M)
    offset = b.weight(f"model.layers.{layer}.{name}_proj.bias", rows) if bias else None
    flat = b(Linear, f"{name}_proj", x, weight, bias=offset)
    return b(Unflatten, name, flat, parts=heads)


def _norm(b: Builder, x: Value, layer: int, name: str, wanted: bool) -> Value:
    if not wanted:
        return x
    return b(Norm, f"{name}_norm", x, weight=b.weight(f"model.layers.{layer}.{name}_norm.weight", D), eps=1e-6)


def _attention(b: Builder, x: Value, pos: Value, layer: int, of: Layers) -> Value:
    norm = b(Norm, "norm", x, weight=b.weight(f"model.layers.{layer}.norm.weight", M), eps=1e-6)
    window = of.windows.get(layer)
    q = _norm(b, _projection(b, norm, layer, "q", of.heads, of.bias), layer, "q", of.qk_norm)
    q = b(Rope, "q_rope", q, pos, base=100.0, channels=D)
    if layer in of.reads:
        memory = b.graph[f"layers.{of.reads[layer]}.attn.memory"]
    else:
        k = _norm(b, _projection(b, norm, layer, "k", of.kv_heads, of.bias), layer, "k", of.qk_norm)
        k = b(Rope, "k_rope", k, pos, base=100.0, channels=D)
        memory = b(KV, "memory", k, _projection(b, norm, layer, "v", of.kv_heads, of.bias), window=window)
    assert isinstance(memory.type, MemoryType)
    ctx = b(Attend, "ctx", q, memory, scale=D**-0.5, window=window)
    merged = b(Flatten, "merged", ctx)
    if of.gate:
        gate = b(Linear, "gate", norm, b.weight(f"model.layers.{layer}.gate.weight", of.heads * D, M))
        merged = b(Mul, "gated", merged, b(Activation, "gate_act", gate, kind="sigmoid"))
    out = b(Linear, "out", merged, b.weight(f"model.layers.{layer}.o_proj.weight", M, of.heads * D))
    return b(Add, "residual", x, out)


def _build(of: Layers) -> Model:
    graph = Graph("tiny")
    b = Builder(graph, "f64")
    tokens, pos = b.tokens()
    x = b(Embed, "embed", tokens, b.weight("model.embed.weight", VOCAB, M))
    for layer in range(of.layers):
        with b.scope(f"layers.{layer}.attn"):
            x = _attention(b, x, pos, layer, of)
    graph.set_outputs([b(Linear, "logits", x, b.weight("model.embed.weight", VOCAB, M))])
    graph.verify()
    torch.manual_seed(0)
    tensors = {
        value.name: torch.randn(value.tensor.sizes, dtype=torch.float64)
        * (1.0 if value.tensor.sizes[0] == VOCAB else 0.5)
        for value in graph.parameters()
    }
    return Model(graph, tensors, torch.randint(0, VOCAB, (6, 24)))


@pytest.fixture
def decoder() -> Callable[..., Model]:
    """Return a function that builds a model from the fields of `Layers`."""
    torch.set_num_threads(1)

    def build(**fields: object) -> Model:
        return _build(Layers(**fields))  # pyright: ignore[reportArgumentType]

    return build
