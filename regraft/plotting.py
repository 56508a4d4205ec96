"""Plots where a table is too much: cache over context for several models, quality against cache for several recipes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regraft.ir.errors.files import OutputExistsError
from regraft.ir.errors.usage import DrawFormatError, EvaluationError, TooManyCurvesError
from regraft.ir.files import write_atomic
from regraft.ir.json_files import read_object
from regraft.model import Model, lift
from regraft.views.drawing.cache_chart import cache_chart, cache_of
from regraft.views.drawing.cache_chart import in_words as cache_in_words
from regraft.views.drawing.markup import Figure
from regraft.views.drawing.palette import CURVES
from regraft.views.drawing.picture import framed, png
from regraft.views.drawing.quality_chart import Point, in_words, quality_chart

FORMATS = (".svg", ".png")
SCHEMA = "regraft.eval/1"


def plot_cache(models: Sequence[str | Path | Model], out: str | Path, *, longest: int = 2**17) -> Path:
    """Write a chart of the bytes that a sequence holds over its context, a curve for each model; return its path.

    Args:
        models: As in `regraft.lift`, at most eight.
        out: The file to write, ``.svg`` or ``.png``; it must not exist.
        longest: Tokens that the contexts go up to, rounded up to a power of two, at most 2**20.

    Raises:
        TooManyCurvesError: There are more models than curves that can be told apart.
        DrawFormatError, OutputExistsError, MissingPackageError: As in `regraft.draw`.
    """
    path = _target(out)
    if len(models) > CURVES:
        raise TooManyCurvesError(found=len(models), most=CURVES)
    lifted = [lift(model, strict=False) for model in models]
    curves = [cache_of(model.graph, model.name, longest) for model in lifted]
    return _write(path, cache_chart(curves, lead=False), cache_in_words(curves))


def plot_quality(evaluations: Sequence[str | Path], out: str | Path) -> Path:
    """Write a chart of quality against cache, a point for each report of `regraft eval --json`; return its path.

    Quality is the mean KL divergence from the base where every report has one, else the perplexity. A point is called
    as its file.

    Args:
        evaluations: JSON files of schema ``regraft.eval/1``, of the same text.
        out: As in `plot_cache`.

    Raises:
        EvaluationError: A file is no such report, or reports are of different texts.
    """
    path = _target(out)
    reports = [(Path(file), _report(Path(file))) for file in evaluations]
    for file, report in reports:
        if any(report.get(key) != reports[0][1].get(key) for key in ("text_sha256", "context")):
            raise EvaluationError(file=file, problem="it is of another text or context than the first")
    divergent = all(isinstance(_mean(report), float | int) for _, report in reports)
    measure = "KL to the base, nats a token" if divergent else "Perplexity"
    points = [_point(file, report, divergent) for file, report in reports]
    return _write(path, quality_chart(points, measure), in_words(points, measure))


def is_evaluation(text: str) -> bool:
    """Return whether ``text`` is the path of a report that `regraft eval --json` printed."""
    path = Path(text)
    return path.suffix == ".json" and path.is_file() and read_object(path).get("schema") == SCHEMA


def _target(out: str | Path) -> Path:
    path = Path(out)
    if path.suffix.lower() not in FORMATS:
        raise DrawFormatError(path=path, suffix=path.suffix or "no suffix", legal=", ".join(FORMATS))
    if os.path.lexists(path):
        raise OutputExistsError(path=path)
    return path


def _write(path: Path, figure: Figure, said: str) -> Path:
    drawn = framed(figure, said, themes=path.suffix.lower() == ".svg")
    write_atomic(path, png(drawn) if path.suffix.lower() == ".png" else drawn)
    return path


def _report(path: Path) -> dict[str, Any]:
    found = read_object(path)
    if found.get("schema") != SCHEMA:
        raise EvaluationError(file=path, problem=f"its schema is {found.get('schema')!r}, not {SCHEMA!r}")
    return found


def _mean(report: dict[str, Any]) -> object:
    kl = report.get("kl")
    return kl.get("mean") if isinstance(kl, dict) else None


def _point(file: Path, report: dict[str, Any], divergent: bool) -> Point:
    cache = report.get("cache")
    held = cache.get("predicted_bytes") if isinstance(cache, dict) else None
    loss = _mean(report) if divergent else report.get("perplexity")
    for name, value in (("cache.predicted_bytes", held), ("kl.mean" if divergent else "perplexity", loss)):
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise EvaluationError(file=file, problem=f"{name} is {value!r}, no number")
    assert isinstance(held, int | float)
    assert isinstance(loss, int | float)
    return Point(file.stem, int(held), float(loss))
