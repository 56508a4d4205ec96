"""Memories drawn as what they are: a glyph for each form, 26 wide and 16 high."""

from __future__ import annotations

from regraft.views.drawing.markup import moved, path, rectangle, tag
from regraft.views.drawing.scene import Form, Memory
from regraft.views.numbers import size

WIDTH, HEIGHT = 26.0, 16.0

WORDS: dict[Form, str] = {
    "kv": "keys and values of every token",
    "window": "a ring of the last rows",
    "latent": "a latent row of every token",
    "index": "an index key for rows to choose from",
    "compressed": "one row for several tokens",
    "tail": "the last rows, for a convolution or a shift",
    "recurrent": "a matrix that every token updates",
}


def glyph(form: Form, x: float, y: float, *, other: bool = False) -> str:
    """Return the glyph of a memory, its corner at ``x``, ``y``; dashed where it is another layer's."""
    style = "glyph other" if other else "glyph"
    match form:
        case "kv":
            inner = _rows(style, 3, 0, 11) + _rows(style, 3, 14, 11)
        case "window":
            inner = tag("circle", cx=13, cy=8, r=6.2, class_=style, style="stroke-width:3")
            inner += path("M18.5 3.2l4 -.6l-2.4 3.4z", "full")
        case "latent":
            inner = _rows(style, 3, 6, 14)
        case "index":
            inner = _rows(style, 3, 3, 7) + path("M13 8h8m-3 -3l3.4 3l-3.4 3", "stroke")
        case "compressed":
            inner = "".join(path(f"M{x} 1.5l4 4.5m8 -4.5l-4 4.5", "stroke") for x in (0.5, 13.5))
            inner += "".join(rectangle(x, 8, 6, 6.5, style) for x in (3.5, 16.5))
        case "tail":
            inner = path("M2 8h9", "stroke other") + "".join(rectangle(x, 3.5, 5, 9, style) for x in (12.5, 19.5))
        case "recurrent":
            inner = rectangle(6, 1.5, 13, 13, style)
            inner += path("M6 5.8h13M6 10.2h13M10.3 1.5v13M14.7 1.5v13", "stroke")
    return moved(x, y, inner)


def _rows(style: str, count: int, x: float, width: float) -> str:
    return "".join(rectangle(x + 0.7, 1.2 + 4.8 * i, width - 1.4, 3.6, style) for i in range(count))


def said(memory: Memory) -> str:
    """Return a memory in a few words: what it keeps, and how much."""
    held = size(memory.row_bytes)
    if memory.form == "recurrent":
        return f"recurrent matrix, {held}"
    if memory.fixed is not None:
        return f"tail of {memory.fixed}, {held} a row"
    if memory.rate is not None:
        return f"{'index, ' if memory.form == 'index' else ''}1 row for {memory.rate} tokens, {held} a row"
    if memory.window is not None:
        return f"{memory.kept}, {held} a row"
    what = {"kv": "KV", "latent": "latent", "index": "index keys"}.get(memory.form, memory.form)
    return f"{what}, every token, {held} a row"
