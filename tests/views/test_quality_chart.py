from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from regraft.views.drawing.quality_chart import HEIGHT, WIDTH, Point, frontier, quality_chart

POINTS = st.builds(Point, st.text("abc", min_size=1, max_size=8), st.integers(1, 2**40), st.floats(1e-6, 1e3))


@given(st.lists(POINTS, min_size=1, max_size=12))
def test_the_frontier_has_those_that_no_other_is_better_than_in_both(points: list[Point]) -> None:
    best = frontier(points)
    for i, point in enumerate(points):
        as_good = {(p.cache, p.loss) for p in points if p.cache <= point.cache and p.loss <= point.loss}
        if i in best:
            assert as_good == {(point.cache, point.loss)}
        else:
            assert as_good & {(points[j].cache, points[j].loss) for j in best}


@given(st.lists(POINTS, min_size=1, max_size=12))
def test_marks_stand_within_the_axes(points: list[Point]) -> None:
    body = quality_chart(points, "KL").body
    for x, y in re.findall(r'<circle cx="([-\d.]+)" cy="([-\d.]+)"', body):
        assert 0 <= float(x) <= WIDTH
        assert 0 <= float(y) <= HEIGHT


def test_smaller_caches_stand_left_and_smaller_losses_below() -> None:
    body = quality_chart([Point("small", 2**20, 0.1), *(Point(str(i), 2**22, 1.0) for i in range(4))], "KL").body
    small = re.search(r'cx="([\d.]+)" cy="([\d.]+)" r="3.2" class="m0"', body)
    other = re.search(r'cx="([\d.]+)" cy="([\d.]+)" r="3.2" class="m4"', body)
    assert small is not None
    assert other is not None
    assert float(small[1]) < float(other[1])
    assert float(small[2]) > float(other[2])
