"""Multi-head latent attention and routing in groups: what DeepSeek's families share. Source: specs/mla.md."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from regraft.frontends.blocks import MLP, ModelBuilder, MoE, RMSNorm
from regraft.frontends.rope import Rope
from regraft.ir.op import Value
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.core import Concat, Flatten, LayerNorm, Linear, Repeat, Scale, Slice, Unflatten
from regraft.ir.ops.index import Index
from regraft.ir.ops.memory import ReadRows, StateRows, ViewRows
from regraft.ir.ops.pos import Rope as RopeOp
from regraft.ir.ops.quantized import SliceEach

LATENT_EPS = 1e-6  # of the norms of latents and index keys, whatever the config's is


@dataclass(frozen=True)
class Indexer:
    """A few light heads that choose the rows attention may look at.

    ``heads`` of ``width`` each; the first channels turn, in halves whatever the attention's layout is. ``chosen`` rows
    a query.
    """

    heads: int
    width: int
    chosen: int
    rope: Rope

    def build(self, b: ModelBuilder, x: Value, latent: Value, pos: Value, module: str) -> Value:
        """Return the rows' numbers ``[B, T, chosen]``, given the attention's input and its queries' normed latent."""
        q = b(Unflatten, "q", b.linear("q_proj", latent, f"{module}.wq_b", self.heads * self.width), parts=self.heads)
        q = b(RopeOp, "q_rope", q, pos, **self.rope.attributes)
        k = b.linear("k_proj", x, f"{module}.wk", self.width)
        weight, bias = (b.weight(f"{module}.k_norm.{part}", self.width) for part in ("weight", "bias"))
        k = b(Unflatten, "k", b(LayerNorm, "k_norm", k, weight, bias, eps=LATENT_EPS), parts=1)
        k = b(Flatten, "k_row", b(RopeOp, "k_rope", k, pos, **self.rope.attributes))
        memory = b(StateRows, "memory", k)
        weights = b.linear("head_weights", x, f"{module}.weights_proj", self.heads)
        weights = b(Scale, "weights", weights, factor=self.heads**-0.5)
        return b(Index, "chosen", q, weights, memory, scale=self.width**-0.5, chosen=self.chosen)


@dataclass(frozen=True)
class LatentAttention:
    """Attention whose memory is a latent and a rotated key that all heads share.

    Keys and values are expanded from the rows by maps of their own, ``k_b_proj`` and ``v_b_proj``, which checkpoints
    interleave by head in ``kv_b_proj``: so a pass may move them to the queries and to the result.

    Attributes:
        heads: Heads.
        plain: Channels of a query or key that do not turn.
        value: Channels of a value.
        rank: Channels of the latent.
        query_rank: Channels of the queries' latent; None for queries without one.
        scale: What multiplies scores.
        rope: How the further channels of queries and keys turn, all of them.
        bias: Whether the maps to latents and the map back have biases.
        indexer: What chooses the rows to look at; None for all.
    """

    heads: int
    plain: int
    value: int
    rank: int
    query_rank: int | None
    scale: float
    rope: Rope
    bias: bool = False
    indexer: Indexer | None = None
    module: str = "self_attn"

    def build(self, b: ModelBuilder, x: Value, pos: Value, module: str) -> Value:
        """Return the attention's output ``[B, T, M]`` for normed ``x [B, T, M]``."""
        model = x.tensor.shape[-1]
        assert isinstance(model, int)
        latent = self._query_latent(b, x, module)
        q = self._queries(b, x if latent is None else latent, pos, module)
        memory = b(StateRows, "memory", self._row(b, x, pos, module))
        view = self._expanded(b, memory, module)
        chosen = None
        if self.indexer is not None and latent is not None:
            with b.scope("index"):
                chosen = self.indexer.build(b, x, latent, pos, f"{module}.indexer")
        ctx = b(Attend, "ctx", q, view, chosen=chosen, scale=self.scale)
        return b.linear("out", b(Flatten, "merged", ctx), f"{module}.o_proj", model, bias=self.bias)

    def _query_latent(self, b: ModelBuilder, x: Value, module: str) -> Value | None:
        if self.query_rank is None:
            return None
        y = b.linear("q_a", x, f"{module}.q_a_proj", self.query_rank, bias=self.bias)
        return RMSNorm(LATENT_EPS).build(b, "q_latent", y, f"{module}.q_a_layernorm")

    def _queries(self, b: ModelBuilder, x: Value, pos: Value, module: str) -> Value:
        width = self.plain + self.rope.channels
        name = "q_proj" if self.query_rank is None else "q_b_proj"
        q = b(Unflatten, "q", b.linear("q_proj", x, f"{module}.{name}", self.heads * width), parts=self.heads)
        turning = b(Slice, "q_turning", q, start=self.plain, stop=width)
        turned = b(RopeOp, "q_rope", turning, pos, **self.rope.attributes)
        return b(Concat, "q_whole", [b(Slice, "q_plain", q, start=0, stop=self.plain), turned])

    def _row(self, b: ModelBuilder, x: Value, pos: Value, module: str) -> Value:
        """Return what is kept of a token: the normed latent, then the rotated key."""
        width = self.rank + self.rope.channels
        y = b.linear("kv_a", x, f"{module}.kv_a_proj_with_mqa", width, bias=self.bias)
        latent = b(Slice, "latent", y, start=0, stop=self.rank)
        latent = RMSNorm(LATENT_EPS).build(b, "latent_norm", latent, f"{module}.kv_a_layernorm")
        key = b(Unflatten, "k_turning", b(Slice, "k_shared", y, start=self.rank, stop=width), parts=1)
        key = b(Flatten, "k_row", b(RopeOp, "k_rope", key, pos, **self.rope.attributes))
        return b(Concat, "row", [latent, key])

    def _expanded(self, b: ModelBuilder, memory: Value, module: str) -> Value:
        """Return keys and values by head of all rows."""
        rows = b(ReadRows, "rows", memory)
        latent = b(Slice, "row_latent", rows, start=0, stop=self.rank)
        shared = b(Slice, "row_key", rows, start=self.rank, stop=self.rank + self.rope.channels)
        width = self.plain + self.value
        whole = b.weight(f"{module}.kv_b_proj.weight", self.heads * width, self.rank)

        def by_head(side: str, start: int, stop: int) -> Value:
            cut = SliceEach({"x": (whole,)}, {"parts": self.heads, "start": start, "stop": stop})
            (weight,) = b.graph.add(cut, [f"{module}.{side}_b_proj.weight"])
            return b(Unflatten, f"{side}_rows", b(Linear, f"{side}_b", latent, weight), parts=self.heads)

        k = b(Concat, "k", [by_head("k", 0, self.plain), b(Repeat, "k_shared_rows", shared, parts=self.heads)])
        return b(ViewRows, "view", memory, k, by_head("v", self.plain, width))


@dataclass(frozen=True)
class GroupedMoE(MoE):
    """Experts dealt to groups: the best ``kept`` of ``groups``, by the sum of their ``best`` scores, take part."""

    groups: int = 1
    kept: int = 1
    best: int = 1
    eps: float = 0.0
    shared_module: str = "shared_experts"
    shared_gate: bool = False

    @property
    def routing(self) -> Mapping[str, object]:
        """The attributes of ``moe.route``."""
        return {**super().routing, "groups": self.groups, "kept": self.kept, "best": self.best, "eps": self.eps}

    def _bias(self, b: ModelBuilder, module: str) -> Value:
        return b.buffer(f"{module}.gate.e_score_correction_bias", self.experts)

    def _shared(self, b: ModelBuilder, x: Value, module: str) -> Value:
        shared = MLP(self.shared, self.activation)
        return shared.build(b, x, f"{module}.{self.shared_module}", "shared_")


def in_halves(rope: Rope) -> Rope:
    """Return the same rotation of channel ``i`` with ``i + channels / 2``."""
    return replace(rope, layout="halves")
