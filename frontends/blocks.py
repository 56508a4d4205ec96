"""The mechanisms that families share: each exists once, and a family configures it.

A mechanism is a frozen value, so that layers with equal ones are built once; its ``build`` adds its ops in the
builder's scope. Weights are named by the module that holds them, ``model.layers.3.self_attn.q_proj``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from regraft.frontends.rope import Rope
from regraft.frontends.tensors import Tensors
from regraft.ir.builder import Builder
from regraft.ir.graph import Graph
from regraft.ir.op import Value
from regraft.ir.ops.attn import KV, Attend
from regraft.ir.ops.core import Activation, Add, Flatten, Gain, Linear, Mul, Norm, Scale, Softcap, Unflatten
from regraft.ir.ops.moe import Experts, Route
from regraft.ir.ops.pos import Rope as RopeOp
from regraft.ir.ops.quantized import Dequantize
from regraft.ir.ops.weight import ConcatWeight, Load, LoadEach, SliceWeight

_SCALE = "_scale_inv"  # what the name of a tensor's scales ends with


class ModelBuilder(Builder):
    """A builder over the tensors of a checkpoint: it knows their element types and how experts are stored.

    Args:
        graph: The graph to build.
        tensors: The checkpoint's tensors, or what the config alone calls for.
    """

    def __init__(self, graph: Graph, tensors: Tensors) -> None:
        super().__init__(graph, tensors.dtype(""))
        self.tensors = tensors
        self.block: tuple[int, int] | None = None  # rows and columns that share a scale, in a quantised checkpoint

    def weight(self, tensor: str, *shape: int, dtype: str | None = None) -> Value:
        """Return the checkpoint's tensor of that name, in the element type that it has there, or dequantised."""
        if self._scaled(tensor) and tensor not in self.graph:
            block, scales = self._scales(shape)
            packed = self._load(Load, f"{tensor}_packed", "f8e4m3", shape, tensor=tensor)
            scale = self._load(Load, f"{tensor}{_SCALE}", self.tensors.dtype(f"{tensor}{_SCALE}"), scales, tensor=None)
            return self._dequantized(tensor, packed, scale, block)
        return super().weight(tensor, *shape, dtype=dtype or self.tensors.dtype(tensor))

    def _scaled(self, tensor: str) -> bool:
        """Return whether a checkpoint holds a tensor as codes of blocks that have a scale."""
        coded = self.tensors.has(f"{tensor}{_SCALE}") is True or self.tensors.stored(tensor) == "f8e4m3"
        return self.block is not None and coded

    def _scales(self, shape: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, ...]]:
        """Return the size of a block, and the shape of a tensor's scales."""
        assert self.block is not None
        counts = (-(-size // side) for size, side in zip(shape[-2:], self.block, strict=True))
        return self.block, (*shape[:-2], *counts)

    def _load(self, op: type[Load | LoadEach], name: str, dtype: str, shape: tuple[int, ...], **rest: object) -> Value:
        return self.graph.add(op({}, {"dtype": dtype, "shape": shape, **rest}), [name])[0]

    def _dequantized(self, name: str, packed: Value, scale: Value, block: tuple[int, int]) -> Value:
        slots = {"x": (packed,), "scale": (scale,)}
        return self.graph.add(Dequantize(slots, {"block": block, "dtype": self.dtype}), [name])[0]

    def linear(self, name: str, x: Value, module: str, out: int, *, bias: bool = False) -> Value:
        """Add the linear map of ``module``."""
        width = x.tensor.shape[-1]
        assert isinstance(width, int)
        weight = self.weight(f"{module}.weight", out, width)
        return self(Linear, name, x, weight, bias=self.weight(f"{module}.bias", out) if bias else None)

    def part(self, tensor: str, shape: tuple[int, ...], rows: tuple[int, int], name: str) -> Value:
        """Return the rows from the first up to the second of a tensor of that shape, as a weight called ``name``."""
        whole = self.weight(tensor, *shape)
        return self.graph.add(SliceWeight({"x": (whole,)}, {"start": rows[0], "stop": rows[1]}), [name])[0]

    def buffer(self, tensor: str, *shape: int, dtype: str | None = None) -> Value:
        """Return a tensor that transformers counts as no parameter."""
        facts = {"dtype": dtype or self.tensors.dtype(tensor), "shape": shape, "buffer": True}
        return self.graph.add(Load({}, facts), [tensor])[0]

    def named(self, converted: str, published: str) -> str:
        """Return the name that a tensor has in this checkpoint, of those before and after transformers renames it."""
        return published if self.tensors.has(converted) is False else converted

    def each(self, tensors: str, count: int, *shape: int, name: str) -> Value:
        """Return the tensors ``tensors`` with ``{}`` from 0 to ``count - 1``, stacked."""
        if self._scaled(tensors.format(0)):
            block, scales = self._scales((count, *shape))
            packed = self._load(LoadEach, f"{name}_packed", "f8e4m3", (count, *shape), tensors=tensors)
            dtype = self.tensors.dtype(f"{tensors.format(0)}{_SCALE}")
            scale = self._load(LoadEach, f"{name}{_SCALE}", dtype, scales, tensors=f"{tensors}{_SCALE}")
            return self._dequantized(name, packed, scale, block)
        dtype = self.tensors.dtype(tensors.format(0))
        return self.graph.add(LoadEach({}, {"tensors": tensors, "dtype": dtype, "shape": (count, *shape)}), [name])[0]


@dataclass(frozen=True)
class RMSNorm:
    """A root-mean-square norm; ``offset`` and ``cast`` as in ``core.norm``."""

    eps: float
    offset: float = 0.0
    cast: str = "before"

    def build(self, b: ModelBuilder, name: str, x: Value, module: str) -> Value:
        """Norm ``x`` by the weight of ``module``, or without one where that is empty."""
        if not module:
            return b(Norm, name, x, eps=self.eps)
        width = x.tensor.shape[-1]
        assert isinstance(width, int)
        weight = b.weight(f"{module}.weight", width)
        return b(Norm, name, x, weight=weight, eps=self.eps, offset=self.offset, cast=self.cast)


class Mixer(Protocol):
    """What mixes tokens in a layer: attention, or what stands in its place."""

    @property
    def module(self) -> str:
        """The checkpoint's name for it."""
        ...

    def build(self, b: ModelBuilder, x: Value, pos: Value, module: str) -> Value:
        """Return its output ``[B, T, M]`` for normed ``x [B, T, M]``."""
        ...


@dataclass(frozen=True)
class Attention:
    """Grouped-query attention, with a memory of its own unless it is given one.

    Attributes:
        heads: Query heads.
        kv_heads: Key/value heads.
        width: Channels of a head.
        scale: What multiplies scores.
        rope: How queries and keys turn.
        window: How many tokens a query sees, itself included, None for all.
        norm: Norms queries and keys before they turn, each head alone.
        whole_norm: Whether ``norm`` is over all heads at once instead.
        value_norm: Norms each head of values, without a weight.
        bias: Whether the maps to queries, keys and values have biases.
        out_bias: Whether the map back has one.
        keys_are_values: Whether values are the keys' projection, taken before its norm.
        sink: Whether each head has a sink.
        softcap: Bounds scores.
        gate: ``head`` or ``channel``: what a softplus of the input gates of the result; empty for nothing.
        fused: The module that maps to queries, keys and values in one, in this order; empty where they are three.
        out: The module that maps back.
        module: The module that holds it all.
    """

    heads: int
    kv_heads: int
    width: int
    scale: float
    rope: Rope | None = None
    window: int | None = None
    norm: RMSNorm | None = None
    whole_norm: bool = False
    value_norm: RMSNorm | None = None
    bias: bool = False
    out_bias: bool = False
    keys_are_values: bool = False
    sink: bool = False
    softcap: float | None = None
    gate: str = ""
    fused: str = ""
    out: str = "o_proj"
    module: str = "self_attn"

    def build(self, b: ModelBuilder, x: Value, pos: Value, module: str) -> Value:
        """Return the attention's output ``[B, T, M]`` for normed ``x [B, T, M]``."""
        q = self._heads(b, "q", x, pos, module, self.heads)
        keys = self.split(b, "k", x, module)
        k = self.turned(b, "k", keys, pos, module)
        v = keys if self.keys_are_values else self.split(b, "v", x, module)
        if self.value_norm:
            v = self.value_norm.build(b, "v_norm", v, "")
        return self._mixed(b, x, q, b(KV, "memory", k, v, window=self.window), module)

    def read(self, b: ModelBuilder, x: Value, pos: Value, module: str, memory: Value) -> Value:
        """Return the output of attention to an earlier layer's memory."""
        return self._mixed(b, x, self._heads(b, "q", x, pos, module, self.heads), memory, module)

    def _mixed(self, b: ModelBuilder, x: Value, q: Value, memory: Value, module: str) -> Value:
        model = x.tensor.shape[-1]
        assert isinstance(model, int)
        sink = b.weight(f"{module}.sinks", self.heads) if self.sink else None
        ctx = b(Attend, "ctx", q, memory, sink=sink, scale=self.scale, window=self.window, softcap=self.softcap)
        if self.gate:
            ctx = self._gated(b, x, ctx, module)
        merged = b(Flatten, "merged", ctx)
        return b.linear("out", merged, f"{module}.{self.out}", model, bias=self.out_bias)

    def split(self, b: ModelBuilder, side: str, x: Value, module: str) -> Value:
        """Return queries, keys or values by head; queries and keys normed where that is over all heads at once."""
        heads = self.heads if side == "q" else self.kv_heads
        y = self._projected(b, side, x, module, heads * self.width)
        if self.norm and self.whole_norm and side != "v":
            y = self.norm.build(b, f"{side}_norm", y, f"{module}.{side}_norm")
        return b(Unflatten, side, y, parts=heads)

    def _heads(self, b: ModelBuilder, side: str, x: Value, pos: Value, module: str, heads: int) -> Value:
        """Return queries or keys by head, normed and turned."""
        return self.turned(b, side, self.split(b, side, x, module), pos, module)

    def _projected(self, b: ModelBuilder, side: str, x: Value, module: str, out: int) -> Value:
        if not self.fused:
            return b.linear(f"{side}_proj", x, f"{module}.{side}_proj", out, bias=self.bias)
        width = x.tensor.shape[-1]
        assert isinstance(width, int)
        rows = (self.heads + 2 * self.kv_heads) * self.width
        start = {"q": 0, "k": self.heads * self.width, "v": (self.heads + self.kv_heads) * self.width}[side]
        span, source, name = (start, start + out), f"{module}.{self.fused}", f"{module}.{side}_proj"
        weight = b.part(f"{source}.weight", (rows, width), span, f"{name}.weight")
        bias = b.part(f"{source}.bias", (rows,), span, f"{name}.bias") if self.bias else None
        return b(Linear, f"{side}_proj", x, weight, bias=bias)

    def turned(self, b: ModelBuilder, side: str, y: Value, pos: Value, module: str) -> Value:
        """Return queries or keys, normed by head and turned."""
        if self.norm and not self.whole_norm:
            y = self.norm.build(b, f"{side}_norm", y, f"{module}.{side}_norm")
        if self.rope:
            y = b(RopeOp, f"{side}_rope", y, pos, **self.rope.attributes)
        return y

    def _gated(self, b: ModelBuilder, x: Value, ctx: Value, module: str) -> Value:
        gates = self.heads if self.gate == "head" else self.heads * self.width
        gate = b(Activation, "gate", b.linear("gate_logits", x, f"{module}.g_proj", gates), kind="softplus")
        return b(Gain, "gated", ctx, b(Unflatten, "gate_heads", gate, parts=self.heads))


@dataclass(frozen=True)
class MLP:
    """A gated MLP: ``down(activation(gate x) * (up x))``, ``width`` wide.

    ``fused`` is the module that maps to gate and up projection in one, gate first; empty where they are two.
    """

    width: int
    activation: str = "silu"
    bias: bool = False
    fused: str = ""
    down: str = "down_proj"
    module: str = "mlp"
    scope = "mlp"

    def build(self, b: ModelBuilder, x: Value, module: str, names: str = "") -> Value:
        """Return the MLP's output for normed ``x [B, T, M]``; values are called with ``names`` before."""
        model = x.tensor.shape[-1]
        assert isinstance(model, int)
        gate, up = (self._projected(b, f"{names}{side}", x, module, side) for side in ("gate", "up"))
        act = b(Activation, f"{names}act", gate, kind=self.activation)
        hidden = b(Mul, f"{names}hidden", act, up)
        return b.linear(f"{names}out", hidden, f"{module}.{self.down}", model, bias=self.bias)

    def _projected(self, b: ModelBuilder, name: str, x: Value, module: str, side: str) -> Value:
        if not self.fused:
            return b.linear(name, x, f"{module}.{side}_proj", self.width, bias=self.bias)
        model = x.tensor.shape[-1]
        assert isinstance(model, int)
        start = 0 if side == "gate" else self.width
        rows, shape = (start, start + self.width), (2 * self.width, model)
        return b(Linear, name, x, b.part(f"{module}.{self.fused}.weight", shape, rows, f"{module}.{side}_proj.weight"))


@dataclass(frozen=True)
class MoE:
    """Gated MLPs of which a router chooses some for each token, ``width`` wide each.

    Attributes:
        experts: How many there are.
        chosen: How many a token goes through.
        width: Channels of an expert.
        activation: Its activation.
        normalize: Whether the chosen experts' weights are made to add up to one.
        score: ``softmax`` over all experts or ``sigmoid`` of each.
        scale: What multiplies their sum.
        bias: Whether a bias takes part in the choice.
        softcap: Bounds the router's logits.
        shared: Channels of an MLP for all tokens beside them; 0 for none.
        shared_module: What transformers calls it; checkpoints may have ``shared_expert``.
        shared_gate: Whether a sigmoid of the input gates it.
        parts: How experts' modules are called in checkpoints that hold them one by one: gate, up, down.
        folder: The module as such checkpoints call it, where that differs.
    """

    experts: int
    chosen: int
    width: int
    activation: str = "silu"
    normalize: bool = False
    score: str = "softmax"
    scale: float = 1.0
    bias: bool = False
    softcap: float = 0.0
    shared: int = 0
    shared_module: str = "shared_expert"
    shared_gate: bool = True
    parts: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
    folder: str = ""
    module: str = "mlp"
    scope = "moe"

    def build(self, b: ModelBuilder, x: Value, module: str) -> Value:
        """Return the experts' weighted sum for normed ``x [B, T, M]``, and the shared one's."""
        model = x.tensor.shape[-1]
        assert isinstance(model, int)
        if self.folder and b.tensors.has(f"{module}.gate.weight") is False:
            module = f"{module.rpartition('.')[0]}.{self.folder}"
        logits = b.linear("logits", x, f"{module}.gate", self.experts)
        if self.softcap:
            logits = b(Softcap, "bounded", logits, cap=self.softcap)
        bias = self._bias(b, module) if self.bias else None
        weights, chosen = b.many(Route, ["weights", "experts"], logits, bias=bias, **self.routing)
        gate_up, down = self._weights(b, f"{module}.experts", model)
        mixed = "routed" if self.shared else "out"
        y = b(Experts, mixed, x, weights, chosen, gate_up, down, activation=self.activation)
        return b(Add, "out", y, self._shared(b, x, module)) if self.shared else y

    @property
    def routing(self) -> Mapping[str, object]:
        """The attributes of ``moe.route``."""
        return {"chosen": self.chosen, "normalize": self.normalize, "score": self.score, "scale": self.scale}

    def _bias(self, b: ModelBuilder, module: str) -> Value:
        name = "e_score_correction_bias"
        return b.weight(b.named(f"{module}.gate.{name}", f"{module}.experts.{name}"), self.experts)

    def _shared(self, b: ModelBuilder, x: Value, module: str) -> Value:
        shared, down = MLP(self.shared, self.activation), "down_proj.weight"
        name = b.named(f"{module}.{self.shared_module}.{down}", f"{module}.shared_expert.{down}")
        y = shared.build(b, x, name.removesuffix(f".{down}"), "shared_")
        if not self.shared_gate:
            return y
        logit = b.linear("shared_logit", x, f"{module}.shared_expert_gate", 1)
        return b(Gain, "shared_gated", y, b(Activation, "shared_share", logit, kind="sigmoid"))

    def _weights(self, b: ModelBuilder, module: str, model: int) -> tuple[Value, Value]:
        """Return ``gate_up [E, 2F, M]`` and ``down [E, M, F]``, stacked where the checkpoint has single experts."""
        fused, down = f"{module}.gate_up_proj", f"{module}.down_proj"
        count, width = self.experts, self.width
        if b.tensors.has(fused) is not False:
            return b.weight(fused, count, 2 * width, model), b.weight(down, count, model, width)
        names = [f"{module}.{{}}.{part}.weight" for part in self.parts]
        gate = b.each(names[0], count, width, model, name=f"{module}.gate_proj")
        up = b.each(names[1], count, width, model, name=f"{module}.up_proj")
        (gate_up,) = b.graph.add(ConcatWeight({"xs": (gate, up)}, {"axis": 1}), [fused])
        return gate_up, b.each(names[2], count, model, width, name=down)


@dataclass(frozen=True)
class Block:
    """A decoder layer: what mixes tokens, then an MLP or a mixture, each added to the stream.

    ``before`` and ``after`` name the norms around each of the two, empty where there is none. ``scale`` multiplies what
    is added.
    """

    norm: RMSNorm
    mixer: Mixer
    feed: MLP | MoE
    before: tuple[str, str] = ("input_layernorm", "post_attention_layernorm")
    after: tuple[str, str] = ("", "")
    scale: float = 1.0

    def build(self, b: ModelBuilder, x: Value, pos: Value, module: str, *rest: Value) -> Value:
        """Return the stream after the layer; ``rest`` is what `Decoder.layer_inputs` adds."""
        with b.scope("attn"):
            y = self.normed(b, "norm", x, module, self.before[0])
            y = self.mixer.build(b, y, pos, f"{module}.{self.mixer.module}")
            x = b(Add, "residual", x, self._branch(b, y, module, self.after[0]))
        with b.scope(self.feed.scope):
            y = self.normed(b, "norm", x, module, self.before[1])
            y = self.feed.build(b, y, f"{module}.{self.feed.module}")
            y = self._branch(b, y, module, self.after[1])
        return b(Add, "out", x, y)

    def normed(self, b: ModelBuilder, name: str, x: Value, module: str, norm: str) -> Value:
        """Norm ``x`` by the layer's module ``norm``; without one it stays as it is."""
        return self.norm.build(b, name, x, f"{module}.{norm}") if norm else x

    def _branch(self, b: ModelBuilder, y: Value, module: str, norm: str) -> Value:
        y = self.normed(b, "post_norm", y, module, norm)
        return y if self.scale == 1.0 else b(Scale, "scaled", y, factor=self.scale)
