"""Statistics that passes ask for before they decide: second moments of run-time edges on calibration text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.ir.graph import Graph, layer_of, relative
from regraft.ir.op import Value
from regraft.ir.ops.weight import Moment, width
from regraft.ir.source import Source
from regraft.passes.sweep import Progress, Sweep, evaluate

if TYPE_CHECKING:
    from torch import Tensor


class Measurements:
    """Takes statistics of a graph on calibration text.

    Args:
        original: The graph as it was lifted.
        source: The tensors.
        tokens: int64 ``[N, T]``.
        progress: Called as statistics are done.
    """

    def __init__(self, original: Graph, source: Source, tokens: Tensor, progress: Progress | None = None) -> None:
        self.original, self.source, self.tokens = original, source, tokens
        self._progress = progress
        self._known: dict[tuple[int, str], Tensor] = {}
        self._stages: dict[int, Graph] = {}

    def moment(self, graph: Graph, edge: str) -> Tensor:
        """Return ``E[z zᵀ]`` of a run-time value of ``graph``, float64 ``[n, n]``.

        The same place in every layer is measured in one sweep, and remembered while ``graph`` lives.
        """
        key = (id(graph), edge)
        if key not in self._known:
            self._stages[id(graph)] = graph  # keeps the id from being used again
            self._measure(graph, edge)
        return self._known[key]

    def weight(self, value: Value) -> Tensor:
        """Return a parameter in the stored dtype.

        Raises:
            NeedsCalibrationError: An earlier pass fits it.
        """
        return evaluate(value, self.source)

    def _measure(self, graph: Graph, edge: str) -> None:
        probe = graph.copy()
        places = [edge]
        if layer_of(edge) is not None:
            places = [name for name in probe.values if relative(name) == relative(edge)]
        wanted: dict[str, Value] = {}
        for name in places:
            value = probe[name]
            size = width(value.tensor)
            op = Moment({"a": (value,), "b": (value,)}, {"rows": size, "columns": size})
            wanted[name] = probe.add(op, [probe.fresh(f"{name}.moment")])[0]
        sweep = Sweep(probe, self.original, self.source, self.tokens)
        names = {value: name for name, value in wanted.items()}
        for value, tensor in sweep.solve(list(names), self._progress):
            self._known[id(graph), names[value]] = tensor
