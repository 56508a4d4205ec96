"""Block kinds: layers with the same structure, found by comparing their bodies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from regraft.ir.graph import Graph, in_layer, layer_of, relative
from regraft.ir.op import Op, Value
from regraft.ir.types import MemoryType, Type, with_rows_of


@dataclass(frozen=True)
class Layer:
    """One layer of a graph: its ops, the values from outside that they read, and its own that are read outside.

    Ops and outputs are in order, inputs in order of first use. The graph's results count as read outside.
    """

    number: int
    ops: tuple[Op, ...]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]

    def local(self, name: str) -> str:
        """Return a name as the layer's own text has it: ``attn.q``, or ``model.layers.*.self_attn.q_proj.weight``."""
        here = f"layers.{self.number}."
        if name.startswith(here):
            return name[len(here) :]
        return name.replace(f".{here}", ".layers.*.", 1)

    def local_attribute(self, value: object) -> object:
        """Return an attribute's value with ``*`` for the layer's number where a string names a place of this layer."""
        if isinstance(value, tuple):
            return tuple(self.local_attribute(each) for each in cast("tuple[object, ...]", value))
        if not isinstance(value, str) or not ("*" in value or "layers." in value):
            return value
        value = value.replace("*", "**")
        return re.sub(rf"(?<![\w\-])layers\.{self.number}(?=\.)", "layers.*", value)

    def local_type(self, type: Type) -> Type:
        """Return a type with ``*`` for the layer's number in the memory, if it is this layer's, whose rows it has."""
        return with_rows_of(type, lambda name: relative(name) if layer_of(name) == self.number else name)


def absolute(local: str, layer: int) -> str:
    """Return the graph's name for a layer's local one."""
    here = f"layers.{layer}."
    return local.replace("layers.*.", here, 1) if "*" in local else here + local


def absolute_attribute(value: object, layer: int) -> object:
    """Return an attribute's value for ``layer``, given what `Layer.local_attribute` made of it."""
    if isinstance(value, tuple):
        return tuple(absolute_attribute(each, layer) for each in cast("tuple[object, ...]", value))
    if not isinstance(value, str) or "*" not in value:
        return value
    return re.sub(r"\*\*?", lambda star: "*" if star[0] == "**" else str(layer), value)


def absolute_type(type: Type, layer: int) -> Type:
    """Return a type for ``layer``, given what `Layer.local_type` made of it."""
    return with_rows_of(type, lambda name: in_layer(name, layer))


@dataclass(frozen=True)
class Kind:
    """A block kind: the function that its layers share.

    ``params`` name the inputs, in the order of each layer's ``inputs``.
    """

    name: str
    params: tuple[str, ...]
    layers: tuple[Layer, ...]

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of the layers that the kind serves."""
        return tuple(layer.number for layer in self.layers)


def split_layers(graph: Graph) -> list[Op | Layer]:
    """Return the graph's ops in order, each layer that stands in one piece and in its turn as one item."""
    runs: list[tuple[int | None, list[Op]]] = []
    for op in graph.ops:
        layer = layer_of(op.results[0].name)
        if runs and runs[-1][0] == layer:
            runs[-1][1].append(op)
        else:
            runs.append((layer, [op]))
    pieces: dict[int | None, int] = {}
    for number, _ in runs:
        pieces[number] = pieces.get(number, 0) + 1
    returned = set(graph.outputs)
    items: list[Op | Layer] = []
    last = -1
    for number, ops in runs:
        if number is None or pieces[number] > 1 or number < last:
            items.extend(ops)
        else:
            items.append(_layer(number, ops, returned))
            last = number
    return items


def _layer(number: int, ops: Sequence[Op], returned: set[Value]) -> Layer:
    mine = set(ops)
    inputs = {v: None for op in ops for v in op.operands if v.op not in mine}
    outputs = [v for op in ops for v in op.results if v in returned or not mine.issuperset(v.users)]
    return Layer(number, tuple(ops), tuple(inputs), tuple(outputs))


def _body(layer: Layer) -> object:
    """Return what must be equal for two layers to be of one kind."""
    place = {value: i for i, value in enumerate(layer.inputs)}
    local = layer.local
    ops = tuple(
        (
            op.opname,
            tuple((slot, tuple(place.get(v, local(v.name)) for v in vs)) for slot, vs in op.slots.items()),
            tuple(map(layer.local_attribute, op.attributes.values())),
            tuple((local(v.name), layer.local_type(v.type)) for v in op.results),
        )
        for op in layer.ops
    )
    return ops, tuple((layer.local_type(v.type), v.is_weight) for v in layer.inputs)


def block_kinds(graph: Graph) -> list[Kind]:
    """Return the block kinds of a graph, in order of first use."""
    groups: dict[object, list[Layer]] = {}
    for item in split_layers(graph):
        if isinstance(item, Layer):
            groups.setdefault(_body(item), []).append(item)
    taken: set[str] = set()
    return [Kind(_name(layers, taken), _params(layers), tuple(layers)) for layers in groups.values()]


def _name(layers: list[Layer], taken: set[str]) -> str:
    """Name a kind by what its layers do: the window, whose memory is read, and the kind of MLP."""
    words: list[str] = []
    opnames = {op.opname for op in layers[0].ops}
    windows = {op.attributes["window"] for op in layers[0].ops if op.reads_memory and "window" in op.attributes}
    if windows:
        words.append("sliding" if any(windows) else "full")
    rates = {v.type.rate for op in layers[0].ops for v in op.results if isinstance(v.type, MemoryType)}
    words += [f"every_{rate}" for rate in sorted(rate for rate in rates if rate)]
    if "state.delta" in opnames:
        words.append("delta")
    if any(isinstance(v.type, MemoryType) for v in layers[0].inputs):
        words.append("reader")
    if "moe.experts" in opnames:
        words.append("moe")
    stem = "_".join(words) or "block"
    name, number = stem, 1
    while name in taken:
        number += 1
        name = f"{stem}_{number}"
    taken.add(name)
    return name


def _params(layers: list[Layer]) -> tuple[str, ...]:
    """Name the inputs: a value that is the same for every layer by its own name, others by what they are."""
    taken = {layers[0].local(v.name) for op in layers[0].ops for v in op.results}
    names: list[str] = []
    for values in zip(*(layer.inputs for layer in layers), strict=True):
        if len(set(values)) == 1 and layer_of(values[0].name) is None:
            stem = values[0].name
        else:
            stem = "memory" if isinstance(values[0].type, MemoryType) else "x"
        name, number = stem, 1
        while name in taken:
            number += 1
            name = f"{stem}_{number}"
        taken.add(name)
        names.append(name)
    return tuple(names)


def ranges(numbers: Sequence[int]) -> str:
    """Return sorted numbers as text, runs as ``first..last``: ``0..3, 5``."""
    parts: list[str] = []
    start = 0
    for i, number in enumerate(numbers):
        if i + 1 == len(numbers) or numbers[i + 1] != number + 1:
            first = numbers[start]
            parts.append(str(first) if first == number else f"{first}..{number}")
            start = i + 1
    return ", ".join(parts)
