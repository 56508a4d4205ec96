"""What reports are made of: headings, lines, items and tables, shown in a terminal, as plain text or as Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

LEAST = 12  # characters of a column that is wrapped
ADDED, REMOVED, CHANGED = "+ ", "- ", "~ "
_COLOURS = {ADDED: "green", REMOVED: "red", CHANGED: "yellow"}


@dataclass(frozen=True)
class Heading:
    """A report's title, or a section's."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Item:
    """Something that a report names, and lines that say more of it.

    Titles and lines that start with `ADDED`, `REMOVED` or `CHANGED` say what is no longer as it was.
    """

    title: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """Rows of text under column names.

    Attributes:
        columns: The names; a table whose names are all empty has no head.
        rows: Cells, one for each column.
        right: The columns that are flush right, by number.
        marked: The rows whose cells differ from one another, by number; they are shown so.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[int] = frozenset()
    marked: frozenset[int] = frozenset()

    def labelled(self) -> tuple[tuple[str, ...], ...]:
        """Return the rows, those that are marked with a sign before their first cell."""
        if not self.marked:
            return self.rows
        signs = (CHANGED if n in self.marked else " " * len(CHANGED) for n in range(len(self.rows)))
        return tuple((f"{sign}{row[0]}", *row[1:]) for sign, row in zip(signs, self.rows, strict=True))


Block = Heading | Item | Table | str


def table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = True, marked: Sequence[int] = ()
) -> Table:
    """Return a table whose columns but the first are flush right, or none with ``numbers=False``."""
    right = frozenset(range(1, len(columns))) if numbers else frozenset[int]()
    return Table(tuple(columns), tuple(tuple(row) for row in rows), right, frozenset(marked))


def plain(blocks: Sequence[Block], width: int | None = None) -> str:
    """Return a report as text without any codes; a blank line before each heading but the first.

    Args:
        blocks: The report.
        width: Characters of a line, where there is an end to them.
    """
    lines: list[str] = []
    for block in blocks:
        match block:
            case Heading():
                lines += ["", block.text] if lines else [block.text]
            case Item():
                lines += _wrapped(block.title, width, 2)
                lines += [each for line in block.lines for each in _wrapped(line, width, 6)]
            case Table():
                lines += [f"  {line}".rstrip() for line in _aligned(block, None if width is None else width - 2)]
            case str():
                lines += _wrapped(block, width, 2)
    return "\n".join([*lines, ""])


def markdown(blocks: Sequence[Block]) -> str:
    """Return a report as Markdown."""
    parts: list[str] = []
    for block in blocks:
        match block:
            case Heading():
                parts.append(f"{'#' * block.level} {_escaped(block.text)}")
            case Item():
                parts.append(
                    "\n".join([f"- **{_escaped(block.title)}**", *(f"  - {_escaped(x)}" for x in block.lines)])
                )
            case Table():
                rule = ["---:" if i in block.right else "---" for i in range(len(block.columns))]
                rows = [
                    [_escaped(cell).replace("|", "\\|") for cell in row] for row in (block.columns, *block.labelled())
                ]
                parts.append("\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:])))
            case str():
                parts.append(_escaped(block))
    return "\n\n".join(parts) + "\n"


def coloured(blocks: Sequence[Block], file: TextIO) -> None:
    """Print a report to a terminal, with headings and table rules in colour."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(file=file, highlight=False)
    for i, block in enumerate(blocks):
        match block:
            case Heading():
                if i:
                    console.print()
                console.print(Text(block.text, style="bold cyan" if block.level == 1 else "bold"))
            case Item():
                console.print(
                    Padding(Text(block.title, style=_colour(block.title, "cyan")), (0, 0, 0, 2), expand=False)
                )
                for line in block.lines:
                    console.print(Padding(Text(line, style=_colour(line)), (0, 0, 0, 6), expand=False))
            case Table():
                heads = 1 if any(block.columns) else 0
                for n, line in enumerate(_aligned(block, console.width - 2)):
                    style = "dim" if n < heads else _colour(line)
                    console.print(Text(f"  {line}".rstrip(), style=style), soft_wrap=True)
            case str():
                console.print(Padding(Text(block), (0, 0, 0, 2), expand=False))


def _colour(line: str, otherwise: str = "") -> str:
    return _COLOURS.get(line[:2], otherwise)


_MARKS = str.maketrans({mark: f"\\{mark}" for mark in "\\`*<["})


def _escaped(text: str) -> str:
    """Return text in which Markdown finds no marks."""
    return text.translate(_MARKS)


def _wrapped(text: str, width: int | None, indent: int) -> list[str]:
    """Return a text as lines of at most ``width`` characters, further ones two deeper."""
    first = " " * indent
    if width is None or len(text) + indent <= width:
        return [f"{first}{text}"]
    return textwrap.wrap(
        text, max(width, indent + LEAST), initial_indent=first, subsequent_indent=f"{first}  ", break_on_hyphens=False
    )


def _aligned(block: Table, width: int | None = None) -> list[str]:
    """Return a table as lines; columns that do not fit stand below, again beside the first one."""
    rows = [block.columns, *block.labelled()] if any(block.columns) else list(block.labelled())
    widths = [max(len(row[i]) for row in rows) for i in range(len(block.columns))]
    if width is None:
        return _lines(rows, widths, range(len(widths)), block.right)
    _shrink(widths, width - 2 * (len(widths) - 1), block.right)
    lines: list[str] = []
    pending = list(range(1, len(widths)))
    while pending or not lines:
        taken = [0]
        while pending and (len(taken) == 1 or sum(widths[i] + 2 for i in [*taken, pending[0]]) - 2 <= width):
            taken.append(pending.pop(0))
        lines += [*([""] if lines else []), *_lines(rows, widths, taken, block.right)]
    return lines


def _lines(
    rows: Sequence[Sequence[str]], widths: Sequence[int], columns: Sequence[int], right: frozenset[int]
) -> list[str]:
    lines: list[str] = []
    for row in rows:
        cells = [_in_column(row[i], widths[i]) for i in columns]
        for n in range(max(len(cell) for cell in cells)):
            parts = [cell[n] if n < len(cell) else "" for cell in cells]
            filled = [
                part.rjust(widths[i]) if i in right else part.ljust(widths[i])
                for i, part in zip(columns, parts, strict=True)
            ]
            lines.append("  ".join(filled))
    return lines


def _shrink(widths: list[int], room: int, right: frozenset[int]) -> None:
    """Make the widest columns of text narrower until all fit, where they can."""
    texts = [i for i in range(len(widths)) if i not in right]
    while sum(widths) > room and texts:
        widest = max(texts, key=lambda i: widths[i])
        if widths[widest] <= LEAST:
            return
        widths[widest] = max(LEAST, widths[widest] - (sum(widths) - room))


def _in_column(cell: str, width: int) -> list[str]:
    if len(cell) <= width:
        return [cell]
    return textwrap.wrap(cell, width, subsequent_indent="  ", break_on_hyphens=False) or [""]
