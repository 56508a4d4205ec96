"""What a graph costs, from its structure alone: parameters, operations, bytes, cache."""

from __future__ import annotations

from dataclasses import dataclass

from regraft.ir.dims import Sizes, rows_of
from regraft.ir.graph import Graph, layer_of
from regraft.ir.kinds import block_kinds
from regraft.ir.op import Cost, Op, Value
from regraft.ir.ops.core import Embed
from regraft.ir.ops.weight import Load, SliceWeight, Take
from regraft.ir.types import FLOATS


@dataclass(frozen=True)
class Parameters:
    """Counts of parameters, tied tensors once; ``buffers`` are what no gradient moves, and are no part of the others.

    ``active`` leaves out the experts that a token does not choose, ``active_without_embedding`` also the embedding
    tables, those that serve as the head too.
    """

    total: int
    active: int
    active_without_embedding: int
    embedding: int
    buffers: int


def parameters(graph: Graph) -> Parameters:
    """Count the parameters that run-time ops read."""
    values = graph.parameters()
    buffers = sum(v.tensor.elements({}) for v in values if is_buffer(v))
    total = sum(v.tensor.elements({}) for v in values) - buffers
    tables = {op.table for op in graph.ops if isinstance(op, Embed)}
    embedding = sum(v.tensor.elements({}) for v in tables)
    active = total - sum(op.idle_parameters() for op in graph.run_time())
    return Parameters(total, active, active - embedding, embedding, buffers)


def is_buffer(parameter: Value) -> bool:
    """Return whether no gradient moves a tensor: it holds integers, or is part of a buffer of the checkpoint."""
    op = parameter.op
    while isinstance(op, Take | SliceWeight) and op.x.op is not None:
        op = op.x.op
    return parameter.tensor.dtype not in FLOATS or (isinstance(op, Load) and op.buffer)


@dataclass(frozen=True)
class CostReport:
    """The cost of one call: in all, by layer (None: outside of layers), by op family (``attn`` is attention's core)."""

    total: Cost
    by_layer: dict[int | None, Cost]
    by_family: dict[str, Cost]


def cost(graph: Graph, batch: int = 1, tokens: int = 1, context: int = 4096, last: int | None = None) -> CostReport:
    """Return what a call costs that reads ``tokens`` new tokens a sequence and ends at ``context`` of them.

    Args:
        graph: The graph.
        batch: Sequences.
        tokens: New tokens of each sequence, 1 for a decode step, ``context`` for a prefill from scratch.
        context: Tokens visible to the last of them, itself included; at least ``tokens``.
        last: Of how many of the new tokens logits are wanted, all by default. What follows the last layer, the head
            above all, then counts for these, and so do layers that a graph lets see them alone.

    Raises:
        ValueError: ``tokens`` exceeds ``context``, or a number is not positive.
    """
    at = call_sizes(graph, batch, tokens, context, last)
    by_layer: dict[int | None, Cost] = {}
    by_family: dict[str, Cost] = {}
    counted: set[Op] = set()

    def count(op: Op, layers: tuple[int | None, ...], at: Sizes = at) -> None:
        one = op.cost(at)
        family = op.opname.partition(".")[0]
        for layer in layers:
            by_layer[layer] = by_layer.get(layer, Cost()) + one
            by_family[family] = by_family.get(family, Cost()) + one

    live = set(graph.run_time())
    for kind in block_kinds(graph):
        counted.update(op for layer in kind.layers for op in layer.ops)
        for op in kind.layers[0].ops:
            if op in live:
                count(op, kind.numbers)
    end = max((place for place, op in enumerate(graph.ops) if op in counted), default=len(graph.ops))
    for place, op in enumerate(graph.ops):
        if op in live and op not in counted:
            count(op, (layer_of(op.results[0].name),), {**at, "T": at["L"]} if place > end else at)
    ordered = sorted(by_layer.items(), key=lambda item: -1 if item[0] is None else item[0])
    return CostReport(sum(by_layer.values(), Cost()), dict(ordered), by_family)


def cache_bytes(graph: Graph, context: int, batch: int = 1) -> int:
    """Return the bytes that the memories hold for sequences of ``context`` tokens, the current one included.

    Raises:
        ValueError: A number is not positive.
    """
    at = _sizes(batch, 1, context)
    return sum(op.cost(at).cache for op in graph.ops if op.is_state)


def call_sizes(
    graph: Graph, batch: int = 1, tokens: int = 1, context: int = 4096, last: int | None = None
) -> dict[str, int]:
    """Return the sizes at which ops are asked for their cost: those of `cost`, and the rows that each memory shows.

    Raises:
        ValueError: ``tokens`` exceeds ``context``, or a number is not positive.
    """
    sizes = _sizes(batch, tokens, context) | {"L": min(last or tokens, tokens)}
    for memory in graph.memories():
        kept = memory.memory
        if kept.fixed is None:
            sizes[rows_of(memory.name).text] = kept.shown(tokens, context)
    return sizes


def _sizes(batch: int, tokens: int, context: int) -> dict[str, int]:
    if not 0 < tokens <= context or batch < 1:
        raise ValueError(f"batch {batch}, tokens {tokens}, context {context}")
    return {"B": batch, "T": tokens, "S": context}
