"""DeepSeek V4: residual streams side by side, attention to a window and to pooled rows, experts by hash or by score.

Source: specs/deepseek_v4.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from regraft.frontends.blocks import Block, ModelBuilder, MoE, RMSNorm
from regraft.frontends.rope import Rope
from regraft.ir.op import Value
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.compress import Compressed
from regraft.ir.ops.core import (
    Activation,
    Add,
    Clamp,
    Concat,
    Flatten,
    GroupedLinear,
    Mul,
    Norm,
    Scale,
    Slice,
    Unflatten,
)
from regraft.ir.ops.hyper import Read, Write
from regraft.ir.ops.index import Index
from regraft.ir.ops.memory import ReadRows, RowPositions, StateRows, ViewRows
from regraft.ir.ops.moe import Assign, Experts, Route
from regraft.ir.ops.pos import Rope as RopeOp


@dataclass(frozen=True)
class Streams:
    """Residual streams: how many, and the constants of the maps between them."""

    count: int
    iterations: int
    floor: float
    eps: float

    def read(self, b: ModelBuilder, x: Value, module: str) -> tuple[Value, Value, Value]:
        """Return one input from all streams, and the maps that write a result back."""
        rows = (2 + self.count) * self.count
        width = x.tensor.shape[-1]
        assert isinstance(width, int)
        fn = b.weight(f"{module}.fn", rows, self.count * width)
        base, scale = b.weight(f"{module}.base", rows), b.weight(f"{module}.scale", 3)
        options = {"eps": self.eps, "floor": self.floor, "iterations": self.iterations}
        collapsed, post, comb = b.many(Read, ["input", "post", "comb"], x, fn, base, scale, **options)
        return collapsed, post, comb


@dataclass(frozen=True)
class Compressor:
    """Pools every ``rate`` tokens into a row of ``width``, normed and turned at its first token's position."""

    rate: int
    width: int
    overlap: bool
    rope: Rope
    norm: RMSNorm

    def build(self, b: ModelBuilder, x: Value, module: str) -> Value:
        """Return the rows as a memory of keys ``[1, width]``."""
        channels = 2 * self.width if self.overlap else self.width
        values = b.linear("values", x, f"{module}.kv_proj", channels)
        gates = b.linear("gates", x, f"{module}.gate_proj", channels)
        bias = b.weight(f"{module}.position_bias", self.rate, channels)
        memory = b(Compressed, "memory", values, bias, gates=gates, rate=self.rate, overlap=self.overlap)
        rows = self.norm.build(b, "rows_norm", b(ReadRows, "rows", memory), _kv_norm(b, module))
        keys = b(Unflatten, "keys", rows, parts=1)
        return b(ViewRows, "view", memory, turned(b, "keys", keys, b(RowPositions, "rows_at", memory), self.rope))


@dataclass(frozen=True)
class Chooser:
    """Light heads that choose ``chosen`` pooled rows for each query, by keys pooled like them."""

    heads: int
    chosen: int
    keys: Compressor

    def build(self, b: ModelBuilder, x: Value, latent: Value, pos: Value, module: str) -> Value:
        """Return the rows' numbers ``[B, T, chosen]``."""
        width = self.keys.width
        q = b.linear("q_proj", latent, f"{module}.q_b_proj", self.heads * width)
        q = turned(b, "q", b(Unflatten, "q", q, parts=self.heads), pos, self.keys.rope)
        weights = b.linear("head_weights", x, f"{module}.scorer.weights_proj", self.heads)
        weights = b(Scale, "weights", weights, factor=self.heads**-0.5)
        keys = self.keys.build(b, x, module)
        return b(Index, "chosen", q, weights, keys, scale=width**-0.5, chosen=self.chosen)


@dataclass(frozen=True)
class PooledAttention:
    """Attention to a window of tokens and to pooled rows, in one softmax with sinks; keys are values.

    Attributes:
        heads: Heads.
        width: Channels of a head.
        query_rank: Channels of the queries' latent.
        window: How many tokens a query sees, itself included.
        rope: How the last channels of queries and keys turn; those of the result turn back.
        norm: Norms latents and keys; queries by head without a weight.
        groups: Groups of heads that are mapped back on their own,
        group_rank: to as many channels each.
        pooled: What makes the pooled rows; None for none.
        chooser: What chooses among them; None for all.
    """

    heads: int
    width: int
    query_rank: int
    window: int
    rope: Rope
    norm: RMSNorm
    groups: int
    group_rank: int
    pooled: Compressor | None = None
    chooser: Chooser | None = None
    module: str = "self_attn"

    def build(self, b: ModelBuilder, x: Value, pos: Value, module: str) -> Value:
        """Return the attention's output ``[B, T, M]`` for normed ``x [B, T, M]``."""
        latent = b.linear("q_a", x, f"{module}.q_a_proj", self.query_rank)
        latent = self.norm.build(b, "q_latent", latent, f"{module}.q_a_norm")
        q = b.linear("q_proj", latent, f"{module}.q_b_proj", self.heads * self.width)
        q = b(Unflatten, "q", q, parts=self.heads)
        q = turned(b, "q", b(Norm, "q_norm", q, eps=self.norm.eps), pos, self.rope)
        entries = chosen = None
        if self.pooled is not None:
            with b.scope("pool"):
                entries = self.pooled.build(b, x, f"{module}.compressor")
        if self.chooser is not None:
            with b.scope("index"):
                chosen = self.chooser.build(b, x, latent, pos, f"{module}.compressor.indexer")
        view, sink = self._near(b, x, pos, module), b.weight(f"{module}.sinks", self.heads)
        options = {"sink": sink, "chosen": chosen, "entries": entries, "window": self.window}
        ctx = b(Attend, "ctx", q, view, scale=self.width**-0.5, **options)
        return self._merged(b, turned(b, "ctx", ctx, pos, self.rope, inverse=True), x, module)

    def _near(self, b: ModelBuilder, x: Value, pos: Value, module: str) -> Value:
        """Return the tokens of the window as a memory of keys."""
        k = b.linear("k_proj", x, f"{module}.kv_proj", self.width)
        k = self.norm.build(b, "k_norm", k, _kv_norm(b, module))
        k = turned(b, "k", b(Unflatten, "k", k, parts=1), pos, self.rope)
        memory = b(StateRows, "memory", b(Flatten, "k_row", k), window=self.window)
        return b(ViewRows, "view", memory, b(Unflatten, "rows_keys", b(ReadRows, "rows", memory), parts=1))

    def _merged(self, b: ModelBuilder, ctx: Value, x: Value, module: str) -> Value:
        model = x.tensor.shape[-1]
        assert isinstance(model, int)
        dealt = b(Unflatten, "groups", b(Flatten, "merged", ctx), parts=self.groups)
        width = self.heads * self.width // self.groups
        weight = b.weight(f"{module}.o_a_proj.weight", self.groups * self.group_rank, width)
        narrow = b(Flatten, "narrow", b(GroupedLinear, "o_a", dealt, weight))
        return b.linear("out", narrow, f"{module}.o_b_proj", model)


@dataclass(frozen=True)
class ClampedMoE(MoE):
    """Experts with cut activations beside a shared one, chosen by score or by a table of token ids.

    ``limit`` cuts the gate above and the up projection at both sides, in the shared expert too; ``hashed`` says that a
    table chooses.
    """

    limit: float = 10.0
    hashed: bool = False

    def build(self, b: ModelBuilder, x: Value, module: str, *tokens: Value) -> Value:
        """Return the experts' weighted sum and the shared one's for normed ``x``, given token ids if they choose."""
        model = x.tensor.shape[-1]
        assert isinstance(model, int)
        logits = b.linear("logits", x, f"{module}.gate", self.experts)
        options: dict[str, object] = {"chosen": self.chosen, "normalize": True, "score": "sqrt_softplus"}
        options |= {"eps": 1e-20, "scale": self.scale}
        if self.hashed:
            rows = int(str(b.graph.meta["vocab"]))
            table = b.buffer(f"{module}.gate.tid2eid", rows, self.chosen, dtype="i64")
            options["given"] = b(Assign, "given", *tokens, table)
        else:
            options["bias"] = b.buffer(f"{module}.gate.e_score_correction_bias", self.experts)
        weights, chosen = b.many(Route, ["weights", "experts"], logits, **options)
        gate_up = b.weight(f"{module}.experts.gate_up_proj", self.experts, 2 * self.width, model)
        down = b.weight(f"{module}.experts.down_proj", self.experts, model, self.width)
        cut = {"activation": self.activation, "limit": self.limit}
        y = b(Experts, "routed", x, weights, chosen, gate_up, down, **cut)
        return b(Add, "out", y, self._shared(b, x, f"{module}.shared_experts"))

    def _shared(self, b: ModelBuilder, x: Value, module: str) -> Value:
        model = x.tensor.shape[-1]
        assert isinstance(model, int)
        gate = b.linear("shared_gate", x, f"{module}.gate_proj", self.width)
        gate = b(Clamp, "shared_gate_cut", gate, high=self.limit)
        up = b.linear("shared_up", x, f"{module}.up_proj", self.width)
        up = b(Clamp, "shared_up_cut", up, low=-self.limit, high=self.limit)
        hidden = b(Mul, "shared_hidden", b(Activation, "shared_act", gate, kind=self.activation), up)
        return b.linear("shared_out", hidden, f"{module}.down_proj", model)


@dataclass(frozen=True)
class StreamBlock(Block):
    """A layer of streams: each of its two sites reads one input from all and writes its result to all."""

    streams: Streams = Streams(count=4, iterations=20, floor=1e-6, eps=1e-6)

    def build(self, b: ModelBuilder, x: Value, pos: Value, module: str, *rest: Value) -> Value:
        """Return the streams ``[B, T, N, M]`` after the layer; ``rest`` are token ids where they choose experts."""
        assert isinstance(self.feed, ClampedMoE)
        with b.scope("attn"):
            y, post, comb = self.streams.read(b, x, f"{module}.attn_hc")
            y = self.norm.build(b, "norm", y, f"{module}.input_layernorm")
            y = self.mixer.build(b, y, pos, f"{module}.{self.mixer.module}")
            x = b(Write, "residual", x, y, post, comb)
        with b.scope(self.feed.scope):
            y, post, comb = self.streams.read(b, x, f"{module}.ffn_hc")
            y = self.norm.build(b, "norm", y, f"{module}.post_attention_layernorm")
            y = self.feed.build(b, y, f"{module}.{self.feed.module}", *rest)
        return b(Write, "out", x, y, post, comb)


def _kv_norm(b: ModelBuilder, module: str) -> str:
    """Return the norm of keys, which transformers calls otherwise when it saves the model anew."""
    return f"{module}.norm" if b.tensors.has(f"{module}.norm.weight") else f"{module}.kv_norm"


def turned(b: ModelBuilder, name: str, x: Value, pos: Value, rope: Rope, *, inverse: bool = False) -> Value:
    """Return heads ``x [B, T, H, D]`` whose last channels are turned."""
    width = x.tensor.shape[-1]
    assert isinstance(width, int)
    start = width - rope.channels
    turning = b(Slice, f"{name}_turning", x, start=start, stop=width)
    turning = b(RopeOp, f"{name}_rope", turning, pos, **rope.attributes, inverse=inverse)
    return b(Concat, f"{name}_whole", [b(Slice, f"{name}_plain", x, start=0, stop=start), turning])
