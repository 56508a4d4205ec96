"""The picture of a model that stands alone: SVG, and PNG made from it."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.ir.errors.usage import MissingPackageError
from regraft.ir.graph import Graph
from regraft.views.drawing.boxes import WIDTH, glance
from regraft.views.drawing.cache_chart import cache_chart, curves
from regraft.views.drawing.markup import Figure, cut, escaped, moved, number, rectangle, tag, width_of, words
from regraft.views.drawing.opgraph import op_graph
from regraft.views.drawing.palette import kind_style, picture_style
from regraft.views.drawing.parts_chart import parts_chart
from regraft.views.drawing.scene import Scene, Section
from regraft.views.drawing.staging import scene
from regraft.views.drawing.strip import strip
from regraft.views.facts import Facts, layers_text
from regraft.views.numbers import context, count, size
from regraft.views.pattern import fold, spelled

PAGE, EDGE, GAP = 1200.0, 24.0, 16.0  # pixels: the least width, the margin, and between cards
PNG_SCALE = 2.0


def picture(name: str, graph: Graph, facts: Facts, *, operations: bool = False) -> Figure:
    """Return a model as one picture: its figures, its layers, what each kind of layer is made of, what it costs.

    Args:
        name: The model's name, any text.
        graph: A verified graph.
        facts: Its facts, at one context or more.
        operations: Draw every operation of every kind as well.
    """
    shown = scene(graph)
    layers = strip(shown, PAGE - 2 * EDGE)
    charts = [cache_chart(curves(graph, max(facts.contexts[-1], facts.trained_context or 0))), parts_chart(facts)]
    width = max(PAGE, layers.width + 2 * EDGE)
    rows = [_head(name, facts), layers, _cards(shown, width - 2 * EDGE, charts)]
    if operations:
        rows += [_operations(section) for section in shown.sections]
    body, y = "", EDGE
    for row in rows:
        body += moved(EDGE, y, row.body)
        y += row.height + GAP
        width = max(width, row.width + 2 * EDGE)
    return Figure(width, y - GAP + EDGE, body)


def svg(name: str, graph: Graph, facts: Facts, *, operations: bool = False, themes: bool = True) -> str:
    """Return the picture as a file, dark where the reader's system is if ``themes`` is set."""
    drawn = picture(name, graph, facts, operations=operations)
    shown = scene(graph)
    said = f"{name}: {facts.layers} layers of {len(shown.kinds)} kinds, pattern {spelled(fold(shown.letters))}. "
    said += " ".join(f"Kind {kind.key}, {layers_text(kind.layers)}: {kind.words}." for kind in shown.kinds)
    return _file(drawn, f"{name}: architecture", said, themes=themes)


def framed(figure: Figure, said: str, *, themes: bool = True) -> str:
    """Return a chart as a file, with a margin; ``said`` has it in words."""
    drawn = Figure(figure.width + 2 * EDGE, figure.height + 2 * EDGE, moved(EDGE, EDGE, figure.body))
    title, _, rest = said.partition(": ")
    return _file(drawn, title, rest or said, themes=themes)


def _file(drawn: Figure, title: str, said: str, *, themes: bool) -> str:
    body = tag("title", escaped(title), id="title") + tag("desc", escaped(said), id="desc")
    body += tag("style", picture_style(themes=themes)) + rectangle(0, 0, drawn.width, drawn.height, "paper")
    size_of = {"width": number(drawn.width), "height": number(drawn.height)}
    frame = tag(
        "svg",
        body + drawn.body,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {size_of['width']} {size_of['height']}",
        **size_of,
        role="img",
        aria_labelledby="title desc",
    )
    return f"{frame}\n"


def png(picture: str) -> bytes:
    """Return an SVG as PNG, two pixels for each of its own.

    Raises:
        MissingPackageError: resvg-py is not installed.
    """
    try:
        import resvg_py
    except ImportError:
        raise MissingPackageError(what="a PNG", package="resvg-py", extra="png") from None
    return bytes(resvg_py.svg_to_bytes(svg_string=picture, zoom=PNG_SCALE))


def _head(name: str, facts: Facts) -> Figure:
    room = PAGE - 2 * EDGE
    last = facts.contexts[-1]
    held = facts.parameters
    said = [facts.family, f"{facts.layers} layers", facts.dtype, f"{count(held.total)} parameters"]
    if held.active != held.total:
        said.append(f"{count(held.active)} active for a token")
    said.append(f"cache at {context(last)} tokens {size(facts.cache[last].bytes)}")
    said.append(f"{size(facts.bytes_per_token)} more for each further token")
    body = words(0, 20, cut(name, 20, room), "big")
    return Figure(room, 48, body + words(0, 42, cut(" · ".join(filter(None, said)), 13, room), "soft", size=13))


def _cards(shown: Scene, room: float, charts: Sequence[Figure]) -> Figure:
    """Draw the kinds side by side, as many as fit, then the charts; what is outside of layers stands in a line."""
    rows: list[list[Figure]] = [[]]
    last = shown.kinds[-1] if shown.kinds else None
    for section in shown.sections:
        if section.layers:
            _add(rows, _card(shown, section), room)
        else:
            rows += [[_outside(section, room)], []]
        if section is last:
            _place_charts(rows, charts, room)
    if last is None:
        rows.append(list(charts))
    body, y, width = "", 0.0, room
    for row in filter(None, rows):
        x = 0.0
        for figure in row:
            body += moved(x, y, figure.body)
            x += figure.width + GAP
        width = max(width, x - GAP)
        y += max(figure.height for figure in row) + GAP
    return Figure(width, max(0.0, y - GAP), body)


def _place_charts(rows: list[list[Figure]], charts: Sequence[Figure], room: float) -> None:
    """Put charts beside the last cards, one above the other if there is room for a column only, else into a new row."""
    free = room - sum(each.width + GAP for each in rows[-1])
    if free >= sum(chart.width + GAP for chart in charts) - GAP:
        rows[-1] += charts
    elif free >= (wide := max(chart.width for chart in charts)):
        body, y = "", 0.0
        for chart in charts:
            body += moved(0, y, chart.body)
            y += chart.height + GAP
        rows[-1].append(Figure(wide, y - GAP, body))
    else:
        rows.append(list(charts))


def _add(rows: list[list[Figure]], figure: Figure, room: float) -> None:
    """Put a figure at the end of the last row, or into a new one where it has no room there."""
    if rows[-1] and sum(each.width + GAP for each in rows[-1]) + figure.width > room:
        rows.append([])
    rows[-1].append(figure)


def _card(shown: Scene, section: Section) -> Figure:
    look = kind_style(shown.kinds.index(section))
    inner = glance(section)
    wide = max(26.0, width_of(section.key, 14, bold=True) + 12)
    body = rectangle(0, 0, WIDTH + 24, inner.height + 66, "panel", rx=10)
    body += rectangle(12, 12, wide, 26, look, rx=6)
    body += words(12 + wide / 2, 30, section.key, f"mid bold on-{look}", size=14)
    body += words(22 + wide, 24, f"{section.name.replace('_', ' ')}  ×{len(section.layers)}", "title")
    layers = f"layer{'s' * (len(section.layers) > 1)} {layers_text(section.layers, counted=False)}"
    said = f"{layers} · {count(section.parameters)}{' each' if len(section.layers) > 1 else ' parameters'}"
    body += words(22 + wide, 40, cut(said, 11, WIDTH - wide - 10), "small soft")
    return Figure(WIDTH + 24, inner.height + 66, body + moved(12, 54, inner.body))


def outside_words(section: Section) -> str:
    """Return what stands outside of layers, in a line."""
    lines = [line for branch in section.branches for line in branch.lines]
    return ", ".join(lines) or ", ".join(dict.fromkeys(node.opname for node in section.nodes))


def _outside(section: Section, room: float) -> Figure:
    said = cut(f"{outside_words(section)} · {count(section.parameters)} parameters", 12, room - 180)
    body = rectangle(0, 0, room, 34, "panel", rx=8) + words(12, 22, section.name, "title")
    return Figure(room, 34, body + words(24 + width_of(section.name, 13, bold=True), 22, said, "soft"))


def _operations(section: Section) -> Figure:
    inner = op_graph(section)
    title = f"{section.key}  {section.name.replace('_', ' ')}".strip()
    return Figure(inner.width, inner.height + 34, words(0, 22, title, "big", size=16) + moved(0, 34, inner.body))
