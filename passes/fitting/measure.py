"""Statistics that passes ask for before they decide: second moments of run-time edges on calibration text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from regraft.ir.errors.checks import NeedsCalibrationError
from regraft.ir.graph import Graph
from regraft.ir.op import Value
from regraft.ir.ops.core import Linear
from regraft.ir.ops.fits import Moment, width
from regraft.ir.source import Source
from regraft.passes.fitting.sweep import Progress, Sweep, ancestors, evaluate

if TYPE_CHECKING:
    from torch import Tensor


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
        probe = graph.copy()
        moments: dict[Value, Linear] = {}
        weights: dict[Linear, Value] = {}
        for linear in linears:
            z, weight = probe[linear.x.name], probe[linear.weight.name]
            size = width(z.tensor)
            op = Moment({"a": (z,), "b": (z,)}, {"rows": size, "columns": size})
            moments[probe.add(op, [probe.fresh(f"{linear.x.name}.moment")])[0]] = linear
            if _is_fitted(weight):
                weights[linear] = weight
        sweep = self._sweep(probe, linears[0].x.name if linears else "nothing")
        statistics: dict[Linear, Tensor] = {}
        fitted: dict[Value, Tensor] = {}
        expected = iter(linears)
        following = next(expected, None)
        for value, tensor in sweep.solve([*moments, *weights.values()], self._progress):
            if value in moments:
                statistics[moments[value]] = tensor
            else:
                fitted[value] = tensor
            while following in statistics:
                own = weights.get(following)
                if own is not None and own not in fitted:
                    break
                weight = evaluate(following.weight, self.source) if own is None else fitted[own]
                yield following, statistics.pop(following), weight
                following = next(expected, None)

    def weight(self, graph: Graph, value: Value) -> Tensor:
        """Return a weight-time value of ``graph`` in the stored dtype; one that an earlier pass fits is fitted now."""
        if not _is_fitted(value):
            return evaluate(value, self.source)
        return next(tensor for _, tensor in self._sweep(graph, value.name).solve([value], self._progress))

    def _sweep(self, graph: Graph, name: str) -> Sweep:
        if self.tokens is None:
            raise NeedsCalibrationError(name=name)
        return Sweep(graph, self.original, self.source, self.tokens)


def _is_fitted(value: Value) -> bool:
    """Whether a weight depends on a statistic."""
    return any(isinstance(op, Moment) for op in ancestors([value]))
