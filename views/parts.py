"""What a model is made of, part by part: parameters, and what a call does in each of them.

A part is a job: attention, its index, the MLP, experts, norms, the head. Ops belong to parts by what they are and by
the scope that they stand in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from regraft.ir.cost import call_sizes, is_buffer
from regraft.ir.dims import Sizes
from regraft.ir.graph import Graph, layer_of
from regraft.ir.kinds import Kind
from regraft.ir.op import Op, Value
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.core import Bias, Embed, Gain, LayerNorm, Linear, Norm
from regraft.ir.ops.moe import Experts
from regraft.ir.ops.precision import CastLike
from regraft.ir.ops.seq import Delta
from regraft.ir.types import TensorType

E = TypeVar("E")

PARTS = {  # in the order in which they are listed, with the words of a report
    "embedding": "embedding",
    "per_layer_embedding": "per-layer embedding",
    "per_layer_input": "per-layer inputs",
    "attention": "attention: projections",
    "attention_core": "attention: scores and mix",
    "attention_rows": "attention: kept rows read back",
    "index": "attention: index of rows",
    "linear_attention": "linear attention",
    "mlp": "MLP",
    "experts": "experts",
    "shared_expert": "shared expert",
    "router": "router",
    "norms": "norms",
    "residual": "residual streams",
    "head": "head",
    "other": "other",
}

_SCOPES = {"ple": "per_layer_input", "mlp": "mlp"}


@dataclass(frozen=True)
class Work:
    """What some ops do in one call: operations, two for a multiply-add, and the bytes that they must read."""

    flops: int = 0
    weight_bytes: int = 0
    cache_bytes: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.flops + other.flops,
            self.weight_bytes + other.weight_bytes,
            self.cache_bytes + other.cache_bytes,
        )

    def times(self, count: int) -> Work:
        """Return the work of as many equal layers."""
        return Work(self.flops * count, self.weight_bytes * count, self.cache_bytes * count)

    @property
    def bytes_read(self) -> int:
        """Parameters and rows of memories."""
        return self.weight_bytes + self.cache_bytes


@dataclass(frozen=True)
class Call:
    """A call's work by part, in all and in one layer of each block kind, by the kind's name."""

    parts: dict[str, Work]
    kinds: dict[str, dict[str, Work]]

    @property
    def total(self) -> Work:
        """The work of all parts."""
        return sum(self.parts.values(), Work())


class Parts:
    """The parts of a graph.

    Args:
        graph: A verified graph.
        kinds: Its block kinds.
    """

    def __init__(self, graph: Graph, kinds: Sequence[Kind]) -> None:
        self.graph = graph
        self.kinds = kinds
        self._recurrent = {layer_of(op.results[0].name) for op in graph.ops if isinstance(op, Delta)}
        embeds = [op for op in graph.ops if isinstance(op, Embed)]
        self.tables = list(dict.fromkeys(op.table for op in embeds))  # the first makes the residual stream
        self._width = embeds[0].out.tensor.shape[-1] if embeds else None
        kept = {op for kind in kinds for layer in kind.layers for op in layer.ops}
        self._outside = [op for op in graph.run_time() if op not in kept]
        last = max((i for i, op in enumerate(graph.ops) if op in kept), default=-1)
        self._after = set(graph.ops[last + 1 :]) if last >= 0 else set[Op]()

    def of(self, op: Op) -> str:
        """Return the part that an op's parameters belong to."""
        words = op.results[0].name.split(".")
        if isinstance(op, Embed):
            return "embedding" if op.table is self.tables[0] else "per_layer_embedding"
        if isinstance(op, Experts):
            return "experts"
        if isinstance(op, Norm | LayerNorm | CastLike) and self._is_block_norm(op, words):
            return "norms"
        if op.opname.startswith("hyper.") or self._is_residual(op, words):
            return "residual"
        if "moe" in words:
            return "shared_expert" if words[-1].startswith("shared_") else "router"
        if "attn" in words:
            inner = "linear_attention" if layer_of(op.results[0].name) in self._recurrent else "attention"
            return "index" if "index" in words else inner
        if isinstance(op, Linear) and layer_of(op.results[0].name) is None and "ple" not in words:
            return "head"
        return next((part for word, part in _SCOPES.items() if word in words), "other")

    def working(self, op: Op) -> str:
        """Return the part that an op's work belongs to: attention's core stands apart from its projections."""
        part = self.of(op)
        if part == "attention":
            if isinstance(op, Attend):
                return "attention_core"
            sequence = op.results[0].type.sequence if isinstance(op.results[0].type, TensorType) else None
            if sequence is not None and sequence.memory is not None:
                return "attention_rows"
        return part

    def _is_block_norm(self, op: Op, words: Sequence[str]) -> bool:
        """Whether a norm is over the stream, and no part of a router or of per-layer inputs."""
        weights = [v for v in op.operands if v.is_weight]
        wide = any(v.tensor.shape[-1] == self._width for v in weights)
        return wide and "ple" not in words and not words[-1].startswith(("router", "state"))

    def _is_residual(self, op: Op, words: Sequence[str]) -> bool:
        """Whether an op scales or shifts the stream, or all of a layer."""
        if not isinstance(op, Gain | Bias):
            return False
        sizes = {v.tensor.shape[-1] for v in op.operands if v.is_weight}
        return bool(sizes & {self._width, 1})

    # -- parameters

    def parameters(self) -> tuple[dict[str, int], dict[str, int]]:
        """Return the parameters of each part, in all and those that a token uses. Tied tensors once, no buffers."""
        total: dict[str, int] = {}
        for value in self.graph.parameters():
            if not is_buffer(value):
                part = self._owner(value)
                total[part] = total.get(part, 0) + value.tensor.elements({})
        idle = sum(op.idle_parameters() for op in self.graph.run_time() if isinstance(op, Experts))
        active = {part: count - (idle if part == "experts" else 0) for part, count in total.items()}
        return _ordered(total), _ordered(active)

    def _owner(self, value: Value) -> str:
        """Return the part of a parameter: that of the first op that reads it, of a table if one does."""
        users = [op for op in value.users if not op.weight_time]
        return self.of(next((op for op in users if isinstance(op, Embed)), users[0]))

    def layer_parameters(self, kind: Kind) -> tuple[dict[str, int], int]:
        """Return the parameters of each part of one layer of a kind, and how many of them a token leaves idle."""
        found: dict[str, int] = {}
        seen: set[Value] = set()
        idle = 0
        for op in kind.layers[0].ops:
            if op.weight_time:
                continue
            idle += op.idle_parameters()
            for value in op.operands:
                if value.is_weight and value not in seen and not is_buffer(value):
                    seen.add(value)
                    part = self.of(op)
                    found[part] = found.get(part, 0) + value.tensor.elements({})
        return _ordered(found), idle

    # -- work

    def call(self, batch: int, tokens: int, context: int, *, last_token_only: bool = False) -> Call:
        """Return what a call does, as `regraft.ir.cost.cost` counts it.

        Args:
            batch: Sequences.
            tokens: New tokens of each sequence.
            context: Tokens visible to the last of them, itself included.
            last_token_only: Count what follows the last layer, the head above all, for the last token alone: nobody
                needs the logits of a prompt's other tokens.
        """
        at = call_sizes(self.graph, batch, tokens, context, 1 if last_token_only else None)
        parts: dict[str, Work] = {}
        by_kind: dict[str, dict[str, Work]] = {}
        for kind in self.kinds:
            one = by_kind[kind.name] = self._work(kind.layers[0].ops, at)
            for part, work in one.items():
                parts[part] = parts.get(part, Work()) + work.times(len(kind.layers))
        alone = at | {"T": 1}
        for op in self._outside:
            sizes = alone if last_token_only and op in self._after else at
            for part, work in self._work([op], sizes).items():
                parts[part] = parts.get(part, Work()) + work
        return Call(_ordered(parts), by_kind)

    def _work(self, ops: Sequence[Op], at: Sizes) -> dict[str, Work]:
        found: dict[str, Work] = {}
        for op in ops:
            if op.weight_time:
                continue
            cost = op.cost(at)
            if cost.flops or cost.bytes_read:
                part = self.working(op)
                found[part] = found.get(part, Work()) + Work(cost.flops, cost.weights, cost.cache_read)
        return _ordered(found)


def _ordered(found: dict[str, E]) -> dict[str, E]:
    return {part: found[part] for part in PARTS if part in found}
