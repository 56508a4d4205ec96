"""Groups of ops that become one kernel, and the graph that they make."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field

from regraft.ir.graph import Graph, layer_of
from regraft.ir.kinds import block_kinds
from regraft.ir.op import Op, Value
from regraft.ir.ops.kernels import Kernel, memories_made, stand_in
from regraft.ir.types import MemoryType


@dataclass
class Group:
    """Ops of one layer, or of none, that one kernel shall compute.

    Attributes:
        kind: The kernel's class.
        ops: The ops, in order.
        again: Ops of no group that it computes too, as others may: a norm that several kernels start with.
    """

    kind: type[Kernel]
    ops: dict[Op, None] = field(default_factory=dict[Op, None])
    again: tuple[Op, ...] = ()


class Grouping:
    """A graph's ops, dealt to groups by one rule after another.

    Args:
        graph: A verified graph, which stays as it is.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.place = {op: number for number, op in enumerate(graph.ops)}
        self.of: dict[Op, Group] = {}
        self.gone: set[Op] = set()  # all that read them compute them
        self.layers: dict[int | None, list[Op]] = {}
        for op in graph.run_time():
            self.layers.setdefault(layer_of(op.results[0].name), []).append(op)

    def free(self, op: Op | None) -> bool:
        """Return whether an op runs for every call and is in no group yet."""
        if op is None or op.weight_time or op in self.gone:
            return False
        return op not in self.of and op in self.place

    def ordered(self, ops: Iterable[Op]) -> list[Op]:
        """Return ops in the graph's order."""
        return sorted(ops, key=self.place.__getitem__)

    def same_layer(self, one: Op, other: Op) -> bool:
        """Return whether two ops stand in one layer."""
        return layer_of(one.results[0].name) == layer_of(other.results[0].name)

    def closed(self, ops: Iterable[Op], gives: Container[Value]) -> bool:
        """Return whether all that others read of ``ops`` are ``gives`` and memories."""
        inside = set(ops)
        made = [v for op in inside for v in op.results if v not in gives and v not in memories_made([op])]
        return all(inside.issuperset(v.users) and v not in self.graph.outputs for v in made)

    def take(self, kind: type[Kernel], ops: Iterable[Op], again: Iterable[Op] = ()) -> bool:
        """Make a group of ``ops`` if none is in one and nothing outside stands between them; return whether.

        It computes ``again`` too, which leads to some of them; where all that reads these does so they are gone.
        """
        found = set(ops)
        if not found or not all(map(self.free, found)):
            return False
        wanted, too = dict.fromkeys(self.ordered(found)), self.ordered(again)
        between = dict(wanted)  # with what is computed again of some of them for others
        for op in too:
            between |= {op: None} if any(value.op in between for value in op.operands) else {}
        if not self.convex(between):
            return False
        group = Group(kind, wanted, tuple(too))
        self.of.update(dict.fromkeys(wanted, group))
        for op in reversed(group.again):
            users = [user for value in op.results for user in value.users]
            if any(value in self.graph.outputs for value in op.results):
                continue
            if all(user in self.gone or (user in self.of and op in self.of[user].again) for user in users):
                self.gone.add(op)
        return True

    def extend(self, group: Group, op: Op) -> bool:
        """Add a free op to a group if nothing outside stands between them; return whether."""
        wanted = dict.fromkeys(sorted([*group.ops, op], key=self.place.__getitem__))
        if not self.convex(wanted):
            return False
        group.ops = wanted
        self.of[op] = group
        return True

    def join(self, kind: type[Kernel], groups: Sequence[Group]) -> bool:
        """Make one group of several if nothing outside stands between them; return whether."""
        wanted = dict.fromkeys(self.ordered(op for group in groups for op in group.ops))
        if any(group.again for group in groups) or not self.convex(wanted):
            return False
        self.of.update(dict.fromkeys(wanted, Group(kind, wanted)))
        return True

    def convex(self, ops: dict[Op, None]) -> bool:
        """Return whether nothing that depends on some of ``ops`` feeds others, with the groups so far in one piece."""
        layer = layer_of(next(iter(ops)).results[0].name)
        seen: set[Op] = set()
        stack = [user for op in ops for user in self._after(op, ops) if user not in ops]
        while stack:
            op = stack.pop()
            if op in ops:
                return False
            if op in seen or layer_of(op.results[0].name) != layer:  # groups stay within their layer
                continue
            seen.add(op)
            stack.extend(self._after(op, ops))
        return True

    def _after(self, op: Op, ops: dict[Op, None]) -> list[Op]:
        """Return the ops that wait for an op; all of a group wait for each of its members."""
        users = [user for value in op.results for user in value.users if not user.weight_time]
        groups = {id(self.of[user]): self.of[user] for user in users if user in self.of and user not in ops}
        return [*users, *(member for group in groups.values() for member in group.ops)]

    def fused(self) -> Graph:
        """Return the graph in which each group is one op; values that others read keep their names and types."""
        graph = Graph(self.graph.name, self.graph.meta)
        new = {value: graph.add_input(value.name, value.type) for value in self.graph.inputs}

        def copy(op: Op) -> None:
            names, types = [v.name for v in op.results], [v.type for v in op.results]
            new.update(zip(op.results, graph.add(op.rebuilt(new.__getitem__), names, types), strict=True))

        wanted = self._wanted()
        for op in self._order():
            if isinstance(op, Op):
                copy(op)
                continue
            ops = list(op.ops)
            gives = [v for each in ops for v in each.results if v in wanted]
            called = _called_in(layer_of(ops[0].results[0].name))
            kernel = stand_in(op.kind, self.ordered([*op.again, *ops]), gives, called)
            kernel = kernel.rebuilt(new.__getitem__)
            results = graph.add(kernel, [v.name for v in gives], [v.type for v in gives])
            new.update(zip(gives, results, strict=True))
        graph.set_outputs([new[value] for value in self.graph.outputs])
        return graph

    def _wanted(self) -> set[Value]:
        """Return what groups must give: what is read outside of them, in some layer of their kind, and memories."""
        wanted: set[Value] = set()
        groups = {id(group): list(group.ops) for group in self.of.values()}
        for ops in groups.values():
            inside, made = set(ops), [v for op in ops for v in op.results]
            wanted.update(memories_made(ops))
            wanted.update(v for v in made if v in self.graph.outputs or not inside.issuperset(v.users))
        for kind in block_kinds(self.graph):
            made = [(layer.local(v.name), v) for layer in kind.layers for op in layer.ops for v in op.results]
            given = {name for name, value in made if value in wanted}
            wanted.update(value for name, value in made if name in given)
        return wanted

    def _order(self) -> list[Op | Group]:
        """Return the ops and groups in an order in which operands come first, otherwise as they are."""
        import networkx

        left = [op for op in self.graph.ops if op not in self.gone]
        node = {op: id(self.of[op]) if op in self.of else id(op) for op in left}
        item: dict[int, Op | Group] = {node[op]: self.of.get(op, op) for op in left}
        place = {node[op]: number for op, number in self.place.items() if op in node}
        edges: networkx.DiGraph[int] = networkx.DiGraph()
        edges.add_nodes_from(item)
        for to, one in item.items():
            computed = dict.fromkeys([one] if isinstance(one, Op) else [*one.again, *one.ops])
            makers = {v.op for op in computed for v in op.operands if v.op is not None and v.op not in computed}
            edges.add_edges_from((node[maker], to) for maker in makers)
        return [item[each] for each in networkx.lexicographical_topological_sort(edges, key=place.__getitem__)]


def _called_in(layer: int | None) -> Callable[[Value], str]:
    """Return how a kernel's body calls what it is given: the same in every layer of a kind."""

    def name(value: Value) -> str:
        if layer is None or layer_of(value.name) == layer or value.op is None:
            return value.name
        if value.is_weight and layer_of(value.name) is None:
            return value.name
        return "memory" if isinstance(value.type, MemoryType) else "x"

    return name
