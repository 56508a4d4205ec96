"""``regraft verify``: things that should compute the same do."""

from __future__ import annotations

import click

from regraft.cli.options import allow_key_option, command
from regraft.cli.session import Session


@command("verify")
@click.argument("x", metavar="X")
@click.option("--against", metavar="Y", help="A model, a package, or transformers: the original implementation.")
@click.option(
    "--tokens", type=click.IntRange(min=9), help="Random tokens a row.  [default: 40, beyond windows of up to 128]"
)
@allow_key_option
def verify(session: Session, x: str, against: str | None, tokens: int | None, allow_keys: tuple[str, ...]) -> None:
    """Check that X, a MODEL or a package, gives the same logits for a prefill, for chunks and token by token.

    With --against also that another model, package or implementation gives the same. Exit code 5 if anything differs.
    """
    from regraft import api
    from regraft.cli.subjects import subject
    from regraft.ir.errors.program import VerifyFailedError
    from regraft.views.reports import verify_report

    other = subject(against, allow_keys) if against else None
    report = api.verify(subject(x, allow_keys), against=other, tokens=tokens)
    session.show(lambda: verify_report(report.to_json()), report.to_json)
    failed = [check for check in report.checks if not check.passed]
    if failed:
        worst = max(failed, key=lambda check: check.error / check.bound)
        text = f"{worst.name}: {worst.error:.3g}, allowed {worst.bound:.3g}"
        raise VerifyFailedError(failed=len(failed), total=len(report.checks), worst=text)
