"""From a graph to the scene that pictures show."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace

from regraft.ir.attributes import spell
from regraft.ir.cost import call_sizes
from regraft.ir.graph import Graph, layer_of
from regraft.ir.kinds import Kind, Layer, block_kinds, split_layers
from regraft.ir.op import Cost, Op, Value
from regraft.ir.ops.attn import KV
from regraft.ir.ops.compress import Compressed
from regraft.ir.ops.index import Index
from regraft.ir.ops.memory import ViewRows
from regraft.ir.ops.seq import Delta, Tail
from regraft.ir.types import MemoryType, TensorType
from regraft.views.describe import describe
from regraft.views.drawing.branches import branches
from regraft.views.drawing.scene import CONTEXT, Form, Link, Memory, Node, Operand, Port, Role, Scene, Section, Weight
from regraft.views.drawing.spine import stream_values
from regraft.views.pattern import letter

Sizes = Mapping[str, int]
Naming = Callable[[Value], str]

_MADE = 12  # weight-time operations named, at most
_ALIKE = 4  # operations alike outside of layers, from which on they stand as one


def scene(graph: Graph) -> Scene:
    """Return what a picture of ``graph`` shows."""
    at = call_sizes(graph, context=CONTEXT)
    kinds = block_kinds(graph)
    kind_of = {layer.number: i for i, kind in enumerate(kinds) for layer in kind.layers}
    sections: list[Section] = []
    place: dict[int, int] = {}  # of a kind among the sections
    loose: list[Op] = []
    number = -1

    def close(end: bool = False) -> None:
        if loose:
            sections.append(_loose(loose, graph, at, number, end))
            loose.clear()

    for item in split_layers(graph):
        if not isinstance(item, Layer):
            loose += [] if item.weight_time else [item]
            continue
        close()
        number = item.number
        index = kind_of[number]
        if index not in place:
            place[index] = len(sections)
            sections.append(_kind(kinds[index], letter(len(place) - 1), at))
    close(end=True)
    layers = sorted((n, place[index]) for n, index in kind_of.items())
    return Scene(graph.name, str(graph.meta.get("family", "")), tuple(sections), tuple(layers), _links(graph))


def memory_of(value: Value, name: str) -> Memory:
    """Return a memory, called ``name``, as what it is."""
    kept = value.memory
    fields = ", ".join(map(str, kept.fields))
    return Memory(name, _form(value), fields, kept.row_bytes, kept.window, kept.first, kept.fixed, kept.rate)


def _form(value: Value) -> Form:
    kept, op = value.memory, value.op
    if isinstance(op, Delta):
        return "recurrent"
    if isinstance(op, Tail) or kept.fixed is not None:
        return "tail"
    if any(isinstance(reader, Index) for reader in _readers(value)):
        return "index"
    if isinstance(op, Compressed) or kept.rate is not None:
        return "compressed"
    if kept.window is not None:
        return "window"
    return "kv" if isinstance(op, KV) else "latent"


def _readers(memory: Value) -> list[Op]:
    """Return the operations that read a memory, through a view of it too."""
    found: list[Op] = []
    for op in memory.users:
        found += _readers(op.out) if isinstance(op, ViewRows) else [op]
    return found


def _links(graph: Graph) -> tuple[Link, ...]:
    links: list[Link] = []
    for memory in graph.memories():
        owner = layer_of(memory.name)
        readers = {layer_of(op.results[0].name) for op in memory.users} - {owner, None}
        if readers:
            numbers = tuple(sorted(n for n in readers if n is not None))
            links.append(Link(memory_of(memory, memory.name), owner, numbers))
    return tuple(links)


def _kind(kind: Kind, key: str, at: Sizes) -> Section:
    first = kind.layers[0]
    param = dict(zip(first.inputs, kind.params, strict=True))
    stream = stream_values(first)
    inputs = [
        _port(f"in:{param[v]}", param[v], v, "stream" if v in stream else _role(v), _origins(kind, i))
        for i, v in enumerate(first.inputs)
        if not v.is_weight
    ]
    last = stream[-1] if stream else None
    outputs: list[Port] = []
    for v, origins in _given(kind):
        local = first.local(v.name)
        outputs.append(_port(f"out:{local}", local, v, "stream" if v is last else _role(v), origins, first))

    def name(value: Value) -> str:
        return param.get(value) or first.local(value.name)

    nodes = _nodes(first.ops, name, frozenset(param), frozenset(stream), at, first)
    return Section(
        key,
        kind.name,
        describe(kind),
        kind.numbers,
        tuple(inputs),
        nodes,
        tuple(outputs),
        branches(first.ops, stream, first.inputs, lambda op: name(op.results[0])),
        _elements(nodes),
    )


def _elements(nodes: Sequence[Node]) -> int:
    """Return the numbers in the parameters that nodes read, each parameter once."""
    return sum({weight.name: weight.elements for node in nodes for weight in node.weights}.values())


def _given(kind: Kind) -> list[tuple[Value, tuple[str, ...]]]:
    """Return what some layer of a kind gives away, as the first layer has it, with its names in the layers that do."""
    names: dict[str, list[str]] = {}
    for layer in kind.layers:
        for value in layer.outputs:
            names.setdefault(layer.local(value.name), []).append(value.name)
    first = kind.layers[0]
    made = [v for op in first.ops if not op.weight_time for v in op.results]
    return [(v, tuple(names[first.local(v.name)])) for v in made if first.local(v.name) in names]


def _origins(kind: Kind, index: int) -> tuple[str, ...]:
    """Return the names in the model of what each layer of a kind takes at one place, each once."""
    return tuple(dict.fromkeys(layer.inputs[index].name for layer in kind.layers))


def _loose(ops: Sequence[Op], graph: Graph, at: Sizes, before: int, end: bool) -> Section:
    """Return operations outside of layers as a section; ``before`` is the number of the layer ahead of them, or -1."""
    mine = set(ops)
    taken = {v: None for op in ops for v in op.operands if v.op not in mine and not v.is_weight}
    given = [v for op in ops for v in op.results if v in graph.outputs or not mine.issuperset(v.users)]
    name = "before the layers" if before < 0 and not end else f"after layer {before}" if not end else "after the layers"
    if before < 0 and end:
        name = "all operations"
    inputs = tuple(_port(f"in:{v.name}", v.name, v, _outer_role(v), (v.name,)) for v in taken)
    outputs = tuple(_port(f"out:{v.name}", v.name, v, _outer_role(v), (), None) for v in given)
    nodes, outputs = _folded(_nodes(ops, lambda v: v.name, frozenset(taken), frozenset(), at, None), outputs)
    found = branches(ops, (), tuple(taken), lambda op: op.results[0].name)
    ids = {node.id: None for node in nodes}
    found = tuple(replace(each, nodes=tuple(dict.fromkeys(_kept(id, ids) for id in each.nodes))) for each in found)
    return Section("", name, "", (), inputs, nodes, outputs, found, _elements(nodes))


def _folded(nodes: tuple[Node, ...], outputs: tuple[Port, ...]) -> tuple[tuple[Node, ...], tuple[Port, ...]]:
    """Let one node stand for those that only layers read and that differ in an attribute alone, such as slices."""
    read = {operand.source for node in nodes for operand in node.operands}
    alike: dict[object, list[Node]] = {}
    for node in nodes:
        same = (node.opname, node.operands, node.weights, [type for _, type in node.results], _stem(node.id))
        alike.setdefault(node.id if node.id in read else repr(same), []).append(node)
    one: dict[str, Node] = {}
    for group in alike.values():
        if len(group) >= _ALIKE:
            stem = f"{_stem(group[0].id)}*"
            cost = sum((node.cost for node in group), Cost())
            results = ((stem, group[0].results[0][1]),)
            merged = replace(group[0], id=stem, results=results, attributes=(), cost=cost, times=len(group))
            one.update((node.id, merged) for node in group)
    ports = (
        replace(p, id=f"out:{one[p.source].id}", name=one[p.source].id, source=one[p.source].id)
        if p.source in one
        else p
        for p in outputs
    )
    return tuple(dict.fromkeys(one.get(node.id, node) for node in nodes)), tuple(dict.fromkeys(ports))


def _kept(id: str, ids: Container[str]) -> str:
    """Return the id of the node that an op is drawn as."""
    return id if id in ids else f"{_stem(id)}*"


def _stem(name: str) -> str:
    return name.rstrip("0123456789")


def _role(value: Value) -> Role:
    if isinstance(value.type, MemoryType):
        return "memory"
    if value.op is None:
        return "tokens" if value.name == "tokens" else "positions"
    return "carried"


def _outer_role(value: Value) -> Role:
    """Return the role of a value outside of layers: what a layer gives or takes there is the stream."""
    role = _role(value)
    return "stream" if role == "carried" and layer_of(value.name) is not None else role


def _port(id: str, name: str, value: Value, role: Role, origins: tuple[str, ...], layer: Layer | None = None) -> Port:
    memory = memory_of(value, name) if isinstance(value.type, MemoryType) else None
    type = str(value.type if layer is None else layer.local_type(value.type))
    source = "" if id.startswith("in:") or value.op is None else value.op.results[0].name
    return Port(id, name, type, role, memory, origins, layer.local(source) if layer is not None else source)


def _nodes(
    ops: Sequence[Op], name: Naming, outside: frozenset[Value], stream: frozenset[Value], at: Sizes, layer: Layer | None
) -> tuple[Node, ...]:
    return tuple(_node(op, name, outside, stream, at, layer) for op in ops if not op.weight_time)


def _node(
    op: Op, name: Naming, outside: frozenset[Value], stream: frozenset[Value], at: Sizes, layer: Layer | None
) -> Node:
    def typed(value: Value) -> str:
        return str(value.type if layer is None else layer.local_type(value.type))

    def source(value: Value) -> str:
        if value in outside or value.op is None:
            return f"in:{name(value)}"
        return name(value.op.results[0])

    operands: list[Operand] = []
    weights: list[Weight] = []
    for slot, values in op.slots.items():
        for value in values:
            if value.is_weight:
                weights.append(_weight(slot, value, layer))
            else:
                operands.append(Operand(slot, source(value), name(value), typed(value)))
    id = name(op.results[0])
    attributes = {
        key: spell(value if layer is None else layer.local_attribute(value))
        for key, value in op.attributes.items()
        if value != op.spec.attributes[key].default
    }
    kept = next((v for v in op.results if op.is_state and isinstance(v.type, MemoryType)), None)
    return Node(
        id,
        op.opname,
        id.partition(".")[0] if "." in id else "",
        tuple((name(v), typed(v)) for v in op.results),
        tuple(operands),
        tuple(weights),
        tuple(attributes.items()),
        op.cost(at),
        None if kept is None else memory_of(kept, name(kept)),
        any(v in stream for v in op.results),
    )


def _weight(slot: str, value: Value, layer: Layer | None) -> Weight:
    tensor = value.type
    assert isinstance(tensor, TensorType)
    local = layer.local(value.name) if layer is not None else value.name
    return Weight(slot, local, str(tensor), tensor.elements({}), tensor.nbytes({}), _made(value))


def _made(value: Value) -> tuple[str, ...]:
    """Name the weight-time operations that make a parameter, last first; none where it is read from the checkpoint."""
    found: dict[str, None] = {}
    pending, seen = [value], {value}
    while pending and len(found) < _MADE:
        op = pending.pop(0).op
        if op is None or not op.weight_time or not op.slots:
            continue
        found[op.opname] = None
        fresh = [v for v in op.operands if v not in seen]
        seen.update(fresh)
        pending += fresh
    return tuple(found)
