"""Every op: its text reads back, it verifies, it has a cost, and a valid and an invalid text stand in tests/ir/ops."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regraft.ir.errors import RegraftError
from regraft.ir.errors.graph import GraphError
from regraft.ir.graph import Graph
from regraft.ir.op import REGISTRY, Cost, op_class
from regraft.ir.parse import parse_graph
from regraft.ir.text import print_graph
from tests.ir.strategies import RULES, graphs_with

op_class("core.add")  # registers all
NAMES = sorted(REGISTRY)
FOLDER = Path(__file__).parent / "ops"
FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def round_trip(graph: Graph) -> None:
    text = print_graph(graph)
    again = parse_graph(text)
    assert graph.equals(again), text
    assert print_graph(again) == text


def test_every_op_has_a_strategy_and_a_text_test() -> None:
    assert set(RULES) == set(NAMES)
    assert {path.stem for path in FOLDER.glob("*.rg")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_text_reads_back_and_costs_are_counts(name: str) -> None:
    @FEW
    @given(graph=graphs_with(name), batch=st.integers(1, 4), tokens=st.integers(1, 9), past=st.integers(0, 9))
    def check(graph: Graph, batch: int, tokens: int, past: int) -> None:
        round_trip(graph)
        graph.verify()
        at = {"B": batch, "T": tokens, "S": tokens + past}
        for op in graph.ops:
            cost = op.cost(at)
            assert all(isinstance(count, int) and count >= 0 for count in vars(cost).values())
            assert cost + Cost() == cost
            assert op.idle_parameters() >= 0

    check()


class TextTest:
    """One graph of a file in tests/ir/ops, and the start of the message that it must give."""

    def __init__(self, path: Path, before: str, chunk: str) -> None:
        self.path = path
        lines = chunk.split("\n")
        # lines before the graph stay, so that messages count lines as the file has them
        self.text = "\n" * before.count("\n") + "\n".join(line for line in lines if not line.startswith("//"))
        comments = [line for line in lines if line.startswith("// ")]
        self.expected = [line.removeprefix("// ERROR: ").removeprefix("//        ") for line in comments]

    @property
    def id(self) -> str:
        return f"{self.path.stem}: {self.text.partition('@')[2].partition(' ')[0]}"


def _text_tests() -> list[TextTest]:
    tests: list[TextTest] = []
    for path in sorted(FOLDER.glob("*.rg")):
        before = ""
        for chunk in path.read_text(encoding="utf-8").split("// -----\n"):
            tests.append(TextTest(path, before, chunk))
            before += chunk + "// -----\n"
    return tests


TEXT_TESTS = _text_tests()


@pytest.mark.parametrize("test", TEXT_TESTS, ids=lambda test: test.id)
def test_text(test: TextTest) -> None:
    if not test.expected:
        round_trip(parse_graph(test.text, test.path.name))
        return
    with pytest.raises(RegraftError) as caught:
        parse_graph(test.text, test.path.name)
    found = str(caught.value).split("\n")
    assert found[: len(test.expected)] == test.expected


def test_every_op_has_a_valid_and_an_invalid_text() -> None:
    for path in FOLDER.glob("*.rg"):
        mine = [bool(test.expected) for test in TEXT_TESTS if test.path == path]
        assert mine[0] is False, path
        assert any(mine), path


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_the_docstring_stands_in_the_valid_text(name: str) -> None:
    doc = inspect.getdoc(op_class(name)) or ""
    examples = [line.strip() for line in doc.partition("Example:\n")[2].split("\n")]
    assert examples, doc
    lines = [
        line.strip() for line in (FOLDER / f"{name}.rg").read_text(encoding="utf-8").split("// -----")[0].split("\n")
    ]
    assert [line for line in examples if line not in lines] == []


def _pool() -> Graph:
    """Values of every sort that an op could be given by mistake."""
    return parse_graph(
        """
        graph @pool(%a: f32[B, T, 4], %b: bf16[B, T, 4], %c: f32[B, T, 2, 2], %d: f32[B, T], %e: i64[B, T], %f: f32[],
                    %g: f32[B, S@m, 4], %h: f32[B, S@m, 2, 2], %i: i64[B, S@m], %j: f32[4, 4], %k: f32[T, B, 2, 2],
                    %l: f32[B, T, S // 4], %m: memory<f32; k [2, 2], v [2, 2]>, %n: memory<f32; rows [4]>, %o: i64[B],
                    %p: memory<bf16; k [2, 2], v [2, 3]; window 2>, %q: bool[B, T, 2], %r: f64[B, T, 4, 4, 4]) {
          %u = weight.load : f32[4, 4]
          %v = weight.load : f32[4]
          %w = weight.load : f64[4, 4]
          %x = weight.load : f32[2, 8, 4]
          %y = weight.load : i8[]
          %z = weight.load : f32[2, 4, 4]
          return %a
        }"""
    )


POOL = sorted(_pool().values)
VALUES = (
    st.integers(-3, 9)
    | st.sampled_from([2**62, 2**63 - 1, 0.5, -1.0, True, None, "silu", "f32", "yarn", "{}", "x", 1e300, 1e-300])
    | st.lists(st.integers(-1, 4), max_size=4) | st.lists(st.floats(-2, 2), max_size=3)
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_whatever_an_op_is_given_it_is_refused_by_a_rule_or_reads_back(name: str) -> None:
    cls = op_class(name)

    @settings(max_examples=60, deadline=None)
    @given(st.data())
    def check(data: st.DataObject) -> None:
        graph = _pool()
        slots = {
            slot.name: [
                graph[data.draw(st.sampled_from(POOL))]
                for _ in range(data.draw(st.integers(0 if slot.optional else 1, 1 + slot.variadic)))
            ]
            for slot in cls.spec.slots
        }
        declared = cls.spec.attributes.items()
        given_ = {key: data.draw(VALUES) for key, each in declared if each.required or data.draw(st.booleans())}
        count = data.draw(st.integers(1, 3)) if cls.many_results else len(cls.spec.results)
        names = [f"layers.5.r{i}" for i in range(count)]
        before = graph.copy()
        try:
            results = graph.add(cls(slots, given_), names)
        except GraphError as error:
            assert str(error)
            assert graph.equals(before)
            return
        graph.set_outputs(results)
        round_trip(graph)
        op = results[0].op
        assert op is not None
        if not op.weight_time:
            assert op.cost({"B": 2, "T": 3, "S": 8}).flops >= 0

    check()
