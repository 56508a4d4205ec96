"""ZAYA's mechanisms: compressed convolutional attention, a router with a state over depth, learned merges."""

from __future__ import annotations

from dataclasses import dataclass

from regraft.frontends.blocks import ModelBuilder, RMSNorm
from regraft.frontends.rope import Rope
from regraft.ir.op import Value
from regraft.ir.ops.attn import KV, Attend, Temper
from regraft.ir.ops.core import (
    Activation,
    Add,
    Bias,
    Concat,
    Flatten,
    Gain,
    Mean,
    Norm,
    Repeat,
    Scale,
    Slice,
    Unflatten,
)
from regraft.ir.ops.moe import Experts, Route
from regraft.ir.ops.pos import Rope as RopeOp
from regraft.ir.ops.precision import Widen
from regraft.ir.ops.seq import Conv, Shift, Tail
from regraft.ir.ops.weight import Load, LoadEach

_EPSILON = {"f64": 2.0**-52, "f32": 2.0**-23, "f16": 2.0**-10, "bf16": 2.0**-7}


@dataclass(frozen=True)
class Names:
    """What a layout calls the parts: of attention, of the router, of an expert's two maps."""

    query: str = "qkv_proj.q_proj"
    key: str = "qkv_proj.k_proj"
    now: str = "qkv_proj.v_proj_current"
    delayed: str = "qkv_proj.v_proj_delayed"
    convolutions: tuple[str, str] = ("qkv_proj.conv_qk_depthwise", "qkv_proj.conv_qk_grouped")
    temperature: str = "qk_norm.temp"
    router: str = "gate"
    router_norm: str = "router_mlp.norm"
    router_maps: tuple[str, str, str] = ("router_mlp.fc1", "router_mlp.fc2", "router_mlp.out_proj")
    experts: tuple[str, str] = ("experts.gate_up_proj", "experts.down_proj")


NATIVE = Names()
LEGACY = Names(
    "qkv.linear_q",
    "qkv.linear_k",
    "qkv.val_proj1",
    "qkv.val_proj2",
    ("qkv.conv_qk.0", "qkv.conv_qk.1"),
    "qkv.temp",
    "router",
    "rmsnorm_eda",
    ("router_mlp.0", "router_mlp.2", "router_mlp.4"),
    ("experts.local_experts.{}.linear_fc1.weight", "experts.local_experts.{}.linear_fc2.weight"),
)


@dataclass(frozen=True)
class CCA:
    """Attention in a latent: queries and keys are convolved and coupled by their mean, half of the values come late.

    Those are the previous token's. Source: specs/zaya_cca.md, section 3.

    ``taps`` are the two convolutions' lengths.
    """

    heads: int
    kv_heads: int
    width: int
    taps: tuple[int, int]
    rope: Rope
    window: int | None
    bias: bool
    names: Names

    def build(self, b: ModelBuilder, x: Value, pos: Value, module: str) -> Value:
        """Return its output ``[B, T, M]`` for normed ``x [B, T, M]``."""
        model = x.tensor.shape[-1]
        assert isinstance(model, int)
        wide, narrow = self.heads * self.width, self.kv_heads * self.width
        q = b.linear("q_proj", x, f"{module}.{self.names.query}", wide, bias=self.bias)
        k = b.linear("k_proj", x, f"{module}.{self.names.key}", narrow, bias=self.bias)
        mixed = b(Add, "coupled", self._convolved(b, q, k, module), self._mean(b, q, k))
        eps = _EPSILON[b.dtype] * self.width**-0.5
        q = b(Unflatten, "q", b(Slice, "q_rows", mixed, start=0, stop=wide), parts=self.heads)
        k = b(Unflatten, "k", b(Slice, "k_rows", mixed, start=wide, stop=wide + narrow), parts=self.kv_heads)
        q, k = (b(Norm, f"{side}_norm", heads, eps=eps, clamp=True) for side, heads in (("q", q), ("k", k)))
        k = b(Temper, "k_temper", k, b.weight(f"{module}.{self.names.temperature}", self.kv_heads))
        q, k = (b(RopeOp, f"{s}_rope", heads, pos, **self.rope.attributes) for s, heads in (("q", q), ("k", k)))
        memory = b(KV, "memory", k, self._values(b, x, module), window=self.window)
        ctx = b(Attend, "ctx", q, memory, scale=self.width**-0.5, window=self.window)
        return b.linear("out", b(Flatten, "merged", ctx), f"{module}.o_proj", model, bias=self.bias)

    def _convolved(self, b: ModelBuilder, q: Value, k: Value, module: str) -> Value:
        """Return queries and keys, packed, through both convolutions.

        Zeros stand before the first one alone: what the second sees before the start is the first one's bias.
        """
        groups = self.heads + self.kv_heads
        channels = groups * self.width
        packed = b(Concat, "qk", [q, k])
        for number, (name, taps) in enumerate(zip(self.names.convolutions, self.taps, strict=True)):
            alone = number == 0
            shape = (channels, 1 if alone else self.width, taps)
            weight, bias = b.weight(f"{module}.{name}.weight", *shape), b.weight(f"{module}.{name}.bias", channels)
            before = None if alone else b.weight(f"{module}.{self.names.convolutions[0]}.bias", channels)
            tail = b(Tail, f"tail_{number}", packed, initial=before, rows=taps - 1)
            packed = b(Conv, f"conv_{number}", tail, weight, bias=bias, groups=channels if alone else groups)
        return packed

    def _mean(self, b: ModelBuilder, q: Value, k: Value) -> Value:
        """Return, packed, each query's mean with its group's key, and the mean of these over the group."""
        share = self.heads // self.kv_heads
        groups = b(Unflatten, "q_groups", b(Unflatten, "q_kv", q, parts=self.kv_heads), parts=share)
        keys = b(Repeat, "k_groups", b(Unflatten, "k_kv", k, parts=self.kv_heads), parts=share)
        mean = b(Scale, "qk_mean", b(Add, "qk_sum", groups, keys), factor=0.5)
        packed = b(Flatten, "q_mean", b(Flatten, "q_mean_kv", mean))
        return b(Concat, "means", [packed, b(Flatten, "k_mean", b(Mean, "k_mean_kv", mean))])

    def _values(self, b: ModelBuilder, x: Value, module: str) -> Value:
        """Return values by head, the first half of all channels this token's, the second the one's before it."""
        half = self.kv_heads * self.width // 2
        now = b.linear("v_now", x, f"{module}.{self.names.now}", half, bias=self.bias)
        later = b.linear("v_later", x, f"{module}.{self.names.delayed}", half, bias=self.bias)
        initial = b.weight(f"{module}.{self.names.delayed}.bias", half) if self.bias else None
        before = b(Shift, "v_before", b(Tail, "v_tail", later, initial=initial, rows=1))
        return b(Unflatten, "v", b(Concat, "v_rows", [now, before]), parts=self.kv_heads)


@dataclass(frozen=True)
class DepthRouted:
    """Experts, one a token, chosen by an MLP whose input adds up over depth. Source: specs/zaya_cca.md, section 5.

    One more class than experts may be chosen; ``skip`` says what it gives, ``zero`` as in transformers or the input, as
    in the original code (``identity``).
    """

    experts: int
    width: int
    router: int
    eps: float
    activation: str
    skip: str
    names: Names

    def build(self, b: ModelBuilder, x: Value, module: str, state: Value | None) -> tuple[Value, Value]:
        """Return the output for normed ``x [B, T, M]``, and the router's state for the next layer."""
        router, names = f"{module}.{self.names.router}", self.names
        z = b.linear("state_in" if state else "state", x, f"{router}.down_proj", self.router, bias=True)
        if state is not None:
            carried = b(Gain, "carried", state, b.weight(f"{router}.router_states_scale", self.router))
            z = b(Add, "state", z, carried)
        y = RMSNorm(self.eps).build(b, "state_norm", z, f"{router}.{names.router_norm}")
        for number, name in enumerate(names.router_maps[:2]):
            y = b.linear(f"router_{number}", y, f"{router}.{name}", self.router, bias=True)
            y = b(Activation, f"router_act_{number}", y, kind="gelu")
        logits = b.linear("logits", y, f"{router}.{names.router_maps[2]}", self.experts + 1)
        weights, chosen = b.many(Route, ["weights", "experts"], logits, bias=self._bias(b, router), chosen=1)
        gate_up, down = self._weights(b, x, module)
        options = {"activation": self.activation, "skip": self.skip}
        return b(Experts, "out", x, weights, chosen, gate_up, down, **options), z

    def _bias(self, b: ModelBuilder, router: str) -> Value:
        name = f"{router}.balancing_biases"
        facts = {"dtype": b.tensors.dtype(name), "shape": (self.experts + 1,), "buffer": True}
        return b.graph.add(Load({}, facts), [name])[0]

    def _weights(self, b: ModelBuilder, x: Value, module: str) -> tuple[Value, ...]:
        """Return ``gate_up [E, 2F, M]`` and ``down [E, M, F]``."""
        model = x.tensor.shape[-1]
        assert isinstance(model, int)
        shapes = ((self.experts, 2 * self.width, model), (self.experts, model, self.width))
        made: list[Value] = []
        for name, native, shape in zip(self.names.experts, NATIVE.experts, shapes, strict=True):
            tensor = f"{module}.{name}"
            if "{}" not in tensor:
                made.append(b.weight(tensor, *shape))
                continue
            facts = {"tensors": tensor, "dtype": b.tensors.dtype(tensor.format(0)), "shape": shape}
            made += b.graph.add(LoadEach({}, facts), [f"{module}.{native}"])
        return tuple(made)


def merge(b: ModelBuilder, name: str, y: Value, x: Value, module: str) -> Value:
    """Return ``(y + b) * s + (x + b') * s'`` with learned vectors: how an output joins the stream, in float32."""
    joining = b(Widen, f"{name}_wide", scaled(b, f"{name}_y", y, module, "hidden_states"))
    return b(Add, name, joining, scaled(b, f"{name}_x", x, module, "residual"))


def scaled(b: ModelBuilder, name: str, x: Value, module: str, side: str) -> Value:
    """Return ``(x + bias) * scale`` with the vectors of one ``side``."""
    width = x.tensor.shape[-1]
    assert isinstance(width, int)
    moved = b(Bias, f"{name}_moved", x, b.weight(f"{module}{side}_bias", width))
    return b(Gain, name, moved, b.weight(f"{module}{side}_scale", width))
