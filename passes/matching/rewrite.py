"""Pattern rewriting: rules that match a site or say why not, the editor that changes the graph, and a driver."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar, Generic, TypeVar

from regraft.ir.graph import Graph, feeds_only_statistics, layer_of
from regraft.ir.op import Op, Value
from regraft.ir.ops.weight import Load
from regraft.passes.base import Note, Report
from regraft.passes.matching.sites import Refusal, run_time_users

M = TypeVar("M", bound=Op)
S = TypeVar("S")


class Editor:
    """What a rule may do to a graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph

    def add(self, op: type[Op], name: str, *values: Value | Sequence[Value], before: Op, **rest: object) -> Value:
        """Put a new op with one result before another, and return its result.

        ``values`` fill the operands that are not optional, in order; keywords are optional operands and attributes. A
        name that is taken gets a number.
        """
        slots: dict[str, Sequence[Value]] = {}
        places = [slot for slot in op.spec.slots if not slot.optional]
        for slot, value in zip(places, values, strict=True):
            slots[slot.name] = (value,) if isinstance(value, Value) else value
        attributes: dict[str, object] = {}
        for key, value in rest.items():
            if isinstance(value, Value):
                slots[key] = (value,)
            else:
                attributes[key] = value
        return self.graph.add(op(slots, attributes), [self.graph.fresh(name)], before=before)[0]

    def set_operand(self, op: Op, slot: str, value: Value) -> None:
        """Let ``op`` read another value."""
        self.graph.set_operand(op, slot, value)

    def set_attribute(self, op: Op, name: str, value: object) -> None:
        """Give ``op`` another attribute value."""
        self.graph.set_attribute(op, name, value)

    def replace_weight(self, reader: Op, slot: str, make: Callable[[Value, str], Value]) -> Value:
        """Let ``reader`` read a weight made from the one it reads, and return it.

        The new weight takes over the old one's name, which is the tensor's name in what `apply` writes; the old value
        steps aside and still loads the same tensor. Where another op reads the old one too, that op keeps it under its
        name, and the new one is named after its reader.

        Args:
            reader: A run-time op.
            slot: The operand to replace, a weight.
            make: Called with the old weight and the new one's name; adds ops before ``reader`` and returns the result.
        """
        old = reader.slots[slot][0]
        name = old.name
        if any(user is not reader for user in run_time_users(old)):
            name = self.graph.fresh(f"{reader.results[0].name}.{slot}")
        else:
            self.set_aside(old)
        new = make(old, name)
        self.graph.rename(new, name)
        self.graph.set_operand(reader, slot, new)
        return new

    def set_aside(self, value: Value) -> None:
        """Let a weight give up its name; it still loads the same tensor, if it is loaded."""
        suffix = "previous"
        if isinstance(value.op, Load):
            self.graph.set_attribute(value.op, "tensor", value.op.source)
            suffix = "original"
        self.graph.rename(value, self.graph.fresh(f"{value.name}.{suffix}"))

    def set_aside_measured(self, ops: Sequence[Op]) -> None:
        """Let statistics of earlier fits that are taken on ``ops``, which are about to change, stay as they are.

        The ops that they are taken on are copied; no program computes the copies.

        Args:
            ops: Run-time ops in the order of execution.
        """
        feeding: set[Op] = set()
        for op in reversed(ops):
            users = [user for value in op.results for user in value.users]
            if any(user in feeding or _measures(user) for user in users):
                feeding.add(op)
        copies: dict[Value, Value] = {}
        for op in (op for op in ops if op in feeding):
            copy = op.rebuilt(lambda value: copies.get(value, value))
            names = [self.graph.fresh(f"{value.name}.measured") for value in op.results]
            after = self.graph.ops[self.graph.ops.index(op) + 1]
            copies.update(zip(op.results, self.graph.add(copy, names, before=after), strict=True))
        for old, new in copies.items():
            self.graph.replace_uses(old, new, _measures)

    def can_hoist(self, value: Value, before: Op) -> bool:
        """Return whether what makes a weight can stand before another op: all that it is fitted to stands there."""
        ops, op = self.graph.ops, value.op
        if op is None or ops.index(op) < ops.index(before):
            return True
        return op.weight_time and all(self.can_hoist(operand, before) for operand in op.operands)

    def hoist(self, value: Value, before: Op) -> None:
        """Move what makes a weight to before another op, unless it stands there already; see `can_hoist`."""
        ops, op = self.graph.ops, value.op
        if op is None or ops.index(op) < ops.index(before):
            return
        assert op.weight_time, op
        for operand in op.operands:
            self.hoist(operand, before)
        ops.remove(op)
        ops.insert(ops.index(before), op)

    def erase_unread(self, value: Value) -> None:
        """Remove the op that makes ``value`` if nobody reads its results, and then those that only it read."""
        op = value.op
        if op is None or any(v.users or v in self.graph.outputs for v in op.results):
            return
        operands = list(op.operands)
        self.graph.erase(op)
        for operand in operands:
            if operand.op is not op:
                self.erase_unread(operand)

    def retype(self, ops: Iterable[Op]) -> None:
        """Infer the results' types of ``ops`` anew, in the order given, which must be the order of execution."""
        for op in ops:
            for value, type in zip(op.results, op.types(), strict=True):
                value.type = type


def _measures(op: Op) -> bool:
    return op.weight_time or feeds_only_statistics(op)


class Rule(ABC, Generic[M, S]):
    """A pattern: which ops it looks at, whether it fires on one, and what it then does."""

    op: ClassVar[type[Op]]

    @abstractmethod
    def match(self, op: M, graph: Graph) -> S | Refusal:
        """Return what `rewrite` needs, or the reason why the rule does not fire here."""

    @abstractmethod
    def rewrite(self, site: S, edit: Editor) -> str:
        """Change the graph at a site, and say in a phrase what was done."""


def drive(graph: Graph, rule: Rule[M, S]) -> Report:
    """Offer every op of a rule's class to the rule, once and in order; return what was done and what was refused."""
    edit = Editor(graph)
    notes: list[Note] = []
    for op in [op for op in graph.ops if isinstance(op, rule.op)]:
        result = op.results[0]
        if graph.values.get(result.name) is not result:
            continue  # an earlier site took it away
        layer = layer_of(result.name)
        where = op.label if layer is None else f"layer {layer}"
        found = rule.match(op, graph)  # pyright: ignore[reportArgumentType]
        if isinstance(found, Refusal):
            notes.append(Note(where, False, found.reason, layer))
        else:
            notes.append(Note(where, True, rule.rewrite(found, edit), layer))
    return Report(tuple(notes))
