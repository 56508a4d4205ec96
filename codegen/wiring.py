"""How a graph becomes classes and a loop: where each block's inputs come from, and which module owns each parameter."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from regraft.codegen.names import MODULE_ATTRIBUTES, Namespace, suffixes
from regraft.ir.cost import is_buffer
from regraft.ir.errors.codegen import WiringError
from regraft.ir.graph import Graph
from regraft.ir.kinds import Kind, Layer, block_kinds, ranges, split_layers
from regraft.ir.op import Op, Value
from regraft.ir.ops.core import Embed, Linear
from regraft.ir.types import TensorType

GLOBAL, STREAM, KEPT, WEIGHT, OWNED, EACH = "global", "stream", "kept", "weight", "owned", "each"


@dataclass(frozen=True)
class Feed:
    """Where the layers of a kind take one of their inputs from.

    ``how`` is GLOBAL (the same value for all, made outside of layers), STREAM (the ``local`` result of the layer
    before), KEPT (the ``local`` result of some earlier layer, by a table), WEIGHT (a parameter of another module),
    OWNED (the ``local`` parameter of some other layer, by a table) or EACH (for every layer its own value, made outside
    of layers; ``local`` is what they are called together).
    """

    how: str
    place: int  # among the layers' inputs
    value: Value
    local: str = ""


@dataclass(frozen=True)
class Place:
    """Where a parameter stands in the module tree: ``owner`` is an index into ``layers``, or None for the model."""

    owner: int | None
    attribute: str
    module: str  # linear, embedding, parameter or buffer
    part: str  # weight, bias, or empty for a bare tensor

    @property
    def path(self) -> str:
        """The path below its owner."""
        return f"{self.attribute}.{self.part}" if self.part else self.attribute

    @property
    def state_name(self) -> str:
        """The name in the state dict."""
        return self.path if self.owner is None else f"layers.{self.owner}.{self.path}"


def run_time(ops: tuple[Op, ...]) -> list[Op]:
    """Return those of ``ops`` that run for every call."""
    return [op for op in ops if not op.weight_time]


def local_value(layer: Layer, local: str) -> Value:
    """Return a layer's value of that local name."""
    return next(v for op in layer.ops for v in op.results if layer.local(v.name) == local)


class Wiring:
    """A graph's layers, kinds, feeds and parameters, as emitted code arranges them.

    Args:
        graph: A verified graph.

    Raises:
        WiringError: A kind's layers are fed in ways that one loop cannot spell.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.items = split_layers(graph)
        self.layers = [item for item in self.items if isinstance(item, Layer)]
        self.index = {layer.number: i for i, layer in enumerate(self.layers)}
        self._at = {item.number: i for i, item in enumerate(self.items) if isinstance(item, Layer)}
        self.kinds = block_kinds(graph)
        self.kind_of = {layer.number: kind for kind in self.kinds for layer in kind.layers}
        self._maker = {v: layer for layer in self.layers for op in layer.ops for v in op.results}
        self.each: dict[str, dict[int, Value]] = {}
        self.feeds = {kind.name: [self._feed(kind, place) for place in self._inputs(kind)] for kind in self.kinds}
        self.streams: dict[str, None] = {}
        self.kept: dict[str, None] = {}
        self._sort_results()

    def stacks(self) -> Iterator[Op | list[Layer]]:
        """Return the run-time ops outside of layers, and each run of layers between them, in order."""
        run: list[Layer] = []
        for item in self.items:
            if isinstance(item, Layer):
                run.append(item)
                continue
            if item.weight_time:
                continue
            if run:
                yield run
                run = []
            yield item
        if run:
            yield run

    def made_in(self, value: Value) -> tuple[int, str] | None:
        """Return the index of the layer that makes a value, and its local name there; None outside of layers."""
        layer = self._maker.get(value)
        return None if layer is None else (self.index[layer.number], layer.local(value.name))

    def results(self, kind: Kind) -> list[str]:
        """Return the local names of what a kind's layers give to others, in order."""
        wanted = [
            n for op in run_time(kind.layers[0].ops) for n in map(kind.layers[0].local, (v.name for v in op.results))
        ]
        given = {layer.local(v.name) for layer in kind.layers for v in layer.outputs}
        return [name for name in wanted if name in given and (name in self.streams or name in self.kept)]

    def memories(self, kind: Kind) -> list[Op]:
        """Return the state ops of a kind's first layer."""
        return [op for op in kind.layers[0].ops if op.is_state]

    def reads(self, layer: Layer) -> dict[str, int]:
        """Return the layers from which a layer takes kept inputs and parameters, by index."""
        kind = self.kind_of[layer.number]
        found = {f.place: self.made_in(layer.inputs[f.place]) for f in self.feeds[kind.name] if f.how in (KEPT, OWNED)}
        return {kind.params[place]: made[0] for place, made in found.items() if made is not None}

    # -- feeds

    def _inputs(self, kind: Kind) -> list[int]:
        """Return the places of the inputs that run-time ops read."""
        layer = kind.layers[0]
        read = {v for op in run_time(layer.ops) for v in op.operands}
        return [place for place, value in enumerate(layer.inputs) if value in read]

    def _feed(self, kind: Kind, place: int) -> Feed:
        values = [layer.inputs[place] for layer in kind.layers]
        first = values[0]
        made = [self.made_in(v) for v in values]
        if first.is_weight:
            owned = {None if m is None else m[1] for m in made}
            if len(set(values)) == 1:
                return Feed(WEIGHT, place, first)
            if len(owned) > 1 or None in made:
                raise self._unwired(kind, place)
            return Feed(OWNED, place, first, owned.pop() or "")
        if len(set(values)) == 1 and made[0] is None:
            return Feed(GLOBAL, place, first)
        if not any(made) and not any(self._starts_run(layer) for layer in kind.layers[1:]):
            return Feed(EACH, place, first, self._together(kind, values))
        locals = {m[1] for m in made if m is not None}
        if len(locals) != 1:
            raise self._unwired(kind, place)
        (local,) = locals
        if all(self._follows(layer, value) for layer, value in zip(kind.layers, values, strict=True)):
            return Feed(STREAM, place, first, local)
        if None in made:
            raise self._unwired(kind, place)
        return Feed(KEPT, place, first, local)

    def _follows(self, layer: Layer, value: Value) -> bool:
        """Return whether a tensor is the previous layer's, or enters a run of layers from outside."""
        if not isinstance(value.type, TensorType):
            return False
        made = self.made_in(value)
        return self._starts_run(layer) if made is None else made[0] == self.index[layer.number] - 1

    def _together(self, kind: Kind, values: list[Value]) -> str:
        """Return what values made outside of layers are called together, and note which layer takes which."""
        stem = values[0].name.rpartition(".")[0] or "given"
        mine = {self.index[layer.number]: value for layer, value in zip(kind.layers, values, strict=True)}
        while self.each.get(stem, {}).keys() & mine.keys():
            stem += "_more"
        self.each.setdefault(stem, {}).update(mine)
        return stem

    def _starts_run(self, layer: Layer) -> bool:
        at = self._at[layer.number]
        return at == 0 or not isinstance(self.items[at - 1], Layer)

    def _unwired(self, kind: Kind, place: int) -> WiringError:
        return WiringError(kind=kind.name, layers=ranges(kind.numbers), name=f"%{kind.params[place]}")

    def _sort_results(self) -> None:
        """Note which of the layers' results go to the next layer or to the ops after a run, and which are kept."""
        for feeds in self.feeds.values():
            for feed in feeds:
                if feed.how == STREAM:
                    self.streams[feed.local] = None
                elif feed.how == KEPT:
                    self.kept[feed.local] = None
        outside = [op for op in self.items if not isinstance(op, Layer) and not op.weight_time]
        for value in [v for op in outside for v in op.operands] + self.graph.outputs:
            made = self.made_in(value)
            if made is not None and not value.is_weight:
                leaves_last = self.is_last(made[0]) and isinstance(value.type, TensorType)
                (self.streams if leaves_last else self.kept)[made[1]] = None

    def is_last(self, index: int) -> bool:
        """Whether a layer is the last of its run."""
        at = self._at[self.layers[index].number]
        return at + 1 == len(self.items) or not isinstance(self.items[at + 1], Layer)

    # -- parameters

    @cached_property
    def places(self) -> dict[Value, Place]:
        """Where each parameter stands, in order of first use."""
        places: dict[Value, Place] = {}
        attributes: dict[str | None, Namespace] = {}
        modules: dict[tuple[str | None, str], tuple[str, str, str]] = {}
        for value in self.graph.parameters():
            layer = self._maker.get(value)
            kind = None if layer is None else self.kind_of[layer.number]
            local = value.name if layer is None else layer.local(value.name)
            key = (kind.name if kind else None, local)
            if key not in modules:
                modules[key] = self._module(value, kind, local)
            module, stem, part = modules[key]
            space = attributes.setdefault(key[0], Namespace(MODULE_ATTRIBUTES))
            tail = stem.partition(".layers.*.")[2] or stem
            attribute = space.give((stem, "" if module == "linear" else module), *suffixes(tail))
            owner = None if layer is None else self.index[layer.number]
            places[value] = Place(owner, attribute, module, part)
        return places

    def _module(self, value: Value, kind: Kind | None, local: str) -> tuple[str, str, str]:
        """Return the module that a parameter belongs to: its class, its name in the graph, and the part it is."""
        alike = [value] if kind is None else [self._counterpart(value, kind, layer) for layer in kind.layers]
        stem = local.removesuffix(".weight").removesuffix(".bias")
        uses = [self._only_use(v) for v in alike]
        if all(use is not None and self._is_linear(use[0]) for use in uses):
            slot = {use[1] for use in uses if use is not None}
            linear = uses[0][0] if uses[0] is not None else None
            if linear is not None and slot == {"weight"}:
                return "linear", stem, "weight"
            if linear is not None and slot == {"bias"}:
                weight = linear.slots["weight"][0]
                made = self._maker.get(weight)
                name = weight.name if made is None else made.local(weight.name)
                return "linear", name.removesuffix(".weight"), "bias"
        if kind is None and any(isinstance(user, Embed) for user in value.users):
            return "embedding", stem, "weight"
        bare = "buffer" if all(map(is_buffer, alike)) else "parameter"
        return bare, local.removesuffix(".weight") if local.endswith(".weight") else local, ""

    def _counterpart(self, value: Value, kind: Kind, layer: Layer) -> Value:
        made = self._maker[value]
        number = next(i for i, op in enumerate(made.ops) if value in op.results)
        return layer.ops[number].results[value.op.results.index(value) if value.op else 0]

    def _only_use(self, value: Value) -> tuple[Op, str] | None:
        """Return the only op that reads a parameter, in the parameter's own module, and its operand's name."""
        if len(value.users) != 1:
            return None
        ((user, count),) = value.users.items()
        mine, theirs = self._maker.get(value), self._maker.get(user.results[0])
        if count != 1 or (mine is None) != (theirs is None) or (mine and theirs and mine.number != theirs.number):
            return None
        return user, next(slot for slot, values in user.slots.items() if value in values)

    def _is_linear(self, op: Op) -> bool:
        """Return whether an op is a linear map whose weight and bias nobody else reads."""
        if not isinstance(op, Linear):
            return False
        parts = [op.weight] if op.bias is None else [op.weight, op.bias]
        return all(p.is_weight and self._only_use(p) is not None for p in parts)
