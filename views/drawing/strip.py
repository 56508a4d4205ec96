"""The strip: every layer as a cell of its kind, the memories that it owns, who reads whose, and the pattern."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from regraft.ir.kinds import ranges
from regraft.views.drawing import glyphs
from regraft.views.drawing.markup import Figure, escaped, moved, number, path, rectangle, tag, width_of, words
from regraft.views.drawing.palette import hatching, kind_style
from regraft.views.drawing.scene import Form, Link, Scene
from regraft.views.pattern import Repeat, fold

CELL, LEAST = 34.0, 12.0  # pixels
HEIGHT, LANE, GLYPH = 36.0, 20.0, 13.0


@dataclass(frozen=True)
class Rail:
    """A shared memory's line above the cells: its lane, counted from the cells, and what it joins."""

    lane: int
    link: Link


def strip(scene: Scene, width: float, *, anchor: str = "", changed: Set[int] = frozenset()) -> Figure:
    """Return the strip of a scene, at most ``width`` wide where cells can still be told apart.

    Args:
        scene: The scene.
        width: Pixels.
        anchor: Make each cell a link to its kind, whose anchor is this and its key.
        changed: Numbers of the layers to mark.
    """
    count = max(1, len(scene.layers))
    cell = max(LEAST, min(CELL, (width - 2) / count))
    rails = _rails(scene.links)
    top = LANE * (1 + max((rail.lane for rail in rails), default=-1)) + (6.0 if rails else 0.0)
    owned = {number: scene.sections[index].memories for number, index in scene.layers}
    forms: list[list[Form]] = [list(dict.fromkeys(each.form for each in memories)) for memories in owned.values()]
    deep = GLYPH * max((len(each) for each in forms), default=0)
    column = {number: i for i, (number, _) in enumerate(scene.layers)}
    body = "".join(_cell(scene, i, cell, top, anchor) for i in range(len(scene.layers)))
    body += "".join(_sign(column[layer], cell, top) for layer in changed if layer in column)
    body += "".join(_owned(each, i, cell, top + HEIGHT + 4) for i, each in enumerate(forms))
    below = top + HEIGHT + 4 + deep
    body += "".join(_tick(n, column[n], cell, below + 12) for n in column if n % _step(cell) == 0)
    body += "".join(_rail(rail, column, cell, top) for rail in rails)
    body += "".join(_named(rail, column, cell, top) for rail in rails)
    body += _brackets(fold(scene.letters), cell, below + 20)
    return Figure(max(cell * count + 2, _label_room(rails, column, cell)), below + 44, body)


def _step(cell: float) -> int:
    return 1 if cell >= 26 else 5


def _cell(scene: Scene, i: int, cell: float, top: float, anchor: str) -> str:
    layer, index = scene.layers[i]
    section = scene.sections[index]
    order = scene.kinds.index(section)
    style = kind_style(order)
    x = i * cell + 1
    body = rectangle(x, top, cell - 2, HEIGHT, style, rx=3)
    body += hatch(x, top, cell - 2, HEIGHT, hatching(order))
    size = 13 if cell > 20 else 11 if len(section.key) == 1 else 8
    body += words(x + cell / 2 - 1, top + HEIGHT / 2 + 4.5, section.key, f"mid bold on-{style}", size=size)
    said = f"layer {layer}: kind {section.key}, {section.name}{_shares(scene.links, layer)}"
    if anchor:
        return tag(
            "a",
            tag("title", escaped(said)),
            body,
            href=f"#{anchor}{section.key}",
            data_layer=layer,
            data_kind=section.key,
            class_="cell",
            aria_label=said,
            tabindex=0 if i == 0 else -1,
        )
    return tag("g", body)


def _shares(links: Sequence[Link], layer: int) -> str:
    """Return whose memory a layer reads, and who reads its own, in words."""
    reads = dict.fromkeys(link.owner for link in links if layer in link.readers)
    gives = dict.fromkeys(n for link in links if link.owner == layer for n in link.readers)
    told = f"; reads the memory of layer {', '.join(map(str, reads))}" if reads else ""
    return f"{told}; its memory is read by {ranges(sorted(gives))}" if gives else told


def _sign(i: int, cell: float, top: float) -> str:
    """Draw the sign of a changed layer below its letter."""
    x = i * cell + cell / 2
    disc = tag("circle", cx=number(x), cy=number(top + HEIGHT - 3), r=5.5, class_="box")
    return disc + words(x, top + HEIGHT + 1, "~", "mid bold changed", size=12)


def hatch(x: float, y: float, width: float, height: float, which: int) -> str:
    """Return lines over a rectangle: none, upright, lying or both, for the colours' second, third and fourth round."""
    upright = "".join(f"M{number(x + at)} {number(y)}v{number(height)}" for at in _steps(width) if which in (1, 3))
    lying = "".join(f"M{number(x)} {number(y + at)}h{number(width)}" for at in _steps(height) if which in (2, 3))
    return path(upright + lying, "hatch") if which else ""


def _steps(length: float) -> Sequence[float]:
    return [4.0 * i for i in range(1, int(length // 4))]


def _owned(forms: Sequence[Form], i: int, cell: float, y: float) -> str:
    """Return small glyphs of what a layer owns, below its cell."""
    scale = min(0.72, (cell - 2) / glyphs.WIDTH)
    left = i * cell + (cell - scale * glyphs.WIDTH) / 2
    return "".join(
        tag(
            "g",
            glyphs.glyph(form, 0, 0),
            transform=f"translate({number(left)} {number(y + GLYPH * j)}) scale({scale:.2f})",
        )
        for j, form in enumerate(forms)
    )


def _tick(layer: int, i: int, cell: float, y: float) -> str:
    return words((i + 0.5) * cell, y, layer, "mid soft", size=10)


# -- rails


def _rails(links: Sequence[Link]) -> list[Rail]:
    """Give each shared memory the lowest lane that is free from its owner to its last reader."""
    taken: list[list[tuple[int, int]]] = []
    rails: list[Rail] = []
    for link in sorted(links, key=lambda each: len(each.readers)):
        if link.owner is None:
            continue
        span = min(link.owner, *link.readers), max(link.owner, *link.readers)
        lane = next((i for i, used in enumerate(taken) if all(span[1] < a or b < span[0] for a, b in used)), len(taken))
        if lane == len(taken):
            taken.append([])
        taken[lane].append(span)
        rails.append(Rail(lane, link))
    return rails


def _middle(i: int, cell: float) -> float:
    return (i + 0.5) * cell


def _shift(rail: Rail) -> float:
    """Return how far a rail's feet stand beside the middle of cells, so that those of two lanes do not meet."""
    return (rail.lane % 3 - 1) * 3.0


def _said(rail: Rail) -> str:
    link = rail.link
    kept = f"{link.memory.form} memory" if link.memory.form != "kv" else "KV memory"
    return f"{kept} of layer {link.owner}, read by {ranges(link.readers)}"


def _label_room(rails: Sequence[Rail], column: Mapping[int, int], cell: float) -> float:
    """Return how wide the strip must be for the rails' labels."""
    return max((_label(rail, column, cell)[0] + _label(rail, column, cell)[1] for rail in rails), default=0.0)


def _label(rail: Rail, column: Mapping[int, int], cell: float) -> tuple[float, float]:
    """Return where a rail's label begins and how wide it is; none where it has no room on the rail."""
    places = sorted(column[n] for n in (*rail.link.readers, rail.link.owner) if n is not None and n in column)
    left = _middle(places[0], cell) + 10
    wide = width_of(_said(rail), 10.5)
    fits = len(places) * cell > 60
    return (left, wide) if fits else (left, 0.0)


def _rail(rail: Rail, column: Mapping[int, int], cell: float, top: float) -> str:
    link = rail.link
    if link.owner is None or link.owner not in column:
        return ""
    y, shift = top - 10 - LANE * rail.lane, _shift(rail)
    readers = [_middle(column[n], cell) + shift for n in link.readers if n in column]
    start = _middle(column[link.owner], cell) + shift
    ends = (min(start, *readers), max(start, *readers))
    line = f"M{number(start)} {number(top)}V{number(y)}M{number(ends[0])} {number(y)}H{number(ends[1])}"
    line += "".join(f"M{number(x)} {number(y)}V{number(top - 5)}" for x in readers)
    tips = "".join(f"M{number(x - 3)} {number(top - 6)}h6l-3 5z" for x in readers)
    body = path(line, "carry other" if rail.lane % 2 else "carry") + path(tips, "carrytip")
    body += tag("circle", cx=number(start), cy=number(top), r=3.2, class_="carrytip")
    return tag("g", tag("title", escaped(_said(rail))), body, class_="rail")


def _named(rail: Rail, column: Mapping[int, int], cell: float, top: float) -> str:
    """Draw a rail's label, over whatever passes there."""
    left, wide = _label(rail, column, cell)
    return words(left, top - 14 - LANE * rail.lane, _said(rail), "halo", size=10.5) if wide else ""


# -- the pattern


def _brackets(pattern: Sequence[Repeat], cell: float, y: float) -> str:
    body, at = "", 0
    for each in pattern:
        if each.count > 1 and each.layers > 1:
            left, right = at * cell + 2, (at + each.layers) * cell - 2
            body += path(f"M{number(left)} {number(y)}v5H{number(right)}v-5", "line")
            label = str(each) if width_of(str(each), 11) < right - left else f"×{each.count}"
            body += words((left + right) / 2, y + 18, label, "mid small")
        at += each.layers
    return moved(0, 0, body)
