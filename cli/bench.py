"""``regraft bench``: speed and memory of a program."""

from __future__ import annotations

from typing import Any

import click

from regraft.cli.options import Size, command
from regraft.cli.session import Session


@command("bench")
@click.argument("package", metavar="PKG", type=click.Path())
@click.option("--device", default="cpu", show_default=True, help="A torch device.")
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Default: as stored.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Sequences at a time.")
@click.option("--prompt", type=Size(), default=128, show_default=True, help="Tokens of the prompt.")
@click.option("--new", type=Size(), default=64, show_default=True, help="Tokens decoded after it.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the program first.")
@click.option("--tune", "tuned", is_flag=True, help="Time the tiles of each kernel on the GPU; keep the fastest.")
def bench(session: Session, package: str, batch: int, prompt: int, new: int, tuned: bool, **options: Any) -> None:
    """Time prefill and decode of the package PKG on random tokens, and measure its cache.

    Beside each speed stands what this machine allows at most: the graph's operations and bytes over how fast it
    multiplies and reads. Runs the package's model.py. With --tune first writes tiles.json into a package of target
    triton: the tile of each kernel that is fastest on this GPU, which the package takes from then on.
    """
    from regraft.benching import Workload
    from regraft.benching import bench as measure
    from regraft.views.reports import bench_report

    if tuned:
        from regraft.tuning import tune

        with session.progress() as progress:
            tune(package, device=options["device"], prompt=prompt, progress=progress)
    with session.progress() as progress:
        report = measure(package, Workload(batch, prompt, new), progress=progress, **options)
    session.show(lambda: bench_report(report.to_json()), report.to_json)
