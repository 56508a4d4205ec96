"""Building graphs: ops named within a scope."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Sequence
from contextlib import contextmanager

from regraft.ir.dims import B, T
from regraft.ir.graph import Graph, in_layer, layer_of, relative
from regraft.ir.op import Op, Value
from regraft.ir.ops.weight import Load
from regraft.ir.types import MemoryType, TensorType, with_rows_of

Body = Callable[["Builder", int, Sequence[Value]], Sequence[Value]]


class Builder:
    """Adds ops to a graph, under the current scope.

    Args:
        graph: The graph to extend.
        dtype: The dtype of the weights that `weight` declares.
    """

    def __init__(self, graph: Graph, dtype: str) -> None:
        self.graph = graph
        self.dtype = dtype
        self._scope: list[str] = []
        self._layers: dict[Hashable, tuple[list[Op], list[Value], list[Value]]] = {}

    @contextmanager
    def scope(self, name: str) -> Generator[None]:
        """Put ``name.`` before the names of the values made within."""
        self._scope.append(name)
        try:
            yield
        finally:
            self._scope.pop()

    def path(self, name: str) -> str:
        """Return ``name`` under the current scope."""
        return ".".join([*self._scope, name])

    def many(
        self, op: type[Op], names: Sequence[str], *values: Value | Sequence[Value], **rest: object
    ) -> tuple[Value, ...]:
        """Add an op with several results.

        ``values`` fill the operands in their order, a sequence for the one that takes several; keywords are optional
        operands (None leaves one out) and attributes.
        """
        spec = op.spec
        if len(values) > len(spec.slots):
            raise TypeError(f"{op.opname} takes {spec.signature}, not {len(values)} operands")
        slots: dict[str, Sequence[Value]] = {}
        for slot, value in zip(spec.slots, values, strict=False):
            slots[slot.name] = (value,) if isinstance(value, Value) else value
        attributes: dict[str, object] = {}
        for name, value in rest.items():
            if name in spec.attributes:
                attributes[name] = value
            elif isinstance(value, Value):
                slots[name] = (value,)
            elif value is not None:
                attributes[name] = value  # refused with the legal names
        return self.graph.add(op(slots, attributes), [self.path(name) for name in names])

    def __call__(self, op: type[Op], name: str, *values: Value | Sequence[Value], **rest: object) -> Value:
        """Add an op with one result, and return it."""
        return self.many(op, [name], *values, **rest)[0]

    def weight(self, tensor: str, *shape: int, dtype: str | None = None) -> Value:
        """Return the checkpoint's tensor of that name, declared at its first use."""
        if tensor in self.graph:
            return self.graph[tensor]
        return self.graph.add(Load({}, {"dtype": dtype or self.dtype, "shape": shape}), [tensor])[0]

    def tokens(self) -> tuple[Value, Value]:
        """Declare the inputs of every graph, ``tokens``, ``pos`` and ``valid``, and return the first two.

        ``tokens`` and ``pos`` are int64 ``[B, T]``; ``valid`` is bool ``[B, T]``, false for padding.
        """
        tokens = self.graph.add_input("tokens", TensorType("i64", (B, T)))
        pos = self.graph.add_input("pos", TensorType("i64", (B, T)))
        self.graph.add_input("valid", TensorType("bool", (B, T)))
        return tokens, pos

    def layer(self, number: int, key: Hashable, inputs: Sequence[Value], body: Body) -> list[Value]:
        """Add layer ``number`` and return its outputs.

        ``body`` builds the layer from its number and its inputs; ``key`` says all else that it depends on. A layer
        whose key came before is copied from that one, without building or checking it again; weights that the first
        one declared outside of its layer are shared.
        """
        first = self._layers.get(key)
        if first is None:
            start = len(self.graph.ops)
            with self.scope(f"layers.{number}"):
                outputs = list(body(self, number, inputs))
            self._layers[key] = (self.graph.ops[start:], list(inputs), outputs)
            return outputs
        ops, was, outputs = first
        new: dict[Value, Value] = dict(zip(was, inputs, strict=True))
        moved = {a.name: b.name for a, b in new.items() if isinstance(a.type, MemoryType)}
        for op in ops:
            if op.weight_time and layer_of(op.results[0].name) is None:
                continue
            twin = op.rebuilt(lambda v: new.get(v, v))
            for name, value in twin.attributes.items():
                if isinstance(value, str) and "layers." in value:  # a tensor's name in the checkpoint
                    twin.attributes[name] = in_layer(relative(value), number)
            names = [in_layer(relative(v.name), number) for v in op.results]
            results = self.graph.add(twin, names, [with_rows_of(v.type, lambda m: moved.get(m, m)) for v in op.results])
            new.update(zip(op.results, results, strict=True))
            moved.update((a.name, b.name) for a, b in zip(op.results, results, strict=True) if op.is_state)
        return [new.get(v, v) for v in outputs]
