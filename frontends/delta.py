"""Qwen3-Next's layers and those of its successors: Gated DeltaNet, and attention with a gate on its output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from regraft.frontends.blocks import MLP, Attention, Block, ModelBuilder, MoE, RMSNorm
from regraft.frontends.config import MAX_CONTEXT, MAX_HEADS, MAX_LAYERS, fixed, integer, number, optional_integer, words
from regraft.frontends.decoder import FULL, Decoder
from regraft.ir.op import Value
from regraft.ir.ops.attn import KV, Attend
from regraft.ir.ops.core import Activation, Concat, Flatten, Mul, Norm, Scale, Slice, Unflatten
from regraft.ir.ops.seq import Conv, Decay, Delta, Tail

LINEAR = "linear_attention"
_L2_EPS = 1e-6  # added to a head's sum of squares


@dataclass(frozen=True)
class GatedAttention(Attention):
    """Attention whose query projection also gives a gate for each channel of its output, head by head."""

    def build(self, b: ModelBuilder, x: Value, pos: Value, module: str) -> Value:
        """Return the attention's output ``[B, T, M]`` for normed ``x [B, T, M]``."""
        model = x.tensor.shape[-1]
        assert isinstance(model, int)
        both = b.linear("q_proj", x, f"{module}.q_proj", 2 * self.heads * self.width, bias=self.bias)
        both = b(Unflatten, "q_gate", both, parts=self.heads)
        q = b(Slice, "q", both, start=0, stop=self.width)
        gate = b(Slice, "gate", both, start=self.width, stop=2 * self.width)
        q = self.turned(b, "q", q, pos, module)
        k = self._heads(b, "k", x, pos, module, self.kv_heads)
        memory = b(KV, "memory", k, self.split(b, "v", x, module), window=self.window)
        ctx = b(Attend, "ctx", q, memory, scale=self.scale, window=self.window)
        gated = b(Mul, "gated", ctx, b(Activation, "open", gate, kind="sigmoid"))
        return b.linear("out", b(Flatten, "merged", gated), f"{module}.o_proj", model, bias=self.out_bias)


@dataclass(frozen=True)
class DeltaNet:
    """Linear attention by the gated delta rule, behind a short convolution. Source: specs/relatives.md, section 5.

    ``packed`` has one projection of q, k, v and z and one of the two rates, key head by key head.
    """

    key_heads: int
    value_heads: int
    key_width: int
    value_width: int
    taps: int
    eps: float
    activation: str
    packed: bool
    module: str = "linear_attn"

    def build(self, b: ModelBuilder, x: Value, pos: Value, module: str) -> Value:
        """Return its output ``[B, T, M]`` for normed ``x [B, T, M]``."""
        model = x.tensor.shape[-1]
        assert isinstance(model, int)
        mixed, z, rate, decay = (self._packed if self.packed else self._separate)(b, x, module)
        tail = b(Tail, "tail", mixed, rows=self.taps - 1)
        channels = mixed.tensor.shape[-1]
        assert isinstance(channels, int)
        taps = b.weight(f"{module}.conv1d.weight", channels, 1, self.taps)
        mixed = b(Activation, "mixed", b(Conv, "conv", tail, taps, groups=channels), kind=self.activation)
        keys = self.key_heads * self.key_width
        q = self._unit(b, "q", mixed, 0, 1 / self.key_width)
        k = self._unit(b, "k", mixed, keys, self.key_width**-0.5)
        v = b(Slice, "v_rows", mixed, start=2 * keys, stop=channels)
        v = b(Unflatten, "v", v, parts=self.value_heads)
        log, bias = (b.weight(f"{module}.{name}", self.value_heads) for name in ("A_log", "dt_bias"))
        g, beta = b(Decay, "decay", decay, log, bias), b(Activation, "beta", rate, kind="sigmoid")
        ctx, _ = b.many(Delta, ["ctx", "memory"], q, k, v, g, beta)
        normed = RMSNorm(self.eps).build(b, "ctx_norm", ctx, f"{module}.norm")
        gate = b(Activation, "open", b(Unflatten, "gate", z, parts=self.value_heads), kind=self.activation)
        merged = b(Flatten, "merged", b(Mul, "gated", normed, gate))
        return b.linear("out", merged, f"{module}.out_proj", model)

    def _separate(self, b: ModelBuilder, x: Value, module: str) -> list[Value]:
        """Return q, k and v side by side, z, and what the write and decay rates are of; a projection each."""
        values = self.value_heads * self.value_width
        sizes = {"qkv": 2 * self.key_heads * self.key_width + values, "z": values}
        sizes |= {"b": self.value_heads, "a": self.value_heads}
        return [b.linear(f"{name}_proj", x, f"{module}.in_proj_{name}", size) for name, size in sizes.items()]

    def _packed(self, b: ModelBuilder, x: Value, module: str) -> list[Value]:
        """Return the same out of two projections, each of which goes key head by key head."""
        share = self.value_heads // self.key_heads
        widths = {
            "q": self.key_width,
            "k": self.key_width,
            "v": share * self.value_width,
            "z": share * self.value_width,
        }
        q, k, v, z = self._parts(b, "qkvz", x, module, widths)
        rate, decay = self._parts(b, "ba", x, module, {"b": share, "a": share})
        return [b(Concat, "qkv", [q, k, v]), z, rate, decay]

    def _parts(self, b: ModelBuilder, name: str, x: Value, module: str, widths: dict[str, int]) -> list[Value]:
        rows = b.linear(f"{name}_proj", x, f"{module}.in_proj_{name}", self.key_heads * sum(widths.values()))
        heads = b(Unflatten, name, rows, parts=self.key_heads)
        parts: list[Value] = []
        start = 0
        for part, width in widths.items():
            piece = b(Slice, f"{part}_group", heads, start=start, stop=start + width)
            parts.append(b(Flatten, f"{part}_packed", piece))
            start += width
        return parts

    def _unit(self, b: ModelBuilder, name: str, mixed: Value, start: int, scale: float) -> Value:
        """Return heads of unit length, times what ``scale`` has beside the root of their width."""
        rows = b(Slice, f"{name}_rows", mixed, start=start, stop=start + self.key_heads * self.key_width)
        heads = b(Unflatten, f"{name}_heads", rows, parts=self.key_heads)
        return b(Scale, name, b(Norm, f"{name}_norm", heads, eps=_L2_EPS / self.key_width), factor=scale)


class Hybrid(Decoder):
    """Three layers of Gated DeltaNet and one of gated attention, in turn."""

    towers: ClassVar[Mapping[str, tuple[str, str]]] = {
        "mtp.": ("mtp_num_hidden_layers", "the multi-token prediction module")
    }
    twin_gain = 0.5
    packed: ClassVar[bool] = False
    inert = (
        "mamba_ssm_dtype",
        "max_window_layers",
        "mtp_num_hidden_layers",
        "output_gate_type",
        "sliding_window",
        "use_sliding_window",
    )

    num_key_value_heads = optional_integer(2, high=MAX_HEADS)
    num_attention_heads = integer(16, high=MAX_HEADS)
    num_hidden_layers = integer(32, high=MAX_LAYERS)
    head_dim = optional_integer(256, low=2)
    max_position_embeddings = integer(32768, high=MAX_CONTEXT)
    partial_rotary_factor = number(0.25, low=1e-6, high=1.0)
    attn_output_gate = fixed(True)
    full_attention_interval = integer(4)
    layer_types = words((LINEAR, FULL))
    linear_conv_kernel_dim = integer(4, low=2, high=256)
    linear_key_head_dim = integer(128)
    linear_value_head_dim = integer(128)
    linear_num_key_heads = integer(16, high=MAX_HEADS)
    linear_num_value_heads = integer(32, high=MAX_HEADS)

    def check(self) -> None:
        """Check also the layers' types, and that value heads can be dealt to key heads."""
        types = self.layer_types
        if types is not None and len(types) != self.num_hidden_layers:
            raise self.disagree(
                "layer_types",
                f"layer_types has {len(types)} entries for {self.num_hidden_layers} layers",
                "one entry a layer",
            )
        if self.linear_num_value_heads % self.linear_num_key_heads:
            raise self.disagree(
                "linear_num_value_heads",
                f"{self.linear_num_value_heads} value heads for {self.linear_num_key_heads} key heads",
                "linear_num_value_heads must be a multiple of linear_num_key_heads",
            )
        super().check()
        _ = self.rope  # reads its keys, also where the first layer has none

    @property
    def norm(self) -> RMSNorm:
        """A norm whose weights are centred on zero."""
        return RMSNorm(self.rms_norm_eps, offset=1.0, cast="after")

    @property
    def rotary_part(self) -> float | None:
        """A quarter of the channels, unless the config says otherwise."""
        return self.partial_rotary_factor

    def mixes(self, layer: int) -> str:
        """Return a layer's type."""
        if self.layer_types is not None:
            return self.layer_types[layer]
        return LINEAR if (layer + 1) % self.full_attention_interval else FULL

    def mixer(self, layer: int) -> GatedAttention | DeltaNet:
        """Return what mixes a layer's tokens."""
        if self.mixes(layer) == LINEAR:
            return DeltaNet(
                key_heads=self.linear_num_key_heads,
                value_heads=self.linear_num_value_heads,
                key_width=self.linear_key_head_dim,
                value_width=self.linear_value_head_dim,
                taps=self.linear_conv_kernel_dim,
                eps=self.rms_norm_eps,
                activation=self.hidden_act,
                packed=self.packed,
            )
        return GatedAttention(
            heads=self.num_attention_heads,
            kv_heads=self.kv_heads,
            width=self.head_width,
            scale=self.head_width**-0.5,
            rope=self.rope,
            norm=self.norm,
        )

    def feed(self, layer: int) -> MLP | MoE:
        """Return what a layer has after its mixer."""
        return MLP(self.intermediate_size, self.hidden_act)

    def block(self, layer: int) -> Block:
        """Return what layer ``layer`` is."""
        return Block(self.norm, self.mixer(layer), self.feed(layer))

    def per_layer(self, layers: Sequence[int]) -> dict[str, object]:
        """Return the layers' types and small heads; the two widths of DeltaNet's differ."""
        small: dict[str, object] = {
            "layer_types": [self.mixes(layer) for layer in layers],
            "head_dim": 32,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 2 * self.linear_num_value_heads // self.linear_num_key_heads,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 12,
        }
        return small | ({"mtp_num_hidden_layers": 0} if "mtp_num_hidden_layers" in self.given.values else {})
