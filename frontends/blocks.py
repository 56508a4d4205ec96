"""The mechanisms that families share: each exists once, and a family configures it.

A mechanism is a frozen value, so that layers with equal ones are built once; its ``build`` adds its ops in the
builder's scope. Weights are named by the module that holds them, ``model.layers.3.self_attn.q_proj``.
"""

from __future__ import annotations

from dataclasses import dataclass

from regraft.frontends.rope import Rope
from regraft.frontends.tensors import Tensors
from regraft.ir.builder import Builder
from regraft.ir.graph import Graph
from regraft.ir.op import Value
from regraft.ir.ops.attn import KV, Attend
from regraft.ir.ops.core import Activation, Add, Flatten, Linear, Mul, Norm, Unflatten
from regraft.ir.ops.moe import Experts, Route
from regraft.ir.ops.pos import Rope as RopeOp
from regraft.ir.ops.weight import ConcatWeight, LoadEach


class ModelBuilder(Builder):
    """A builder over the tensors of a checkpoint: it knows their element types and how experts are stored.

    Args:
        graph: The graph to build.
        tensors: The checkpoint's tensors, or what the config alone calls for.
    """

    def __init__(self, graph: Graph, tensors: Tensors) -> None:
        super().__init__(graph, tensors.dtype(""))
        self.tensors = tensors

    def weight(self, tensor: str, *shape: int, dtype: str | None = None) -> Value:
        """Return the checkpoint's tensor of that name, in the element type that it has there."""
        return super().weight(tensor, *shape, dtype=dtype or self.tensors.dtype(tensor))

    def linear(self, name: str, x: Value, module: str, out: int, *, bias: bool = False) -> Value:
        """Add the linear map of ``module``."""
        width = x.tensor.shape[-1]
        assert isinstance(width, int)
        weight = self.weight(f"{module}.weight", out, width)
        return self(Linear, name, x, weight, bias=self.weight(f"{module}.bias", out) if bias else None)

    def each(self, tensors: str, count: int, *shape: int, name: str) -> Value:
        """Return the tensors ``tensors`` with ``{}`` from 0 to ``count - 1``, stacked."""
        dtype = self.tensors.dtype(tensors.format(0))
        return self.graph.add(LoadEach({}, {"tensors": tensors, "dtype": dtype, "shape": (count, *shape)}), [name])[0]


@dataclass(frozen=True)
class RMSNorm:
    """A root-mean-square norm; ``offset`` and ``cast`` as in ``core.norm``."""

    eps: float
    offset: float = 0.0
    cast: str = "before"

    def build(self, b: ModelBuilder, name: str, x: Value, module: str) -> Value:
        """Norm ``x`` by the weight of ``module``."""
        width = x.tensor.shape[-1]
        assert isinstance(width, int)
        weight = b.weight(f"{module}.weight", width)
        return b(Norm, name, x, weight=weight, eps=self.eps, offset=self.offset, cast=self.cast)


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention with a memory of its own.

    ``width`` is a head's. ``norm`` norms each head of queries and keys before they turn; ``window`` is how many tokens
    a query sees, itself included, None for all.
    """

    heads: int
    kv_heads: int
    width: int
    scale: float
    rope: Rope | None = None
    window: int | None = None
    norm: RMSNorm | None = None
    bias: bool = False
    out_bias: bool = False

    def build(self, b: ModelBuilder, x: Value, pos: Value, module: str) -> Value:
        """Return the attention's output ``[B, T, M]`` for normed ``x [B, T, M]``."""
        model = x.tensor.shape[-1]
        assert isinstance(model, int)
        q = self._heads(b, "q", x, pos, module, self.heads)
        k = self._heads(b, "k", x, pos, module, self.kv_heads)
        v_proj = b.linear("v_proj", x, f"{module}.v_proj", self.kv_heads * self.width, bias=self.bias)
        v = b(Unflatten, "v", v_proj, parts=self.kv_heads)
        memory = b(KV, "memory", k, v, window=self.window)
        ctx = b(Attend, "ctx", q, memory, scale=self.scale, window=self.window)
        merged = b(Flatten, "merged", ctx)
        return b.linear("out", merged, f"{module}.o_proj", model, bias=self.out_bias)

    def _heads(self, b: ModelBuilder, side: str, x: Value, pos: Value, module: str, heads: int) -> Value:
        """Return queries or keys by head, normed and turned."""
        y = b.linear(f"{side}_proj", x, f"{module}.{side}_proj", heads * self.width, bias=self.bias)
        y = b(Unflatten, side, y, parts=heads)
        if self.norm:
            y = self.norm.build(b, f"{side}_norm", y, f"{module}.{side}_norm")
        if self.rope:
            y = b(RopeOp, f"{side}_rope", y, pos, **self.rope.attributes)
        return y


@dataclass(frozen=True)
class MLP:
    """A gated MLP: ``down(activation(gate x) * (up x))``, ``width`` wide."""

    width: int
    activation: str = "silu"
    bias: bool = False
    scope = "mlp"

    def build(self, b: ModelBuilder, x: Value, module: str) -> Value:
        """Return the MLP's output for normed ``x [B, T, M]``."""
        model = x.tensor.shape[-1]
        assert isinstance(model, int)
        gate = b.linear("gate", x, f"{module}.gate_proj", self.width, bias=self.bias)
        up = b.linear("up", x, f"{module}.up_proj", self.width, bias=self.bias)
        act = b(Activation, "act", gate, kind=self.activation)
        hidden = b(Mul, "hidden", act, up)
        return b.linear("out", hidden, f"{module}.down_proj", model, bias=self.bias)


@dataclass(frozen=True)
class MoE:
    """Gated MLPs of which a softmax router chooses some for each token, ``width`` wide each."""

    experts: int
    chosen: int
    width: int
    activation: str = "silu"
    normalize: bool = False
    scope = "moe"

    def build(self, b: ModelBuilder, x: Value, module: str) -> Value:
        """Return the experts' weighted sum for normed ``x [B, T, M]``."""
        model = x.tensor.shape[-1]
        assert isinstance(model, int)
        logits = b.linear("logits", x, f"{module}.gate", self.experts)
        weights, chosen = b.many(Route, ["weights", "experts"], logits, chosen=self.chosen, normalize=self.normalize)
        gate_up, down = self._weights(b, f"{module}.experts", model)
        return b(Experts, "out", x, weights, chosen, gate_up, down, activation=self.activation)

    def _weights(self, b: ModelBuilder, module: str, model: int) -> tuple[Value, Value]:
        """Return ``gate_up [E, 2F, M]`` and ``down [E, M, F]``, stacked where the checkpoint has single experts."""
        fused, down = f"{module}.gate_up_proj", f"{module}.down_proj"
        count, width = self.experts, self.width
        if b.tensors.has(fused) is not False:
            return b.weight(fused, count, 2 * width, model), b.weight(down, count, model, width)
        gate = b.each(f"{module}.{{}}.gate_proj.weight", count, width, model, name=f"{module}.gate_proj")
        up = b.each(f"{module}.{{}}.up_proj.weight", count, width, model, name=f"{module}.up_proj")
        (gate_up,) = b.graph.add(ConcatWeight({"xs": (gate, up)}, {"axis": 1}), [fused])
        return gate_up, b.each(f"{module}.{{}}.down_proj.weight", count, model, width, name=down)


@dataclass(frozen=True)
class Block:
    """A pre-norm decoder layer: attention, then an MLP or a mixture, each added to the stream."""

    norm: RMSNorm
    attention: Attention
    feed: MLP | MoE

    def build(self, b: ModelBuilder, x: Value, pos: Value, module: str) -> Value:
        """Return the stream after the layer."""
        with b.scope("attn"):
            normed = self.norm.build(b, "norm", x, f"{module}.input_layernorm")
            x = b(Add, "residual", x, self.attention.build(b, normed, pos, f"{module}.self_attn"))
        with b.scope(self.feed.scope):
            normed = self.norm.build(b, "norm", x, f"{module}.post_attention_layernorm")
            out = self.feed.build(b, normed, f"{module}.mlp")
        return b(Add, "out", x, out)
