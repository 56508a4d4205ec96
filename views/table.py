"""What reports are made of: headings, lines and tables, shown in a terminal, as plain text or as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO


@dataclass(frozen=True)
class Heading:
    """A report's title, or a section's."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Table:
    """Rows of text under column names. ``right`` lists the columns that are flush right, by number."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[int] = frozenset()


Block = Heading | Table | str


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: bool = True) -> Table:
    """Return a table whose columns but the first are flush right, or none with ``numbers=False``."""
    right = frozenset(range(1, len(columns))) if numbers else frozenset[int]()
    return Table(tuple(columns), tuple(tuple(row) for row in rows), right)


def plain(blocks: Sequence[Block]) -> str:
    """Return a report as text without any codes; a blank line before each heading but the first."""
    lines: list[str] = []
    for block in blocks:
        match block:
            case Heading():
                lines += ["", block.text] if lines else [block.text]
            case Table():
                lines += [f"  {line}".rstrip() for line in _aligned(block)]
            case str():
                lines.append(f"  {block}")
    return "\n".join([*lines, ""])


def markdown(blocks: Sequence[Block]) -> str:
    """Return a report as Markdown."""
    parts: list[str] = []
    for block in blocks:
        match block:
            case Heading():
                parts.append(f"{'#' * block.level} {block.text}")
            case Table():
                rule = ["---:" if i in block.right else "---" for i in range(len(block.columns))]
                rows = [block.columns, rule, *block.rows]
                parts.append("\n".join(f"| {' | '.join(_cell(c) for c in row)} |" for row in rows))
            case str():
                parts.append(block)
    return "\n\n".join(parts) + "\n"


def coloured(blocks: Sequence[Block], file: TextIO) -> None:
    """Print a report to a terminal, with headings and table rules in colour."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console(file=file, highlight=False)
    for i, block in enumerate(blocks):
        match block:
            case Heading():
                if i:
                    console.print()
                console.print(Text(block.text, style="bold cyan" if block.level == 1 else "bold"))
            case Table():
                shown = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
                for j, column in enumerate(block.columns):
                    shown.add_column(column, justify="right" if j in block.right else "left", overflow="fold")
                for row in block.rows:
                    shown.add_row(*(Text(cell) for cell in row))
                console.print(Padding(shown, (0, 0, 0, 2)))
            case str():
                console.print(Text(f"  {block}"), soft_wrap=True)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _aligned(block: Table) -> list[str]:
    rows = [block.columns, *block.rows] if any(block.columns) else list(block.rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(block.columns))]
    return [
        "  ".join(
            cell.rjust(width) if i in block.right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
