"""Batches of calibration text on their way through run-time ops, a segment at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from regraft.ir.graph import Graph, layer_of
from regraft.ir.interpret import Run, execute
from regraft.ir.op import Op, Value
from regraft.ir.ops.weight import Load

if TYPE_CHECKING:
    from torch import Tensor

See = Callable[[Run, Mapping[Value, Any]], None]


def ancestors(values: Iterable[Value], known: Iterable[Value] = ()) -> set[Op]:
    """Return every op that ``values`` depend on, given what is ``known``."""
    given, found = set(known), set[Op]()
    stack = [v.op for v in values if v.op is not None and v not in given]
    while stack:
        op = stack.pop()
        if op in found:
            continue
        found.add(op)
        stack.extend(v.op for v in op.operands if v.op is not None and v not in given)
    return found


def depth_of(op: Op) -> int:
    """Return the layer that an op is in, or -1."""
    layer = layer_of(op.results[0].name)
    return -1 if layer is None else layer


def depths(graph: Graph) -> list[tuple[int, Op]]:
    """Return the run-time ops in order, each with the deepest layer so far: what follows the layers is in the last.

    Those that only statistics read are among them.
    """
    found: list[tuple[int, Op]] = []
    deepest = -1
    for op in graph.ops:
        if op.weight_time:
            continue
        deepest = max(deepest, depth_of(op))
        found.append((deepest, op))
    return found


@dataclass
class Batch:
    """What is alive of one batch of tokens."""

    run: Run
    values: dict[Value, Any] = field(default_factory=dict[Value, Any])


class Stream:
    """Batches that move together.

    Args:
        batches: With what is known of each.
        tokens: How many there are in all.
    """

    def __init__(self, batches: Sequence[Batch], tokens: int) -> None:
        self.batches, self.tokens = list(batches), tokens

    @classmethod
    def begin(cls, tokens: Tensor, batch: int, graphs: Sequence[Graph], load: Callable[[Load], Tensor]) -> Stream:
        """Return the start: ``tokens`` int64 ``[N, T]``, ``batch`` windows at a time, as inputs of each graph."""
        import torch

        batches: list[Batch] = []
        for rows in tokens.split(batch):
            pos = torch.arange(rows.shape[1]).expand(rows.shape)
            valid = torch.ones_like(rows, dtype=torch.bool)
            given = {"tokens": rows, "pos": pos, "valid": valid}
            inputs = {v: given[v.name] for graph in graphs for v in graph.inputs}
            batches.append(Batch(Run(pos, valid, None, load), inputs))
        return cls(batches, tokens.numel())

    @property
    def present(self) -> set[Value]:
        """The values that are alive."""
        return set(self.batches[0].values) if self.batches else set()

    def advance(
        self, ops: Sequence[Op], weights: Mapping[Value, Tensor], keep: set[Value], see: See, seen: set[Value]
    ) -> None:
        """Run ``ops`` over every batch, and let go of what is not to be kept.

        Args:
            ops: Run-time ops in order; what they read is alive or among ``weights``.
            weights: Weight-time values.
            keep: The values that are read later.
            see: Called with each batch's run and the values ``seen``, which may be alive already.
            seen: See ``see``.
        """
        there = self.present | {v for op in ops for v in op.results}
        for batch in self.batches:
            values = execute(list(ops), {**batch.values, **weights}, batch.run, (keep | seen) & there)
            see(batch.run, values)
            inputs = {v: t for v, t in batch.values.items() if v.op is None}
            batch.values = inputs | {v: t for v, t in values.items() if v in keep}

    def renamed(self, graph: Graph, of: Graph) -> Stream:
        """Return a stream that holds the values of ``of`` as the values of the same names of ``graph``; others stay."""

        def twin(value: Value) -> Value | None:
            return graph.values.get(value.name) if of.values.get(value.name) is value else value

        def moved(values: Mapping[Value, Any]) -> dict[Value, Any]:
            return {new: tensor for value, tensor in values.items() if (new := twin(value)) is not None}

        return Stream([Batch(batch.run, moved(batch.values)) for batch in self.batches], self.tokens)
