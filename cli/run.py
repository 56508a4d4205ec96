"""``regraft run``: text from an emitted program."""

from __future__ import annotations

from typing import Any

import click

from regraft.cli.options import Size, command
from regraft.cli.session import Session


@command("run", report=False)
@click.argument("package", metavar="PKG", type=click.Path())
@click.argument("prompts", metavar="PROMPT...", nargs=-1, required=True)
@click.option("-n", "--max-new-tokens", type=Size(), default=64, show_default=True, help="Tokens to generate.")
@click.option("--temperature", type=click.FloatRange(0), default=0.0, show_default=True, help="0: the likeliest token.")
@click.option("--top-k", type=click.IntRange(0), default=0, show_default=True, help="Among the k likeliest; 0: all.")
@click.option(
    "--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True, help="Their share."
)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help="Draws the tokens.")
@click.option("--device", default="cpu", show_default=True, help="A torch device.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Default: as stored.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the program first.")
@click.pass_context
def run(ctx: click.Context, session: Session, package: str, prompts: tuple[str, ...], **options: Any) -> None:
    """Generate text after PROMPT with the package PKG, streaming; several prompts are generated together.

    Runs the package's own generate.py, which also runs without regraft. A MODEL is no package: build one first.
    """
    from regraft.generating import run_generate
    from regraft.machine import check_device

    check_device(options["device"])
    compiled = ["--compile"] if options.pop("compiled") else []
    given = [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value is not None]
    ctx.exit(run_generate(package, [*given, *compiled, "--", *prompts]))
