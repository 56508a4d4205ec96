"""``regraft plot``: cache over context for several models, or quality against cache for several recipes."""

from __future__ import annotations

import click

from regraft.cli.options import Size, command, out_option
from regraft.cli.session import Session


@command("plot")
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@out_option("The file to write, .svg or .png; must not exist.")
@click.option("--context", type=Size(), default="128k", show_default=True, help="Tokens that contexts go up to.")
def plot(session: Session, inputs: tuple[str, ...], out: str, context: int) -> None:
    """Draw a chart where a table is too much.

    Of MODELs: the bytes that a sequence holds over its context, a curve for each. Of reports that `regraft eval X
    --against BASE --json` printed: quality against cache, a point for each.
    """
    from regraft.plotting import is_evaluation, plot_cache, plot_quality

    evaluations = any(is_evaluation(text) for text in inputs)
    path = str(plot_quality(inputs, out) if evaluations else plot_cache(inputs, out, longest=context))
    if session.json:
        session.show(list, lambda: {"schema": "regraft.plot/1", "out": path})
        return
    session.data(path)
