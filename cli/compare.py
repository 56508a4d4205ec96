"""``regraft compare``: models side by side, and what differs between two."""

from __future__ import annotations

from pathlib import Path

import click

from regraft.cli.options import allow_key_option, batch_option, command, device_option, sizes_option
from regraft.cli.session import Session


@command("compare", markdown=True)
@click.argument("models", metavar="MODEL MODEL...", nargs=-1, required=True)
@sizes_option("--context", "4k,128k", "Contexts to report at; 4k is 4096, 1M is 2**20.")
@device_option
@batch_option
@click.option("--html", type=click.Path(path_type=Path), metavar="PATH", help="Write a page as well, one HTML file.")
@click.option("--exit-code", is_flag=True, help="Exit with 1 if anything differs, as diff does.")
@allow_key_option
def compare(
    session: Session,
    models: tuple[str, ...],
    context: tuple[int, ...],
    device: str,
    batch: int,
    html: Path | None,
    exit_code: bool,
    allow_keys: tuple[str, ...],
) -> None:
    """Show two or more models side by side, rows that differ marked.

    Of exactly two, say what differs in structure: block kinds, operations, memories and who reads them; a model that
    was rewritten is held to its base layer by layer. Reads configs, and no weights.
    """
    from regraft.comparing import compare as compare_models
    from regraft.ir.errors.files import OutputExistsError
    from regraft.model import lift
    from regraft.views.side_by_side import side_by_side

    if html is not None and html.exists():
        raise OutputExistsError(path=html)
    lifted = [lift(model, allow_keys=allow_keys, strict=False) for model in models]
    for model in lifted:
        for warning in model.warnings:
            session.warn(f"{model.name}: {warning}")
    found = compare_models(*lifted, contexts=context, device=None if device == "none" else device, batch=batch)
    if html is not None:
        found.write_html(html)
    session.show(lambda: side_by_side(found.models, found.diff), found.to_json)
    if exit_code and found.different:
        raise click.exceptions.Exit(1)
