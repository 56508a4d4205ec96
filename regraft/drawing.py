"""Pictures of models: a page, SVG, PNG, and the formats of Graphviz, Mermaid and Model Explorer."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from regraft.ir.errors.files import OutputExistsError
from regraft.ir.errors.usage import DrawFormatError
from regraft.ir.files import write_atomic
from regraft.ir.graph import Graph
from regraft.model import Model, lift

if TYPE_CHECKING:
    from regraft.passes.recipe import Recipe
    from regraft.views.drawing.page import Step

CONTEXTS = (4096, 131072)


@dataclass(frozen=True)
class _Subject:
    """What is drawn: a name, and one graph or one for each pass."""

    name: str
    steps: Sequence[Step]
    contexts: Sequence[int]
    operations: bool

    @property
    def graph(self) -> Graph:
        """The last graph."""
        return self.steps[-1].graph


def draw(
    model: str | Path | Model,
    out: str | Path,
    *,
    recipe: str | Path | Recipe | None = None,
    contexts: Sequence[int] | None = None,
    operations: bool = False,
) -> Path:
    """Write a picture of a model, in the format that the file's name ends in, and return its path.

    Args:
        model: As in `regraft.lift`; config keys that nobody reads are passed over.
        out: The file to write; it must not exist.
        recipe: A recipe, as in `regraft.apply`: a page then shows the graph before the first and after each pass, any
            other picture the last one. No weight is read; choices that need data are filled by ones of the same size.
        contexts: Tokens at which cache and work are given, rising; by default 4k and 128k, or up to what the model was
            trained on.
        operations: Draw every operation, where the format does not do so anyway.

    Raises:
        DrawFormatError: The name ends in nothing that can be drawn.
        OutputExistsError: The file exists.
        MissingPackageError: A PNG needs what the extra ``png`` installs.
        IllegalPassError: The recipe does not fit the model.
    """
    path = Path(out)
    writer = FORMATS.get(path.suffix.lower())
    if writer is None:
        suffix = path.suffix or "no suffix"
        raise DrawFormatError(path=path, suffix=suffix, legal=", ".join(FORMATS))
    if os.path.lexists(path):
        raise OutputExistsError(path=path)
    lifted = lift(model, strict=False)
    at = tuple(contexts) if contexts else _contexts(lifted.graph)
    data = writer(_Subject(lifted.name, _steps(lifted.graph, recipe), at, operations))
    write_atomic(path, data)
    return path


def _contexts(graph: Graph) -> tuple[int, ...]:
    trained = graph.meta.get("context")
    most = trained if isinstance(trained, int) and trained > 0 else CONTEXTS[-1]
    return tuple(dict.fromkeys(min(n, most) for n in CONTEXTS))


def _steps(graph: Graph, recipe: str | Path | Recipe | None) -> list[Step]:
    from regraft.views.drawing.page import Step

    if recipe is None:
        return [Step("as lifted", "", graph)]
    from regraft.applying import read_recipe
    from regraft.passes.pipeline import run_pipeline

    graphs: list[Graph] = []
    steps, _ = read_recipe(recipe)
    result = run_pipeline(graph, steps, assume=True, seen=lambda work: graphs.append(work.copy()))
    shown = [Step("as lifted", "", graph)]
    for given, report, after in zip(steps.passes, result.steps, graphs, strict=True):
        note = f"{report.preserves}: {report.step.summary()}"
        if not report.decided:
            note += " Its choices need calibration text: shown is one of the same size."
        elif str(report.step) != str(given):
            note += f" Here: {report.step}"
        shown.append(Step(str(given), note, after, since=len(shown) - 1))
    if len(graphs) > 1:
        shown.append(Step("all passes", "The model after the recipe, beside the model as lifted.", graphs[-1], since=0))
    return shown


def _html(subject: _Subject) -> str:
    from regraft.views.drawing.page import page

    return page(subject.name, subject.steps, subject.contexts)


def _svg(subject: _Subject, *, themes: bool = True) -> str:
    from regraft.views.drawing.picture import svg
    from regraft.views.facts import facts

    known = facts(subject.graph, subject.contexts)
    return svg(subject.name, subject.graph, known, operations=subject.operations, themes=themes)


def _png(subject: _Subject) -> bytes:
    from regraft.views.drawing.picture import png

    return png(_svg(subject, themes=False))


def _dot(subject: _Subject) -> str:
    from regraft.views.drawing.exporters import dot
    from regraft.views.drawing.staging import scene

    return dot(subject.name, scene(subject.graph))


def _mermaid(subject: _Subject) -> str:
    from regraft.views.drawing.exporters import mermaid
    from regraft.views.drawing.staging import scene

    return mermaid(subject.name, scene(subject.graph))


def _model_explorer(subject: _Subject) -> str:
    from regraft.views.drawing.exporters import model_explorer
    from regraft.views.drawing.staging import scene

    return model_explorer(subject.name, scene(subject.graph))


FORMATS: dict[str, Callable[[_Subject], str | bytes]] = {
    ".html": _html,
    ".svg": _svg,
    ".png": _png,
    ".dot": _dot,
    ".mmd": _mermaid,
    ".json": _model_explorer,
}
