"""The parser: whatever the text, a graph or one error that says where."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from regraft.ir.errors import RegraftError
from regraft.ir.errors.graph import GraphError
from regraft.ir.parse import parse_graph
from regraft.ir.text import print_graph
from tests.ir.models import FULL, LayerSpec, decoder

MANY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
HEAD = "graph @g (%x: f32[B, T, 4]) {\n"
VALID = [
    print_graph(decoder([FULL, FULL, LayerSpec(window=3)])),
    print_graph(decoder([LayerSpec(moe=True), replace(FULL, donor=0, heads=3, head_map=(0, 0, 1))])),
    *(
        path.read_text(encoding="utf-8").split("// -----")[0]
        for path in sorted((Path(__file__).parent / "ops").glob("*.rg"))
    ),
]
PIECES = [
    *sorted({piece for text in VALID for piece in re.findall(r"[\w.%@*-]+|\S", text)}),
    *("layers 0..3 = @full(%-1.out)", "block @b() {", "layers.00.x", "%layers.3", "%-1.", "%layers.*.x", "window 0"),
    *("f32[T // 0]", "f32[(B + S) * T // 7]", "S@", "S@m", "[[", "]]", "//", "//x\n"),
    *("\\", "\0", "é", '"\\ud800"', '"'),
    *("9" * 40, "1e999", "-1", "..", "1.5.5", "none"),
]  # fmt: skip


def parses_or_points(text: str) -> None:
    try:
        graph = parse_graph(text, "f.rg")
    except GraphError as error:
        place = re.match(r"f\.rg:(\d+):(\d+)", error.where)
        assert place, error
        line = text.split("\n")[int(place[1]) - 1]
        assert 1 <= int(place[2]) <= len(line) + 1
        shown, marker = error.excerpt
        assert len(marker) <= len(shown) + 1
        assert len(error.text) < 2000
    else:
        assert parse_graph(print_graph(graph)).equals(graph)


@MANY
@given(st.text())
def test_any_text(text: str) -> None:
    parses_or_points(text)
    parses_or_points(HEAD + text)


@MANY
@given(st.lists(st.sampled_from(PIECES), max_size=40), st.sampled_from(["", " ", "\n"]))
def test_any_sequence_of_pieces(pieces: list[str], between: str) -> None:
    parses_or_points(between.join(pieces))
    parses_or_points(HEAD + between.join(pieces))


@MANY
@given(st.sampled_from(VALID), st.data())
def test_valid_text_with_something_else_in_one_place(text: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(text)))
    stop = min(len(text), start + data.draw(st.sampled_from([0, 0, 1, 2, 5, 40, 400])))
    parses_or_points(text[:start] + data.draw(st.sampled_from(PIECES) | st.text(max_size=3)) + text[stop:])


@MANY
@given(st.sampled_from(VALID), st.data())
def test_valid_text_with_lines_lost_moved_or_doubled(text: str, data: st.DataObject) -> None:
    lines = text.split("\n")
    for _ in range(data.draw(st.integers(1, 3))):
        line = lines.pop(data.draw(st.integers(0, len(lines) - 1)))
        for _ in range(data.draw(st.integers(0, 2))):
            lines.insert(data.draw(st.integers(0, len(lines))), line)
        if not lines:
            break
    parses_or_points("\n".join(lines))


def ops(line: str) -> str:
    return f"{HEAD}  {line}\n  return %y\n}}\n"


def attribute(value: str) -> str:
    return ops(f"%y = core.scale %x {{factor = {value}}}")


def typed(type: str) -> str:
    return ops(f"%y = core.scale %x {{factor = 1}} : {type}")


@pytest.mark.parametrize(
    ("text", "message", "place"),
    [
        ("", "expected 'graph', found 'the end of the text'", "1:1"),
        ("graph @g", "expected '(', found 'the end of the text'", "1:9"),
        ("graph @g (%é: f32[B]) {", "expected a value such as %x, found '%'", "1:11"),
        (HEAD + "  return %x", "expected '}', found 'the end of the text'", "2:12"),
        (HEAD + "  return %x\n}\n}", "expected the end of the text, found '}'", "4:1"),
        (HEAD + "  return %z\n}", "%z is used but not made before; legal: x", "2:10"),
        (ops("%y = core.ad %x, %x"), "unknown op core.ad; did you mean core.add", "2:8"),
        (ops("%x = core.add %x, %x"), "%x is made twice", "2:8"),
        (ops("%y = core.add %x, %x, %x"), "expected the operands of core.add", "2:25"),
        (ops("%y = core.add %x, q=%x"), "expected an operand of core.add", "2:23"),
        (attribute(""), "expected a number, string, list, true, false or none", "2:32"),
        (attribute("1, factor = 2"), "expected each attribute once, found factor again", "2:35"),
        (attribute("true"), "attribute factor: True is not a finite number", "2:8"),
        (attribute("1e999"), "expected a number of 64 bits, found '1e999'", "2:32"),
        (attribute("9" * 5000), "expected a number of 64 bits", "2:32"),
        (attribute("[" * 5000), "expected a number, string, list", "2:48"),
        (ops('%y = core.activation %x {kind = "\\x"}'), "expected a JSON string", "2:35"),
        (ops('%y = core.activation %x {kind = "silu}'), "list, true, false or none, found '\"'", "2:35"),
        (typed("f32[B, T, 5]"), "the text says f32[B, T, 5], the op makes f32[B, T, 4]", "2:8"),
        (typed("f32[B, T, 4], f32[B]"), "expected 1 types, found 2", "2:8"),
        (typed("f31[B, T, 4]"), "expected a dtype, found 'f31'", "2:37"),
        (typed("f32[B, T / 2, 4]"), "'T / 2' is no dimension", "2:44"),
        (typed("f32[B, T // S, 4]"), "'T // S' is no dimension", "2:44"),
        (typed("f32[B, T // 0, 4]"), "'T // 0' is no dimension", "2:44"),
        (typed("f32[B, 4 - 4, 4]"), "'4 - 4' is no dimension", "2:44"),
        (typed("f32[B, , 4]"), "'' is no dimension", "2:44"),
        (typed("f32[B, " + "(" * 900), "is no dimension", "2:44"),
        (typed("f32[B" + " + B" * 900), "is no dimension", "2:41"),
        (typed("f32[" + "9" * 5000 + "]"), "is no dimension", "2:41"),
        (ops("%layers..y = core.scale %x {factor = 1}"), "'layers..y' is no name for a value", "2:16"),
        (ops("%layers.*.y = core.scale %x {factor = 1}"), "'layers.*.y' is no name for a value", "2:17"),
        (ops("%-1.y = core.scale %x {factor = 1}"), "'-1.y' is no name for a value", "2:11"),
        ("graph @g (%x: memory<f32; k [4], k [4]>) {", "expected each field once, found k again", "1:34"),
        ("graph @g (%x: memory<f32; k [T]>) {", "expected integers, found [T]", "1:27"),
        ("graph @g (%x: memory<f32; k [4]; window 0>) {", "expected a window of at least one row, found 0", "1:34"),
        ("graph @g (%x, %y: f32[B], %x: f32[B]) {", "%x is made twice", "1:27"),
        ("graph @g {a = 1, a = 2} (%x: f32[B]) {", "expected each attribute once", "1:18"),
    ],
)  # fmt: skip
def test_one_thing_wrong(text: str, message: str, place: str) -> None:
    parses_or_points(text)
    with pytest.raises(GraphError) as caught:
        parse_graph(text, "f.rg")
    assert message in caught.value.text
    assert caught.value.where.split()[0] == f"f.rg:{place}"


FACTR, UNKNOWN, SHADOW = (
    f"    %{line}\n"
    for line in (
        "out = core.scale %x {factr = 2.0}",
        "out = core.scale %y {factor = 2.0}",
        "x = core.scale %x {factor = 2.0}",
    )
)


def blocks(
    calls: str, body: str = "    %out = core.scale %x {factor = 2.0}\n", inputs: str = "%x: f32[B, T, 4]"
) -> str:
    return f"{HEAD}  block @b({inputs}) {{\n{body}  }}\n{calls}\n  return %x\n}}\n"


@pytest.mark.parametrize(
    ("text", "message", "place"),
    [
        (blocks(""), "expected a layer that is @b, found none", "2:9"),
        (blocks("  layers 0 = @c(%x)"), "expected a block (legal: @b), found @c", "5:14"),
        (blocks("  layers 0 = @b()"), "expected 1 arguments, found 0", "5:14"),
        (blocks("  layers 0, 0 = @b(%x)"), "expected each layer once, found layer 0 again", "5:10"),
        (blocks("  layers 3..1 = @b(%x)"), "expected an ascending range below 100000, found 3..1", "5:10"),
        (blocks("  layers 0..100000 = @b(%x)"), "expected an ascending range below 100000", "5:10"),
        (blocks("  layers 0 = @b(%-1.out)"), "%layers.-1.out is used but not made before", "5:17"),
        (blocks("  layers 0 = @b(%x)\n  layers 2 = @b(%-1.out)"), "%layers.1.out is used but not made", "6:17"),
        (blocks("  layers 0 = @b(%x)", inputs="%x: f32[B, T, 5]"), "a value of type f32[B, T, 5] for %x of @b", "5:17"),
        (blocks("  layers 0 = @b(%x)", inputs="%x, %x: f32[B, T, 4]"), "%x is made twice", "2:16"),
        (blocks("  layers 0 = @b(%x)", SHADOW), "%x is made twice", "3:10"),
        (blocks("  layers 0..7 = @b(%x)", FACTR), "attribute factr: unknown", "3:12"),
        (blocks("  layers 0..7 = @b(%x)", UNKNOWN), "%layers.0.y is used but not made", "3:23"),
    ],
)  # fmt: skip
def test_one_thing_wrong_in_layers(text: str, message: str, place: str) -> None:
    parses_or_points(text)
    with pytest.raises(GraphError) as caught:
        parse_graph(text, "f.rg")
    assert message in caught.value.text
    assert caught.value.where.split()[0] == f"f.rg:{place}"


def test_the_whole_message() -> None:
    text = blocks("  layers 0..7 = @b(%x)", "    %attn.out = core.scale %x {factr = 2.0}\n")
    with pytest.raises(GraphError) as caught:
        parse_graph(text, "tiny.rg")
    assert str(caught.value).split("\n") == [
        "error[RG006]: core.scale: attribute factr: unknown; did you mean factor?",
        "  --> tiny.rg:3:17",
        "    3 |     %attn.out = core.scale %x {factr = 2.0}",
        "      |                 ^^^^^^^^^^",
        "  = help: core.scale takes factor = a finite number",
    ]


def test_a_long_line_is_shown_around_the_place() -> None:
    text = ops("%y = core.scale %x {factor = [" + "1, " * 3000 + "?]}")
    with pytest.raises(RegraftError) as caught:
        parse_graph(text, "f.rg")
    shown, marker = caught.value.excerpt
    assert len(shown) < 170
    assert shown[marker.index("^")] == "?"


def test_layers_are_bounded_in_number() -> None:
    body = "".join(f"    %v{i} = core.scale %x {{factor = 2.0}}\n" for i in range(50))
    with pytest.raises(GraphError, match="at most 1000000 ops"):
        parse_graph(blocks("  layers 0..99999 = @b(%x)", body))
    many = ", ".join(["0..99999"] * 2000)
    with pytest.raises(GraphError, match="ascending range"):
        parse_graph(blocks(f"  layers {many} = @b(%x)"))


def test_comments_and_shared_types_and_types_left_out() -> None:
    graph = parse_graph(
        """
        // the donor and its reader
        graph @pair(%q0, %q1: bf16[B, T, 8, 16], %k, %v: bf16[B, T, 4, 16], %s: f32[B, S // 4 - (S - T) // 4]) {
          %m = state.kv %k, %v // one memory
          %c0 = attn.attend %q0, %m {scale = 0.25}
          %c1 = attn.attend %q1, %m {scale = 0.25, head_map = [0, 0, 0, 0,
                                                               1, 1, 2, 3]}
          return %c0, %c1
        }"""
    )
    assert [str(v.type) for v in graph.inputs] == [
        *["bf16[B, T, 8, 16]"] * 2,
        *["bf16[B, T, 4, 16]"] * 2,
        "f32[B, S // 4 - (S - T) // 4]",
    ]
    assert graph["c1"].op is not None
    assert len(graph["m"].users) == 2
