"""``regraft build``: a program that runs without regraft."""

from __future__ import annotations

import click

from regraft.cli.options import allow_key_option, command, model_argument, out_option
from regraft.cli.session import Session


@command("build")
@model_argument
@out_option("The package's folder; must not exist.")
@click.option(
    "--target",
    type=click.Choice(["torch", "triton"]),
    default="torch",
    show_default=True,
    help="Plain, or with kernels.",
)
@click.option(
    "--search",
    is_flag=True,
    help="Compile every tile of kernels that none is known for, and take the best of each target: minutes, no GPU.",
)
@click.option(
    "--compile-for",
    default="",
    metavar="GPUS",
    help="Put the kernels into the package as machine code of these targets too, as in sm_90,gfx942: minutes, no GPU.",
)
@allow_key_option
def build(
    session: Session, model: str, out: str, target: str, search: bool, compile_for: str, allow_keys: tuple[str, ...]
) -> None:
    """Write a package for MODEL: a readable model.py, its weights, tokenizer, generate.py, verify.py and a card.

    The package needs torch, safetensors and tokenizers, and nothing of regraft. With target triton, which needs triton
    too, a decoded token is made by fused kernels on GPUs, and by plain PyTorch elsewhere. Its weights are plain
    numbers: those of a quantised MODEL are dequantised, and it says how much more disk they take.
    """
    from regraft import api
    from regraft.passes.packing import packing
    from regraft.views.reports import quantized_line

    lifted = api.lift(model, allow_keys=allow_keys)
    gpus = tuple(dict.fromkeys(filter(None, map(str.strip, compile_for.split(",")))))
    with session.progress() as progress:
        path = str(api.build(lifted, out, target=target, search=search, compile_for=gpus, progress=progress))
    quantized = packing(lifted.graph, lifted.graph).to_json()
    if session.json:
        session.show(list, lambda: {"schema": "regraft.build/1", "out": path, "target": target, "quantized": quantized})
        return
    session.data(path)
    if line := quantized_line(quantized):
        session.note(line)
