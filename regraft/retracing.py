"""An exact recipe carried out again, with the weights that its passes make in full and rounded as they are stored.

Passes that are exact in the numbers of a formula write what they make in the checkpoint's dtype. In bfloat16 that alone
moves logits by about a hundredth, as rounding of trained weights does. So whether a recipe is exact shows before the
rounding, and whether a folder is what the recipe makes shows after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from regraft.ir.errors.base import RegraftError
from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter
from regraft.ir.ops.weight import Load
from regraft.ir.source import Source, TensorSource
from regraft.passes.fitting.fold import folded
from regraft.passes.fitting.sweep import evaluate
from regraft.passes.pipeline import run_pipeline
from regraft.passes.recipe import load_recipe
from regraft.readings import LOCK

if TYPE_CHECKING:
    from regraft.model import Model

HALVES = ("bf16", "f16")


@dataclass(frozen=True)
class Retraced:
    """A recipe's result, to be run in float32.

    Args:
        graph: The rewritten graph; weights that passes made are expressions.
        source: The tensors of the model that the recipe changed.
        dtypes: What the weights that passes made are stored as.
    """

    graph: Graph
    source: Source
    dtypes: tuple[str, ...]

    def unrounded(self) -> Interpreter:
        """Return the result with the weights that passes made as float32 gives them."""
        return Interpreter(self.graph, self.source)

    def rounded(self) -> Interpreter:
        """Return the result with weights as they are stored."""
        tensors = {v.name: evaluate(v, self.source) for v in self.graph.parameters()}
        return Interpreter(folded(self.graph), TensorSource(tensors))


def retrace(folder: Path | None, base: Model) -> Retraced | None:
    """Return what the recipe of a folder's lock file makes of ``base``, if that is exact but for rounding.

    None where there is no recipe, where a step of it is not exact or does not fit ``base``, and where no weight that it
    makes is rounded to half precision.
    """
    if folder is None or not (folder / LOCK).is_file():
        return None
    try:
        result = run_pipeline(base.graph, load_recipe(folder / LOCK))
    except RegraftError:
        return None
    stored = (v.tensor.dtype for v in result.graph.parameters() if not isinstance(v.op, Load))
    dtypes = tuple(sorted({dtype for dtype in stored if dtype in HALVES}))
    if not dtypes or any(step.preserves != "exact" for step in result.steps):
        return None
    return Retraced(result.graph, base.require_source(), dtypes)
