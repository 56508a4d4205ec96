"""``weight.load_each``: numbered tensors as one op."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from regraft.ir.builder import Builder
from regraft.ir.errors.graph import OpRuleError
from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter
from regraft.ir.op import Value
from regraft.ir.ops.core import Add
from regraft.ir.ops.weight import LoadEach
from regraft.ir.parse import parse_graph
from regraft.ir.source import TensorSource
from regraft.ir.text import print_graph
from regraft.ir.types import TensorType

TEXT = """\
graph @each (%tokens: i64[B, T]) {
  %e = weight.load_each {tensors = "experts.{}.w"} : f32[3, 4, 5]
  %y = weight.slice %e {start = 1, stop = 2} : f32[1, 4, 5]
  return %y
}
"""


def test_text_and_meaning() -> None:
    graph = parse_graph(TEXT)
    assert print_graph(graph) == TEXT
    op = graph.ops[0]
    assert isinstance(op, LoadEach)
    assert op.sources == ("experts.0.w", "experts.1.w", "experts.2.w")
    taken = graph["y"]
    graph.set_outputs(graph.add(Add({"a": (taken,), "b": (taken,)}, {}), ["out"]))  # so that it is a parameter
    tensors = {f"experts.{e}.w": torch.randn(4, 5) for e in range(3)}
    weights = Interpreter(graph, TensorSource(tensors)).weights
    assert torch.equal(weights["y"][0], tensors["experts.1.w"])


@pytest.mark.parametrize("name", ["experts.w", "experts.{}.{}.w", "experts.{}.{x}.w"])
def test_the_name_has_one_place_for_the_number(name: str) -> None:
    with pytest.raises(OpRuleError, match="tensors is"):
        parse_graph(TEXT.replace("experts.{}.w", name))


def test_a_copied_layer_loads_its_own_tensors() -> None:
    graph = Graph("layers")
    b = Builder(graph, "f32")

    def body(b: Builder, layer: int, inputs: Sequence[Value]) -> Sequence[Value]:
        attributes = {"tensors": f"m.layers.{layer}.e.{{}}.w", "dtype": "f32", "shape": (2, 3)}
        (stacked,) = b.graph.add(LoadEach({}, attributes), [f"m.layers.{layer}.e.w"])
        return [b(Add, "out", inputs[0], stacked)]

    x = graph.add_input("x", TensorType("f32", (2, 3)))
    for layer in range(3):
        (x,) = b.layer(layer, "kind", [x], body)
    graph.set_outputs([x])
    names = [name for op in graph.ops if isinstance(op, LoadEach) for name in op.sources]
    assert names == [f"m.layers.{layer}.e.{e}.w" for layer in range(3) for e in range(2)]
    text = print_graph(graph)
    assert text.count("load_each") == 1
    assert print_graph(parse_graph(text)) == text
