"""``regraft inspect``: what a model is and costs, from its config alone."""

from __future__ import annotations

import click

from regraft.cli.options import allow_key_option, command, model_argument, sizes_option
from regraft.cli.session import Session


@command("inspect")
@model_argument
@sizes_option("--context", "4k,128k", "Contexts to report at; 4k is 4096, 1M is 2**20.")
@click.option("--device", default="h200-sxm", show_default=True, help="Device for limits, or none.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Sequences at a time.")
@click.option("--md", is_flag=True, help="Markdown.")
@allow_key_option
def inspect(
    session: Session,
    model: str,
    context: tuple[int, ...],
    device: str,
    batch: int,
    md: bool,
    allow_keys: tuple[str, ...],
) -> None:
    """Show the facts card of MODEL: structure, memories, parameters, cache, and what a decode step costs.

    Reads the config, and no weights. Config keys that nobody here reads are named on stderr.
    """
    from regraft.model import lift
    from regraft.views.card import card
    from regraft.views.facts import facts

    session.markdown = md
    lifted = lift(model, allow_keys=allow_keys, strict=False)
    for warning in lifted.warnings:
        session.warn(warning)
    found = facts(lifted.graph, context, None if device == "none" else device, batch)
    session.show(lambda: card(found), found.to_json)
