"""``regraft opt``: a pipeline over a graph's text."""

from __future__ import annotations

import click

from regraft.cli.options import command, model_argument
from regraft.cli.session import Session


@command("opt", report=False)
@model_argument
@click.option("--pipeline", required=True, metavar="PASSES", help="share-kv{layers=4..7},dce; empty for none.")
@click.option("-o", "--out", type=click.Path(), metavar="FILE", help="Write here instead of to stdout.")
def opt(session: Session, model: str, pipeline: str, out: str | None) -> None:
    """Run a pipeline over the graph of MODEL, usually a file x.rg, and print the graph that results.

    Reads no weights: choices that need data must be spelled out, and fitted weights stay expressions. What each pass
    did, layer by layer, goes to stderr with -v.
    """
    from pathlib import Path

    from regraft import api
    from regraft.ir.errors.files import OutputExistsError
    from regraft.ir.files import write_atomic
    from regraft.ir.text import print_graph
    from regraft.passes.recipe import parse_pipeline

    if out is not None and Path(out).exists():
        raise OutputExistsError(path=out)
    result = api.opt(model, parse_pipeline(pipeline, "--pipeline"))
    for step in result.steps:
        for note in step.report.notes:
            session.detail(f"{step.name}: {note}")
    text = print_graph(result.graph)
    if out is None:
        session.data(text.rstrip("\n"))
    else:
        write_atomic(Path(out), text)
