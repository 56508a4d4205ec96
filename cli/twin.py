"""``regraft twin``: the same structure, small enough to check on a laptop."""

from __future__ import annotations

import click

from regraft.cli.options import allow_key_option, command, model_argument, out_option
from regraft.cli.session import Session


@command("twin", report=False)
@model_argument
@out_option("The twin's folder; must not exist.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Draws the weights.")
@click.option("--packed", is_flag=True, help="Quantise the weights as MODEL's are published, scales and all.")
@allow_key_option
def twin(session: Session, model: str, out: str, seed: int, packed: bool, allow_keys: tuple[str, ...]) -> None:
    """Write the small twin of MODEL: the same structure with tiny dimensions and random weights.

    It is a model folder as any other, so that lifting, passes and programs can be compared on it with the original
    implementation. The weights are float32; with --packed those that MODEL publishes in float8 or float4 are written
    so, in blocks so small that several share a tensor, and `verify` also compares the twin with itself dequantised.
    """
    from regraft import api

    session.data(str(api.twin(api.lift(model, allow_keys=allow_keys), out, seed=seed, packed=packed)))
