"""The chart of what a model holds at each context, as it is and as it would be without windows and sharing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from regraft.ir.graph import Graph
from regraft.views.cache import CacheFacts, Memories
from regraft.views.drawing.markup import Figure, number, path, tag, width_of, words
from regraft.views.numbers import context, size

WIDTH, HEIGHT = 568.0, 300.0
_LEFT, _TOP, _BOTTOM = 62.0, 30.0, 34.0
_LEAST, _MOST = 10, 20  # powers of two of the first context, and of the last at most
_LINE = 14.0


@dataclass(frozen=True)
class Curve:
    """Bytes over contexts, and what they are."""

    label: str
    points: tuple[tuple[int, int], ...]


_CONVENTIONS: dict[str, Callable[[CacheFacts], int]] = {
    "held": lambda each: each.bytes,
    "without windows": lambda each: each.bytes_without_windows,
    "without sharing": lambda each: each.bytes_without_sharing,
    "without either": lambda each: each.bytes_without_either,
}


def curves(graph: Graph, longest: int, before: Graph | None = None) -> tuple[Curve, ...]:
    """Return what a graph holds at contexts up to about ``longest``, by each convention that makes a difference.

    With ``before`` the second curve is what that graph holds, in place of conventions.
    """
    contexts = _contexts(longest)
    memories = Memories(graph)
    found = [memories.at(n) for n in contexts]
    points = {label: [held(each) for each in found] for label, held in _CONVENTIONS.items()}
    if before is not None:
        earlier = Memories(before)
        points = {"held": points["held"], "held before": [earlier.at(n).bytes for n in contexts]}
    different: dict[tuple[int, ...], str] = {}
    for label, held in points.items():
        different.setdefault(tuple(held), label)
    return tuple(
        Curve(label, tuple(zip(contexts, held, strict=True))) for held, label in different.items() if any(held)
    )


def _contexts(longest: int) -> list[int]:
    return [2**power for power in range(_LEAST, max(_LEAST + 1, min(_MOST, (longest - 1).bit_length())) + 1)]


def cache_of(graph: Graph, label: str, longest: int) -> Curve:
    """Return what a graph holds at contexts up to about ``longest``, as one of several curves."""
    memories = Memories(graph)
    return Curve(label, tuple((n, memories.at(n).bytes) for n in _contexts(longest)))


def cache_chart(
    drawn: Sequence[Curve], title: str = "Cache of one sequence over its context", *, lead: bool = True
) -> Figure:
    """Return curves over contexts, both axes in powers of two; each has a dash, a mark and a label of its own.

    Args:
        drawn: Curves at the same contexts; up to `regraft.views.drawing.palette.CURVES` can be told apart.
        title: Of the chart.
        lead: Whether the first curve is what the chart is about.
    """
    body = words(0, 14, title, "title")
    if not drawn:
        return Figure(WIDTH, 40, body + words(0, 34, "Nothing is kept that grows with the context.", "soft"))
    room = max(width_of(curve.label, 11) for curve in drawn) + (20 if lead else 34)
    xs = [math.log2(n) for n, _ in drawn[0].points]
    ys = [math.log2(max(held, 1)) for curve in drawn for _, held in curve.points]
    low, high = math.floor(min(ys)), max(math.ceil(max(ys)), math.floor(min(ys)) + 2)

    def at(n: float, held: float) -> tuple[float, float]:
        x = _LEFT + (n - xs[0]) / (xs[-1] - xs[0]) * (WIDTH - _LEFT - room)
        return x, HEIGHT - _BOTTOM - (held - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)

    body += _axes(xs, low, high, at)
    ends = _spread([at(xs[-1], math.log2(max(curve.points[-1][1], 1)))[1] for curve in drawn])
    for i, (curve, end) in reversed(list(enumerate(zip(drawn, ends, strict=True)))):
        places = [at(math.log2(n), math.log2(max(held, 1))) for n, held in curve.points]
        line = "L".join(f"{number(x)} {number(y)}" for x, y in places)
        body += path(f"M{line}", f"curve c{i}")
        body += "".join(mark(i, x, y) for x, y in places)
        at_label = places[-1][0] + 10
        if not lead:  # among many the mark says which label is whose
            body += mark(i, at_label + 4, end)
        body += words(at_label + (0 if lead else 14), end + 4, curve.label, "small" if i or not lead else "small bold")
    return Figure(WIDTH, HEIGHT, body)


def in_words(drawn: Sequence[Curve]) -> str:
    """Return the chart in words."""
    ends = (f"{curve.label} {size(curve.points[-1][1])}" for curve in drawn)
    last = context(drawn[0].points[-1][0]) if drawn else ""
    return f"Cache of one sequence at {last} tokens: {', '.join(ends)}" if drawn else "No cache grows with the context"


def _axes(xs: Sequence[float], low: int, high: int, at: Callable[[float, float], tuple[float, float]]) -> str:
    body = ""
    for power in range(low, high + 1, max(1, (high - low) // 5)):
        (left, y), (right, _) = at(xs[0], power), at(xs[-1], power)
        body += path(f"M{number(left)} {number(y)}H{number(right)}", "line") + words(
            left - 8, y + 4, size(2**power), "small soft end"
        )
    for power in xs[:: -2 if len(xs) > 6 else -1]:
        x, y = at(power, low)
        body += path(f"M{number(x)} {number(y)}v5", "line") + words(x, y + 18, context(int(2**power)), "small soft mid")
    return body


def _spread(ends: Sequence[float]) -> list[float]:
    """Return where labels stand, near the ends of their curves and a line apart."""
    order = sorted(range(len(ends)), key=lambda i: ends[i])
    places = list(ends)
    for one, other in pairwise(order):
        places[other] = max(places[other], places[one] + _LINE)
    lowest = HEIGHT - _LINE / 2
    for i in reversed(order):
        places[i] = min(places[i], lowest)
        lowest = places[i] - _LINE
    return places


def mark(i: int, x: float, y: float) -> str:
    """Draw the mark of a curve: a disc, a square, a triangle or a diamond."""
    match i % 4:
        case 0:
            return tag("circle", cx=number(x), cy=number(y), r=3.2, class_=f"m{i}")
        case 1:
            return path(f"M{number(x - 3)} {number(y - 3)}h6v6h-6z", f"m{i}")
        case 2:
            return path(f"M{number(x)} {number(y - 4)}l4 7h-8z", f"m{i}")
        case _:
            return path(f"M{number(x)} {number(y - 4.4)}l4.4 4.4l-4.4 4.4l-4.4 -4.4z", f"m{i}")
