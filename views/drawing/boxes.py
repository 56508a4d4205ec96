"""A block kind at a glance: the residual stream, what is added to it in words, and the memories that it keeps."""

from __future__ import annotations

from regraft.views.drawing import glyphs
from regraft.views.drawing.markup import Figure, number, path, rectangle, tag, words, wrapped
from regraft.views.drawing.opgraph import stream_count, stream_lines
from regraft.views.drawing.scene import Branch, Memory, Node, Section
from regraft.views.numbers import count

WIDTH = 344.0
_SPINE, _LEFT, _LINE = 16.0, 40.0, 16.0


def glance(section: Section) -> Figure:
    """Return the picture of a section in words, `WIDTH` wide."""
    stream = [node for node in section.nodes if node.stream]
    body, y = "", 14.0
    left = list(section.branches)
    for node in stream:
        for branch in [each for each in left if each.leaves == node.id]:
            drawn, y = _box(section, branch, y, joined=True)
            body += drawn
            left.remove(branch)
        if node.opname in ("core.add", "hyper.write"):
            body += _sum(y)
            y += 14
    for branch in left:
        drawn, y = _box(section, branch, y, joined=False)
        body += drawn
        y += 8
    if stream:
        line = stream_lines(_SPINE, 0, y + 4, stream_count(section))
        body = line + body + path(f"M{number(_SPINE - 5)} {number(y + 2)}h10l-5 8z", "streamtip")
        y += 8
    return Figure(WIDTH, y + 4, body)


def _sum(y: float) -> str:
    circle = tag("circle", cx=number(_SPINE), cy=number(y), r=8, class_="node")
    return circle + path(f"M{number(_SPINE - 4)} {number(y)}h8m-4 -4v8", "plus")


def _box(section: Section, branch: Branch, y: float, *, joined: bool) -> tuple[str, float]:
    """Draw a branch from ``y`` on; return it, and where the stream takes its result."""
    nodes = {node.id: node for node in section.nodes}
    mine = [nodes[id] for id in branch.nodes]
    x = _LEFT if joined else 4.0
    room = WIDTH - x - 22
    lines = [line for each in _phrases(branch) for line in wrapped(each, 12, room)]
    kept = [node.memory for node in mine if node.memory is not None]
    read = [port.memory for port in section.inputs if port.memory is not None and _reads(mine, port.id)]
    glyphed = [(memory, False) for memory in kept] + [(memory, True) for memory in read]
    weights = sum({w.name: w.elements for node in mine for w in node.weights}.values())
    head = 22.0 if branch.title else 6.0
    height = head + _LINE * len(lines) + 8 + 20 * len(glyphed) + (4 if glyphed else 0)
    body = rectangle(x, y, WIDTH - x - 4, height, "box", rx=7)
    if branch.title:
        body += words(x + 10, y + 18, branch.title, "title")
    if weights:
        body += words(WIDTH - 14, y + 18, count(weights), "mono soft end")
    at = y + head + 12
    for line in lines:
        body += words(x + 10, at, line, "soft")
        at += _LINE
    for memory, other in glyphed:
        body += glyphs.glyph(memory.form, x + 10, at - 8, other=other)
        body += words(x + 44, at + 4, _kept(memory, other), "small")
        at += 20
    end = y + height
    if joined:
        body += path(f"M{number(_SPINE)} {number(y + 12)}H{number(x)}", "edge")
        body += tag("circle", cx=number(_SPINE), cy=number(y + 12), r=3, class_="streamtip")
        body += path(f"M{number(x + 24)} {number(end)}V{number(end + 16)}H{number(_SPINE + 14)}", "edge")
        body += path(f"M{number(_SPINE + 15)} {number(end + 12.5)}v7l-6 -3.5z", "tip")
        end += 16
    return body, end


def _phrases(branch: Branch) -> list[str]:
    """Return what there is to say of a branch: each on a line of its own, short ones together."""
    phrases: list[str] = []
    for line in branch.lines:
        if line == branch.title:
            continue
        if phrases and len(phrases[-1]) + len(line) < 40:
            phrases[-1] += f" · {line}"
        else:
            phrases.append(line)
    return phrases


def _reads(nodes: list[Node], port: str) -> bool:
    return any(operand.source == port for node in nodes for operand in node.operands)


def _kept(memory: Memory, other: bool) -> str:
    said = glyphs.said(memory)
    return f"another layer's: {said.rpartition(', ')[0]}" if other else said
