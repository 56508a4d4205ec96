"""Graphs: edits keep names, use-lists and order; the verifier finds what does not hold, and says where."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.ir.builder import Builder
from regraft.ir.dims import B, Dim, T, parse_dim
from regraft.ir.errors import RegraftError
from regraft.ir.errors.graph import (
    AttributeRgError,
    CycleError,
    DuplicateValueError,
    GraphError,
    HeadGroupError,
    InUseError,
    MemoryRowsError,
    MemoryRuleError,
    OperandTypeError,
    OrderError,
    TimeError,
    UseListError,
    ValueNameError,
    WindowError,
)
from regraft.ir.graph import Graph, in_layer, layer_of, relative
from regraft.ir.kinds import block_kinds
from regraft.ir.memory import infer_windows, readers_window
from regraft.ir.op import REGISTRY, Op, Value, memory, op, operand, result
from regraft.ir.ops.attn import KV, Attend
from regraft.ir.ops.core import Add, Linear, Mul, Norm, Scale
from regraft.ir.ops.weight import Load, SliceWeight
from regraft.ir.parse import parse_graph
from regraft.ir.text import print_graph
from regraft.ir.types import TensorType
from tests.ir.models import FULL, LayerSpec, decoder

SLIDING = LayerSpec(window=3)


def made(value: Value) -> Op:
    assert value.op is not None
    return value.op


def chain() -> tuple[Graph, Builder, Value]:
    graph = Graph("chain")
    return graph, Builder(graph, "f32"), graph.add_input("x", TensorType("f32", (B, T, 4)))


def consistent(graph: Graph) -> None:
    """Use-lists and names agree with the ops; the verifier agrees."""
    graph.verify()
    uses: dict[Value, dict[Op, int]] = {value: {} for value in graph.values.values()}
    for op_ in graph.ops:
        for value in op_.operands:
            uses[value][op_] = uses[value].get(op_, 0) + 1
    assert all(value.users == uses[value] for value in uses)
    assert {v.name for v in graph.inputs} | {v.name for o in graph.ops for v in o.results} == set(graph.values)


# -- names


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("layers.3.attn.q", 3),
        ("model.layers.12.mlp.up_proj.weight", 12),
        ("layers.0.x", 0),
        ("layers.2.encoder.layers.5.x", 2),
        ("layers.3", None),
        ("layers.03.x", None),
        ("layers.x.3", None),
        ("mylayers.3.x", None),
        ("layers.1234567.x", None),
        ("layers.\u0663.x", None),
        ("embed", None),
    ],
)
def test_layers_of_names(name: str, layer: int | None) -> None:
    assert layer_of(name) == layer
    if layer is not None:
        assert in_layer(relative(name), layer) == name
        assert layer_of(in_layer(relative(name), 77)) == 77


@pytest.mark.parametrize("name", ["", ".", "a.", ".a", "a..b", "a b", "a*b", "-1.x", "%x", "é", "a\n", 'a"', "a/b"])
def test_names_that_text_cannot_hold_are_refused(name: str) -> None:
    graph, b, x = chain()
    with pytest.raises(ValueNameError):
        b(Scale, name, x, factor=1.0)
    with pytest.raises(ValueNameError):
        graph.add_input(name, x.type)
    with pytest.raises(ValueNameError):
        graph.rename(x, name)
    assert list(graph.values) == ["x"]


def test_a_refused_op_leaves_the_graph_as_it_was() -> None:
    graph, b, _ = chain()
    logits = graph.add_input("logits", TensorType("f32", (B, T, 8)))
    before = graph.copy()
    route = REGISTRY["moe.route"]
    for names, error in (
        (["w", "x"], DuplicateValueError),
        (["w", "w"], DuplicateValueError),
        (["w", "*"], GraphError),
    ):
        with pytest.raises(error):
            b.many(route, names, logits, chosen=2)
    with pytest.raises(OperandTypeError):
        b(Linear, "y", logits, b.weight("w", 3, 3))
    graph.erase(made(graph["w"]))
    assert graph.equals(before)
    consistent(graph)


# -- edits


def test_replacing_uses_of_some_and_of_all() -> None:
    graph, b, x = chain()
    a = b(Scale, "a", x, factor=1.0)
    both = b(Add, "both", a, a)
    other = b(Mul, "other", a, x)
    graph.set_outputs([a, both, other])
    new = b(Scale, "new", a, factor=2.0)  # reads what it replaces
    graph.replace_uses(a, new, of=lambda user: user.opname == "core.mul")
    assert made(other).slots == {"a": (new,), "b": (x,)}
    assert graph.outputs[0] is a
    graph.replace_uses(a, new)
    assert made(both).slots == {"a": (new,), "b": (new,)}
    assert made(new).slots == {"x": (a,)}
    assert graph.outputs == [new, both, other]
    assert list(a.users) == [made(new)]
    with pytest.raises(OrderError, match="%new is not made before it"):
        graph.verify()
    graph.sort()
    consistent(graph)


def test_renaming() -> None:
    graph = decoder([FULL, FULL])
    value = graph["layers.1.attn.memory"]
    graph.rename(value, "shared.memory")
    assert graph["shared.memory"] is value
    assert "layers.1.attn.memory" not in graph
    with pytest.raises(DuplicateValueError):
        graph.rename(value, "logits")
    graph.rename(value, "shared.memory")
    consistent(graph)
    assert graph.fresh("logits") == "logits_2"
    assert graph.fresh("free") == "free"


def test_a_copy_shares_nothing() -> None:
    graph = decoder([FULL, replace(FULL, donor=0), SLIDING])
    text = print_graph(graph)
    copy = graph.copy()
    assert copy.equals(graph)
    copy.meta["eos"] = (3,)
    copy.set_attribute(made(copy["layers.0.attn.ctx"]), "scale", 0.125)
    copy.replace_uses(copy["layers.0.out"], copy["embed"])
    copy.drop_dead()
    copy.rename(copy["logits"], "scores")
    consistent(copy)
    consistent(graph)
    assert print_graph(graph) == text
    assert not copy.equals(graph)


def test_dead_ops_go_and_inputs_stay() -> None:
    graph = decoder([FULL, replace(FULL, donor=0), FULL])
    graph.set_operand(made(graph["layers.2.attn.ctx"]), "memory", graph["layers.0.attn.memory"])
    assert graph.drop_dead() == 8  # two projections with their weights and heads, a rotation, the memory
    assert "model.layers.2.self_attn.k_proj.weight" not in graph
    assert [m.name for m in graph.memories()] == ["layers.0.attn.memory"]
    assert graph.drop_dead() == 0
    consistent(graph)
    graph.set_outputs([])
    graph.drop_dead()
    assert graph.ops == []
    assert [v.name for v in graph.inputs] == ["tokens", "pos", "valid"]


def test_equal_ops_merge_and_memories_do_not() -> None:
    graph, b, x = chain()
    w = b.weight("w", 4, 4)
    same = graph.add(Load({}, {"tensor": "w", "shape": (4, 4), "dtype": "f32"}), ["again"])[0]
    reverse = graph.add(Load({}, {"dtype": "f32", "tensor": "other", "shape": [4, 4]}), ["named"])[0]
    other = b.weight("other", 4, 4)
    first = b(Linear, "first", x, w)
    second = b(Linear, "second", x, same)
    third = b(Linear, "third", x, other)
    fourth = b(Linear, "fourth", x, reverse)
    kv = [graph.add_input(n, TensorType("f32", (B, T, 2, 4))) for n in "kv"]
    m, n = b(KV, "m", *kv), b(KV, "n", *kv)
    q = graph.add_input("q", TensorType("f32", (B, T, 2, 4)))
    contexts = [b(Attend, f"c{i}", q, each, scale=1.0) for i, each in enumerate((m, n, m))]
    graph.set_outputs([first, second, third, fourth, *contexts])
    assert graph.merge_equal() == 5
    assert [v.name for v in graph.outputs] == ["first", "first", "third", "third", "c0", "c1", "c0"]
    assert [v.name for v in graph.parameters()] == ["w", "named"]
    assert [v.name for v in graph.memories()] == ["m", "n"]
    assert graph.merge_equal() == 0
    consistent(graph)


def test_attributes_written_in_another_order_are_the_same_op() -> None:
    graph, b, x = chain()
    one = b(Norm, "one", x, eps=1e-6, offset=1.0)
    two = b(Norm, "two", x, offset=1, eps=1e-6, cast="before")
    graph.set_outputs([b(Add, "y", one, two)])
    assert graph.merge_equal() == 1


def test_erasing_asks_who_reads() -> None:
    graph, b, x = chain()
    a = b(Scale, "a", x, factor=1.0)
    y = b(Add, "y", a, a)
    graph.set_outputs([y])
    with pytest.raises(InUseError, match=r"core.scale %a cannot be removed: its results are read by core.add %y"):
        graph.erase(made(a))
    with pytest.raises(InUseError, match="return"):
        graph.erase(made(y))


def test_inserting_before_and_sorting() -> None:
    graph, b, x = chain()
    a = b(Scale, "a", x, factor=1.0)
    y = b(Scale, "y", a, factor=2.0)
    graph.set_outputs([y])
    graph.add(Scale({"x": (x,)}, {"factor": 3.0}), ["first"], before=made(a))
    assert [o.results[0].name for o in graph.ops] == ["first", "a", "y"]
    graph.ops.reverse()
    graph.sort()
    # operands first; otherwise the order stays, so first is now last
    assert [o.results[0].name for o in graph.ops] == ["a", "y", "first"]
    graph.set_operand(made(a), "x", y)
    with pytest.raises(CycleError, match=r"core.scale %a|core.scale %y"):
        graph.sort()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_any_edits_keep_the_graph_whole(seed: int) -> None:
    chance = random.Random(seed)
    graph = decoder([FULL, SLIDING, replace(FULL, donor=0)][: chance.randint(1, 3)])

    def redirect() -> None:
        same = [v for v in graph.values.values() if str(v.type) == "f32[B, T, 16]"]
        if len(same) > 1:
            old, new = chance.sample(same, 2)
            users = list(old.users)
            chosen = set(chance.sample(users, len(users) // 2))
            graph.replace_uses(old, new, of=lambda user: user in chosen)
            try:
                graph.sort()
            except CycleError:
                graph.replace_uses(new, old, of=lambda user: user in chosen)

    edits: list[Callable[[], object]] = [
        redirect,
        graph.drop_dead,
        graph.merge_equal,
        lambda: graph.rename(chance.choice(list(graph.values.values())), graph.fresh("layers.0.renamed")),
    ]
    for _ in range(6):
        chance.choice(edits)()
    try:
        graph.sort()
        graph.verify()
    except GraphError:
        return  # a redirected use may close a cycle; nothing else may be wrong
    consistent(graph)
    assert parse_graph(print_graph(graph)).equals(graph)


# -- the verifier


def broken(edit: Callable[[Graph], object], error: type[RegraftError]) -> RegraftError:
    graph = decoder([FULL, SLIDING, replace(FULL, donor=0)])
    edit(graph)
    with pytest.raises(error) as caught:
        graph.verify()
    return caught.value


def test_an_operand_made_later() -> None:
    error = broken(lambda g: g.ops.reverse(), OrderError)
    assert error.where == "%logits"
    error = broken(lambda g: g.ops.insert(0, g.ops.pop(-3)), OrderError)
    assert error.text == "core.norm %norm: operand %layers.2.out is not made before it"


def test_a_value_of_another_graph() -> None:
    other = decoder([FULL])
    error = broken(lambda g: g.set_operand(made(g["layers.1.attn.norm"]), "x", other["embed"]), OrderError)
    assert error.where == "layers.1.attn"


def test_a_result_that_is_gone() -> None:
    def forget(graph: Graph) -> None:
        graph.outputs = [Value("ghost", graph["logits"].type)]

    assert broken(forget, OrderError).text == "return: operand %ghost is not made before it"


def test_use_lists_that_lie() -> None:
    def hide(graph: Graph) -> None:
        graph["embed"].users.clear()

    def invent(graph: Graph) -> None:
        graph["logits"].users[graph.ops[0]] = 1

    def steal(graph: Graph) -> None:
        graph["norm"].op = graph.ops[0]

    for edit in (hide, invent, steal):
        broken(edit, UseListError)


def test_weight_time_ops_read_weights_only() -> None:
    graph, _, x = chain()
    for values in ([x], [made(Builder(graph, "f32")(Scale, "y", x, factor=1.0)).results[0]]):
        with pytest.raises(TimeError) as caught:
            graph.add(SliceWeight({"x": values}, {"start": 0, "stop": 1}), ["layers.3.w"])
        assert caught.value.where == "layers.3"


def test_errors_name_op_scope_and_what_to_do() -> None:
    def uneven(graph: Graph) -> None:
        graph.set_attribute(made(graph["layers.0.attn.q"]), "parts", 1)
        graph.set_attribute(made(graph["layers.0.attn.q_rope"]), "channels", 16)

    error = broken(uneven, OperandTypeError)
    assert error.text.startswith("attn.attend %layers.0.attn.ctx: operand memory is memory<f32; k [2, 4], v [2, 4]>")
    assert error.where == "layers.0.attn"

    def three(graph: Graph) -> None:
        attend = made(graph["layers.0.attn.ctx"])
        q = graph.add_input("q3", TensorType("f32", (B, T, 3, 4)))
        graph.set_operand(attend, "q", q)

    error = broken(three, HeadGroupError)
    assert str(error).split("\n") == [
        "error[RG031]: attn.attend %layers.0.attn.ctx: 3 query heads over 2 key/value heads need a head_map",
        "  --> layers.0.attn",
        "  = help: give head_map, or keep a multiple of 2 query heads",
    ]


def test_a_window_wider_than_the_memory() -> None:
    error = broken(lambda g: g.set_attribute(made(g["layers.1.attn.memory"]), "window", 2), WindowError)
    assert error.text == "attn.attend %layers.1.attn.ctx: looks back 3 rows in a memory that keeps 2"
    error = broken(lambda g: g.set_attribute(made(g["layers.0.attn.memory"]), "window", 9), WindowError)
    assert error.text == "attn.attend %layers.0.attn.ctx: looks back all rows in a memory that keeps 9"


def test_types_follow_edits() -> None:
    graph = decoder([SLIDING])
    graph.set_attribute(made(graph["layers.0.attn.memory"]), "window", 7)
    assert graph["layers.0.attn.memory"].memory.window == 3
    graph.retype()
    assert graph["layers.0.attn.memory"].memory.window == 7
    graph.set_attribute(made(graph["layers.0.attn.q"]), "parts", 5)
    with pytest.raises(GraphError) as caught:
        graph.retype()
    assert caught.value.where == "layers.0.attn"
    with pytest.raises(AttributeRgError):
        graph.set_attribute(made(graph["layers.0.attn.q"]), "parts", 2.5)


ROWS = parse_dim("S@layers.0.attn.memory")


@pytest.mark.parametrize("opname", ["core.add", "core.mul", "core.concat"])
@pytest.mark.parametrize("pair", [(T, ROWS), (ROWS, T), (ROWS, parse_dim("S@m"))])
def test_rows_of_different_sequences_never_meet(opname: str, pair: tuple[Dim, Dim]) -> None:
    graph, b, _ = chain()
    values = [graph.add_input(f"v{i}", TensorType("f32", (B, rows, 4))) for i, rows in enumerate(pair)]
    arguments = [values] if opname == "core.concat" else values
    with pytest.raises(MemoryRuleError) as caught:
        b(REGISTRY[opname], "layers.7.y", *arguments)
    assert caught.value.text == f"{opname}: operands run along {pair[0]} and {pair[1]}"
    assert caught.value.where == "layers.7"


def test_rows_of_a_memory_pass_through_token_wise_ops_and_become_no_memory() -> None:
    graph, b, _ = chain()
    rows = graph.add_input("rows", TensorType("f32", (B, ROWS, 2, 4)))
    q = graph.add_input("q", TensorType("f32", (B, T, 2, 4)))
    y = b(Add, "y", b(Norm, "n", rows, eps=1e-6), rows)
    assert y.tensor.sequence == ROWS
    with pytest.raises(MemoryRowsError):
        b(KV, "m", y, y)
    memory_ = b(KV, "m", q, q)
    with pytest.raises(MemoryRowsError):
        b(Attend, "c", y, memory_, scale=1.0)
    with pytest.raises(OperandTypeError):
        b(Norm, "c", memory_, eps=1.0)
    with pytest.raises(OperandTypeError):
        b(Add, "c", memory_, memory_)
    with pytest.raises(OperandTypeError):
        b(REGISTRY["core.concat"], "c", [memory_, memory_])


def test_an_op_that_takes_a_memory_must_say_so() -> None:
    with pytest.raises(TypeError, match="must say that it reads one"):

        @op("test.peek")
        class Peek(Op):  # pyright: ignore[reportUnusedClass]
            m = memory("k H D")
            out = result("H D", dtype="f32")

    with pytest.raises(TypeError, match="declared twice"):

        @op("core.add")
        class Again(Op):  # pyright: ignore[reportUnusedClass]
            x = operand("...")
            out = result("...", dtype="x")

    assert "test.peek" not in REGISTRY
    assert REGISTRY["core.add"] is Add


# -- memories


def test_memories_keep_what_the_furthest_reader_asks_for() -> None:
    graph = decoder(
        [LayerSpec(window=3), LayerSpec(window=5, donor=0), LayerSpec(window=4), replace(FULL, donor=2), FULL]
    )
    assert {m.name: m.memory.window for m in graph.memories()} == {
        "layers.0.attn.memory": 5,
        "layers.2.attn.memory": None,
        "layers.4.attn.memory": None,
    }
    graph.set_attribute(made(graph["layers.3.attn.ctx"]), "window", 2)
    infer_windows(graph)
    assert graph["layers.2.attn.memory"].memory.window == 4
    graph.verify()
    assert readers_window(graph["layers.0.attn.memory"]) == 5


# -- size


def test_large_graphs_are_quick_to_copy_fold_and_print() -> None:
    graph = decoder([FULL, SLIDING] * 40)
    assert len(graph.ops) > 2400

    def best(work: Callable[[], object]) -> float:
        times: list[float] = []
        for _ in range(3):
            start = time.process_time()
            work()
            times.append(time.process_time() - start)
        return min(times)

    # ten times what they take on an idle core: this finds an operation that became quadratic
    assert best(graph.copy) < 0.15
    assert best(graph.verify) < 0.2
    assert best(lambda: (block_kinds(graph), print_graph(graph))) < 0.3
    assert best(graph.merge_equal) < 0.15
    assert best(graph.drop_dead) < 0.1
