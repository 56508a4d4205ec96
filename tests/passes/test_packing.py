"""What stays quantised: parameters that no pass touches, whatever they are called, and nothing that would collide."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from regraft.ir.graph import Graph
from regraft.ir.op import Value
from regraft.ir.ops.core import Linear
from regraft.ir.ops.quantized import Dequantize
from regraft.ir.ops.weight import Load, SliceWeight
from regraft.ir.source import Source, TensorInfo, TensorSource, dtype_name, from_bytes
from regraft.ir.types import TensorType
from regraft.passes.fitting.fold import fold, folded, plan_tensors
from regraft.passes.fitting.sweep import evaluate
from regraft.passes.matching.rewrite import Editor
from regraft.passes.packing import kept_packed, packing

CODES = {
    "a": torch.tensor([[1.0, -2.0], [0.5, 8.0]]).to(torch.float8_e4m3fn),
    "a_scale": torch.tensor([[0.5]]),
    "b": torch.tensor([[3.0, 1.0], [-0.25, 2.0]]).to(torch.float8_e4m3fn),
    "b_scale": torch.tensor([[4.0]]),
}
SOURCE = TensorSource(CODES)


def packed_pair() -> Graph:
    """Return ``x`` mapped by ``a``, then by the first row of ``b``, both quantised."""
    graph = Graph("pair")
    x = graph.add_input("x", TensorType("f32", (1, 2)))
    for name in ("a", "b"):
        weight = dequantized(graph, name)
        if name == "b":
            (weight,) = graph.add(SliceWeight({"x": (weight,)}, {"start": 0, "stop": 1}), ["first"])
        (x,) = graph.add(Linear({"x": (x,), "weight": (weight,)}, {}), [f"{name}_out"])
    graph.set_outputs([x])
    return graph


def dequantized(graph: Graph, name: str) -> Value:
    loads = [
        graph.add(Load({}, {"tensor": each, "dtype": dtype_name(CODES[each].dtype), "shape": tuple(CODES[each].shape)}),
                  [f"{each}_packed"])[0]
        for each in (name, f"{name}_scale")
    ]  # fmt: skip
    slots = {"x": (loads[0],), "scale": (loads[1],)}
    return graph.add(Dequantize(slots, {"block": (2, 2), "dtype": "f32"}), [name])[0]


def cut(graph: Graph, out: str) -> None:
    """Let a map read only the first row of its weight."""
    reader = graph[out].op
    assert isinstance(reader, Linear)
    editor = Editor(graph)

    def first(old: Value, name: str) -> Value:
        return editor.add(SliceWeight, name, old, before=reader, start=0, stop=1)

    editor.replace_weight(reader, "weight", first)


class Kept:
    """A sink that keeps what it is given."""

    def __init__(self, infos: list[TensorInfo]) -> None:
        self.infos = {info.name: info for info in infos}
        self.tensors: dict[str, torch.Tensor] = {}

    def pending(self) -> list[str]:
        return list(self.infos)

    def write(self, name: str, data: bytes | bytearray | memoryview) -> None:
        self.tensors[name] = from_bytes(bytearray(data), self.infos[name])

    def copy(self, name: str, source: Source, original: str) -> None:
        assert source.info(original).dtype == self.infos[name].dtype
        self.tensors[name] = source.read(original)


def written(graph: Graph, kept: frozenset[str]) -> Mapping[str, torch.Tensor]:
    sink = Kept(plan_tensors(graph, kept))
    fold(graph, SOURCE, sink, workers=1, kept=kept)
    return sink.tensors


def check(graph: Graph, kept: frozenset[str]) -> Mapping[str, torch.Tensor]:
    """Check that what is written gives each parameter the value that it had, and return it."""
    tensors = written(graph, kept)
    after = folded(graph, kept)
    after.verify()
    for value in graph.parameters():
        assert torch.equal(evaluate(after[value.name], TensorSource(tensors)), evaluate(value, SOURCE)), value
    return tensors


def test_what_no_pass_touches_is_kept_with_its_scales() -> None:
    graph = packed_pair()
    kept = kept_packed(graph, graph)
    assert kept == {"a", "first"}
    tensors = check(graph.copy(), kept)
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {n: t.dtype for n, t in CODES.items()}
    cost = packing(graph, graph, kept)
    assert (cost.tensors, cost.bytes, cost.kept_tensors, cost.kept_bytes) == (2, 16, 2, 16)
    assert (cost.dequantized, cost.added_bytes) == ((), 0)


def test_a_program_dequantises_everything() -> None:
    graph = packed_pair()
    assert {name: tuple(t.shape) for name, t in check(graph, frozenset()).items()} == {"a": (2, 2), "first": (1, 2)}
    cost = packing(graph, graph)
    assert (cost.kept_tensors, cost.dequantized_from_bytes, cost.dequantized_bytes, cost.added_bytes) == (0, 16, 24, 8)


def test_what_a_pass_touches_is_dequantised_and_the_rest_is_not() -> None:
    original = packed_pair()
    graph = original.copy()
    cut(graph, "b_out")
    kept = kept_packed(graph, original)
    assert kept == {"a"}
    tensors = check(graph, kept)
    assert set(tensors) == {"a", "a_scale", "first"}
    assert [info.name for info in packing(graph, original, kept).dequantized] == ["first"]


def test_a_touched_weight_may_take_the_name_of_its_codes() -> None:
    original = packed_pair()
    graph = original.copy()
    graph.set_outputs([graph["a_out"]])
    graph.drop_dead()
    cut(graph, "a_out")
    assert graph["a_out"].op is not None
    kept = kept_packed(graph, original)
    assert kept == frozenset()
    assert {name: tuple(tensor.shape) for name, tensor in check(graph, kept).items()} == {"a": (1, 2)}


def test_tensors_that_would_share_a_name_are_not_both_kept() -> None:
    """``first`` reads the codes called ``b``; a new weight called ``b`` leaves no room for them."""
    original = packed_pair()
    graph = original.copy()
    whole = graph["b"]
    assert whole.op is not None
    graph.rename(whole, "b_whole")
    reader = graph["a_out"].op
    assert isinstance(reader, Linear)
    (other,) = graph.add(SliceWeight({"x": (graph["a"],)}, {"start": 0, "stop": 2}), ["b"], before=reader)
    graph.set_operand(reader, "weight", other)
    kept = kept_packed(graph, original)
    assert kept == frozenset()
    assert set(check(graph, kept)) == {"b", "first"}
