"""Target ``torch``: layers in two forms, one for calls of several tokens and one for calls of a single token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import chain

from regraft.codegen.kernels.tables import Tiles
from regraft.codegen.wiring import Place, Wiring
from regraft.ir.graph import Graph
from regraft.ir.kinds import Layer, split_layers
from regraft.ir.op import Value
from regraft.ir.ops.kernels import Kernel, memories_made
from regraft.ir.types import Type


@dataclass(frozen=True)
class Forms:
    """A graph, and the same with other ops in its layers for calls of one token, such as latent attention absorbed.

    Parameters and memories of all forms are those of ``graph``, by name. ``fused`` is for calls of one token too, made
    of kernels, and ``prefill`` for those of more, both for target ``triton``; ``tiles`` is where their kernels' tiles
    come from, if not from what we ship. Kernels are compiled into the package for ``gpus``, some of `kernel.TARGETS`.
    """

    graph: Graph
    step: Graph | None = None
    fused: Graph | None = None
    prefill: Graph | None = None
    tiles: Tiles | None = None
    gpus: Sequence[str] = ()


class StepForm:
    """A second form of a graph's layers: other ops, the same parameters and memories.

    Attributes:
        graph: The graph of that form.
        layers: Its layers by number.
        places: Where its parameters stand, which is where those of the first form do.

    Args:
        graph: The graph: what stands outside of layers is as in the first form.
        wiring: The first form's.
    """

    def __init__(self, graph: Graph, wiring: Wiring) -> None:
        self.graph = graph
        self.layers = {item.number: item for item in split_layers(graph) if isinstance(item, Layer)}
        self.places: dict[Value, Place] = {
            graph[value.name]: place for value, place in wiring.places.items() if value.name in graph
        }
        assert _kept(graph) == _kept(wiring.graph), "both forms keep the same"
        assert self.places.keys() >= set(graph.parameters()), "both forms read the same parameters"
        assert self.layers.keys() == wiring.index.keys(), "both forms have the same layers"

    def same(self, values: Sequence[Value]) -> list[Value]:
        """Return this form's values of the same names."""
        return [self.graph[value.name] for value in values]


def _kept(graph: Graph) -> dict[str, Type]:
    """Return the memories that a graph keeps, by name: of what kernels give not the views among them."""
    ops = [each for op in graph.ops for each in (op.stands_for if isinstance(op, Kernel) else [op])]
    return {memory.name: memory.type for memory in memories_made(ops)}


def statements(lines: Sequence[str]) -> list[tuple[str, ...]]:
    """Return a body's statements, each with the lines that continue it or stand under it."""
    found: list[tuple[str, ...]] = []
    for line in lines:
        if found and line[:1] in (" ", ")"):
            found[-1] += (line,)
        else:
            found.append((line,))
    return found


def either(test: str, first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Return one body that is ``first`` where ``test`` holds and ``second`` otherwise; what they share stands once."""
    one, other = statements(first), statements(second)
    lines: list[str] = []
    for tag, a, b, c, d in SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        if tag == "equal":
            lines += chain(*one[a:b])
            continue
        mine, theirs = list(chain(*one[a:b])), list(chain(*other[c:d]))
        lines += [f"if {test}:" if mine else f"if not ({test}):", *(f"    {line}" for line in mine or theirs)]
        if mine and theirs:
            lines += ["else:", *(f"    {line}" for line in theirs)]
    return lines
