"""The operations of a section as a picture: the residual stream on the left, branches beside it, memories between."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from regraft.views.drawing import glyphs
from regraft.views.drawing.layering import Box, Placed, place
from regraft.views.drawing.markup import Figure, cut, escaped, moved, number, path, rectangle, tag, width_of, words
from regraft.views.drawing.scene import Branch, Node, Port, Section
from regraft.views.drawing.strands import sources, strands

ROW, PAD = 20.0, 5.0
RANK_GAP = 30.0
SPINE, MARGIN = 92.0, 48.0  # where the stream runs, and how far right of it branches begin
_MEMORY_HEIGHT = 44.0
_NAME, _VERB, _SHAPE = 11.0, 10.5, 10.5
_LONGEST = 150.0

_VERBS = {
    "core.unflatten": "split",
    "core.flatten": "join",
    "core.grouped_linear": "linear, grouped",
    "core.layer_norm": "norm",
    "hyper.read": "read streams",
    "hyper.write": "write streams",
    "hyper.collapse": "collapse streams",
    "mem.read": "rows",
    "mem.pos": "positions",
}
_CLASSES = {
    "map": {"core.linear", "core.grouped_linear", "core.embed", "moe.experts"},
    "mix": {"attn.attend", "seq.conv", "seq.shift", "state.delta", "hyper.read", "hyper.write", "hyper.collapse"},
    "keep": {"mem.read", "mem.view", "mem.pos"},
    "norm": {"core.norm", "core.layer_norm"},
    "turn": {"pos.rope"},
    "pick": {"moe.route", "moe.assign", "seq.index"},
}
_SIGNS = {"core.add": "+", "hyper.write": "+", "core.gain": "×", "core.scale": "×", "core.bias": "+"}
_STATES = {"added": "+", "changed": "~"}
_LETTERS = {"attn.attend", "state.kv", "mem.view", "seq.index", "state.delta"}  # whose operands of one letter say much
_SHAPED = re.compile(r"\w+\[(.*)\]")

Mark = Callable[[str], str]


def unmarked(_: str) -> str:
    """Return that an operation did not change."""
    return ""


def verb(node: Node) -> str:
    """Return what an operation does, in a word or two."""
    if node.opname == "core.activation":
        return next((value.strip('"') for key, value in node.attributes if key == "kind"), "activation")
    return _VERBS.get(node.opname, node.opname.partition(".")[2].replace("_", " "))


def shape(type: str) -> str:
    """Return what a type says beyond batch and tokens: ``8×256``; rows of a memory are marked."""
    found = _SHAPED.fullmatch(type)
    if found is None:
        return "memory" if type.startswith("memory<") else type
    dims = [dim.strip() for dim in found[1].split(",")]
    rows = "rows " if any(dim.startswith("S@") for dim in dims) else ""
    kept = [dim for dim in dims if dim not in ("B", "T") and not dim.startswith("S@")]
    return rows + ("×".join(kept) or "1")


def op_graph(section: Section, *, interactive: bool = False, mark: Mark = unmarked) -> Figure:
    """Return the picture of a section's operations.

    Args:
        section: A block kind, or what stands outside of layers.
        interactive: Make operations buttons that carry their number, ``data-op``.
        mark: Gives how an operation changed by its id: added, changed, or empty.
    """
    return _OpGraph(section, interactive, mark).draw()


@dataclass(frozen=True)
class _Stood:
    """A branch with its places."""

    branch: Branch
    rows: Mapping[str, Sequence[Node]]
    ports: Mapping[str, Port]
    edges: Sequence[tuple[str, str, str, bool]]  # source, target, slot, whether a memory is passed on
    placed: Placed
    boxes: Mapping[str, Box]


class _OpGraph:
    def __init__(self, section: Section, interactive: bool, mark: Mark) -> None:
        self.section = section
        self.interactive = interactive
        self.mark = mark
        self.number = {node.id: i for i, node in enumerate(section.nodes)}
        self.nodes = {node.id: node for node in section.nodes}
        self.stream = [node for node in section.nodes if node.stream]
        self.left = SPINE + MARGIN if self.stream else 20.0
        self.body: list[str] = []
        self.width = self.end = 0.0  # how far right, and how far down the branch at hand, things stand
        self.returns: list[tuple[str, float, float]] = []  # where branches end that the stream takes in: x, y

    def draw(self) -> Figure:
        """Draw branches and the stream's nodes from top to bottom, each branch right after what it reads."""
        y, stops = 26.0 if self.stream else 6.0, dict[str, float]()
        branches = self.section.branches
        for entry in ("", *(node.id for node in self.stream)):
            if entry:
                y += 16
                stops[entry] = y
                y += 22
            for branch in [each for each in branches if each.enters == entry]:
                y = self._branch(branch, y) + (0 if branch.leaves else 8)
        if self.stream:
            self._spine(stops, y)
            y += 26
        return Figure(max(self.width + 8, 240.0), y + 4, "".join(self.body))

    # -- the stream

    def _spine(self, stops: Mapping[str, float], end: float) -> None:
        wide = _stream_type(self.section)
        count = stream_count(self.section)
        lines = stream_lines(SPINE, 18, end + 4, count)
        tip = path(f"M{number(SPINE - 6)} {number(end + 3)}h12l-6 9z", "streamtip")
        label = "residual stream" if count == 1 else f"{count} residual streams"
        said = words(2, 11, f"{label}, {shape(wide)}", "small soft")
        back = "".join(_return(x, bottom, stops[id], self.left) for id, x, bottom in self.returns)
        nodes = "".join(self._stop(y, self.nodes[id]) for id, y in stops.items())
        self.body.insert(0, lines + tip + said)
        self.body.append(back + nodes)

    def _stop(self, y: float, node: Node) -> str:
        inner = tag("circle", cx=number(SPINE), cy=number(y), r=10, class_="node")
        inner += words(SPINE, y + 5, _SIGNS.get(node.opname, "·"), "mid bold", size=15)
        name = cut(_short(node), _NAME, SPINE - 18, mono=True)
        inner += self._sign(node, SPINE + 13, y - 8)
        return self._op(node, inner + words(SPINE - 16, y + 4, name, "mono end"))

    # -- a branch

    def _branch(self, branch: Branch, y: float) -> float:
        stood = self._stand(branch)
        top = y + (24 if branch.title else 8)
        right = self.left + stood.placed.width + 24
        boxes = (stood.placed.corners[name][1] + box.height for name, box in stood.boxes.items() if name != "exit")
        height = max(boxes, default=0.0) + (38 if branch.title else 22)
        frame = rectangle(self.left - 14, y, right - self.left + 14, height, "panel", rx=8)
        title = words(self.left - 2, y + 17, branch.title, "title")
        self.width = max(self.width, right)
        self.end = y + height
        drawn = "".join(self._edge(stood, edge, top) for edge in stood.edges)
        boxes = "".join(self._box(stood, name, top) for name in stood.placed.corners)
        self.body.append(frame + title + self._joints(stood, branch, y, top, height) + drawn + boxes)
        return y + height

    def _joints(self, stood: _Stood, branch: Branch, y: float, top: float, height: float) -> str:
        """Draw where a branch leaves the stream and where it comes back."""
        found = ""
        if "in" in stood.boxes:
            x, at = stood.placed.corners["in"]
            ends = f"M{number(SPINE)} {number(top + at)}H{number(self.left + x)}"
            found += path(ends, "edge") + tag("circle", cx=number(SPINE), cy=number(top + at), r=3, class_="streamtip")
        if "exit" in stood.boxes:
            x = stood.placed.corners["exit"][0]
            self.returns.append((branch.leaves, self.left + x, y + height))
        return found

    def _stand(self, branch: Branch) -> _Stood:
        nodes = [self.nodes[id] for id in branch.nodes]
        mine = {node.id for node in nodes}
        outs = [port for port in self.section.outputs if port.source in mine and port.role != "stream"]
        outs += [
            port for port in self.section.outputs if port.source in mine and port.role == "stream" and not self.stream
        ]
        ends = frozenset(port.source for port in outs)
        rows = {f"s{i}": strand for i, strand in enumerate(strands(nodes, ends))}
        home = {node.id: name for name, strand in rows.items() for node in strand}
        ports: dict[str, Port] = {}
        inputs = {port.id: port for port in self.section.inputs}
        edges: list[tuple[str, str, str, bool]] = []
        for name, strand in rows.items():
            for node in strand:
                several = len(set(sources(node))) > 1
                for operand in node.operands:
                    if operand.source not in sources(node) or home.get(operand.source) == name:
                        continue
                    source = home.get(operand.source) or self._outer(operand.source, inputs, ports)
                    slot = operand.slot if several and _telling(node, operand.slot) else ""
                    edges.append((source, name, slot, operand.type.startswith("memory<")))
        for port in outs:
            ports[port.id] = port
            edges.append((home[port.source], port.id, "", port.role == "memory"))
        edges += self._exits(branch, home)
        used = {end for edge in edges for end in edge[:2]}
        boxes = {"in": Box(1.0, 1.0, pinned=True)} if "in" in used else {}
        boxes |= {name: _port_box(port) for name, port in ports.items() if port.id.startswith("in:")}
        boxes |= {name: _strand_box(strand, any(self.mark(n.id) for n in strand)) for name, strand in rows.items()}
        boxes |= {name: _port_box(port) for name, port in ports.items() if port.id.startswith("out:")}
        boxes |= {"exit": Box(1.0, 1.0)} if "exit" in used else {}
        pairs = [(source, target) for source, target, _, _ in edges]
        last = [name for name in boxes if name == "exit" or name.startswith("out:")]
        edges = list({edge[:2]: edge for edge in reversed(edges)}.values())
        return _Stood(branch, rows, ports, edges, place(boxes, pairs, RANK_GAP, last=last), boxes)

    def _outer(self, source: str, inputs: Mapping[str, Port], ports: dict[str, Port]) -> str:
        """Return the name of what stands for a value from outside the branch: the stream, or a port of its own."""
        port = inputs.get(source)
        if port is None or (port.role == "stream" and self.stream):
            return "in"
        ports[port.id] = port
        return port.id

    def _exits(self, branch: Branch, home: Mapping[str, str]) -> list[tuple[str, str, str, bool]]:
        if not branch.leaves:
            return []
        given = [operand for operand in self.nodes[branch.leaves].operands if operand.source in home]
        return [(home[operand.source], "exit", "", False) for operand in given]

    # -- boxes and edges

    def _box(self, stood: _Stood, name: str, top: float) -> str:
        x, y = stood.placed.corners[name]
        box = stood.boxes[name]
        if name in stood.ports:
            return moved(self.left + x, top + y, _port(stood.ports[name], box))
        if name in stood.rows:
            strand = stood.rows[name]
            inner = self._memory(strand[0], box) if strand[0].memory else self._strand(strand, box)
            return moved(self.left + x, top + y, inner)
        return ""

    def _strand(self, strand: Sequence[Node], box: Box) -> str:
        inner = rectangle(0, 0, box.width, box.height, "box", rx=5)
        name_width, verb_width, _ = _columns(strand)
        for i, node in enumerate(strand):
            y = PAD + i * ROW
            row = rectangle(1, y, box.width - 2, ROW, "hit") if self.interactive else ""
            row += rectangle(3, y + 3, 3, ROW - 6, f"op-{op_class(node)}", rx=1.5)
            row += words(11, y + 14, _short(node), "mono")
            row += words(11 + name_width + 8, y + 14, verb(node), "soft", size=_VERB)
            text = shape(node.results[0][1])
            row += words(19 + name_width + verb_width + 8, y + 14, text, "mono soft", size=_SHAPE)
            row += self._sign(node, box.width - 15, y + 14)
            inner += self._op(node, row)
        return inner

    def _memory(self, node: Node, box: Box) -> str:
        assert node.memory is not None
        inner = rectangle(0, 0, box.width, box.height, "glyph", rx=12)
        if self.interactive:
            inner += rectangle(0, 0, box.width, box.height, "hit", rx=12)
        inner += glyphs.glyph(node.memory.form, 10, 14)
        inner += words(44, 18, _short(node), "mono bold")
        inner += words(44, 34, glyphs.said(node.memory), "small") + self._sign(node, box.width - 18, 18)
        return self._op(node, inner)

    def _sign(self, node: Node, x: float, y: float) -> str:
        """Draw how an operation changed, if it did."""
        state = self.mark(node.id)
        return words(x, y, _STATES[state], f"bold {state}", size=14) if state else ""

    def _op(self, node: Node, inner: str) -> str:
        if not self.interactive:
            return inner
        state = self.mark(node.id)
        said = f"{node.id}: {verb(node)}, {shape(node.results[0][1])}"
        return tag(
            "g",
            inner,
            class_="op",
            role="button",
            tabindex=0 if not self.number[node.id] else -1,
            data_op=self.number[node.id],
            aria_label=f"{said}, {state}" if state else said,
        )

    def _edge(self, stood: _Stood, edge: tuple[str, str, str, bool], top: float) -> str:
        source, target, slot, carries = edge
        corner, box = stood.placed.corners, stood.boxes
        x, y = corner[source][0] + box[source].width / 2, corner[source][1] + box[source].height
        ends = [each for each in stood.edges if each[1] == target]
        ends.sort(key=lambda each: _came_from(stood, each))
        share = (ends.index(edge) + 1) / (len(ends) + 1)
        tx, ty = corner[target][0] + box[target].width * share, corner[target][1]
        points = [(x, y), *stood.placed.lines[source, target], (tx, ty - (0 if target == "exit" else 6))]
        points = [(self.left + px, top + py) for px, py in points]
        if target == "exit":
            points[-1] = (points[-1][0], self.end)
        drawn = path(_curve(points), "carry" if carries else "edge")
        if target != "exit":
            ex, ey = points[-1]
            drawn += path(f"M{number(ex - 3.5)} {number(ey)}h7l-3.5 6z", "carrytip" if carries else "tip")
        if slot:
            ex, ey = points[-1]
            drawn += words(ex + 6, ey + 1, slot, "soft halo", size=9.5)
        return drawn


def op_class(node: Node) -> str:
    """Return the class of operations that one belongs to, which its bar shows."""
    return next((name for name, members in _CLASSES.items() if node.opname in members), "plain")


def _telling(node: Node, slot: str) -> bool:
    """Return whether an operand's name is worth a label."""
    return slot != "xs" and node.opname not in _SIGNS and (len(slot) > 1 or node.opname in _LETTERS)


def _came_from(stood: _Stood, edge: tuple[str, str, str, bool]) -> float:
    """Return where an edge comes from on the last rank before its target."""
    passed = stood.placed.lines[edge[:2]]
    return passed[-1][0] if passed else stood.placed.corners[edge[0]][0] + stood.boxes[edge[0]].width / 2


def _curve(points: Sequence[tuple[float, float]]) -> str:
    """Return a path that leaves and reaches every point upright."""
    (x, y), *rest = points
    d = f"M{number(x)} {number(y)}"
    for nx, ny in rest:
        half = (y + ny) / 2
        if abs(nx - x) < 0.5:
            d += f"V{number(ny)}"
        else:
            d += f"C{number(x)} {number(half)} {number(nx)} {number(half)} {number(nx)} {number(ny)}"
            x = nx
        y = ny
    return d


def _stream_type(section: Section) -> str:
    return next((port.type for port in section.inputs if port.role == "stream"), "")


def stream_count(section: Section) -> int:
    """Return how many residual streams a section has: an axis between tokens and channels."""
    found = _SHAPED.fullmatch(_stream_type(section))
    dims = found[1].split(",") if found else []
    return int(dims[2]) if len(dims) == 4 and dims[2].strip().isdecimal() else 1


def stream_lines(x: float, top: float, bottom: float, count: int) -> str:
    """Draw residual streams from ``top`` to ``bottom``, at most four side by side."""
    lanes = [(i - (count - 1) / 2) * 3.2 for i in range(count)] if count <= 4 else [-4.8, -1.6, 1.6, 4.8]
    thin = None if count == 1 else "stroke-width:1.4"
    return "".join(path(f"M{number(x + dx)} {number(top)}V{number(bottom)}", "stream", style=thin) for dx in lanes)


def _return(x: float, bottom: float, stop: float, left: float) -> str:
    """Draw how a branch that ends at ``x``, ``bottom`` comes back to the stream at ``stop``, left of other branches."""
    down = f"M{number(x)} {number(bottom)}"
    if stop - bottom > 30:  # others stand between
        gutter = left - 24
        down += f"q0 8 -8 8H{number(gutter + 8)}q-8 0 -8 8V{number(stop - 8)}q0 8 -8 8"
    else:
        down += f"V{number(stop - 8)}q0 8 -8 8"
    return path(f"{down}H{number(SPINE + 16)}", "edge") + path(
        f"M{number(SPINE + 18)} {number(stop - 4)}v8l-8 -4z", "tip"
    )


def _short(node: Node) -> str:
    name = node.id.removeprefix(f"{node.group}.") if node.group else node.id
    return cut(name + (f" ×{node.times}" if node.times > 1 else ""), _NAME, _LONGEST, mono=True)


def _columns(strand: Sequence[Node]) -> tuple[float, float, float]:
    return (
        max(width_of(_short(node), _NAME, mono=True) for node in strand),
        max(width_of(verb(node), _VERB) for node in strand),
        max(width_of(shape(node.results[0][1]), _SHAPE, mono=True) for node in strand),
    )


def _strand_box(strand: Sequence[Node], marked: bool) -> Box:
    kept, room = strand[0].memory, 16.0 if marked else 0.0
    if kept is not None:
        wide = max(width_of(glyphs.said(kept), 11), width_of(_short(strand[0]), _NAME, mono=True))
        return Box(56 + wide + room, _MEMORY_HEIGHT)
    return Box(sum(_columns(strand)) + 40 + room, len(strand) * ROW + 2 * PAD)


def _port_lines(port: Port) -> tuple[str, str]:
    given = port.id.startswith("out:")
    match port.role:
        case "memory":
            layers = cut(", ".join(dict.fromkeys(_place(origin) for origin in port.origins)), 11, 130)
            return ("memory", f"of {layers}, read by others" if given else f"of {layers}")
        case "tokens":
            return ("tokens", port.type)
        case _:
            if given:
                return (cut(port.name, 11, 150, mono=True), "given on")
            name = re.sub(r"layers\.\d+\.", "", port.origins[0]) if port.origins else port.name
            later = any("layers." in origin for origin in port.origins)
            return (
                cut(re.sub(r"\d+$", "*", name), 11, 150, mono=True),
                "of an earlier layer" if later else "from outside",
            )


def _place(origin: str) -> str:
    found = re.search(r"layers\.(\d+)\.", origin)
    return f"layer {found[1]}" if found else origin


def _port_box(port: Port) -> Box:
    first, second = _port_lines(port)
    glyph = 34.0 if port.memory is not None else 0.0
    return Box(20 + glyph + max(width_of(first, 11, mono=True), width_of(second, 11)), 38.0)


def _port(port: Port, box: Box) -> str:
    first, second = _port_lines(port)
    inner = rectangle(0, 0, box.width, box.height, "panel other", rx=12)
    x = 10.0
    if port.memory is not None:
        inner += glyphs.glyph(port.memory.form, 8, 11, other=True)
        x = 42.0
    inner += words(x, 16, first, "mono") + words(x, 30, second, "small soft")
    return tag("g", tag("title", escaped(f"{port.name}: {port.type}")), inner)
