from __future__ import annotations

import re
from itertools import pairwise

from regraft.frontends.folder import open_model
from regraft.frontends.lift import lift
from regraft.ir.graph import Graph
from regraft.ir.ops.attn import Attend
from regraft.views.drawing.cache_chart import Curve, cache_chart, curves, in_words

ROW = 2 * 2 * 8 * 2  # bytes: keys and values, 2 heads of 8, bf16


def test_curves_are_what_is_held_and_what_would_be(tiny: Graph) -> None:
    found = {curve.label: dict(curve.points) for curve in curves(tiny, 4096)}
    assert list(found) == ["held", "without windows", "without sharing", "without either"]
    assert list(found["held"]) == [1024, 2048, 4096]
    assert found["held"][4096] == (4096 + 2 * 16) * ROW
    assert found["without windows"][4096] == 3 * 4096 * ROW
    assert found["without sharing"][4096] == (2 * 4096 + 2 * 16) * ROW
    assert found["without either"][4096] == 4 * 4096 * ROW


def test_conventions_without_a_difference_are_left_out() -> None:
    graph = lift(open_model("builtin:Llama-3.2-1B")).graph
    assert [curve.label for curve in curves(graph, 131072)] == ["held"]
    assert [n for n, _ in curves(graph, 131072)[0].points][-1] == 131072
    assert [n for n, _ in curves(graph, 2**30)[0].points][-1] == 2**20


def test_two_graphs_are_compared(tiny: Graph) -> None:
    after = tiny.copy()
    for op in after.in_layer(2, Attend):
        after.set_operand(op, "memory", after["layers.1.attn.memory"])
    after.drop_dead()
    held, before = curves(after, 2048, tiny)
    assert (held.label, before.label) == ("held", "held before")
    assert before.points[0][1] - held.points[0][1] == 16 * ROW


def test_curves_rise_to_the_right_and_labels_do_not_meet(tiny: Graph) -> None:
    drawn = curves(tiny, 131072)
    body = cache_chart(drawn).body
    for i, curve in enumerate(drawn):
        line = re.search(rf'd="M([^"]*)" class="curve c{i}"', body)
        assert line is not None
        points = [tuple(map(float, each.split())) for each in line[1].split("L")]
        assert points == sorted(points)
        assert [y for _, y in points] == sorted((y for _, y in points), reverse=True)
        assert len(points) == len(curve.points)
    places = sorted(float(y) for y in re.findall(r'y="([\d.]+)" class="small(?: bold)?">[hw]', body))
    assert len(places) == 4
    assert all(below - above >= 14 for above, below in pairwise(places))


def test_a_model_that_keeps_nothing_says_so() -> None:
    graph = Graph("nothing")
    assert curves(graph, 4096) == ()
    assert "Nothing is kept" in cache_chart(()).body
    assert in_words(()) == "No cache grows with the context"
    assert in_words((Curve("held", ((1024, 2048), (2048, 4096))),)).endswith("at 2k tokens: held 4.00 KiB")
