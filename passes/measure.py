"""Statistics that passes ask for before they decide: second moments of run-time edges on calibration text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from regraft.ir.errors.checks import NeedsCalibrationError
from regraft.ir.graph import Graph
from regraft.ir.op import Value
from regraft.ir.ops.weight import Moment, width
from regraft.ir.source import Source
from regraft.passes.sweep import Progress, Sweep, ancestors, evaluate

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

    def moments(self, graph: Graph, edges: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield ``E[z zᵀ]``, float64 ``[n, n]``, of each run-time value of ``graph``, in the order of ``edges``.

        One sweep serves all; where ``edges`` ascend by layer, one statistic is in memory at a time.

        Raises:
            NeedsCalibrationError: There is no calibration text.
        """
        probe = graph.copy()
        wanted: dict[Value, str] = {}
        for name in edges:
            value = probe[name]
            size = width(value.tensor)
            op = Moment({"a": (value,), "b": (value,)}, {"rows": size, "columns": size})
            wanted[probe.add(op, [probe.fresh(f"{name}.moment")])[0]] = name
        sweep = self._sweep(probe, edges[0] if edges else "nothing")
        early: dict[str, Tensor] = {}
        expected = iter(edges)
        following = next(expected, None)
        for value, tensor in sweep.solve(list(wanted), self._progress):
            early[wanted[value]] = tensor
            while following in early:
                yield following, early.pop(following)
                following = next(expected, None)

    def weight(self, graph: Graph, value: Value) -> Tensor:
        """Return a weight-time value of ``graph`` in the stored dtype; one that an earlier pass fits is fitted now."""
        if not any(isinstance(op, Moment) for op in ancestors([value])):
            return evaluate(value, self.source)
        sweep = self._sweep(graph, value.name)
        return next(tensor for _, tensor in sweep.solve([value], self._progress))

    def _sweep(self, graph: Graph, name: str) -> Sweep:
        if self.tokens is None:
            raise NeedsCalibrationError(name=name)
        return Sweep(graph, self.original, self.source, self.tokens)
