"""Tiny decoders for tests: any mix of layers, and random weights for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from regraft.ir.builder import Builder
from regraft.ir.graph import Graph
from regraft.ir.memory import infer_windows
from regraft.ir.op import Value
from regraft.ir.ops.attn import KV, Attend
from regraft.ir.ops.compress import Compressed
from regraft.ir.ops.core import Activation, Add, Concat, Embed, Flatten, Linear, Mul, Norm, Slice, Unflatten
from regraft.ir.ops.index import Index
from regraft.ir.ops.memory import ReadRows, ViewRows
from regraft.ir.ops.moe import Experts, Route
from regraft.ir.ops.pos import Rope

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.ir.source import TensorSource

WIDTH, HEAD, HIDDEN, VOCABULARY, EXPERTS, CHOSEN = 16, 4, 24, 40, 4, 2


@dataclass(frozen=True)
class LayerSpec:
    """One layer: its window, heads, the layer whose memory it reads instead of its own, and its kind of MLP."""

    window: int | None = None
    heads: int = 4
    kv_heads: int = 2
    head_map: tuple[int, ...] | None = None
    donor: int | None = None
    moe: bool = False
    tied: bool = False  # its MLP's weights are the model's, shared with all such layers
    first: int = 0  # rows at the start that its window does not hide
    skip: int | None = None  # the layer whose output is added to the stream
    rate: int | None = None  # tokens of a pooled row; such rows stand for what is before its window
    chosen: int | None = None  # of the pooled rows, those that score best
    overlap: bool = False  # pooled rows are made of the tokens before theirs too


FULL = LayerSpec()


def decoder(layers: Sequence[LayerSpec], dtype: str = "f32", name: str = "tiny") -> Graph:
    """Return a decoder whose memories keep what their readers ask for."""
    graph = Graph(name, {"family": "test", "eos": (1, 2)})
    b = Builder(graph, dtype)
    tokens, pos = b.tokens()
    x = b(Embed, "embed", tokens, b.weight("model.embed_tokens.weight", VOCABULARY, WIDTH))
    outputs: list[Value] = []
    for number, spec in enumerate(layers):
        with b.scope(f"layers.{number}"):
            x = _layer(b, number, spec, x, pos, outputs)
        outputs.append(x)
    x = b(Norm, "norm", x, weight=b.weight("model.norm.weight", WIDTH), eps=1e-6)
    graph.set_outputs([b(Linear, "logits", x, b.weight("lm_head.weight", VOCABULARY, WIDTH))])
    infer_windows(graph)
    graph.verify()
    return graph


def _layer(b: Builder, number: int, spec: LayerSpec, x: Value, pos: Value, outputs: Sequence[Value]) -> Value:
    here = f"model.layers.{number}."

    def linear(name: str, tensor: str, value: Value, out: int, of: int) -> Value:
        return b(Linear, name, value, b.weight(tensor, out, of))

    with b.scope("attn"):
        h = b(Norm, "norm", x, weight=b.weight(f"{here}input_layernorm.weight", WIDTH), eps=1e-6)
        q = linear("q_proj", f"{here}self_attn.q_proj.weight", h, spec.heads * HEAD, WIDTH)
        q = b(Rope, "q_rope", b(Unflatten, "q", q, parts=spec.heads), pos, base=100.0, channels=HEAD)
        if spec.donor is None:
            kv: list[Value] = []
            for part in "kv":
                flat = linear(f"{part}_proj", f"{here}self_attn.{part}_proj.weight", h, spec.kv_heads * HEAD, WIDTH)
                kv.append(b(Unflatten, part, flat, parts=spec.kv_heads))
            kv[0] = b(Rope, "k_rope", kv[0], pos, base=100.0, channels=HEAD)
            memory = b(KV, "memory", *kv)
        else:
            memory = b.graph[f"layers.{spec.donor}.attn.memory"]
        sight: dict[str, object] = {"window": spec.window, "first": spec.first, "head_map": spec.head_map}
        if spec.rate is not None:
            sight |= _pooled(b, here, spec, h, q)
        context = b(Attend, "ctx", q, memory, scale=HEAD**-0.5, **sight)
        merged = b(Flatten, "merged", context)
        out = linear("out", f"{here}self_attn.o_proj.weight", merged, WIDTH, spec.heads * HEAD)
        x = b(Add, "residual", x, out)
    with b.scope("moe" if spec.moe else "mlp"):
        h = b(Norm, "norm", x, weight=b.weight(f"{here}post_attention_layernorm.weight", WIDTH), eps=1e-6)
        if spec.moe:
            logits = linear("logits", f"{here}mlp.gate.weight", h, EXPERTS, WIDTH)
            weights, experts = b.many(Route, ["weights", "experts"], logits, chosen=CHOSEN, normalize=True)
            gate_up = b.weight(f"{here}mlp.experts.gate_up", EXPERTS, 2 * HIDDEN, WIDTH)
            down = b.weight(f"{here}mlp.experts.down", EXPERTS, WIDTH, HIDDEN)
            out = b(Experts, "out", h, weights, experts, gate_up, down)
        else:
            mlp = "model.shared_mlp." if spec.tied else f"{here}mlp."
            gate = b(Activation, "act", linear("gate", f"{mlp}gate_proj.weight", h, HIDDEN, WIDTH), kind="silu")
            up = linear("up", f"{mlp}up_proj.weight", h, HIDDEN, WIDTH)
            out = linear("out", f"{mlp}down_proj.weight", b(Mul, "hidden", gate, up), WIDTH, HIDDEN)
    if spec.skip is not None:
        out = b(Add, "skip", out, outputs[spec.skip])
    return b(Add, "out", x, out)


def _pooled(b: Builder, here: str, spec: LayerSpec, h: Value, q: Value) -> dict[str, object]:
    """Return what an attention reads beside its window: rows pooled of its keys and values, an index over them."""
    half, scope = spec.kv_heads * HEAD, b.graph.ops[-1].scope
    assert spec.rate is not None
    keys_and_values = [b(Flatten, f"{part}_flat", b.graph[f"{scope}.{part}"]) for part in ("k_rope", "v")]
    series = 2 if spec.overlap else 1
    gates = b(Linear, "gates", h, b.weight(f"{here}self_attn.gates.weight", series * 2 * half, WIDTH))
    place = b.weight(f"{here}self_attn.places", spec.rate, series * 2 * half)
    row = b(Concat, "row", keys_and_values * series)
    pooled = b(Compressed, "pooled", row, place, gates=gates, rate=spec.rate, overlap=spec.overlap)
    rows = b(ReadRows, "rows", pooled)
    k, v = (
        b(Unflatten, f"rows_{part}", b(Slice, f"part_{part}", rows, start=at, stop=at + half), parts=spec.kv_heads)
        for part, at in (("k", 0), ("v", half))
    )
    entries = b(ViewRows, "entries", pooled, k, v)
    found: dict[str, object] = {"entries": entries, "disjoint": True, "entries_bias": math.log(spec.rate)}
    if spec.chosen is not None:
        weights = b(Linear, "head_weights", h, b.weight(f"{here}self_attn.index.weight", spec.heads, WIDTH))
        sight = {"window": spec.window, "first": spec.first}
        found["chosen"] = b(Index, "best", q, weights, entries, scale=1.0, chosen=spec.chosen, **sight)
    return found


def random_weights(graph: Graph, seed: int = 0) -> dict[str, Tensor]:
    """Return float64 tensors for every load, large enough for logits that differ."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for op in graph.ops:
        if op.opname == "weight.load":
            shape = op.results[0].tensor.sizes
            noise = torch.randn(*shape, generator=generator, dtype=torch.float64)
            tensors[op.results[0].name] = 1 + 0.1 * noise if len(shape) == 1 else noise * 1.5 / math.sqrt(shape[-1])
    return tensors


def random_source(graph: Graph, seed: int = 0) -> TensorSource:
    """Return a source with `random_weights`."""
    from regraft.ir.source import TensorSource

    return TensorSource(random_weights(graph, seed))
