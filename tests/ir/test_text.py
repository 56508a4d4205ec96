"""The text form: graphs of layers are folded into block kinds and read back as they were."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from regraft.ir.builder import Builder
from regraft.ir.dims import B, T
from regraft.ir.graph import Graph
from regraft.ir.kinds import Layer, block_kinds, split_layers
from regraft.ir.op import Value, op_class
from regraft.ir.ops.core import Add, Linear, Mul, Scale
from regraft.ir.parse import parse_graph
from regraft.ir.text import print_graph
from regraft.ir.types import TensorType
from tests.ir.models import FULL, LayerSpec, decoder
from tests.ir.strategies import STRINGS

MANY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
GOLDEN = Path(__file__).parent / "golden"
SLIDING = LayerSpec(window=3)


def round_trip(graph: Graph) -> str:
    text = print_graph(graph)
    again = parse_graph(text)
    assert graph.equals(again), text
    assert print_graph(again) == text
    return text


def called(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip().startswith("layers ")]


@st.composite
def specs(draw: DrawFn) -> list[LayerSpec]:
    layers: list[LayerSpec] = []
    for number in range(draw(st.integers(1, 9))):
        spec = draw(
            st.sampled_from([FULL, FULL, SLIDING, LayerSpec(window=5), LayerSpec(moe=True), LayerSpec(tied=True)])
        )
        owners = [n for n, layer in enumerate(layers) if layer.donor is None]
        if owners and draw(st.booleans()):
            spec = replace(spec, donor=draw(st.sampled_from(owners)))
        if draw(st.integers(0, 3)) == 0:
            spec = replace(spec, heads=3, head_map=(0, 0, 1))
        if number and draw(st.integers(0, 3)) == 0:
            spec = replace(spec, skip=draw(st.integers(0, number - 1)))
        layers.append(spec)
    return layers


@MANY
@given(specs())
def test_decoders_of_any_layers_read_back(layers: list[LayerSpec]) -> None:
    graph = decoder(layers)
    text = round_trip(graph)
    kinds = block_kinds(graph)
    assert text.count("block @") == len(kinds)
    folded = {n for kind in kinds for n in kind.numbers}
    first_tied = [n for n, layer in enumerate(layers) if layer.tied and not layer.moe][
        :1
    ]  # it declares them amid its ops
    assert folded == set(range(len(layers))) - set(first_tied)


@pytest.mark.parametrize("count", [1, 2, 8, 80])
def test_text_is_as_short_for_many_layers_as_for_few(count: int) -> None:
    text = round_trip(decoder([FULL] * count))
    assert text.count("\n") == print_graph(decoder([FULL] * 2)).count("\n") - (count == 1)


def test_alternating_kinds_stand_once_each() -> None:
    text = round_trip(decoder([SLIDING, FULL] * 6))
    assert [line.split("(")[0] for line in called(text)] == [
        "layers 0 = @sliding",
        "layers 1, 3, 5, 7, 9, 11 = @full",
        "layers 2, 4, 6, 8, 10 = @sliding",
    ]


def test_readers_name_the_memory_they_read() -> None:
    reader = replace(FULL, donor=0)
    text = round_trip(decoder([FULL, reader, reader, reader]))
    assert called(text) == [
        "layers 0 = @full(%embed, %pos)",
        "layers 1 = @full_reader(%-1.out, %pos, %-1.attn.memory)",
        "layers 2..3 = @full_reader(%-1.out, %pos, %layers.0.attn.memory)",
    ]


def test_a_value_from_further_back_is_an_argument() -> None:
    text = round_trip(decoder([FULL, FULL, FULL, replace(FULL, skip=0), replace(FULL, skip=1)]))
    assert called(text)[-2:] == [
        "layers 3 = @full_2(%-1.out, %pos, %layers.0.out)",
        "layers 4 = @full_2(%-1.out, %pos, %layers.1.out)",
    ]


def test_weights_tied_across_layers_are_one_argument() -> None:
    text = round_trip(decoder([LayerSpec(tied=True)] * 4))
    assert text.count("%model.shared_mlp.up_proj.weight = weight.load") == 1
    assert "%model.shared_mlp.up_proj.weight" in called(text)[-1]


def _chain() -> tuple[Graph, Builder, Value]:
    graph = Graph("chain")
    b = Builder(graph, "f32")
    return graph, b, graph.add_input("x", TensorType("f32", (B, T, 4)))


def _layer(b: Builder, number: int, x: Value) -> Value:
    with b.scope(f"layers.{number}"):
        h = b(Linear, "h", x, b.weight(f"model.layers.{number}.w", 4, 4))
        return b(Add, "out", x, h)


def test_ops_between_layers_stay_where_they_are() -> None:
    graph, b, x = _chain()
    for number in range(6):
        x = _layer(b, number, x)
        if number in (1, 4):
            x = b(Scale, f"between_{number}", x, factor=0.5)
    graph.set_outputs([x])
    assert [line.split("(")[0] for line in called(round_trip(graph))] == [
        "layers 0 = @block",
        "layers 1 = @block",
        "layers 2 = @block",
        "layers 3..4 = @block",
        "layers 5 = @block",
    ]


def test_layers_in_pieces_and_out_of_turn_are_printed_op_by_op() -> None:
    graph, b, x = _chain()
    first = x = _layer(b, 0, x)
    x = _layer(b, 5, x)
    x = _layer(b, 3, x)  # after layer 5
    with b.scope("layers.0"):
        first = b(Mul, "late", first, x)  # layer 0 goes on
    x = _layer(b, 6, first)
    graph.set_outputs([x])
    text = round_trip(graph)
    assert [line.split(" = ")[0] for line in called(text)] == ["layers 5", "layers 6"]
    assert "%layers.3.h" in text
    assert "%layers.0.late" in text


def test_layers_that_return_and_names_that_look_like_layers() -> None:
    graph, b, x = _chain()
    a = _layer(b, 0, x)
    odd = b(Scale, "layers.1", a, factor=2.0)  # no layer: the number is the last part
    zero = b(Scale, "layers.01.y", odd, factor=3.0)
    deep = b(Scale, "encoder.layers.7.x", zero, factor=3.0)
    twice = b(Scale, "layers.8.encoder.layers.9.x", deep, factor=3.0)
    graph.set_outputs([a, odd, zero, deep, twice])
    round_trip(graph)
    layers = [item for item in split_layers(graph) if isinstance(item, Layer)]
    assert [layer.number for layer in layers] == [0, 7, 8]
    assert [v.name for v in layers[0].outputs] == ["layers.0.out"]


@MANY
@given(st.integers(0, 3), STRINGS, st.data())
def test_attributes_keep_their_text_within_a_block(number: int, text: str, data: st.DataObject) -> None:
    graph, b, x = _chain()
    for layer in range(4):
        source = data.draw(
            st.sampled_from([text, f"layers.{layer}.out", f"layers.{number}.out", f"a.layers.{layer}.*.b"])
        )
        with b.scope(f"layers.{layer}"):
            b(op_class("weight.moment"), "c", a=x, source_b=source, rows=4, columns=2)
            x = b(Scale, "out", x, factor=1.0)
    graph.set_outputs([x])
    round_trip(graph)


def test_an_edge_named_in_its_own_layer_folds() -> None:
    graph, b, x = _chain()
    for layer in range(12):
        with b.scope(f"layers.{layer}"):
            b(op_class("weight.moment"), "c", a=x, source_b=f"layers.{layer}.out", rows=4, columns=2)
            x = b(Scale, "out", x, factor=1.0)
    graph.set_outputs([x])
    text = round_trip(graph)
    assert 'source_b = "layers.*.out"' in text
    assert called(text) == ["layers 0 = @block(%x)", "layers 1..11 = @block(%-1.out)"]


@MANY
@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True),
        st.recursive(
            st.none() | st.booleans() | STRINGS | st.floats(allow_nan=False, allow_infinity=False)
            | st.integers(-(2**63) + 1, 2**63 - 1),
            lambda inner: st.lists(inner, max_size=3),
            max_leaves=6,
        ),
        max_size=4,
    ),
    st.text(),
)  # fmt: skip
def test_facts_of_any_value_read_back(meta: dict[str, object], name: str) -> None:
    graph = Graph(name, meta)
    graph.set_outputs([graph.add_input("x", TensorType("i64", (B, T)))])
    round_trip(graph)


def test_facts_that_text_cannot_hold_are_refused_at_once() -> None:
    for value in ({"a": 1}, object(), float("nan"), 2**63, [float("inf")]):
        with pytest.raises(TypeError, match="text cannot hold"):
            Graph("g", {"fact": value})
    with pytest.raises(TypeError, match="text cannot hold"):
        Graph("g", {"a fact": 1})


def test_a_graph_that_returns_nothing_reads_back() -> None:
    assert "  return\n" in round_trip(_chain()[0])


@MANY
@given(st.integers(0, 2**32))
def test_random_graphs_read_back(seed: int) -> None:
    """Ops over a pool of values, under names that fall in and out of layers."""
    chance = random.Random(seed)
    graph, b, x = _chain()
    pool = [x]
    for number in range(chance.randrange(1, 25)):
        scope = chance.choice(["", f"layers.{number // 6}.", f"layers.{chance.randrange(3)}.", "model.layers.1."])
        name = f"{scope}v{number}" if chance.random() < 0.5 else f"{scope}v{number % 6}"
        name = graph.fresh(name)
        op, inputs = chance.choice([(Add, 2), (Mul, 2), (Scale, 1), (Linear, 1)])
        values = [chance.choice(pool) for _ in range(inputs)]
        if op is Linear:
            pool.append(b(Linear, name, values[0], b.weight(f"{scope}w{number % 4}", 4, 4)))
        else:
            pool.append(b(op, name, *values, **({"factor": 1.5} if op is Scale else {})))
    graph.set_outputs(chance.sample(pool, min(len(pool), 2)))
    round_trip(graph)
    assert graph.copy().equals(graph)


def test_golden_text() -> None:
    """One small graph in full, so that a change of the text form is seen and read."""
    graph = decoder(
        [SLIDING, FULL, replace(SLIDING, donor=0), replace(FULL, donor=1, heads=3, head_map=(0, 0, 1), moe=True)]
    )
    assert print_graph(graph) == (GOLDEN / "tiny.rg").read_text(encoding="utf-8")
