"""Random arguments for kernels at their real sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor

from regraft.codegen.kernels.attend import AttendStep
from regraft.codegen.kernels.attend_rows import AttendRows, Piece
from regraft.codegen.kernels.attention import Turn
from regraft.codegen.kernels.cca import CCARows, Latent
from regraft.codegen.kernels.compress import CompressPrefill, Pooled
from regraft.codegen.kernels.delta import DeltaRule
from regraft.codegen.kernels.delta_rows import DeltaRows
from regraft.codegen.kernels.embed import Embedding
from regraft.codegen.kernels.experts import Experts
from regraft.codegen.kernels.flash import Flash
from regraft.codegen.kernels.grouped import Grouped
from regraft.codegen.kernels.head import Head
from regraft.codegen.kernels.index import Index
from regraft.codegen.kernels.kernel import Kernel
from regraft.codegen.kernels.layer_rows import LayerRows
from regraft.codegen.kernels.pool_heads import PoolHeads
from regraft.codegen.kernels.route import Route
from regraft.codegen.kernels.short_conv import Convolution, ShortConv
from regraft.codegen.kernels.sparse import Sparse, SparsePrefill
from regraft.codegen.kernels.streams import Streams, StreamsPrefill

Make = Callable[[], Any]


@dataclass(frozen=True)
class Call:
    """A call of a kernel: how many sequences, and how many tokens each has after it; what its tensors are."""

    batch: int
    context: int
    dtype: torch.dtype
    device: torch.device | str

    def normal(self, *shape: int, scale: float = 1.0, shift: float = 0.0, dtype: torch.dtype | None = None) -> Tensor:
        """Return normally distributed numbers."""
        return (torch.randn(*shape, device=self.device) * scale + shift).to(dtype or self.dtype)

    def weight(self, *shape: int) -> Tensor:
        """Return a matrix that keeps the size of what it multiplies; made in parts, since it may be large."""
        made = torch.empty(*shape, dtype=self.dtype, device=self.device)
        return made.normal_(std=shape[-1] ** -0.5)

    def gain(self, *shape: int) -> Tensor:
        """Return factors near 1."""
        return self.normal(*shape, scale=0.1, shift=1.0)

    def turns(self, channels: int, layout: str, tokens: int = 1) -> tuple[Tensor, Tensor]:
        """Return cosines and sines ``[B, T, 1, channels]``, signed, of halves, or half as many of pairs."""
        angle = 6 * torch.rand(self.batch, tokens, 1, channels // 2, device=self.device)
        cos, sin = angle.cos().to(self.dtype), angle.sin().to(self.dtype)
        if layout == "interleaved":
            return cos, sin
        return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)

    def whole(self, value: int) -> Tensor:
        """Return an integer for each sequence."""
        return torch.full((self.batch,), value, dtype=torch.int64, device=self.device)


def inputs(kernel: Kernel, names: Mapping[str, Any], call: Call, seed: int = 0) -> dict[str, Any]:
    """Return arguments of a kernel's op.

    Args:
        kernel: The kernel.
        names: The arguments that its op takes.
        call: The call.
        seed: Of random numbers.
    """
    torch.manual_seed(seed)
    makers = _makers(kernel, call)
    return {name: makers[name]() for name in names}


@singledispatch
def _makers(kernel: Kernel, call: Call) -> dict[str, Make]:
    raise NotImplementedError(f"benchmarks/kernel_inputs.py makes no arguments for {type(kernel).__name__}")


@_makers.register
def _attend(kernel: AttendStep, call: Call) -> dict[str, Make]:
    k, batch = kernel, call.batch
    near = k.value_width if k.q_apart else k.width
    normed = k.k_norm.width if k.k_norm is not None and k.k_norm.width else k.width
    cos, sin = (None, None) if k.turn is None else call.turns(k.turn.channels, k.turn.layout)
    return {
        "q": lambda: call.normal(batch, 1, k.heads, near),
        "q_turned": lambda: call.normal(batch, 1, k.heads, k.far),
        "k": lambda: call.normal(batch, 1, k.kv_heads, k.width),
        "v": lambda: call.normal(batch, 1, k.kv_heads, k.value_width),
        "cos": lambda: cos,
        "sin": lambda: sin,
        "q_norm": lambda: call.gain(k.width),
        "k_norm": lambda: call.gain(normed),
        "temper": lambda: call.gain(k.kv_heads),
        "sink": lambda: call.normal(k.heads),
        "gate": lambda: call.normal(batch, 1, k.heads, *([k.value_width] if k.gate_wide else [])),
        "keys": lambda: call.normal(batch, k.slots, k.kv_heads, k.row_width),
        "values": lambda: call.normal(batch, k.slots, k.kv_heads, k.value_width),
        "far_keys": lambda: call.normal(batch, k.pooled.slots if k.pooled else 0, k.kv_heads, k.width),
        "far_values": lambda: call.normal(batch, k.pooled.slots if k.pooled else 0, k.kv_heads, k.value_width),
        "start": lambda: call.whole(call.context - 1),
    }


def _pieces(pieces: Sequence[Piece], turn: Turn | None, call: Call) -> dict[str, Make]:
    """Return what a token's row is made of, and how it turns."""
    cos, sin = (None, None) if turn is None else call.turns(turn.channels, turn.layout)
    makers: dict[str, Make] = {"cos": lambda: cos, "sin": lambda: sin}
    for i, piece in enumerate(pieces):
        makers[f"piece_{i}"] = lambda piece=piece: call.normal(call.batch, 1, piece.heads, piece.width)
        makers[f"norm_{i}"] = lambda piece=piece: call.gain(piece.width)
    return makers


@_makers.register
def _attend_rows(kernel: AttendRows, call: Call) -> dict[str, Make]:
    k, batch = kernel, call.batch
    made = {"k": (k.keys, k.kv_heads * k.width), "v": (k.values, k.kv_heads * k.value_width)}
    makers = _pieces(k.pieces, k.turn, call)
    for name, (part, channels) in made.items():
        makers[f"{name}_map"] = lambda part=part, channels=channels: call.weight(channels, part.channels)
        makers[f"{name}_bias"] = lambda channels=channels: call.normal(channels)
    return makers | {
        "q": lambda: call.normal(batch, 1, k.heads, k.width),
        "q_norm": lambda: call.gain(k.width),
        "angles": lambda: torch.rand(k.turn.channels // 2 if k.turn else 0, device=call.device),
        "gain": lambda: call.gain(k.width),
        "sink": lambda: call.normal(k.heads),
        "rows": lambda: call.normal(batch, k.slots, k.row),
        "start": lambda: call.whole(call.context - 1),
    }


@_makers.register
def _pool_heads(kernel: PoolHeads, call: Call) -> dict[str, Make]:
    k, batch, wide = kernel, call.batch, torch.promote_types(call.dtype, torch.float32)
    kept, line = k.total * (1 + k.gated), k.total * (1 + k.overlap)
    cos, sin = (None, None) if k.turn is None else call.turns(k.turn.channels, k.turn.layout)
    makers = _pieces(k.pieces, k.turn, call)
    for i, piece in enumerate(k.pieces):
        rows = call.context // k.rate
        makers[f"rows_{i}"] = lambda piece=piece, rows=rows: call.normal(batch, rows, piece.heads, piece.width)
    return makers | {
        "tail": lambda: call.normal(batch, k.rate - 1, kept, dtype=wide),
        "before": lambda: call.normal(batch, 2 * k.rate - 1, kept, dtype=wide),
        "row_cos": lambda: cos,
        "row_sin": lambda: sin,
        "gates": lambda: call.normal(batch, 1, line),
        "bias": lambda: call.normal(k.rate, line),
        "start": lambda: call.whole(call.context - 1),
        "count": lambda: call.whole(1),
    }


@_makers.register
def _cca(kernel: Latent, call: Call) -> dict[str, Make]:
    k, batch = kernel, call.batch
    prefill = isinstance(k, CCARows)
    tokens = call.context if prefill else 1
    cos, sin = call.turns(k.channels, "halves", tokens)
    return {
        "x": lambda: call.normal(batch, tokens, k.packed + 2 * k.half),
        "q_proj": lambda: call.normal(batch, 1, k.heads * k.width),
        "k_proj": lambda: call.normal(batch, 1, k.kv_heads * k.width),
        "v_now": lambda: call.normal(batch, 1, k.half),
        "v_later": lambda: call.normal(batch, 1, k.half),
        "keys": lambda: call.normal(batch, call.context, k.kv_heads, k.width),
        "values": lambda: call.normal(batch, call.context, k.kv_heads, k.width),
        "tail_0": lambda: call.normal(batch, k.taps[0] - 1, k.packed),
        "tail_1": lambda: call.normal(batch, k.taps[1] - 1, k.packed),
        "tail_v": lambda: call.normal(batch, 1, k.half),
        "initial": lambda: call.normal(k.half),
        "cos": lambda: cos,
        "sin": lambda: sin,
        "start": lambda: call.whole(0 if prefill else call.context - 1),
        "count": lambda: call.whole(tokens),
        "w0": lambda: call.normal(k.packed, 1, k.taps[0]),
        "b0": lambda: call.normal(k.packed),
        "w1": lambda: call.normal(k.packed, k.width, k.taps[1], scale=k.width**-0.5),
        "b1": lambda: call.normal(k.packed),
        "factor": lambda: call.gain(k.kv_heads),
    }


@_makers.register
def _compress(kernel: Pooled, call: Call) -> dict[str, Make]:
    k, batch, wide = kernel, call.batch, torch.promote_types(call.dtype, torch.float32)
    prefill = isinstance(k, CompressPrefill)
    tokens = call.context if prefill else 1
    cos, sin = call.turns(k.turning, "interleaved", -(-tokens // k.rate))
    makers: dict[str, Make] = {
        "cos": lambda: cos,
        "sin": lambda: sin,
        "start": lambda: call.whole(0 if prefill else call.context - 1),
        "count": lambda: call.whole(tokens),
    }
    for label, width in zip(k.labels, k.widths, strict=True):
        line = k.halves * width
        sizes = {
            "keys": (call.context // k.rate, 1, width),
            "tail": (k.rate - 1, 2 * width),
            "before": (2 * k.rate - 1, 2 * width),
            "values": (tokens, line),
            "gates": (tokens, line),
        }
        for name, size in sizes.items():
            dtype = wide if name in ("tail", "before") else call.dtype
            makers[name + label] = lambda size=size, dtype=dtype: call.normal(batch, *size, dtype=dtype)
        makers["bias" + label] = lambda line=line: call.normal(k.rate, line)
        makers["weight" + label] = lambda width=width: call.gain(width)
    return makers


@_makers.register
def _experts(kernel: Experts, call: Call) -> dict[str, Make]:
    k, batch = kernel, call.batch
    wide = torch.promote_types(call.dtype, torch.float32) if k.residual == "move" else call.dtype

    def chosen() -> Tensor:
        order = torch.rand(batch, 1, k.experts, device=call.device).argsort(-1)
        return order[..., : k.chosen].contiguous()

    return {
        "x": lambda: call.normal(batch, 1, k.width),
        "norm_weight": lambda: call.gain(k.width),
        "weights": lambda: call.normal(batch, 1, k.chosen).softmax(-1),
        "experts": chosen,
        "gate_up": lambda: call.weight(k.experts, 2 * k.inner, k.width),
        "down": lambda: call.weight(k.experts, k.width, k.inner),
        "gate_up_bias": lambda: call.normal(k.experts, 2 * k.inner),
        "down_bias": lambda: call.normal(k.experts, k.width),
        "shared_gate": lambda: call.weight(k.shared, k.width),
        "shared_up": lambda: call.weight(k.shared, k.width),
        "shared_down": lambda: call.weight(k.width, k.shared),
        "shared_share": lambda: call.weight(1, k.width),
        "shared_norm": lambda: call.gain(k.width),
        "residual": lambda: call.normal(batch, 1, k.width, dtype=wide),
        "out_bias": lambda: call.normal(k.width),
        "out_gain": lambda: call.gain(k.width),
        "residual_bias": lambda: call.normal(k.width),
        "residual_gain": lambda: call.gain(k.width),
        "out_norm": lambda: call.gain(k.width),
        "shared_out_norm": lambda: call.gain(k.width),
        "sum_norm": lambda: call.gain(k.width),
        "gain": lambda: call.gain(1),
    }


@_makers.register
def _flash(kernel: Flash, call: Call) -> dict[str, Make]:
    k, batch, tokens = kernel, call.batch, call.context
    return {
        "q": lambda: call.normal(batch, tokens, k.heads, k.width),
        "k": lambda: call.normal(batch, tokens, k.kv_heads, k.width),
        "v": lambda: call.normal(batch, tokens, k.kv_heads, k.value_width),
        "sink": lambda: call.normal(k.heads),
        "start": lambda: call.whole(0),
        "count": lambda: call.whole(tokens),
    }


@_makers.register
def _head(kernel: Head, call: Call) -> dict[str, Make]:
    k = kernel
    return {
        "x": lambda: call.normal(call.batch, 1, k.width),
        "gain": lambda: call.gain(k.width),
        "weight": lambda: call.weight(k.vocab, k.width),
    }


@_makers.register
def _index(kernel: Index, call: Call) -> dict[str, Make]:
    k, batch = kernel, call.batch
    cos, sin = call.turns(k.turned, k.layout) if k.turned else (None, None)
    return {
        "q": lambda: call.normal(batch, 1, k.heads, k.width),
        "weights": lambda: call.normal(batch, 1, k.heads),
        "k": lambda: call.normal(batch, 1, 1, k.width),
        "keys": lambda: call.normal(batch, call.context // k.rate, k.key_heads * k.width),
        "cos": lambda: cos,
        "sin": lambda: sin,
        "start": lambda: call.whole(call.context - 1),
    }


def _convolution(conv: Convolution | None, call: Call) -> dict[str, Make]:
    if conv is None:
        return {}
    return {
        "tail": lambda: call.normal(call.batch, conv.taps - 1, conv.channels),
        "conv_weight": lambda: call.normal(conv.channels, 1, conv.taps),
        "conv_bias": lambda: call.normal(conv.channels),
    }


@_makers.register
def _delta(kernel: DeltaRule, call: Call) -> dict[str, Make]:
    k, batch, wide = kernel, call.batch, torch.promote_types(call.dtype, torch.float32)
    matrix = (k.value_heads, k.width, k.value_width)
    return {
        "x": lambda: call.normal(batch, 1, k.channels),
        **_convolution(k.conv, call),
        "a": lambda: call.normal(batch, 1, k.value_heads),
        "a_log": lambda: call.normal(k.value_heads),
        "dt_bias": lambda: call.normal(k.value_heads),
        "beta": lambda: call.normal(batch, 1, k.value_heads).sigmoid(),
        "state": lambda: call.normal(batch, 1, *matrix, dtype=wide),
        "norm_weight": lambda: call.gain(k.value_width),
        "gate": lambda: call.normal(batch, 1, k.value_heads, k.value_width),
        "count": lambda: call.whole(1),
    }


@_makers.register
def _delta_rows(kernel: DeltaRows, call: Call) -> dict[str, Make]:
    k, batch, tokens, wide = kernel, call.batch, call.context, torch.promote_types(call.dtype, torch.float32)
    matrix = (k.value_heads, k.width, k.value_width)
    return {
        "q": lambda: torch.nn.functional.normalize(call.normal(batch, tokens, k.heads, k.width), dim=-1),
        "k": lambda: torch.nn.functional.normalize(call.normal(batch, tokens, k.heads, k.width), dim=-1),
        "v": lambda: call.normal(batch, tokens, k.value_heads, k.value_width),
        "decay": lambda: -call.normal(batch, tokens, k.value_heads, dtype=wide).exp(),
        "beta": lambda: call.normal(batch, tokens, k.value_heads).sigmoid(),
        "state": lambda: call.normal(batch, 1, *matrix, dtype=wide),
        "count": lambda: call.whole(tokens),
    }


@_makers.register
def _route(kernel: Route, call: Call) -> dict[str, Make]:
    k, batch, vocab = kernel, call.batch, 1000

    def table() -> Tensor:
        return torch.rand(vocab, k.experts, device=call.device).argsort(-1)[:, : k.chosen].contiguous()

    makers: dict[str, Make] = {
        "x": lambda: call.normal(batch, 1, k.width),
        "logits": lambda: call.normal(batch, 1, k.experts),
        "norm_weight": lambda: call.gain(k.width),
        "into": lambda: call.weight(k.states, k.width),
        "into_bias": lambda: call.normal(k.states),
        "carried": lambda: call.normal(batch, 1, k.states),
        "carried_gain": lambda: call.gain(k.states),
        "state_norm": lambda: call.gain(k.states),
        "weight": lambda: call.weight(k.experts, k.states or k.width),
        "weight_bias": lambda: call.normal(k.experts),
        "bias": lambda: call.normal(k.experts, scale=0.1),
        "gain": lambda: call.gain(k.experts),
        "tokens": lambda: torch.randint(vocab, (batch, 1), device=call.device),
        "table": table,
    }
    for number in range(1, len(k.hidden) + 1):
        makers[f"hidden_{number}"] = lambda: call.weight(k.states, k.states)
        makers[f"hidden_{number}_bias"] = lambda: call.normal(k.states)
    return makers


@_makers.register
def _short_conv(kernel: ShortConv, call: Call) -> dict[str, Make]:
    makers: dict[str, Make] = {"count": lambda: call.whole(1)}
    for number, conv in enumerate(kernel.convs):
        sizes = {
            "x": (call.batch, 1, conv.channels),
            "tail": (call.batch, conv.taps - 1, conv.channels),
            "weight": (conv.channels, 1, conv.taps),
            "bias": (conv.channels,),
        }
        for name, size in sizes.items():
            makers[f"{name}_{number}"] = lambda size=size: call.normal(*size)
    return makers


@_makers.register
def _sparse(kernel: Sparse, call: Call) -> dict[str, Make]:
    k, batch, rows = kernel, call.batch, call.context // (kernel.rate or 1)
    cos, sin = call.turns(k.turned, k.layout) if k.turned else (None, None)

    def chosen() -> Tensor:
        assert k.chosen is not None
        taken = torch.rand(batch, 1, rows, device=call.device).argsort(-1)[..., : k.chosen]
        return torch.nn.functional.pad(taken, (0, k.chosen - taken.shape[-1]), value=-1)

    return {
        "q": lambda: call.normal(batch, 1, k.heads, k.value_width if k.q_apart else k.width),
        "q_turned": lambda: call.normal(batch, 1, k.heads, k.tail),
        "k": lambda: call.normal(batch, 1, 1, k.width),
        "cos": lambda: cos,
        "sin": lambda: sin,
        "k_norm": lambda: call.gain(k.normed),
        "sink": lambda: call.normal(k.heads),
        "chosen": chosen,
        "keys": lambda: call.normal(batch, k.window or call.context, 1, k.width),
        "entries": lambda: call.normal(batch, rows, 1, k.width),
        "start": lambda: call.whole(call.context - 1),
    }


@_makers.register
def _sparse_prefill(kernel: SparsePrefill, call: Call) -> dict[str, Make]:
    k, batch, tokens, rows = kernel, call.batch, call.context, call.context // kernel.rate

    def chosen() -> Tensor:
        assert k.chosen is not None
        whole = ((torch.arange(tokens, device=call.device) + 1) // k.rate)[:, None]
        late = torch.arange(rows, device=call.device) >= whole
        taken = torch.rand(batch, tokens, rows, device=call.device).masked_fill(late, 2).argsort(-1)[..., : k.chosen]
        taken = torch.where(taken < whole, taken, -1)
        return torch.nn.functional.pad(taken, (0, k.chosen - taken.shape[-1]), value=-1)

    return {
        "q": lambda: call.normal(batch, tokens, k.heads, k.width),
        "k": lambda: call.normal(batch, tokens, 1, k.width),
        "sink": lambda: call.normal(k.heads),
        "chosen": chosen,
        "keys": lambda: call.normal(batch, k.window or tokens, 1, k.width),
        "entries": lambda: call.normal(batch, rows, 1, k.width),
        "start": lambda: call.whole(0),
    }


@_makers.register
def _streams(kernel: Streams, call: Call) -> dict[str, Make]:
    k, rows, wide = (
        kernel,
        (call.batch, call.context if isinstance(kernel, StreamsPrefill) else 1),
        torch.promote_types(call.dtype, torch.float32),
    )
    weights = wide if k.weights == "fp32" else call.dtype
    return {
        "streams": lambda: call.normal(*rows, k.streams, k.width),
        "rows": lambda: call.normal(*rows, k.width),
        "added": lambda: call.normal(*rows, k.width),
        "post": lambda: 2 * torch.rand(*rows, k.streams, dtype=wide, device=call.device),
        "comb": lambda: call.normal(*rows, k.streams, k.streams, dtype=wide).softmax(-2),
        "fn": lambda: call.normal(k.maps, k.streams * k.width, scale=(k.streams * k.width) ** -0.5, dtype=weights),
        "base": lambda: call.normal(k.maps, dtype=weights),
        "scale": lambda: call.normal(3 if k.gives == "maps" else 1, scale=0.3, shift=1.0, dtype=weights),
        **({} if k.route is None else _riding(k.route, call)),
    }


def _riding(route: Route, call: Call) -> dict[str, Make]:
    """Return what a router takes that rides in a boundary."""
    made = _route(route, call)
    return made | {"router": made["weight"], "router_bias": made["weight_bias"], "router_norm": made["norm_weight"]}


@_makers.register
def _embed(kernel: Embedding, call: Call) -> dict[str, Make]:
    k, vocab = kernel, 1000
    angles = {
        f"angles_{i}": lambda wave=wave: 1e6 ** (-torch.arange(wave.pairs, device=call.device) / wave.pairs)
        for i, wave in enumerate(k.waves)
    }
    return {
        "tokens": lambda: torch.randint(vocab, (call.batch, 1), device=call.device),
        "start": lambda: call.whole(call.context - 1),
        "table": lambda: call.normal(vocab, k.width),
        "own_table": lambda: call.normal(vocab, k.own),
        "bias": lambda: call.normal(k.width),
        "gain": lambda: call.gain(k.width),
        **angles,
    }


@_makers.register
def _grouped(kernel: Grouped, call: Call) -> dict[str, Make]:
    k, rows = kernel, (call.batch, call.context)

    def chosen() -> Tensor:
        return torch.rand(*rows, k.experts, device=call.device).argsort(-1)[..., : k.chosen].contiguous()

    return {
        "x": lambda: call.normal(*rows, k.width),
        "weights": lambda: call.normal(*rows, k.chosen).softmax(-1),
        "experts": chosen,
        "gate_up": lambda: call.weight(k.experts, 2 * k.inner, k.width),
        "down": lambda: call.weight(k.experts, k.width, k.inner),
        "gate_up_bias": lambda: call.normal(k.experts, 2 * k.inner),
        "down_bias": lambda: call.normal(k.experts, k.width),
    }


@_makers.register
def _layer_rows(kernel: LayerRows, call: Call) -> dict[str, Make]:
    k = kernel
    return {
        "x": lambda: call.normal(call.batch, 1, k.layers, k.width),
        "own": lambda: call.normal(call.batch, 1, k.layers * k.width),
        "weight": lambda: call.gain(k.width),
    }
