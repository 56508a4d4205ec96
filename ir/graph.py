"""The graph: ops in execution order, values made once, and the edits that keep it so."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from regraft.ir.attributes import plain
from regraft.ir.errors.graph import (
    CycleError,
    DuplicateValueError,
    GraphError,
    InUseError,
    OpRuleError,
    OrderError,
    TimeError,
    UseListError,
    ValueNameError,
)
from regraft.ir.op import Op, Value
from regraft.ir.types import MemoryType, Type, with_rows_of

if TYPE_CHECKING:
    import networkx

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_\-]*(?:\.[A-Za-z0-9_\-]+)*")
_LAYER = re.compile(r"(?:^|\.)layers\.(0|[1-9][0-9]{0,4})(?=\.)")


@lru_cache(1 << 16)
def layer_of(name: str) -> int | None:
    """Return the layer number in a dotted name such as ``layers.3.attn.q``, or none."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def relative(name: str) -> str:
    """Return ``name`` with its layer's number as ``*``: the same for the same place in every layer."""
    return _LAYER.sub(lambda m: m[0].replace(m[1], "*"), name, count=1)


def in_layer(name: str, layer: int) -> str:
    """Return the name that stands at ``name``'s place in ``layer``."""
    return name.replace("layers.*", f"layers.{layer}", 1)


class Graph:
    """A model: inputs, ops in execution order, outputs, and what describes it.

    Args:
        name: The model's name; what is no letter, digit, dot, dash or underscore becomes an underscore.
        meta: Facts that are no ops: family, vocabulary, end tokens, trained context, storage dtype. Keys are
            identifiers; values are numbers, strings, truth values, None, or lists of these, kept as tuples.
    """

    def __init__(self, name: str, meta: Mapping[str, object] | None = None) -> None:
        self.name = re.sub(r"[^A-Za-z0-9_.\-]", "_", name) or "graph"
        self.meta: dict[str, object] = {key: plain(value) for key, value in (meta or {}).items()}
        if strange := [key for key in self.meta if not re.fullmatch("[A-Za-z_][A-Za-z0-9_.]*", key)]:
            raise TypeError(f"text cannot hold a fact called {strange[0]!r}")
        self.inputs: list[Value] = []
        self.ops: list[Op] = []
        self.outputs: list[Value] = []
        self._values: dict[str, Value] = {}

    # -- building

    def add_input(self, name: str, type: Type) -> Value:
        """Declare an input."""
        self._check_name(name)
        value = self._values[name] = Value(name, type)
        self.inputs.append(value)
        return value

    def set_outputs(self, values: Sequence[Value]) -> None:
        """Name what the graph gives."""
        self.outputs = list(values)

    def add(
        self,
        op: Op,
        names: Sequence[str],
        types: Sequence[Type] | None = None,
        before: Op | None = None,
    ) -> tuple[Value, ...]:
        """Put ``op`` at the end, or before another op, its results called ``names``.

        Types are inferred and checked, unless ``types`` gives them (a copy of an op that was checked).

        Raises:
            GraphError: The operands or attributes do not fit, or a name is taken; the graph is as before.
        """
        inferred = _typed(op, names[0]) if types is None else types
        if len(names) != len(inferred):
            problem, fix = f"{len(inferred)} results called by {len(names)} names", "a name for each result"
            raise OpRuleError(op=op.label, problem=problem, fix=fix)
        results = tuple(Value(name, type, op) for name, type in zip(names, inferred, strict=True))
        for i, value in enumerate(results):
            self._check_name(value.name)
            if i and value.name in names[:i]:
                raise DuplicateValueError(name=value.name, where=value.name)
        op.results = results
        self._values.update((value.name, value) for value in results)
        for value in op.operands:
            value.users[op] = value.users.get(op, 0) + 1
        if before is None:
            self.ops.append(op)
        else:
            self.ops.insert(self.ops.index(before), op)
        return op.results

    def _check_name(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise ValueNameError(name=repr(name))
        if name in self._values:
            raise DuplicateValueError(name=name, where=name)

    # -- looking

    def __getitem__(self, name: str) -> Value:
        return self._values[name]

    def __contains__(self, name: str) -> bool:
        return name in self._values

    @property
    def values(self) -> Mapping[str, Value]:
        """All values by name."""
        return self._values

    def parameters(self) -> list[Value]:
        """The weight-time values that run-time ops read, each once, in order of first use."""
        found = {v: None for op in self.run_time() for v in op.operands if v.is_weight}
        return list(found)

    def memories(self) -> list[Value]:
        """The memories, in order."""
        return [v for op in self.ops if op.is_state for v in op.results if isinstance(v.type, MemoryType)]

    def run_time(self) -> Iterator[Op]:
        """The ops that run for every call, in order: not those that only statistics read."""
        if not any(op.reads_run_time for op in self.ops):
            return (op for op in self.ops if not op.weight_time)
        live: set[Op] = set()
        stack = [value.op for value in self.outputs]
        while stack:
            op = stack.pop()
            if op is not None and op not in live and not op.weight_time:
                live.add(op)
                stack.extend(value.op for value in op.operands)
        return (op for op in self.ops if op in live)

    def layer_count(self) -> int:
        """One more than the highest layer number."""
        layers = (layer_of(op.results[0].name) for op in self.ops)
        return max((layer + 1 for layer in layers if layer is not None), default=0)

    def in_layer(self, layer: int, kind: type[Op] | None = None) -> list[Op]:
        """The ops of a layer, all or those of one class."""
        return [
            op for op in self.ops if layer_of(op.results[0].name) == layer and (kind is None or isinstance(op, kind))
        ]

    def fresh(self, name: str) -> str:
        """Return ``name``, or the first of ``name_2``, ``name_3``, ... that is free."""
        candidate, number = name, 1
        while candidate in self._values:
            number += 1
            candidate = f"{name}_{number}"
        return candidate

    def to_networkx(self) -> networkx.DiGraph[Op]:
        """Return the ops as a directed graph, an edge from each producer to each user."""
        import networkx

        graph: networkx.DiGraph[Op] = networkx.DiGraph()
        graph.add_nodes_from(self.ops)
        graph.add_edges_from((v.op, op) for op in self.ops for v in op.operands if v.op is not None)
        return graph

    # -- editing

    def set_operand(self, op: Op, slot: str, values: Value | Sequence[Value]) -> None:
        """Let ``op`` read other values. Types are not checked again until `retype` or `verify`."""
        new = (values,) if isinstance(values, Value) else tuple(values)
        for value in op.slots[slot]:
            _release(value, op)
        op.slots[slot] = new
        for value in new:
            value.users[op] = value.users.get(op, 0) + 1

    def set_attribute(self, op: Op, name: str, value: object) -> None:
        """Give ``op`` another attribute value, checked against its declaration."""
        op.attributes[name] = op.spec.attributes[name].coerce(op.opname, value)

    def replace_uses(self, old: Value, new: Value, of: Callable[[Op], bool] | None = None) -> None:
        """Let the users of ``old`` read ``new``: all, with the graph's outputs, or just the ops that ``of`` accepts.

        The op that makes ``new`` may read ``old``, and goes on doing so.
        """
        for user in list(old.users):
            if new.op is user or (of is not None and not of(user)):
                continue
            for slot, values in user.slots.items():
                if old in values:
                    self.set_operand(user, slot, [new if v is old else v for v in values])
        if of is None:
            self.outputs = [new if v is old else v for v in self.outputs]

    def rename(self, value: Value, name: str) -> None:
        """Call ``value`` by another name; a memory's cache is then called so too."""
        if name == value.name:
            return
        self._check_name(name)
        old = value.name
        del self._values[old]
        value.name = name
        self._values[name] = value
        if isinstance(value.type, MemoryType):
            for other in self._values.values():
                other.type = with_rows_of(other.type, lambda memory: name if memory == old else memory)

    def erase(self, op: Op) -> None:
        """Remove an op that nobody reads.

        Raises:
            InUseError: Somebody does.
        """
        users = [user.label for v in op.results for user in v.users]
        users += ["return" for v in op.results if v in self.outputs]
        if users:
            raise InUseError(op=op.label, users=", ".join(users), where=op.scope)
        self.ops.remove(op)
        self._forget(op)

    def _forget(self, op: Op) -> None:
        for value in op.operands:
            _release(value, op)
        for value in op.results:
            del self._values[value.name]

    def drop_dead(self) -> int:
        """Remove the ops whose results nobody reads, and return how many went."""
        dead: set[Op] = set()
        for op in reversed(self.ops):
            if not any(v.users or v in self.outputs for v in op.results):
                dead.add(op)
                self._forget(op)
        self.ops = [op for op in self.ops if op not in dead]
        return len(dead)

    def merge_equal(self) -> int:
        """Let one op serve where several compute the same, and return how many went. Memories stay apart."""
        seen: dict[object, Op] = {}
        kept: list[Op] = []
        for op in self.ops:
            first = op if op.is_state else seen.setdefault(op.key(), op)
            if first is op:
                kept.append(op)
                continue
            for old, new in zip(op.results, first.results, strict=True):
                self.replace_uses(old, new)
            self._forget(op)
        merged = len(self.ops) - len(kept)
        self.ops = kept
        return merged

    def retype(self) -> None:
        """Infer every type anew, in order, after attributes or operands changed.

        Raises:
            GraphError: Some op no longer fits its operands.
        """
        for op in self.ops:
            for value, type in zip(op.results, _typed(op, op.results[0].name), strict=True):
                value.type = type

    def sort(self) -> None:
        """Put the ops in an order in which operands come first, otherwise as they are.

        Raises:
            CycleError: There is none.
        """
        import networkx

        place = {op: i for i, op in enumerate(self.ops)}
        edges = self.to_networkx()
        try:
            self.ops = list(networkx.lexicographical_topological_sort(edges, key=place.__getitem__))
        except networkx.NetworkXUnfeasible:
            cycle = [edge[0].label for edge in networkx.find_cycle(edges)]
            raise CycleError(ops=", ".join(cycle[:6]), where=self.name) from None

    def copy(self) -> Graph:
        """Return an independent copy, names and types as they are."""
        copy = Graph(self.name, self.meta)
        new: dict[Value, Value] = {v: copy.add_input(v.name, v.type) for v in self.inputs}
        for op in self.ops:
            results = copy.add(op.rebuilt(new.__getitem__), [v.name for v in op.results], [v.type for v in op.results])
            new.update(zip(op.results, results, strict=True))
        copy.set_outputs([new[v] for v in self.outputs])
        return copy

    # -- checking

    def equals(self, other: Graph) -> bool:
        """Whether ``other`` has the same name, facts, inputs, ops in the same order, value names, types and outputs."""
        return _listing(self) == _listing(other)

    def verify(self) -> None:
        """Check order, use-lists, types, the memory rule, times of values and every op's own rule.

        Types are inferred anew on the way.

        Raises:
            GraphError: The first rule that does not hold, with its op and scope.
        """
        made: set[Value] = set(self.inputs)
        for op in self.ops:
            for value in op.operands:
                if value not in made:
                    raise OrderError(op=op.label, name=value.name, where=op.place)
                if op not in value.users:
                    raise UseListError(op=op.label, name=value.name, relation="operand", where=op.place)
            for value, type in zip(op.results, _typed(op, op.results[0].name), strict=True):
                if value.op is not op or self._values.get(value.name) is not value:
                    raise UseListError(op=op.label, name=value.name, relation="result", where=op.place)
                value.type = type
            made.update(op.results)
        for value in self.outputs:
            if value not in made:
                raise OrderError(op="return", name=value.name, where=self.name)
        self._verify_users()

    def _verify_users(self) -> None:
        """Check that no value counts a use by an op that does not read it, or that is gone."""
        uses: dict[tuple[Value, Op], int] = {}
        for op in self.ops:
            for value in op.operands:
                uses[value, op] = uses.get((value, op), 0) + 1
        for value in self._values.values():
            for op, count in value.users.items():
                if uses.get((value, op)) != count:
                    raise UseListError(op=op.label, name=value.name, relation="operand", where=op.place)


def _typed(op: Op, name: str) -> Sequence[Type]:
    """Return the types of the results of ``op``, checked; errors name the place of the op that makes ``name``."""
    try:
        if op.weight_time and not op.reads_run_time:
            for value in op.operands:
                if not value.is_weight:
                    raise TimeError(op=op.label, name=value.name)
        return op.types()
    except GraphError as error:
        error.where = error.where or _place(name)
        raise


def feeds_only_statistics(op: Op) -> bool:
    """Return whether nothing but statistics depends on what a run-time op makes, so that no program computes it."""
    stack, seen = [op], {op}
    while stack:
        users = {user for value in stack.pop().results for user in value.users}
        if not users:
            return False  # a result of the graph
        following = {user for user in users if not user.weight_time} - seen
        seen |= following
        stack.extend(following)
    return True


def _place(name: str) -> str:
    """Return the scope of a value, or the value where it has none."""
    return name.rpartition(".")[0] or f"%{name}"


def _listing(graph: Graph) -> object:
    return (
        graph.name,
        {key: plain(value) for key, value in graph.meta.items()},
        [(v.name, v.type) for v in graph.inputs],
        [
            (
                op.opname,
                {slot: [v.name for v in values] for slot, values in op.slots.items()},
                op.attributes,
                [(v.name, v.type) for v in op.results],
            )
            for op in graph.ops
        ],
        [v.name for v in graph.outputs],
    )


def _release(value: Value, op: Op) -> None:
    value.users[op] -= 1
    if not value.users[op]:
        del value.users[op]
