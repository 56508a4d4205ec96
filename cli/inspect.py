"""``regraft inspect``: what a model is and costs, from its config alone."""

from __future__ import annotations

from dataclasses import replace

import click

from regraft.cli.options import allow_key_option, batch_option, command, device_option, model_argument, sizes_option
from regraft.cli.session import Session


@command("inspect", markdown=True)
@model_argument
@sizes_option("--context", "4k,128k", "Contexts to report at; 4k is 4096, 1M is 2**20.")
@device_option
@batch_option
@allow_key_option
@click.option(
    "--schedule", is_flag=True, help="Show the kernels of a decoded token instead, as target triton has them."
)
def inspect(
    session: Session,
    model: str,
    context: tuple[int, ...],
    device: str,
    batch: int,
    allow_keys: tuple[str, ...],
    schedule: bool,
) -> None:
    """Show the facts card of MODEL: structure, memories, parameters, cache, work, and what a device allows.

    Reads the config, and no weights. Config keys that nobody here reads are named on stderr. With --schedule MODEL may
    be a package, too.
    """
    from pathlib import Path

    from regraft.ir import hardware
    from regraft.model import lift
    from regraft.passes.latent_forms import decoding_form
    from regraft.programs import is_package
    from regraft.views.card import card
    from regraft.views.facts import facts

    name = Path(model).name if schedule and is_package(model) else ""
    lifted = lift(Path(model) / "graph.rg" if name else model, allow_keys=allow_keys, strict=False)
    for warning in lifted.warnings:
        session.warn(warning)
    target = None if device == "none" else device
    if target is not None:
        hardware.device(target)  # an unknown one is refused whatever is shown
    if schedule:
        from regraft.scheduling import blocks, schedules, to_json

        told = schedules(lifted.graph, context, batch)
        name = name or lifted.name
        session.show(lambda: blocks(name, told), lambda: to_json(name, told))
        return
    found = replace(facts(lifted.graph, context, target, batch, decoding_form(lifted.graph)), name=lifted.name)
    session.show(lambda: card(found), found.to_json)
