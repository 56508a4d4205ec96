"""``regraft apply``: a recipe carried out, graph and weights."""

from __future__ import annotations

import click

from regraft.cli.options import allow_key_option, command, model_argument, out_option, recipe_option
from regraft.cli.session import Session


@command("apply")
@model_argument
@recipe_option
@out_option("The model folder to write; must not exist.")
@click.option("--dump-ir", type=click.Path(), metavar="DIR", help="Write the graph's text after each pass here.")
@click.option("--resume", is_flag=True, help="Continue a run that was interrupted.")
@allow_key_option
def apply(
    session: Session,
    model: str,
    recipe: str,
    out: str,
    dump_ir: str | None,
    resume: bool,
    allow_keys: tuple[str, ...],
) -> None:
    """Rewrite MODEL by a recipe and write the model folder that results; every command takes it as MODEL.

    Weights stream through, tensor by tensor. The folder appears under its name when it is complete; an interrupted run
    continues with --resume and gives the same bytes. Prints what changed, predicted beside measured.
    """
    from regraft import api
    from regraft.views.reports import apply_report

    session.resume = "continue with the same command and --resume; without it, remove the unfinished folder first"
    lifted = api.lift(model, allow_keys=allow_keys)
    with session.progress() as progress:
        report = api.apply(lifted, recipe, out, resume=resume, dump_ir=dump_ir, progress=progress)
    session.show(lambda: apply_report(report.to_json()), report.to_json)
