"""Dimensions, types, attributes, the builder, and the catalogue of graph errors."""

from __future__ import annotations

import ast
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from regraft.ir import attributes
from regraft.ir.attributes import BOOL, FLOAT, FLOATS, INT, INTS, STR, STRS, Kind, spell
from regraft.ir.builder import Builder
from regraft.ir.dims import B, Sym, T, evaluate, parse_dim, rows_of
from regraft.ir.errors import RegraftError, catalogue
from regraft.ir.errors.base import nearest
from regraft.ir.errors.graph import AttributeRgError, DimensionError, GraphError, OperandCountError
from regraft.ir.graph import Graph
from regraft.ir.op import Dims, Value, op_class
from regraft.ir.ops.core import Add, Concat, Linear, Norm, Scale
from regraft.ir.ops.fits import Moment
from regraft.ir.text import print_graph
from regraft.ir.types import ITEM_BITS, Field, MemoryType, TensorType

# -- dimensions


@st.composite
def expressions(draw: DrawFn, depth: int = 3) -> str:
    if depth == 0 or draw(st.booleans()):
        return draw(st.sampled_from(["B", "T", "S", "1", "7", "64"]))
    left = draw(expressions(depth - 1))
    sign = draw(st.sampled_from(["+", "-", "*", "//"]))
    right = str(draw(st.integers(1, 9))) if sign == "//" else draw(expressions(depth - 1))
    space = draw(st.sampled_from(["", " "]))
    return f"({left}{space}{sign}{space}{right})"


@settings(max_examples=300, deadline=None)
@given(expressions(), st.integers(1, 5), st.integers(1, 9), st.integers(1, 40))
def test_dimensions_mean_what_python_means_by_them(text: str, batch: int, tokens: int, context: int) -> None:
    sizes = {"B": batch, "T": tokens, "S": context}
    expected = eval(text, {"__builtins__": {}}, dict(sizes))
    try:
        dim = parse_dim(text)
    except DimensionError:
        assert not any(letter in text for letter in "BTS")
        assert expected <= 0
        return
    assert evaluate(dim, sizes) == expected
    assert parse_dim(str(dim)) == dim
    assert len(str(dim)) <= 3 * len(text)
    assert isinstance(dim, int) == (not any(letter in text for letter in "BTS"))


def test_one_spelling_for_each_dimension() -> None:
    assert parse_dim("  S//4 -(S - T)// 4 ") == Sym("S // 4 - (S - T) // 4")
    assert parse_dim("((B)*(T+S))") == Sym("B * (T + S)")
    assert parse_dim("(4)") == parse_dim("2 + 2") == 4
    assert parse_dim("S@layers.0.attn.memory") == rows_of("layers.0.attn.memory")


NO_DIMENSIONS = """-|0|-1|4 - 4|T // 0|T // S|T // (S - S)|X|T2|T.x|B(1)|T ** 2|T / 2|1.5|S@|S@a b|S@*
S @m|True|'T'|0x10|1_0|08|T if B else S|T;B|[T]|10 ** 99|T + (|\u0664|T\t+ 1|T\0""".replace("\n", "|").split("|")
LONG = ["9" * 5000, "(" * 5000, "-" * 190 + "1", "T + " * 60 + "T", "S@" + "m" * 100 + "*"]


@pytest.mark.parametrize("text", ["", " ", *NO_DIMENSIONS, *LONG])
def test_what_is_no_dimension(text: str) -> None:
    with pytest.raises(DimensionError) as caught:
        parse_dim(text)
    assert len(str(caught.value)) < 500


@settings(max_examples=200, deadline=None)
@given(st.text() | st.text("BTS()+-*/ 0123456789", max_size=30))
def test_any_text_is_a_dimension_or_is_refused(text: str) -> None:
    try:
        dim = parse_dim(text)
    except DimensionError:
        return
    assert parse_dim(str(dim)) == dim
    evaluate(dim, {"B": 1, "T": 2, "S": 3})


# -- types


def test_types_spell_and_count() -> None:
    tensor = TensorType("bf16", (B, T, 8, 16))
    assert str(tensor) == "bf16[B, T, 8, 16]"
    assert (tensor.sequence, tensor.static) == (T, False)
    assert tensor.nbytes({"B": 2, "T": 3}) == 2 * 3 * 8 * 16 * 2
    assert TensorType("f32", (B, rows_of("m"), 4)).sequence == rows_of("m")
    assert TensorType("f32", (parse_dim("T * 2"),)).sequence is None
    static = TensorType("f8e4m3", (3, 4))
    assert (static.static, static.sizes, static.nbytes({})) == (True, (3, 4), 12)
    memory = MemoryType("bf16", (Field("k", (4, 16)), Field("v", (4, 8))), 512)
    assert str(memory) == "memory<bf16; k [4, 16], v [4, 8]; window 512>"
    assert (memory.row_bytes, memory.rows(100), memory.rows(1000)) == ((64 + 32) * 2, 100, 512)
    assert memory.with_window(None).rows(1000) == 1000
    assert memory.field("v").shape == (4, 8)
    assert set(ITEM_BITS.values()) == {8, 16, 32, 64}


# -- attributes


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (INT, [0, -5, 2**63 - 1], [True, 1.0, "1", None, 2**63, 10**5000, [1]]),
        (FLOAT, [0, 1, -2.5, 1e308], [True, "1", None, float("nan"), float("inf"), 10**400, (1.0,)]),
        (STR, ["", "a\n\u221e"], [1, None, b"a"]),
        (BOOL, [True, False], [0, 1, "true", None]),
        (INTS, [(), [1, 2], (3,)], [1, (1.5,), (True,), "12", None]),
        (FLOATS, [(), [1, 2.5]], [1.0, ("1",), (float("inf"),)]),
        (STRS, [(), ["a"]], ["a", (1,)]),
    ],
)
def test_attributes_are_never_guessed(kind: Kind[object], good: list[object], bad: list[object]) -> None:
    for value in good:
        coerced = kind.coerce(value)
        assert coerced == (tuple(value) if isinstance(value, list) else value)  # pyright: ignore[reportUnknownArgumentType]
        spell(coerced)
    for value in bad:
        with pytest.raises(ValueError):  # noqa: PT011 (the kinds' own protocol; ops turn it into a coded error)
            kind.coerce(value)


def test_there_is_one_zero() -> None:
    assert str(FLOAT.coerce(-0.0)) == "0.0"


def test_values_in_messages_stay_short() -> None:
    graph = Graph("g")
    b = Builder(graph, "f32")
    x = graph.add_input("x", TensorType("f32", (B, T, 4)))
    for value in (10**5000, "x" * 10**6, [1] * 10**6, [10**5000]):
        with pytest.raises(AttributeRgError) as caught:
            b(Scale, "y", x, factor=value)
        assert len(str(caught.value)) < 400
    assert attributes.shown("short") == "'short'"


# -- ops and the builder


def test_what_letters_stand_for() -> None:
    dims = Dims({"M": 4}, (B, T))
    assert dims.shape("... M 3") == (B, T, 4, 3)
    assert (dims["M"], dims.size("M")) == (4, 4)
    assert str(dims) == "... = B, T, M = 4"
    assert str(Dims()) == "nothing is fixed yet"


def test_the_builder_names_by_scope_and_declares_weights_once() -> None:
    graph = Graph("g")
    b = Builder(graph, "bf16")
    tokens, pos = b.tokens()
    assert [str(v) for v in graph.values] == ["tokens", "pos", "valid"]
    assert tokens.type == pos.type
    x = graph.add_input("x", TensorType("bf16", (B, T, 4)))
    with b.scope("layers.3"), b.scope("mlp"):
        y = b(Norm, "norm", x, weight=None, eps=1e-6)
        z = b(Linear, "out", y, b.weight("w", 4, 4), bias=b.weight("bias", 4, dtype="bf16"))
    assert (y.name, z.name, b.path("q")) == ("layers.3.mlp.norm", "layers.3.mlp.out", "q")
    assert b.weight("w", 4, 4) is graph["w"]
    with pytest.raises(TypeError, match=r"core\.add takes"):
        b(Add, "y", x, x, x)
    with pytest.raises(TypeError, match=r"core\.linear has no operand bais"):
        b(Linear, "y", x, b.weight("w", 4, 4), bais=b.weight("bias", 4))
    with pytest.raises(AttributeRgError, match="unknown"):
        b(Add, "y", x, x, scale=1.0)
    with pytest.raises(OperandCountError, match="0 values for operand xs, expected 1 or more"):
        b(Concat, "y", [])


def test_layers_of_one_key_are_copied_with_their_names_and_edges() -> None:
    graph = Graph("g")
    b = Builder(graph, "f32")
    x = graph.add_input("x", TensorType("f32", (B, T, 4)))
    built: list[int] = []

    def body(b: Builder, number: int, inputs: object) -> list[Value]:
        assert isinstance(inputs, list)
        built.append(number)
        (x,) = inputs  # pyright: ignore[reportUnknownVariableType]
        assert isinstance(x, Value)
        b(Moment, "gram", a=x, source_b=f"layers.{number}.out", rows=4, columns=2)
        h = b(Linear, "h", x, b.weight(f"model.layers.{number}.w", 4, 4))
        return [b(Linear, "out", h, b.weight("model.shared", 4, 4)), x]

    for number in range(4):
        x, before = b.layer(number, "key", [x], body)
        assert before.name == ("x" if number == 0 else f"layers.{number - 1}.out")
    x, _ = b.layer(4, "another", [x], body)
    graph.set_outputs([x])
    graph.verify()
    assert built == [0, 4]
    moment = graph["layers.3.gram"].op
    assert isinstance(moment, Moment)
    assert (moment.source_b, moment.a) == ("layers.3.out", graph["layers.2.out"])
    assert len(graph["model.shared"].users) == 5
    assert "layers 1..4 = " in print_graph(graph)


# -- errors


def graph_errors() -> list[type[RegraftError]]:
    return [error for error in catalogue().values() if issubclass(error, GraphError)]


def test_graph_errors_are_in_the_catalogue_by_code() -> None:
    codes = [error.code for error in graph_errors()]
    assert len(codes) == len(set(codes)) >= 20
    assert all(code.startswith("RG0") for code in codes)
    for error in graph_errors():
        assert error.exit_code in (2, 3)
        assert error.hint, error
        assert (error.__doc__ or "").endswith(".")


def _raised() -> dict[str, set[frozenset[str]]]:
    """The fields with which each error is raised anywhere in ir."""
    from pathlib import Path

    found: dict[str, set[frozenset[str]]] = {}
    for path in (Path(__file__).parents[2] / "ir").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("Error"):
                names = frozenset(keyword.arg or "" for keyword in node.keywords)
                found.setdefault(node.func.id, set()).add(names)
    return found


def test_errors_are_raised_with_the_fields_of_their_templates() -> None:
    raised = _raised()
    for error in catalogue().values():
        texts = (error.message, error.hint)
        needed = {name for text in texts for _, name, _, _ in string.Formatter().parse(text) if name}
        for fields in raised.get(error.__name__, set()):
            assert needed <= fields, f"{error.__name__} needs {needed}, is raised with {set(fields)}"


def test_graph_errors_are_raised_somewhere() -> None:
    raised = _raised()
    assert [error.__name__ for error in graph_errors() if error.__name__ not in raised] == []


def test_nearest_names_stay_few() -> None:
    assert nearest("core.ad", ["core.add", "core.mul"]).startswith("did you mean core.add")
    assert nearest("zzz", ["b", "a"]) == "legal: a, b"
    assert nearest("zzz", []) == "legal: none"
    assert nearest("zzz", [f"v{i:03}" for i in range(100)]).endswith("v029 and 70 more")


def test_unknown_ops_offer_others() -> None:
    with pytest.raises(GraphError, match=r"did you mean attn\.attend"):
        op_class("attn.atend")
