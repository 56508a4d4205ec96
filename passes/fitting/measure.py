"""What passes ask for before they decide: statistics over calibration text, weights, and what single edits cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from regraft.ir.errors.checks import NeedsCalibrationError
from regraft.ir.graph import Graph
from regraft.ir.op import Value
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.core import Linear
from regraft.ir.ops.fits import Statistic, second_moment
from regraft.ir.source import Source
from regraft.passes.fitting.damage import Damage, Edit
from regraft.passes.fitting.gradients import gate_gradients, gated, result_gradients
from regraft.passes.fitting.stream import ancestors
from regraft.passes.fitting.sweep import Progress, Sweep, evaluate

if TYPE_CHECKING:
    from torch import Tensor

FIT, JUDGE = 32, 16  # windows, at most, for single edits


class Measurements:
    """Takes statistics of a graph on calibration text.

    Args:
        original: The graph as it was lifted.
        source: The tensors.
        tokens: int64 ``[N, T]``, or None where there is no calibration text: then only weights can be asked for.
        progress: Called as statistics are done.
    """

    def __init__(
        self, original: Graph, source: Source, tokens: Tensor | None, progress: Progress | None = None
    ) -> None:
        self.original, self.source, self.tokens = original, source, tokens
        self._progress = progress

    def projections(self, graph: Graph, linears: Sequence[Linear]) -> Iterator[tuple[Linear, Tensor, Tensor]]:
        """Yield each linear op of ``graph`` with ``E[z zᵀ]`` of what it reads, float64 ``[I, I]``, and its weight.

        One sweep serves all, and fits on the way what earlier passes said to fit; where ``linears`` ascend by layer,
        one statistic is in memory at a time.

        Raises:
            NeedsCalibrationError: There is no calibration text.
        """
        for linear, (c, weight) in zip(linears, self._projections(graph, linears), strict=True):
            yield linear, c, weight

    def _projections(self, graph: Graph, linears: Sequence[Linear]) -> Iterator[tuple[Tensor, Tensor]]:
        fitted = [linear.weight for linear in linears if _is_fitted(linear.weight)]
        found: dict[Value, Tensor] = {}
        waiting: list[Tensor] = []
        following = iter(linears)
        statistics = [second_moment(linear.x) for linear in linears]
        linear = next(following, None)
        for value, tensor in self._solve(graph, statistics, fitted):
            if value is None:
                waiting.append(tensor)
            else:
                found[value] = tensor
            while linear is not None and waiting and (linear.weight in found or linear.weight not in fitted):
                weight = found[linear.weight] if linear.weight in fitted else evaluate(linear.weight, self.source)
                yield waiting.pop(0), weight
                linear = next(following, None)

    def statistics(self, graph: Graph, wanted: Sequence[Statistic]) -> Iterator[Tensor]:
        """Yield each of some statistics over edges of ``graph``, in the order given; the ops need not be in the graph.

        One sweep serves all; where they ascend by layer, few are in memory at a time.

        Raises:
            NeedsCalibrationError: There is no calibration text.
        """
        for _, tensor in self._solve(graph, wanted, ()):
            yield tensor

    def _solve(
        self, graph: Graph, wanted: Sequence[Statistic], weights: Sequence[Value]
    ) -> Iterator[tuple[Value | None, Tensor]]:
        """Yield the statistics in the order given, under None, and fitted weights as soon as they are known."""
        probe = graph.copy()
        places: dict[Value, int] = {}
        for place, statistic in enumerate(wanted):
            op = statistic.rebuilt(lambda value: probe[value.name])
            places[probe.add(op, [probe.fresh(f"measured.{place}")])[0]] = place
        fitted = {probe[weight.name]: weight for weight in weights}
        name = next((edge.name for each in wanted for edge in each.edges(self.original)), "nothing")
        early: dict[int, Tensor] = {}
        following = 0
        for value, tensor in self._sweep(probe, name).solve([*places, *fitted], self._progress):
            if value in fitted:
                yield fitted[value], tensor
                continue
            early[places[value]] = tensor
            while following in early:
                yield None, early.pop(following)
                following += 1

    def damage(self, graph: Graph, edits: Sequence[Edit]) -> list[float]:
        """Return the KL(original ‖ edited) of each edit of ``graph`` alone, in nats a token; see `Damage`.

        The last windows of the calibration text judge, others are fitted on.

        Raises:
            NeedsCalibrationError: There is no calibration text, or no two windows of it.
        """
        if self.tokens is None or len(self.tokens) < 2:
            raise NeedsCalibrationError(name="the divergence after single edits")
        judge = max(1, min(JUDGE, len(self.tokens) // 4))
        rest = len(self.tokens) - judge
        damage = Damage(graph, self.original, self.source, self.tokens[: min(FIT, rest)], self.tokens[rest:])
        return damage.measure(edits, self._progress)

    def gate_gradients(self, graph: Graph, attends: Sequence[Attend]) -> list[Tensor]:
        """Return ``E|dL/dξ|``, float64 ``[Hq]``, of a gate on each head of some attentions; see `gradients`.

        Raises:
            NeedsCalibrationError: There is no calibration text.
        """
        work, gates = gated(graph, attends)
        return gate_gradients(work, gates, *self._for_gradients(work, gates))

    def result_gradients(self, graph: Graph, linears: Sequence[Linear]) -> list[Tensor]:
        """Return ``E[g gᵀ]``, float64 ``[O, O]``, of the loss's gradient by the result of some linear ops.

        Raises:
            NeedsCalibrationError: There is no calibration text.
        """
        return result_gradients(graph, [linear.out for linear in linears], *self._for_gradients(graph, ()))

    def _for_gradients(self, graph: Graph, but: Sequence[Value]) -> tuple[dict[Value, Tensor], Tensor]:
        """Return what run-time ops read, in float32, and the windows to take gradients on."""
        if self.tokens is None:
            raise NeedsCalibrationError(name="the gradient of the loss")
        read = {value: None for op in graph.run_time() for value in op.operands if value.is_weight}
        weights = dict(self.weights(graph, [value for value in read if value not in but]))
        wide = {value: t.float() if t.is_floating_point() else t for value, t in weights.items()}
        return wide, self.tokens[:FIT]

    def weight(self, graph: Graph, value: Value) -> Tensor:
        """Return a weight-time value of ``graph`` in the stored dtype; one that an earlier pass fits is fitted now."""
        if not _is_fitted(value):
            return evaluate(value, self.source)
        return next(tensor for _, tensor in self._sweep(graph, value.name).solve([value], self._progress))

    def weights(self, graph: Graph, values: Sequence[Value]) -> Iterator[tuple[Value, Tensor]]:
        """Yield weight-time values of ``graph`` as they are known, statistics among them; one sweep serves all."""
        fitted = [value for value in values if _is_fitted(value)]
        for value in values:
            if value not in fitted:
                yield value, evaluate(value, self.source)
        if fitted:
            yield from self._sweep(graph, fitted[0].name).solve(fitted, self._progress)

    def _sweep(self, graph: Graph, name: str) -> Sweep:
        if self.tokens is None:
            raise NeedsCalibrationError(name=name)
        return Sweep(graph, self.original, self.source, self.tokens)


def _is_fitted(value: Value) -> bool:
    """Whether a weight depends on a statistic."""
    return any(isinstance(op, Statistic) for op in ancestors([value]))
