from __future__ import annotations

from collections.abc import Mapping, Sequence

from hypothesis import given
from hypothesis import strategies as st

from regraft.views.drawing.layering import Box, Placed, place

Drawing = tuple[dict[str, Box], list[tuple[str, str]]]


@st.composite
def graphs(draw: st.DrawFn) -> Drawing:
    names = [f"n{i}" for i in range(draw(st.integers(1, 12)))]
    sizes = st.floats(1, 200)
    boxes = {name: Box(draw(sizes), draw(sizes)) for name in names}
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    return boxes, draw(st.lists(st.sampled_from(pairs), unique=True, max_size=24)) if pairs else []


def _spans(placed: Placed, boxes: Mapping[str, Box]) -> Sequence[tuple[float, float, float, float]]:
    found: list[tuple[float, float, float, float]] = []
    for name, (x, y) in placed.corners.items():
        found.append((x, y, x + boxes[name].width, y + boxes[name].height))
    return found


@given(graphs())
def test_boxes_do_not_overlap_and_edges_go_down(drawing: Drawing) -> None:
    boxes, edges = drawing
    placed = place(boxes, edges, 20.0)
    assert placed.corners.keys() == boxes.keys()
    spans = _spans(placed, boxes)
    for i, (left, top, right, bottom) in enumerate(spans):
        assert left >= -1e-6
        assert right <= placed.width + 1e-6
        assert bottom <= placed.height + 1e-6
        for other in spans[i + 1 :]:
            apart = right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
            assert apart
    for source, target in edges:
        assert placed.corners[source][1] + boxes[source].height + 20.0 <= placed.corners[target][1] + 1e-6


@given(graphs())
def test_lines_go_down_and_pass_no_box(drawing: Drawing) -> None:
    boxes, edges = drawing
    placed = place(boxes, edges, 20.0)
    spans = _spans(placed, boxes)
    for points in placed.lines.values():
        assert [y for _, y in points] == sorted(y for _, y in points)
        for x, y in points[1:]:
            assert not any(left < x < right and top < y < bottom for left, top, right, bottom in spans)


def test_a_chain_stands_in_one_column() -> None:
    boxes = {name: Box(width, 10) for name, width in (("a", 30), ("b", 90), ("c", 50))}
    placed = place(boxes, [("a", "b"), ("b", "c")], 5.0)
    centres = {placed.corners[name][0] + box.width / 2 for name, box in boxes.items()}
    assert max(centres) - min(centres) < 0.01


def test_a_plane_graph_is_drawn_without_crossings() -> None:
    boxes = {name: Box(10, 10) for name in ("a", "b", "c", "d", "e", "f")}
    placed = place(boxes, [("a", "e"), ("b", "d"), ("c", "f"), ("a", "d"), ("b", "f")], 5.0)
    ends = sorted((placed.corners[s][0], placed.corners[t][0]) for s, t in placed.lines)
    assert [t for _, t in ends] == sorted(t for _, t in ends)
