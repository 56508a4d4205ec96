"""``regraft draw``: a picture of a model, or of what each pass of a recipe makes of it."""

from __future__ import annotations

import click

from regraft.cli.options import Sizes, allow_key_option, command, model_argument, out_option
from regraft.cli.session import Session


@command("draw")
@model_argument
@out_option("The file, .html .svg .png .dot .mmd or .json; must not exist.")
@click.option("-r", "--recipe", type=click.Path(), metavar="RECIPE", help="Show what each pass of a recipe changes.")
@click.option(
    "--context",
    type=Sizes(),
    metavar="N,...",
    help="Contexts that figures are given at; by default 4k,128k, or up to what the model was trained on.",
)
@click.option("--operations", is_flag=True, help="Draw every operation in SVG and PNG too.")
@allow_key_option
def draw(
    session: Session,
    model: str,
    out: str,
    recipe: str | None,
    context: tuple[int, ...] | None,
    operations: bool,
    allow_keys: tuple[str, ...],
) -> None:
    """Draw MODEL: its layers by kind, their operations, its memories and who reads them, and what it costs.

    An .html page is one file that works offline: kinds fold, operations open, a search finds them. With a recipe it has
    the graph after each pass, and marks what changed. .dot is for Graphviz, .mmd for Mermaid, .json for Google's Model
    Explorer. Reads the config, and no weights.
    """
    from regraft.drawing import draw as write
    from regraft.model import lift

    lifted = lift(model, allow_keys=allow_keys, strict=False)
    for warning in lifted.warnings:
        session.warn(warning)
    path = str(write(lifted, out, recipe=recipe, contexts=sorted(context or ()), operations=operations))
    if session.json:
        session.show(list, lambda: {"schema": "regraft.draw/1", "out": path})
        return
    session.data(path)
