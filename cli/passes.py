"""``regraft passes``: what can be done to a model."""

from __future__ import annotations

import click

from regraft.cli.options import command
from regraft.cli.session import Session


@command("passes")
@click.argument("name", required=False)
def passes(session: Session, name: str | None) -> None:
    """List the passes, or show the pass NAME: its options, what it preserves, and where it is from.

    A pass preserves `exact` the function up to rounding, `refit` approximately, its error minimised on data, or
    `structural` not at all: a new architecture that needs training.
    """
    from regraft.passes import all_passes, pass_class
    from regraft.passes.describe import describe
    from regraft.views.reports import pass_report, passes_report

    if name is None:
        found = [describe(each) for each in all_passes()]
        session.show(lambda: passes_report(found), lambda: {"schema": "regraft.passes/1", "passes": found})
    else:
        one = describe(pass_class(name))
        session.show(lambda: pass_report(one), lambda: {"schema": "regraft.pass/1", **one})
