"""The chart of quality against cache: one point for each recipe, and those that no other is better than in both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from regraft.views.drawing.cache_chart import mark
from regraft.views.drawing.markup import Figure, number, path, width_of, words
from regraft.views.drawing.palette import CURVES
from regraft.views.numbers import size

WIDTH, HEIGHT = 720.0, 380.0
_LEFT, _TOP, _BOTTOM, _RIGHT = 74.0, 46.0, 52.0, 30.0
_LINE = 13.0


@dataclass(frozen=True)
class Point:
    """A model that was measured: its label, the bytes of its cache, and how far it is from what it should be."""

    label: str
    cache: int
    loss: float


def quality_chart(points: Sequence[Point], measure: str) -> Figure:
    """Return points, the cache's bytes to the right and ``measure`` upwards, both by powers; less is better in both.

    Args:
        points: Models that were measured in the same way.
        measure: What ``loss`` is, such as the divergence from the base.
    """
    xs = [math.log2(max(point.cache, 1)) for point in points]
    floor = min((point.loss for point in points if point.loss > 0), default=1.0) / 10  # where nothing is lost
    ys = [math.log10(max(point.loss, floor)) for point in points]
    left, right = _span(xs, 0.25)
    low, high = _span(ys, 0.15)

    def at(x: float, y: float) -> tuple[float, float]:
        wide, tall = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
        return _LEFT + (x - left) / (right - left) * wide, HEIGHT - _BOTTOM - (y - low) / (high - low) * tall

    body = words(0, 14, f"{measure} against cache", "title")
    body += words(0, 32, "dashed: no other is better in both", "small soft")
    body += path(f"M{number(_LEFT)} {number(_TOP)}V{number(HEIGHT - _BOTTOM)}H{number(WIDTH - _RIGHT)}", "line")
    for power in _ticks(left, right):
        x, y = at(power, low)
        body += path(f"M{number(x)} {number(y)}v5", "line") + words(x, y + 18, size(2**power), "small soft mid")
    for power in _ticks(low, high):
        x, y = at(left, power)
        body += path(f"M{number(x)} {number(y)}h-5", "line") + words(x - 9, y + 4, f"{10**power:.3g}", "small soft end")
    body += words((WIDTH + _LEFT) / 2, HEIGHT - 12, "bytes that a sequence holds", "small soft mid")
    best = [at(xs[i], ys[i]) for i in frontier(points)]
    if len(best) > 1:
        body += path("M" + "L".join(f"{number(x)} {number(y)}" for x, y in best), "edge other")
    return Figure(WIDTH, HEIGHT, body + _named([at(x, y) for x, y in zip(xs, ys, strict=True)], points))


def frontier(points: Sequence[Point]) -> list[int]:
    """Return the numbers of the points that no other is better than in both, the smallest cache first."""
    order = sorted(range(len(points)), key=lambda i: (points[i].cache, points[i].loss))
    found: list[int] = []
    for i in order:
        if not found or points[i].loss < points[found[-1]].loss:
            found.append(i)
    return found


def in_words(points: Sequence[Point], measure: str) -> str:
    """Return the chart in words."""
    told = (f"{point.label} {point.loss:.3g} at {size(point.cache)}" for point in points)
    return f"{measure} against cache: {', '.join(told)}"


def _named(places: Sequence[tuple[float, float]], points: Sequence[Point]) -> str:
    """Draw marks and their labels, none over another: a label goes down a line until it is free."""
    body, taken = "", list[tuple[float, float, float]]()
    for i, ((x, y), point) in enumerate(zip(places, points, strict=True)):
        wide = width_of(point.label, 11)
        start = x + 9 if x + 9 + wide < WIDTH else x - 9 - wide
        line = y + 4
        while any(abs(line - other) < _LINE and start < end and begin < start + wide for begin, end, other in taken):
            line += _LINE
        taken.append((start, start + wide, line))
        body += mark(i % CURVES, x, y) + words(start, line, point.label, "small halo")
    return body


def _span(values: Sequence[float], least: float) -> tuple[float, float]:
    """Return bounds with room round the values."""
    low, high = min(values), max(values)
    room = max(least, 0.12 * (high - low))
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """Return up to seven round places between two powers: whole ones, or parts of one where there are too few."""
    for step in (8.0, 4.0, 2.0, 1.0, 0.5, 0.25, 0.1, 0.05):
        found = [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
        if len(found) >= 3:
            return found[:7]
    return [low, high]
