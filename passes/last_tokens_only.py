"""`last-tokens-only`: a prompt's other tokens end where the last memory is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from regraft.ir.dims import T
from regraft.ir.errors.recipe import StructureError
from regraft.ir.graph import Graph, layer_of
from regraft.ir.kinds import ranges
from regraft.ir.op import Op, Value
from regraft.ir.ops.core import Slice
from regraft.ir.ops.final import Last
from regraft.ir.types import TensorType
from regraft.passes.base import Constraints, Measurements, Note, Pass, Preserves, Report
from regraft.passes.matching.rewrite import Editor


@dataclass(frozen=True)
class LastTokensOnly(Pass):
    """Let the last layers, if they extend no memory, see only the tokens whose logits are wanted.

    Such layers read the memories of earlier ones, as in Gemma 4's smaller models and after share-kv: nobody ever asks
    for what they make of a prompt's other tokens. Those end before the first of them. A call that wants all logits
    computes what it did.
    """

    name: ClassVar[str] = "last-tokens-only"
    preserves: ClassVar[Preserves] = "exact"
    source: ClassVar[str] = "specs/gemma4.md, section 5"

    def decide(self, graph: Graph, measurements: Measurements | None, constraints: Constraints) -> LastTokensOnly:
        """Return the pass.

        Raises:
            StructureError: The last layer extends a memory, or one of the layers looks at earlier tokens in some other
                way than attention to a memory.
        """
        found = _cut(graph)
        if isinstance(found, _No):
            where = self.place()
            raise StructureError(owner=self.name, layer=found.layer, reason=found.reason, fix=found.fix, where=where)
        return self

    def rewrite(self, graph: Graph) -> Report:
        """Keep the last tokens where the first of those layers begins."""
        first = _cut(graph)
        assert isinstance(first, int), "decide comes first"
        layers = [layer for layer in range(first, graph.layer_count()) if graph.in_layer(layer)]
        _keep_last(graph, first)
        note = f"layers {ranges(layers)} see the tokens whose logits are wanted alone"
        return Report((Note(f"layer {first}", True, note, first),))


@dataclass(frozen=True)
class _No:
    """Why a graph cannot be cut, where, and what would help."""

    layer: int
    reason: str
    fix: str


def _cut(graph: Graph) -> int | _No:
    """Return the first layer after which no memory is extended."""
    ops = list(graph.run_time())
    states = [i for i, op in enumerate(ops) if op.is_state]
    last = max(states, default=-1)
    numbers = [layer_of(op.results[0].name) for op in ops]
    after = {n for n in numbers[last + 1 :] if n is not None} - {n for n in numbers[: last + 1] if n is not None}
    if not after:
        made = numbers[last] if states else None
        layer = graph.layer_count() - 1 if made is None else made
        reason = "it extends a memory, and no layer follows that does not, so all tokens have to reach it"
        fix = "let the last layers read earlier ones' memories, with share-kv"
        return _No(max(layer, 0), reason, fix)
    first = min(after)
    begin = numbers.index(first)
    for op in ops[begin:]:
        if op.reads_memory and not op.on_rows and not op.on_last:
            reason = f"{op.label} looks at earlier tokens in another way than attention to a memory"
            return _No(layer_of(op.results[0].name) or first, reason, "this pass needs layers that attend")
    if any(isinstance(op, Last) for op in ops):
        return _No(first, "it sees the last tokens alone already", "leave the pass out")
    return first


def _keep_last(graph: Graph, first: int) -> None:
    """Put the cut before the first op of a layer, and let all that follows read what is left."""
    edit = Editor(graph)
    numbers = [layer_of(op.results[0].name) for op in graph.ops]
    place = next(i for i, op in enumerate(graph.ops) if numbers[i] == first and not op.weight_time)
    while place and numbers[place - 1] == first:  # the layer's first weights
        place -= 1
    begin, after = graph.ops[place], graph.ops[place:]
    later = set(after)
    edit.set_aside_measured([op for op in after if not op.weight_time])  # fits are to all tokens
    crossing = {v: None for op in after if not op.weight_time for v in op.operands if v.op not in later}
    kept: dict[Value, Value] = {}
    for value in [v for v in crossing if isinstance(v.type, TensorType) and v.tensor.sequence == T]:
        new = _last(edit, value, begin, kept)
        graph.replace_uses(value, new, lambda op: op in later and not op.weight_time)
    edit.retype(op for op in graph.ops[graph.ops.index(begin) :] if not op.weight_time)


def _last(edit: Editor, value: Value, before: Op, kept: dict[Value, Value]) -> Value:
    """Return the last tokens' rows of a value; of a piece of one outside of layers, the piece of that one's."""
    if value in kept:
        return kept[value]
    outside = layer_of(value.name) is None
    name = f"last.{value.name if outside else value.name.rpartition('.')[2]}"
    op = value.op
    if isinstance(op, Slice) and outside:
        whole = _last(edit, op.x, before, kept)
        kept[value] = edit.add(Slice, name, whole, start=op.start, stop=op.stop, before=before)
    else:
        kept[value] = edit.add(Last, name, value, before=before)
    return kept[value]
