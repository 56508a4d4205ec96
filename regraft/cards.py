"""A folder's card, ``README.md``: sections that evaluations add to what it holds."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from regraft.ir.errors.output import OutputError
from regraft.ir.files import write_atomic
from regraft.programs import is_package
from regraft.quality import EvalReport
from regraft.readings import LOCK
from regraft.views.reports import eval_report
from regraft.views.table import Heading, markdown

CARD = "README.md"


def has_card(folder: str | Path) -> bool:
    """Whether a folder is one that ``apply`` or ``build`` wrote, whose card is ours to add to."""
    return (Path(folder) / LOCK).is_file() or is_package(folder)


def add_evaluation(folder: str | Path, report: EvalReport, *, seed: int = 0, against: str = "") -> Path:
    """Add a section with what was measured to a folder's card, and return the card.

    The section takes the place of an earlier one of the same text, windows and base; all else stays byte for byte.

    Args:
        folder: A package, or a model folder that ``apply`` wrote.
        report: What was measured.
        seed: That drew the windows.
        against: The base's name, if there was one.

    Raises:
        DiskFullError, OutputError: The card cannot be read or written.
    """
    card = Path(folder) / CARD
    try:
        old = card.read_bytes() if card.is_file() else f"# {Path(folder).resolve().name}\n".encode()
    except OSError as error:
        raise OutputError(path=card, reason=error.strerror or error) from None
    facts = (report.text_sha256, report.context, report.tokens, seed, against)
    key = hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
    begin, end = (f"<!-- {slash}regraft eval {key} -->\n".encode() for slash in ("", "/"))
    section = begin + b"\n" + _section(report, seed, against).encode() + b"\n" + end
    head, found, rest = old.partition(begin)
    _, closed, tail = rest.partition(end)
    if not (found and closed):
        head, tail = old + (b"\n" if old.endswith(b"\n") else b"\n\n"), b""
    write_atomic(card, head + section + tail)
    return card


def _section(report: EvalReport, seed: int, against: str) -> str:
    """Return a report as Markdown, a level below a card's title."""
    first, *blocks = (
        replace(each, level=each.level + 1) if isinstance(each, Heading) else each
        for each in eval_report(report.to_json())
    )
    assert isinstance(first, Heading)
    title = replace(first, text=f"Evaluated {f'against {against} ' if against else ''}on {first.text}, seed {seed}")
    return markdown([title, *blocks])
