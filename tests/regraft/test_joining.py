"""Tensors that a checkpoint joins head by head, written from their parts."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from regraft.ir.dims import B, T
from regraft.ir.graph import Graph
from regraft.ir.op import Op
from regraft.ir.ops.core import Linear
from regraft.ir.ops.quantized import SliceEach
from regraft.ir.ops.weight import Load
from regraft.ir.source import Bytes, Source, TensorInfo, TensorSource, from_bytes, to_bytes
from regraft.ir.types import TensorType
from regraft.joining import Join, JoiningSink, joined_tensors, joins_of

KEYS, VALUES = torch.arange(12.0).view(6, 2), torch.arange(100.0, 104.0).view(2, 2)
PARTS = {"kv": Join(("k", "v"), 2)}


class Written:
    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.data = names, dict[str, bytes]()

    def pending(self) -> Sequence[str]:
        return [name for name in self.names if name not in self.data]

    def write(self, name: str, data: Bytes) -> None:
        self.data[name] = bytes(data)

    def copy(self, name: str, source: Source, original: str) -> None:
        self.data[name] = bytes(source.raw(original))


def test_parts_come_in_any_order_and_rows_of_each_head_stand_together() -> None:
    sink = Written(["kv", "o"])
    joining = JoiningSink(sink, PARTS)
    assert joining.pending() == ["k", "v", "o"]
    joining.write("v", to_bytes(VALUES))
    assert (joining.pending(), sink.data) == (["k", "o"], {})
    source = TensorSource({"old_k": KEYS, "o": VALUES})
    joining.copy("k", source, "old_k")
    joining.copy("o", source, "o")
    assert joining.pending() == []
    infos = [TensorInfo("k", "f32", (6, 2)), TensorInfo("o", "f32", (2, 2)), TensorInfo("v", "f32", (2, 2))]
    whole, other = joined_tensors(infos, PARTS)
    assert (whole.name, whole.shape, other.name) == ("kv", (8, 2), "o")
    expected = torch.cat((KEYS.view(2, 3, 2), VALUES.view(2, 1, 2)), 1).flatten(0, 1)
    assert torch.equal(from_bytes(bytearray(sink.data["kv"]), whole), expected)


def cut_graph(cuts: Sequence[tuple[int, int]]) -> Graph:
    graph = Graph("g")
    x = graph.add_input("x", TensorType("f32", (B, T, 2)))

    def add(op: Op, name: str) -> None:
        graph.add(op, [name])

    add(Load({}, {"dtype": "f32", "shape": (8, 2)}), "kv")
    for number, (start, stop) in enumerate(cuts):
        add(SliceEach({"x": (graph["kv"],)}, {"parts": 2, "start": start, "stop": stop}), f"part{number}")
        add(Linear({"x": (x,), "weight": (graph[f"part{number}"],)}, {}), f"y{number}")
    return graph


def test_only_what_is_cut_whole_and_without_a_gap_is_joined() -> None:
    assert joins_of(cut_graph([(3, 4), (0, 3)])) == {"kv": Join(("part1", "part0"), 2)}
    assert joins_of(cut_graph([(0, 2), (3, 4)])) == {}
    assert joins_of(cut_graph([(0, 3)])) == {}
