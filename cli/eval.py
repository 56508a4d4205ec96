"""``regraft eval``: what a model lost, measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from regraft.cli.options import Size, Sizes, allow_key_option, command
from regraft.cli.session import Session


@command("eval")
@click.argument("x", metavar="X")
@click.option("--against", metavar="BASE", help="The model that X came from: KL, agreement and layer errors are to it.")
@click.option("--text", required=True, metavar="FILE", help="Held-out text: a file, a folder, or builtin:sample.")
@click.option("--context", type=Size(), default=512, show_default=True, help="Tokens in a window.")
@click.option("--tokens", type=Size(), default=32768, show_default=True, help="Tokens in all.")
@click.option("--seed", type=int, default=0, show_default=True, help="Draws the windows.")
@click.option("--needle", type=Sizes(), default="64,128", show_default=True, metavar="N,...", help="Recall lengths.")
@click.option("--probes", type=click.IntRange(0), default=20, show_default=True, help="Recall probes at each depth.")
@click.option("--card/--no-card", default=True, help="Add a section to the card of X, if apply or build wrote X.")
@allow_key_option
def eval(session: Session, x: str, text: str, **options: Any) -> None:
    """Measure X, a MODEL or a package, on text that calibration never saw.

    Reports perplexity, and with --against the divergence KL(BASE || X), top-1 agreement and errors layer by layer;
    recall of key-value pairs, and the cache's size, predicted and measured. A folder that `apply` or `build` wrote gets
    a section in its README.md, in place of an earlier one of the same text, windows and base.
    """
    from regraft import api
    from regraft.cards import add_evaluation, has_card
    from regraft.cli.subjects import subject
    from regraft.views.reports import eval_report

    keys, against, count = options["allow_keys"], options["against"], options["probes"]
    with session.progress() as progress:
        report = api.evaluate(
            subject(x, keys),
            text,
            against=subject(against, keys) if against else None,
            context=options["context"],
            tokens=options["tokens"],
            seed=options["seed"],
            probes=api.Probes(options["needle"] if count else (), count),
            progress=progress,
        )
    session.show(lambda: eval_report(report.to_json()), report.to_json)
    if options["card"] and has_card(x):
        card = add_evaluation(x, report, seed=options["seed"], against=Path(against).name if against else "")
        session.note(f"section added to {card}")
