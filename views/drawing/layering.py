"""Layered drawing of directed graphs: ranks from top to bottom, few crossings, straight long edges.

Source: Sugiyama, Tagawa and Toda 1981, "Methods for Visual Understanding of Hierarchical System Structures"; positions
by least squares with the order kept, as isotonic regression solves it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

SWEEPS = 8
GAP, LINE_GAP = 18.0, 10.0  # between boxes, and beside lines that pass, in pixels
_STRAIGHT = 8.0  # how much more a line that passes holds to its course than a box does


@dataclass(frozen=True)
class Box:
    """What stands at a place: its width and height in pixels. ``pinned`` boxes stand leftmost of their rank."""

    width: float
    height: float
    pinned: bool = False


@dataclass(frozen=True)
class Placed:
    """Where everything stands.

    ``corners`` are the left top corners of boxes; ``lines`` the points that each edge passes between its
    ends: below its source the end of that rank, then two a rank.
    """

    width: float
    height: float
    corners: Mapping[str, tuple[float, float]]
    lines: Mapping[tuple[str, str], tuple[tuple[float, float], ...]]


def place(
    boxes: Mapping[str, Box], edges: Sequence[tuple[str, str]], gap: float, *, last: Sequence[str] = ()
) -> Placed:
    """Return a drawing of boxes and edges, which make no cycle.

    Args:
        boxes: The boxes by name, in an order in which sources come first.
        edges: Source and target, each pair once.
        gap: Between ranks, in pixels.
        last: Names of boxes that stand on the last rank.
    """
    layout = _Layout(boxes, edges, gap)
    layout.rank(frozenset(last))
    layout.split()
    layout.order()
    layout.shift()
    return layout.placed()


class _Layout:
    """A drawing in the making. Edges over several ranks pass places of their own, called ``source>target@rank``."""

    def __init__(self, boxes: Mapping[str, Box], edges: Sequence[tuple[str, str]], gap: float) -> None:
        self.boxes = dict(boxes)
        self.edges = list(dict.fromkeys(edges))
        self.gap = gap
        self.ranks: dict[str, int] = {}
        self.rows: list[list[str]] = []
        self.up: dict[str, list[str]] = {}
        self.down: dict[str, list[str]] = {}
        self.x: dict[str, float] = {}
        self.passes: dict[tuple[str, str], list[str]] = {}

    def rank(self, last: frozenset[str]) -> None:
        """Put each box as low as those that need it allow."""
        targets: dict[str, list[str]] = {name: [] for name in self.boxes}
        for source, target in self.edges:
            targets[source].append(target)
        above: dict[str, int] = {}
        for name in reversed(self.boxes):
            above[name] = max((above[t] + 1 for t in targets[name]), default=0 if name in last or not last else 1)
        deepest = max(above.values(), default=0)
        self.ranks = {name: deepest - above[name] for name in self.boxes}

    def split(self) -> None:
        """Give edges that span several ranks a place on each."""
        self.rows = [[] for _ in range(max(self.ranks.values(), default=0) + 1)]
        for name, rank in self.ranks.items():
            self.rows[rank].append(name)
        self.up = {name: [] for name in self.boxes}
        self.down = {name: [] for name in self.boxes}
        for source, target in self.edges:
            before, through = source, list[str]()
            for rank in range(self.ranks[source] + 1, self.ranks[target]):
                name = f"{source}>{target}@{rank}"
                self.boxes[name] = Box(0.0, 0.0)
                self.ranks[name] = rank
                self.rows[rank].append(name)
                self.up[name], self.down[name] = [], []
                self._join(before, name)
                through.append(name)
                before = name
            self._join(before, target)
            self.passes[source, target] = through

    def _join(self, source: str, target: str) -> None:
        self.down[source].append(target)
        self.up[target].append(source)

    # -- order

    def order(self) -> None:
        """Order the boxes of each rank so that few edges cross: by the mean of their neighbours, down and up again."""
        best, least = [list(row) for row in self.rows], self._crossings()
        for sweep in range(SWEEPS):
            downwards = sweep % 2 == 0
            for row in self.rows if downwards else reversed(self.rows):
                self._sort(row, self.up if downwards else self.down)
            crossings = self._crossings()
            if crossings < least:
                best, least = [list(row) for row in self.rows], crossings
        self.rows = best

    def _sort(self, row: list[str], near: Mapping[str, Sequence[str]]) -> None:
        place = {name: i for each in self.rows for i, name in enumerate(each)}
        keys = {
            name: sum(place[n] for n in near[name]) / len(near[name]) if near[name] else float(place[name])
            for name in row
        }
        row.sort(key=lambda name: (not self.boxes[name].pinned, keys[name]))

    def _crossings(self) -> int:
        total = 0
        for row, below in pairwise(self.rows):
            place = {name: i for i, name in enumerate(below)}
            ends = [end for name in row for end in sorted(place[n] for n in self.down[name])]
            total += sum(1 for i, a in enumerate(ends) for b in ends[i + 1 :] if b < a)
        return total

    # -- positions

    def shift(self) -> None:
        """Give each box its left to right place: near its neighbours, in order, none over another."""
        for row in self.rows:
            at = 0.0
            for name in row:
                self.x[name] = at + self.boxes[name].width / 2
                at += self.boxes[name].width + GAP
        for sweep in range(SWEEPS * 2):
            downwards = sweep % 2 == 0
            for row in self.rows if downwards else reversed(self.rows):
                self._settle(row, self.up if downwards else self.down, self.down if downwards else self.up)

    def _settle(self, row: Sequence[str], near: Mapping[str, Sequence[str]], far: Mapping[str, Sequence[str]]) -> None:
        wanted: list[float] = []
        weights: list[float] = []
        for name in row:
            around = near[name] or far[name]
            wanted.append(sum(self.x[n] for n in around) / len(around) if around else self.x[name])
            weights.append(_STRAIGHT if name not in self.up or self._passing(name) else 1.0)
        offsets = [0.0]
        for left, right in pairwise(row):
            space = LINE_GAP if self._passing(left) or self._passing(right) else GAP
            offsets.append(offsets[-1] + (self.boxes[left].width + self.boxes[right].width) / 2 + space)
        level = _isotonic([w - o for w, o in zip(wanted, offsets, strict=True)], weights)
        for name, x, offset in zip(row, level, offsets, strict=True):
            self.x[name] = x + offset
        if row and self.boxes[row[0]].pinned:
            least = min(self.x[n] - self.boxes[n].width / 2 for n in self.x)
            self.x[row[0]] = min(self.x[row[0]], least + self.boxes[row[0]].width / 2)

    def _passing(self, name: str) -> bool:
        return "@" in name and self.boxes[name].width == 0

    def placed(self) -> Placed:
        """Return what came of it, the leftmost box at 0."""
        left = min((self.x[n] - box.width / 2 for n, box in self.boxes.items()), default=0.0)
        corners: dict[str, tuple[float, float]] = {}
        spans: list[tuple[float, float]] = []
        y = 0.0
        for row in self.rows:
            tall = max((self.boxes[name].height for name in row), default=0.0)
            spans.append((y, y + tall))
            corners.update((name, (self.x[name] - self.boxes[name].width / 2 - left, y)) for name in row)
            y += tall + self.gap
        lines: dict[tuple[str, str], tuple[tuple[float, float], ...]] = {}
        for edge, through in self.passes.items():
            source = edge[0]
            points = [(self.x[source] - left, spans[self.ranks[source]][1])]
            for name in through:
                top, bottom = spans[self.ranks[name]]
                points += [(corners[name][0], top), (corners[name][0], bottom)]
            lines[edge] = tuple(points)
        kept = {name: corner for name, corner in corners.items() if not self._passing(name)}
        width = max((corners[n][0] + box.width for n, box in self.boxes.items()), default=0.0)
        return Placed(width, max(0.0, y - self.gap), kept, lines)


def _isotonic(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """Return the numbers that never fall and lie nearest to ``values`` in weighted squares, by pooling neighbours."""
    pools: list[tuple[float, float, int]] = []  # mean, weight, count
    for value, weight in zip(values, weights, strict=True):
        pool = (value, weight, 1)
        while pools and pools[-1][0] > pool[0]:
            mean, heavy, count = pools.pop()
            total = heavy + pool[1]
            pool = ((mean * heavy + pool[0] * pool[1]) / total, total, count + pool[2])
        pools.append(pool)
    return [mean for mean, _, count in pools for _ in range(count)]
