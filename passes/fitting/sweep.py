"""Statistics over calibration text: one sweep in depth order, over the graph and the one it came from.

The rewritten graph holds ``weight.moment`` ops. A fit needs its statistics before the ops that use the fitted weight
can run, so the sweep goes through both graphs side by side in segments: to the end of the layer whose statistics come
next, for every batch of tokens, then the fits, then on. Between segments only the values that are still to be read are
kept. So each layer is fitted on the already converted prefix, and one layer's weights and statistics are in memory.

Source: specs/passes_math.md, section 8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from regraft.ir.graph import Graph, layer_of
from regraft.ir.interpret import Run, execute
from regraft.ir.op import Op, Value
from regraft.ir.ops.fits import Moment
from regraft.ir.ops.weight import Load
from regraft.ir.source import Source, torch_dtype

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[int, int, str], None]


def ancestors(values: Iterable[Value]) -> set[Op]:
    """Return every op that ``values`` depend on."""
    found: set[Op] = set()
    stack = [v.op for v in values if v.op is not None]
    while stack:
        op = stack.pop()
        if op in found:
            continue
        found.add(op)
        stack.extend(v.op for v in op.operands if v.op is not None)
    return found


@dataclass
class _Batch:
    """What is alive of one batch of tokens."""

    run: Run
    values: dict[Value, Any] = field(default_factory=dict[Value, Any])


class Sweep:
    """Evaluates weight-time values that depend on statistics.

    Args:
        graph: The rewritten graph.
        original: The graph as it was lifted, for statistics that name its edges.
        source: The tensors of both.
        tokens: int64 ``[N, T]``, the calibration windows.
        batch: Windows at a time.
        dtype: The dtype to run the graphs in.
        known: Fitted parameters from an earlier, interrupted sweep.
    """

    def __init__(
        self,
        graph: Graph,
        original: Graph,
        source: Source,
        tokens: Tensor,
        batch: int = 8,
        dtype: str = "f32",
        known: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.graph, self.original, self.source = graph, original, source
        self.dtype = torch_dtype(dtype)
        self.known = dict(known or {})
        self.batches = [self._begin(rows) for rows in tokens.split(batch)]
        self.count = tokens.numel()
        self.moments: dict[Value, Tensor] = {}
        self.fitted: dict[Value, Tensor] = {}

    def _begin(self, tokens: Tensor) -> _Batch:
        import torch

        pos = torch.arange(tokens.shape[1]).expand(tokens.shape)
        valid = torch.ones_like(tokens, dtype=torch.bool)
        batch = _Batch(Run(pos, valid, None, self._load))
        given = {"tokens": tokens, "pos": pos, "valid": valid}
        for graph in (self.graph, self.original):
            batch.values |= {v: given[v.name] for v in graph.inputs}
        return batch

    def _load(self, op: Load) -> Tensor:
        tensor = self.source.read(op.source)
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    # -- what is to be done

    def solve(self, wanted: Sequence[Value], progress: Progress | None = None) -> Iterator[tuple[Value, Tensor]]:
        """Yield each of ``wanted``, weight-time values, with its tensor in the stored dtype, as soon as it is known."""
        import torch

        pending = {v for v in wanted if v.name not in self.known}
        for value in wanted:
            if value.name in self.known:
                self.fitted[value] = self.known[value.name]
                yield value, self.known[value.name]
        needed = self._needed_moments(pending)
        total = len(needed)
        ops = self._run_time_ops(needed)
        with torch.no_grad():
            while pending or needed:
                segment = self._segment(ops, needed)
                ready = self._accumulate(segment, ops, needed)
                needed -= ready
                ops = [op for op in ops if op not in segment]
                for value in sorted(pending, key=lambda v: v.name):
                    if not self._open(value):
                        tensor = self._evaluate(value)
                        self.fitted[value] = tensor
                        pending.discard(value)
                        yield value, tensor
                self._forget(pending)
                if progress is not None:
                    progress(total - len(needed), total, "statistics")

    def _forget(self, pending: set[Value]) -> None:
        """Drop the statistics that no pending value waits for."""
        wanted = ancestors(pending)
        self.moments = {value: tensor for value, tensor in self.moments.items() if value.op in wanted}

    def _needed_moments(self, wanted: Iterable[Value]) -> set[Moment]:
        """Return the moments that ``wanted`` depend on, through fits of earlier layers too."""
        known = (v.op for v in self.graph.values.values() if v.name in self.known)
        found: set[Moment] = set()
        seen: set[Op] = {op for op in known if op is not None}
        stack = [v.op for v in wanted if v.op is not None]
        while stack:
            op = stack.pop()
            if op in seen:
                continue
            seen.add(op)
            if isinstance(op, Moment):
                found.add(op)
            stack.extend(v.op for v in op.operands if v.op is not None)
        return found

    def _edges(self, moment: Moment) -> list[Value]:
        """Return the one or two run-time values that a moment is of."""
        sides = ((moment.a, moment.source_a), (moment.b, moment.source_b))
        return [value if value is not None else self.original[str(name)] for value, name in sides]

    def _run_time_ops(self, moments: Iterable[Moment]) -> list[Op]:
        """Return the run-time ops of both graphs that the moments need, layer by layer, the original's first."""
        edges = [edge for moment in moments for edge in self._edges(moment)]
        needed = {op for op in ancestors(edges) if not op.weight_time}
        order: list[tuple[int, int, int, Op]] = []
        for which, graph in enumerate((self.original, self.graph)):
            depth = -1
            for place, op in enumerate(graph.ops):
                layer = layer_of(op.results[0].name)
                depth = max(depth, -1 if layer is None else layer)
                if op in needed:
                    order.append((depth, which, place, op))
        return [op for *_, op in sorted(order, key=lambda each: each[:3])]

    def _open(self, value: Value) -> bool:
        """Whether a weight-time value still waits for a statistic."""
        if value in self.fitted:
            return False
        stack = [value.op]
        while stack:
            op = stack.pop()
            assert op is not None
            if isinstance(op, Moment):
                if op.out not in self.moments:
                    return True
                continue
            stack.extend(v.op for v in op.operands if v not in self.fitted)
        return False

    def _segment(self, ops: Sequence[Op], needed: set[Moment]) -> dict[Op, None]:
        """Return the ops to run next: those that wait for no fit, to the layer whose statistics come next."""
        blocked: set[Value] = set()
        segment: dict[Op, None] = {}
        open_weights: dict[Value, bool] = {}
        for op in ops:
            waits = False
            for value in op.operands:
                if value.is_weight:
                    if value not in open_weights:
                        open_weights[value] = self._open(value)
                    waits = waits or open_weights[value]
                elif value in blocked:
                    waits = True
            if waits:
                blocked.update(op.results)
            else:
                segment[op] = None
        made = {v for op in segment for v in op.results}
        depths = [self._deepest(m, made) for m in needed if not any(edge in blocked for edge in self._edges(m))]
        limit = min(depths, default=-1)
        return {op: None for op in segment if self._depth(op) <= limit}

    def _deepest(self, moment: Moment, made: set[Value]) -> int:
        """Return the layer after which a moment can be taken."""
        return max((self._depth(e.op) for e in self._edges(moment) if e in made and e.op is not None), default=-1)

    def _depth(self, op: Op) -> int:
        layer = layer_of(op.results[0].name)
        return -1 if layer is None else layer

    # -- doing it

    def _accumulate(self, segment: Mapping[Op, None], ops: Sequence[Op], needed: set[Moment]) -> set[Moment]:
        """Run a segment over every batch, add up the moments that it completes, and drop what nobody reads after it."""
        made = {v for op in segment for v in op.results}
        present = made | (set(self.batches[0].values) if self.batches else set())
        ready = {m for m in needed if all(edge in present for edge in self._edges(m))}
        assert segment or ready, "the sweep makes no progress"
        later = {v for op in ops if op not in segment for v in op.operands}
        later |= {edge for m in needed - ready for edge in self._edges(m)}
        inputs = {v for op in segment for v in op.operands if v.is_weight}
        weights = {v: self._weight(v) for v in inputs}
        keep = {edge for m in ready for edge in self._edges(m)} | later
        sums: dict[Moment, Tensor] = {}
        for batch in self.batches:
            values = execute(list(segment), {**batch.values, **weights}, batch.run, keep & present)
            for moment in ready:
                a, b = (values[edge].flatten(2).flatten(0, 1).double() for edge in self._edges(moment))
                product = a.T @ b
                sums[moment] = sums[moment] + product if moment in sums else product
            batch.values = {v: t for v, t in values.items() if v in later} | {
                v: t for v, t in batch.values.items() if v.op is None
            }
        for moment, total in sums.items():
            self.moments[moment.out] = total / self.count
        return ready

    def _weight(self, value: Value) -> Tensor:
        if value in self.fitted:
            return self.fitted[value].to(self.dtype)
        return self._evaluate(value).to(self.dtype)

    def _evaluate(self, value: Value) -> Tensor:
        """Return a weight-time value in the stored dtype."""
        return evaluate(value, self.source, {**self.moments, **self.fitted})


def evaluate(value: Value, source: Source, known: Mapping[Value, Tensor] | None = None) -> Tensor:
    """Return a weight-time value from the checkpoint, in the stored dtypes, given some values that are ``known``.

    Raises:
        NeedsCalibrationError: It depends on a statistic that is not among ``known``.
    """
    import torch

    given = dict(known or {})
    if value in given:
        return given[value]
    ops: dict[Op, None] = {}

    def visit(op: Op) -> None:
        if op in ops:
            return
        for operand in op.operands:
            if operand not in given and operand.op is not None and operand.op.weight_time:
                visit(operand.op)
        ops[op] = None

    assert value.op is not None
    visit(value.op)
    nothing = torch.zeros(0, 0)
    run = Run(nothing, nothing, None, lambda op: source.read(op.source))
    inside = {v: t for v, t in given.items() if any(v in op.operands for op in ops)}
    with torch.no_grad():
        return execute(list(ops), inside, run, {value})[value]
