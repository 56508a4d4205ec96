"""What reports are made of: headings, lines, items and tables, shown in a terminal, as plain text or as Markdown."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

LEAST = 12  # characters of a column that is wrapped


@dataclass(frozen=True)
class Heading:
    """A report's title, or a section's."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Item:
    """Something that a report names, and lines that say more of it."""

    title: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """Rows of text under column names. ``right`` lists the columns that are flush right, by number."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[int] = frozenset()


Block = Heading | Item | Table | str


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = True) -> Table:
    """Return a table whose columns but the first are flush right, or none with ``numbers=False``."""
    right = frozenset(range(1, len(columns))) if numbers else frozenset[int]()
    return Table(tuple(columns), tuple(tuple(row) for row in rows), right)


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
                lines += [f"  {line}".rstrip() for line in _aligned(block, width)]
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
                rows = [[_escaped(cell).replace("|", "\\|") for cell in row] for row in (block.columns, *block.rows)]
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
                console.print(Padding(Text(block.title, style="green"), (0, 0, 0, 2), expand=False))
                for line in block.lines:
                    console.print(Padding(Text(line), (0, 0, 0, 6), expand=False))
            case Table():
                for n, line in enumerate(_aligned(block, console.width - 2)):
                    style = "dim" if n == 0 and any(block.columns) else ""
                    console.print(Text(f"  {line}".rstrip(), style=style), soft_wrap=True)
            case str():
                console.print(Padding(Text(block), (0, 0, 0, 2), expand=False))


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
    rows = [block.columns, *block.rows] if any(block.columns) else list(block.rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(block.columns))]
    if width is not None:
        _shrink(widths, width - 2 * (len(widths) - 1), block.right)
    lines: list[str] = []
    for row in rows:
        cells = [_in_column(cell, wide) for cell, wide in zip(row, widths, strict=True)]
        deep = max(len(cell) for cell in cells)
        for n in range(deep):
            parts = [cell[n] if n < len(cell) else "" for cell in cells]
            filled = [
                part.rjust(wide) if i in block.right else part.ljust(wide)
                for i, (part, wide) in enumerate(zip(parts, widths, strict=True))
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
