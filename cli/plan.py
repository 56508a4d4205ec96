"""``regraft plan``: what apply would do."""

from __future__ import annotations

import click

from regraft.cli.options import allow_key_option, command, model_argument, recipe_option
from regraft.cli.session import Session


@command("plan")
@model_argument
@recipe_option
@click.option("--measure", is_flag=True, help="Make the choices that need weights or calibration text; reads both.")
@allow_key_option
def plan(session: Session, model: str, recipe: str, measure: bool, allow_keys: tuple[str, ...]) -> None:
    """Show what `apply` would do to MODEL: legality, the choice for each layer, the predicted change, disk and memory.

    Reads no weights. Choices that need calibration text show as decided at apply, unless --measure makes them.
    """
    from regraft import api
    from regraft.views.reports import plan_report

    lifted = api.lift(model, allow_keys=allow_keys)
    with session.progress() as progress:
        found = api.plan(lifted, recipe, measure=measure, progress=progress)
    session.show(lambda: plan_report(found.to_json()), found.to_json)
