"""Statistics over calibration text: one sweep in depth order, over the graph and the one it came from.

The rewritten graph holds ``weight.moment`` ops. A fit needs its statistics before the ops that use the fitted weight
can run, so the sweep goes through both graphs side by side in segments: to the end of the layer whose statistics come
next, for every batch of tokens, then the fits, then on. Between segments only the values that are still to be read are
kept. So each layer is fitted on the already converted prefix, and one layer's weights and statistics are in memory.

Source: specs/passes_math.md, section 8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from regraft.ir.graph import Graph
from regraft.ir.interpret import Run, execute
from regraft.ir.op import Op, Value
from regraft.ir.ops.fits import Statistic
from regraft.ir.ops.weight import Load
from regraft.ir.source import Source, torch_dtype
from regraft.passes.fitting.stream import Stream, ancestors, depth_of, depths

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[int, int, str], None]


class Sweep:
    """Evaluates weight-time values that depend on statistics.

    Args:
        graph: The rewritten graph.
        original: The graph as it was lifted, for statistics that name its edges.
        source: The tensors of both.
        tokens: int64 ``[N, T]``, the calibration windows; or a stream that is on its way through both graphs.
        batch: Windows at a time.
        dtype: The dtype to run the graphs in.
        known: Fitted parameters from an earlier, interrupted sweep.
    """

    def __init__(
        self,
        graph: Graph,
        original: Graph,
        source: Source,
        tokens: Tensor | Stream,
        batch: int = 8,
        dtype: str = "f32",
        known: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.graph, self.original, self.source = graph, original, source
        self.dtype = torch_dtype(dtype)
        self.known = dict(known or {})
        self.stream = (
            tokens if isinstance(tokens, Stream) else Stream.begin(tokens, batch, (graph, original), self._load)
        )
        self.means: dict[Value, Tensor] = {}
        self.shared: dict[Value, Tensor] = {}  # of ops with several results, so that these are computed once
        self.fitted: dict[Value, Tensor] = {}

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
        needed = self._needed(pending)
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
        self.means = {value: tensor for value, tensor in self.means.items() if value.op in wanted}
        self.shared = {value: tensor for value, tensor in self.shared.items() if value.op in wanted}

    def _needed(self, wanted: Iterable[Value]) -> set[Statistic]:
        """Return the statistics that ``wanted`` depend on, through fits of earlier layers too."""
        known = (v.op for v in self.graph.values.values() if v.name in self.known)
        found: set[Statistic] = set()
        seen: set[Op] = {op for op in known if op is not None}
        stack = [v.op for v in wanted if v.op is not None]
        while stack:
            op = stack.pop()
            if op in seen:
                continue
            seen.add(op)
            if isinstance(op, Statistic):
                found.add(op)
            stack.extend(v.op for v in op.operands if v.op is not None)
        return found

    def _edges(self, statistic: Statistic) -> list[Value]:
        return statistic.edges(self.original)

    def _run_time_ops(self, statistics: Iterable[Statistic]) -> list[Op]:
        """Return the run-time ops of both graphs that statistics need, layer by layer, the original's first."""
        edges = [edge for statistic in statistics for edge in self._edges(statistic)]
        needed = {op for op in ancestors(edges, self.stream.present) if not op.weight_time}
        order: list[tuple[int, int, int, Op]] = []
        for which, graph in enumerate((self.original, self.graph)):
            order += [(depth, which, place, op) for place, (depth, op) in enumerate(depths(graph)) if op in needed]
        return [op for *_, op in sorted(order, key=lambda each: each[:3])]

    def _open(self, value: Value) -> bool:
        """Whether a weight-time value still waits for a statistic."""
        if value in self.fitted:
            return False
        stack = [value.op]
        while stack:
            op = stack.pop()
            assert op is not None
            if isinstance(op, Statistic):
                if op.results[0] not in self.means:
                    return True
                continue
            stack.extend(v.op for v in op.operands if v not in self.fitted)
        return False

    def _segment(self, ops: Sequence[Op], needed: set[Statistic]) -> dict[Op, None]:
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
        reached = [
            self._deepest(m, made)
            for m in needed
            if not any(edge in blocked for edge in self._edges(m)) and not self._waits(m)
        ]
        limit = min(reached, default=-1)
        return {op: None for op in segment if depth_of(op) <= limit}

    def _waits(self, statistic: Statistic) -> bool:
        """Whether a weight that a statistic reads waits for another statistic."""
        return any(self._open(weight) for weight in statistic.weights)

    def _deepest(self, statistic: Statistic, made: set[Value]) -> int:
        """Return the layer after which a statistic can be taken."""
        return max((depth_of(e.op) for e in self._edges(statistic) if e in made and e.op is not None), default=-1)

    # -- doing it

    def _accumulate(self, segment: Mapping[Op, None], ops: Sequence[Op], needed: set[Statistic]) -> set[Statistic]:
        """Run a segment over every batch, add up the statistics that it completes, and drop what nobody reads after."""
        there = self.stream.present | {v for op in segment for v in op.results}
        ready = {m for m in needed if all(edge in there for edge in self._edges(m)) and not self._waits(m)}
        assert segment or ready, "the sweep makes no progress"
        later = {v for op in ops if op not in segment for v in op.operands}
        later |= {edge for m in needed - ready for edge in self._edges(m)}
        inputs = {v for op in segment for v in op.operands if v.is_weight}
        weights = {m: [self._evaluate(v) for v in m.weights] for m in ready}
        sums: dict[Statistic, Tensor] = {}

        def add(run: Run, values: Mapping[Value, Any]) -> None:
            for statistic in ready:
                seen = (values[edge] for edge in self._edges(statistic))
                total = statistic.batch_sum(run, *seen, *weights[statistic])
                sums[statistic] = sums[statistic] + total if statistic in sums else total

        edges = {edge for m in ready for edge in self._edges(m)}
        self.stream.advance(list(segment), {v: self._weight(v) for v in inputs}, later, add, edges)
        for statistic, total in sums.items():
            self.means[statistic.results[0]] = total / self.stream.tokens
        return ready

    def _weight(self, value: Value) -> Tensor:
        if value in self.fitted:
            return self.fitted[value].to(self.dtype)
        return self._evaluate(value).to(self.dtype)

    def _evaluate(self, value: Value) -> Tensor:
        """Return a weight-time value in the stored dtype."""
        known = {**self.means, **self.shared, **self.fitted}
        above = {op for op in ancestors([value], known) if len(op.results) > 1}
        for op in self.graph.ops if above else ():
            if op in above:
                self.shared |= evaluate_all(op.results, self.source, known)
                known |= self.shared
        return evaluate(value, self.source, known)


def evaluate(value: Value, source: Source, known: Mapping[Value, Tensor] | None = None) -> Tensor:
    """Return a weight-time value from the checkpoint, in the stored dtypes, given some values that are ``known``.

    Raises:
        NeedsCalibrationError: It depends on a statistic that is not among ``known``.
    """
    if known is not None and value in known:
        return known[value]
    return evaluate_all((value,), source, known)[value]


def evaluate_all(
    values: Sequence[Value], source: Source, known: Mapping[Value, Tensor] | None = None
) -> dict[Value, Tensor]:
    """Return results of one weight-time op; see `evaluate`."""
    import torch

    given = dict(known or {})
    ops: dict[Op, None] = {}

    def visit(op: Op) -> None:
        if op in ops:
            return
        for operand in op.operands:
            if operand not in given and operand.op is not None and operand.op.weight_time:
                visit(operand.op)
        ops[op] = None

    for value in values:
        assert value.op is not None
        visit(value.op)
    nothing = torch.zeros(0, 0)
    run = Run(nothing, nothing, None, lambda op: source.read(op.source))
    inside = {v: t for v, t in given.items() if any(v in op.operands for op in ops)}
    with torch.no_grad():
        return execute(list(ops), inside, run, set(values))
