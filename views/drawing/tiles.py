"""The figures at the top of a page."""

from __future__ import annotations

from regraft.views.drawing.markup import escaped, tag
from regraft.views.facts import Facts
from regraft.views.numbers import change, context, count, size


def tiles(found: Facts, before: Facts | None = None) -> str:
    """Return a model's main figures; with ``before``, how each changed."""
    last = found.contexts[-1]
    held = found.parameters
    figures = [("parameters", count(held.total), held.total, before and before.parameters.total)]
    if held.active != held.total:
        figures.append(("active for a token", count(held.active), held.active, before and before.parameters.active))
    figures += [
        (
            "cache, each further token",
            size(found.bytes_per_token),
            found.bytes_per_token,
            before and before.bytes_per_token,
        ),
        (
            f"cache at {context(last)} tokens",
            size(found.cache[last].bytes),
            found.cache[last].bytes,
            before and before.cache[last].bytes,
        ),
        (
            f"read for a token at {context(last)}",
            size(found.decode[last].bytes_read),
            found.decode[last].bytes_read,
            before and before.decode[last].bytes_read,
        ),
    ]
    return tag("dl", *(_tile(*figure) for figure in figures), class_="tiles")


def _tile(name: str, text: str, after: float, before: float | None) -> str:
    moved = ""
    if before is not None and before != after:
        moved = tag("small", escaped(change(before, after)), class_="more" if after > before else None)
    return tag("div", tag("dt", escaped(name)), tag("dd", escaped(text), moved))
