"""The chart of where a token's work goes: bytes read and operations, part by part."""

from __future__ import annotations

from regraft.views.drawing.markup import Figure, cut, path, rectangle, words
from regraft.views.facts import CallFacts, Facts
from regraft.views.numbers import context, flops, size
from regraft.views.parts import PARTS

WIDTH = 568.0
_LABEL, _BAR, _ROW = 196.0, 116.0, 22.0
_LEAST = 0.004  # of the whole: a part of less stands with the others


def parts_chart(facts: Facts) -> Figure:
    """Return bars of what a decode step reads and computes, part by part, at the largest context."""
    at = facts.contexts[-1]
    step = facts.decode[at]
    body = words(0, 14, f"One token at {context(at)}: where bytes and operations go", "title")
    body += words(_LABEL, 34, f"read, {size(step.bytes_read)}", "small soft")
    body += words(_LABEL + _BAR + 70, 34, f"computed, {flops(step.flops)}", "small soft")
    y = 42.0
    for part, read, work in _shares(step):
        body += words(0, y + 14, cut(PARTS.get(part, part), 12, _LABEL - 8))
        for x, share, look in ((_LABEL, read, "read"), (_LABEL + _BAR + 70, work, "work")):
            long = _BAR * share
            body += rectangle(x, y + 3, max(long, 0.8), 14, look, rx=2)
            if look == "work":
                body += path("".join(f"M{x + d} {y + 17}l7 -14" for d in range(2, int(long) - 7, 9)), "stripe")
            body += words(x + long + 6, y + 14, f"{share:.1%}", "small soft")
        y += _ROW
    return Figure(WIDTH, y + 4, body)


def _shares(step: CallFacts) -> list[tuple[str, float, float]]:
    """Return each part's share of the bytes read and of the operations; the smallest parts together."""
    rows: list[tuple[str, float, float]] = []
    rest = (0.0, 0.0)
    for part, work in step.by_part.items():
        read, done = work.bytes_read / (step.bytes_read or 1), work.flops / (step.flops or 1)
        if max(read, done) >= _LEAST:
            rows.append((part, read, done))
        else:
            rest = (rest[0] + read, rest[1] + done)
    return [*rows, ("all else", *rest)] if max(rest) >= 0.0005 else rows
