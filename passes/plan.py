"""What `regraft plan` reports: a recipe on a graph, without weights."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from regraft.ir.graph import Graph, layer_of
from regraft.ir.ops.fits import Statistic
from regraft.passes.base import Measurements
from regraft.passes.fitting.fold import plan_tensors
from regraft.passes.packing import Packing, kept_packed, packing
from regraft.passes.pipeline import CONTEXT, PipelineResult, Size, run_pipeline, size_of
from regraft.passes.recipe import Recipe

PROCESS_BYTES = 300_000_000  # the interpreter with torch and its buffers
HEADER_BYTES = 128  # of a safetensors header, a tensor


@dataclass(frozen=True)
class Plan:
    """What `apply` would do.

    Attributes:
        result: The pipeline's graph, steps and expanded recipe.
        before: The size of the model as it is.
        after: The size that is predicted.
        disk_bytes: What the weight files will take.
        memory_bytes: An upper estimate of the memory that `apply` uses beyond mapped files.
        quantized: The checkpoint's quantised tensors: what stays as it is, and what dequantising the others costs.
    """

    result: PipelineResult
    before: Size
    after: Size
    disk_bytes: int
    memory_bytes: int
    quantized: Packing

    def to_json(self) -> dict[str, object]:
        """Return the JSON of schema ``regraft.plan/1``."""
        recipe = self.result.recipe
        return {
            "schema": "regraft.plan/1",
            "model": self.result.graph.name,
            "recipe": recipe.to_pipeline(),
            "expanded": recipe.plain(expanded=True),
            "decided": self.result.decided,
            "steps": [step.to_json() for step in self.result.steps],
            "context": CONTEXT,
            "before": asdict(self.before),
            "after": asdict(self.after),
            "disk_bytes": self.disk_bytes,
            "memory_bytes": self.memory_bytes,
            "quantized": self.quantized.to_json(),
        }


def make_plan(graph: Graph, recipe: Recipe, measure: Measurements | None = None) -> Plan:
    """Return what a recipe would do to a graph.

    Choices that need data stay open without ``measure``; sizes are then predicted for choices of the same number.

    Raises:
        IllegalPassError: The model does not allow what a pass asks for.
    """
    result = run_pipeline(graph, recipe, measure, assume=True)
    kept = kept_packed(result.graph, graph)
    disk = sum(info.nbytes + HEADER_BYTES for info in plan_tensors(result.graph, kept))
    before = result.steps[0].before if result.steps else size_of(graph)
    after = result.steps[-1].after if result.steps else before
    quantized = packing(result.graph, graph, kept)
    return Plan(result, before, after, disk, _memory(result.graph, recipe), quantized)


def _memory(graph: Graph, recipe: Recipe) -> int:
    """Estimate what `apply` holds: a few tensors in flight, and in a fit one layer, its statistics and all streams."""
    largest = max((op.results[0].tensor.nbytes({}) for op in graph.ops if op.weight_time), default=0)
    needed = PROCESS_BYTES + 3 * largest
    moments: dict[int | None, int] = {}
    weights: dict[int | None, int] = {}
    width = 0
    for op in graph.ops:
        layer = layer_of(op.results[0].name)
        if isinstance(op, Statistic):
            taken = op.results[0].tensor
            moments[layer] = moments.get(layer, 0) + taken.nbytes({})
            width = max(width, taken.sizes[-1])
        elif op.weight_time:
            weights[layer] = weights.get(layer, 0) + 4 * op.results[0].tensor.elements({})
    if not moments or recipe.calibration is None:
        return needed
    streams = 2 * 4 * width * recipe.calibration.tokens  # both graphs', float32
    return needed + 2 * max(moments.values()) + 2 * max(weights.values()) + streams
