"""``regraft build``: a program that runs without regraft."""

from __future__ import annotations

import click

from regraft.cli.options import allow_key_option, command, model_argument, out_option
from regraft.cli.session import Session


@command("build", report=False)
@model_argument
@out_option("The package's folder; must not exist.")
@click.option("--target", type=click.Choice(["torch"]), default="torch", show_default=True, help="What to emit.")
@allow_key_option
def build(session: Session, model: str, out: str, target: str, allow_keys: tuple[str, ...]) -> None:
    """Write a package for MODEL: a readable model.py, its weights, tokenizer, generate.py, verify.py and a card.

    The package needs torch, safetensors and tokenizers, and nothing of regraft.
    """
    from regraft import api

    with session.progress() as progress:
        path = api.build(api.lift(model, allow_keys=allow_keys), out, target=target, progress=progress)
    session.data(str(path))
