"""The pipeline: passes one after another, each decided, carried out, tidied up after and verified."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from regraft.ir.cost import cost, parameters
from regraft.ir.errors.base import RegraftError
from regraft.ir.errors.recipe import RefitTargetError, SpreadTargetError, UndecidedError
from regraft.ir.files import write_atomic, writing
from regraft.ir.graph import Graph
from regraft.ir.memory import infer_windows
from regraft.ir.ops.fits import Statistic, width
from regraft.ir.ops.latents import AttentionSpread
from regraft.ir.text import print_graph
from regraft.passes.base import Constraints, Measurements, Pass, Preserves, Report
from regraft.passes.recipe import Recipe

CONTEXT = 4096


@dataclass(frozen=True, slots=True)
class Size:
    """What a graph costs: in all, and for one sequence of `CONTEXT` tokens, a decode step or the prompt's prefill.

    Of a prompt the last token's logits are wanted.
    """

    parameters: int
    active_parameters: int
    weight_bytes: int
    cache_bytes: int
    decode_flops: int
    decode_bytes_read: int
    prefill_flops: int


def size_of(graph: Graph) -> Size:
    """Return the size of a graph."""
    count, step = parameters(graph), cost(graph, context=CONTEXT).total
    prompt = cost(graph, tokens=CONTEXT, context=CONTEXT, last=1).total
    stored = sum(v.tensor.nbytes({}) for v in graph.parameters())
    return Size(count.total, count.active, stored, step.cache, step.flops, step.bytes_read, prompt.flops)


@dataclass(frozen=True)
class StepReport:
    """What one pass did.

    Attributes:
        step: The pass, its choices spelled out as far as they were made.
        decided: Whether they were; if not, ``report`` and ``after`` hold for choices of the same number.
        report: What was done in each layer, or why not.
        before: The graph's size before the pass.
        after: And after it.
    """

    step: Pass
    decided: bool
    report: Report
    before: Size
    after: Size

    @property
    def name(self) -> str:
        """The pass's name."""
        return self.step.name

    @property
    def preserves(self) -> Preserves:
        """What the pass preserves with its options."""
        return self.step.claim

    def to_json(self) -> dict[str, object]:
        """Return the step as data."""
        return {
            "name": self.name,
            "pass": str(self.step),
            "preserves": self.preserves,
            "decided": self.decided,
            "layers": [
                {"where": note.where, "layer": note.layer, "applied": note.applied, "text": note.text}
                for note in self.report.notes
            ],
            "before": asdict(self.before),
            "after": asdict(self.after),
        }


@dataclass(frozen=True)
class PipelineResult:
    """What a pipeline made of a graph.

    Attributes:
        graph: The rewritten graph, verified; weights that passes made are expressions.
        original: The graph before, for statistics that name its edges.
        steps: What each pass did.
        recipe: The recipe with every default and decision spelled out.
    """

    graph: Graph
    original: Graph
    steps: tuple[StepReport, ...]
    recipe: Recipe

    @property
    def decided(self) -> bool:
        """Whether every choice was made."""
        return all(step.decided for step in self.steps)


def run_pipeline(
    graph: Graph,
    recipe: Recipe,
    measure: Measurements | None = None,
    *,
    dump: Path | None = None,
    assume: bool = False,
    seen: Callable[[Graph], None] | None = None,
) -> PipelineResult:
    """Run a recipe's passes over a graph, which stays as it is.

    Args:
        graph: The graph as lifted.
        recipe: The passes.
        measure: Weights and statistics for choices that need them.
        dump: A folder for the graph's text before the first and after each pass.
        assume: Where a choice needs data and there is none, go on with one of the same size instead of refusing: right
            for predictions, not for weights.
        seen: Called with the graph after each pass; the next one changes it, so copy what is to stay.

    Raises:
        IllegalPassError: The model does not allow what a pass asks for.
        UndecidedError: A choice needs data, and there is none.
        GraphError: A pass broke the graph; the error names the pass.
    """
    work = graph.copy()
    if dump is not None:
        _dump(work, dump, 0, "lifted", "as lifted")
    steps: list[StepReport] = []
    before = size_of(work)
    for number, step in enumerate(recipe.passes, 1):
        place = f"{step}, pass {number} of {len(recipe.passes)}"
        decided, report = _step(step, work, graph, recipe.constraints, measure, assume, place)
        after = size_of(work)
        steps.append(StepReport(decided, not decided.needs_data, report, before, after))
        before = after
        if dump is not None:
            _dump(work, dump, number, step.name, f"after {decided}, pass {number} of {len(recipe.passes)}")
        if seen is not None:
            seen(work)
    expanded = replace(recipe, passes=tuple(each.step for each in steps))
    return PipelineResult(work, graph, tuple(steps), expanded)


def _step(
    step: Pass,
    work: Graph,
    original: Graph,
    constraints: Constraints,
    measure: Measurements | None,
    assume: bool,
    place: str,
) -> tuple[Pass, Report]:
    """Run one pass on ``work``, tidy up and verify; return it with its choices, and what it did."""
    step.check_needs()
    decided = step.decide(work, measure, constraints)
    if decided.needs_data and not assume:
        by, option = decided.open_choice
        raise UndecidedError(owner=step.name, by=by, option=option, where=step.place())
    explicit = decided.assume(work) if decided.needs_data else decided
    given = {op for op in work.ops if isinstance(op, Statistic)}  # fitted before: the graph that they name is gone
    try:
        report = explicit.rewrite(work)
        work.drop_dead()
        infer_windows(work)
        work.verify()
    except RegraftError as error:
        error.notes.append(f"broken by: {place}")
        raise
    _check_targets([op for op in work.ops if isinstance(op, Statistic) and op not in given], original, step)
    return decided, report


def _check_targets(statistics: Sequence[Statistic], original: Graph, step: Pass) -> None:
    """Check that new statistics of the original name edges that it has, as wide as they are thought to be."""
    for op in statistics:
        if isinstance(op, AttentionSpread) and (reason := op.misfit(original)):
            raise SpreadTargetError(owner=step.name, name=op.source, reason=reason, where=step.place("method"))
        for name, wanted in op.targets():
            found = width(original[name].tensor) if name in original else 0
            if found != wanted:
                reason = f"has {found} channels, not {wanted}," if found else "does not exist"
                raise RefitTargetError(owner=step.name, name=name, reason=reason, where=step.place("refit"))


def _dump(graph: Graph, folder: Path, number: int, name: str, header: str) -> None:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{number:02d}-{name}.rg", f"// {header}\n\n{print_graph(graph)}")
