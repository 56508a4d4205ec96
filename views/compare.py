"""Comparing two graphs: finding each kind's counterpart, and each op's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from regraft.ir.attributes import spell
from regraft.ir.graph import Graph, layer_of, relative
from regraft.ir.kinds import Kind, Layer, block_kinds
from regraft.ir.op import Op, Value
from regraft.ir.ops.core import Embed
from regraft.ir.types import MemoryType
from regraft.views.cache import memory_facts
from regraft.views.describe import FOR_EACH_TOKEN, jobs
from regraft.views.diff import Change, Diff, KindDiff, MemoryDiff, OpDiff, Rewiring
from regraft.views.facts import Facts, facts

ALIKE = 0.3  # of the ops of two kinds that are compared, at least


@dataclass(frozen=True)
class _Told:
    """An op as text: its operation, and by name what it says and reads."""

    opname: str
    says: dict[str, str]


def diff(before: Graph, after: Graph, known: tuple[Facts, Facts] | None = None) -> Diff:
    """Return what differs between two graphs.

    Args:
        before: The first graph, verified.
        after: The second, verified.
        known: The facts of both, if they were taken already.
    """
    first, second = known or (facts(before), facts(after))
    kinds, others = block_kinds(before), block_kinds(after)
    by_layer = first.layers == second.layers
    pairs = _by_layer(kinds, others) if by_layer else _by_likeness(kinds, others)
    sizes = [{kind.name: kind.parameters for kind in each.kinds} for each in (first, second)]
    return Diff(
        before=first,
        after=second,
        model=tuple(_model(first, second)),
        by_layer=by_layer,
        kinds=tuple(_kind_diff(one, other, sizes[0], sizes[1]) for one, other in pairs),
        outside=_op_diffs(_outside(before, kinds), _outside(after, others)),
        memories=_memories(before, after, by_layer),
        rewired=_rewired(before, after) if by_layer else (),
    )


def _model(first: Facts, second: Facts) -> Iterable[Change]:
    for name in ("family", "dtype", "vocabulary", "trained_context", "layers"):
        one, other = (getattr(each, name) for each in (first, second))
        if one != other:
            told = [None if value in (None, "") else str(value) for value in (one, other)]
            yield Change(name.replace("_", " "), told[0], told[1])


# -- kinds and their counterparts

_Side = tuple[Kind, tuple[int, ...]] | None  # a kind, and which of its layers an entry is about


def _by_layer(kinds: Sequence[Kind], others: Sequence[Kind]) -> list[tuple[_Side, _Side]]:
    """Return which kind each layer had and has, layers that go the same way together."""
    had = {layer: kind for kind in kinds for layer in kind.numbers}
    has = {layer: kind for kind in others for layer in kind.numbers}
    ways: dict[tuple[str, str], list[int]] = {}
    for layer in sorted(had.keys() | has.keys()):
        names = tuple(kind_of[layer].name if layer in kind_of else "" for kind_of in (had, has))
        ways.setdefault((names[0], names[1]), []).append(layer)
    found: list[tuple[_Side, _Side]] = []
    for layers in ways.values():
        sides = [(kind_of[layers[0]], tuple(layers)) if layers[0] in kind_of else None for kind_of in (had, has)]
        found.append((sides[0], sides[1]))
    return found


def _by_likeness(kinds: Sequence[Kind], others: Sequence[Kind]) -> list[tuple[_Side, _Side]]:
    """Return each kind with the one most like it, the most alike first served; others stand alone."""
    tokens = [[_signature(kind) for kind in each] for each in (kinds, others)]
    scores = [
        (2 * len(one & other) / (len(one) + len(other)), -i, -j)
        for i, one in enumerate(tokens[0])
        for j, other in enumerate(tokens[1])
    ]
    partner: dict[int, int] = {}
    for score, i, j in sorted(scores, reverse=True):
        if score >= ALIKE and -i not in partner and -j not in partner.values():
            partner[-i] = -j
    found: list[tuple[_Side, _Side]] = []
    for i, kind in enumerate(kinds):
        other = others[partner[i]] if i in partner else None
        found.append(((kind, kind.numbers), (other, other.numbers) if other else None))
    taken = set(partner.values())
    return found + [(None, (kind, kind.numbers)) for j, kind in enumerate(others) if j not in taken]


def _signature(kind: Kind) -> frozenset[tuple[str, ...]]:
    """Return what tells how like two kinds are: which ops they have, and with which attributes."""
    first = kind.layers[0]
    ops = [op for op in first.ops if not op.weight_time]
    names = [(first.local(op.results[0].name), op.opname) for op in ops]
    return frozenset([*names, *((*name, spell(v)) for name, op in zip(names, ops, strict=True) for v in _plain(op))])


def _plain(op: Op) -> Iterable[object]:
    return (value for value in op.attributes.values() if isinstance(value, bool | int | str))


def _kind_diff(one: _Side, other: _Side, sizes: dict[str, int], other_sizes: dict[str, int]) -> KindDiff:
    views = [None if side is None else _layer_of(*side) for side in (one, other)]
    words = [{} if view is None else _words(view[1]) for view in views]
    names = [name for name in ("mixer", "mlp") if words[0].get(name) != words[1].get(name)]
    tolds = [{} if view is None else _told_layer(*view) for view in views]
    return KindDiff(
        before=one[0].name if one else None,
        after=other[0].name if other else None,
        layers_before=one[1] if one else (),
        layers_after=other[1] if other else (),
        words=tuple(Change(name, words[0].get(name), words[1].get(name)) for name in names),
        parameters=(sizes[one[0].name] if one else None, other_sizes[other[0].name] if other else None),
        ops=_op_diffs(tolds[0], tolds[1]) if one and other else (),
    )


def _layer_of(kind: Kind, layers: Sequence[int]) -> tuple[Kind, Layer]:
    return kind, next(layer for layer in kind.layers if layer.number == layers[0])


def _words(layer: Layer) -> dict[str, str]:
    """Return how a layer mixes tokens and what it does with each, where it does."""
    found: dict[str, list[str]] = {}
    for job, words in jobs(layer.ops):
        found.setdefault("mlp" if job in FOR_EACH_TOKEN else "mixer", []).append(", ".join(words))
    return {name: "; ".join(parts) for name, parts in found.items()}


# -- ops


def _told_layer(kind: Kind, layer: Layer) -> dict[str, _Told]:
    params = dict(zip(layer.inputs, kind.params, strict=True))

    def name(value: Value) -> str:
        if value in params:
            return "another layer's memory" if isinstance(value.type, MemoryType) else params[value]
        return layer.local(value.name)

    return {name(op.results[0]): _told(op, name, layer.local_attribute) for op in layer.ops if not op.weight_time}


def _outside(graph: Graph, kinds: Sequence[Kind]) -> dict[str, _Told]:
    """Return the ops that stand in no kind; layers as such do not count among what they read."""
    inside = {op for kind in kinds for layer in kind.layers for op in layer.ops}

    def name(value: Value) -> str:
        return "the layers" if value.op in inside else value.name

    return {op.results[0].name: _told(op, name, lambda value: value) for op in graph.run_time() if op not in inside}


def _told(op: Op, name: Callable[[Value], str], attribute: Callable[[object], object]) -> _Told:
    kept = ("window", "first") if op.is_state else ()  # what a state keeps is told as its memory
    attributes = {key: value for key, value in op.attributes.items() if value is not None and key not in kept}
    says = {key: spell(attribute(value)) for key, value in attributes.items()}
    for slot, values in op.slots.items():
        if values:
            says[slot] = ", ".join(_weight(v) if v.is_weight else name(v) for v in values)
    for value in op.results:
        if isinstance(value.type, MemoryType):
            says["keeps"] = str(value.type).removeprefix("memory<").removesuffix(">")
    return _Told(op.opname, says)


def _weight(value: Value) -> str:
    """Return a parameter as its type, how it is made where it is not read as it is, and whether it is tied."""
    made = _made(value)
    tied = any(isinstance(user, Embed) for user in value.users) and len(value.users) > 1
    return f"{value.type}{f', made by {made}' if made else ''}{', the embedding too' if tied else ''}"


def _made(value: Value) -> str:
    """Name the weight-time ops that make a parameter, last first; empty where it is read from the checkpoint."""
    found: dict[str, None] = {}
    pending, seen = [value], {value}
    while pending:
        op = pending.pop(0).op
        if op is not None and op.weight_time and op.slots:
            found[op.opname] = None
            fresh = [v for v in op.operands if v not in seen]
            seen.update(fresh)
            pending += fresh
    return ", ".join(found)


def _op_diffs(before: dict[str, _Told], after: dict[str, _Told]) -> tuple[OpDiff, ...]:
    """Return the ops that differ, matched by name, in the order in which both graphs have them."""
    found: list[OpDiff] = []
    names = [list(each) for each in (before, after)]
    for tag, start, end, other_start, other_end in SequenceMatcher(None, *names, autojunk=False).get_opcodes():
        gone, come = names[0][start:end], names[1][other_start:other_end]
        if tag == "equal":
            found += [each for name in gone if (each := _op_diff(name, before[name], after[name]))]
            continue
        for name in dict.fromkeys([*gone, *come]):
            one, other = before.get(name), after.get(name)
            if one and other:  # it stands elsewhere: told where the second graph has it
                found += [each] if name in come and (each := _op_diff(name, one, other)) else []
            else:
                found.append(OpDiff(name, one.opname if one else None, other.opname if other else None))
    return tuple(found)


def _op_diff(name: str, one: _Told, other: _Told) -> OpDiff | None:
    if one == other:
        return None
    keys = dict.fromkeys([*one.says, *other.says])
    changes = [Change(key, one.says.get(key), other.says.get(key)) for key in keys]
    return OpDiff(name, one.opname, other.opname, tuple(each for each in changes if each.before != each.after))


# -- memories


def _memories(before: Graph, after: Graph, by_layer: bool) -> tuple[MemoryDiff, ...]:
    sides = [_owned(graph) if by_layer else _grouped(graph) for graph in (before, after)]
    ways: dict[tuple[str, str | None, str | None], set[int]] = {}
    for key in dict.fromkeys([*sides[0], *sides[1]]):
        one, other = (side.get(key) for side in sides)
        if (one and one[0]) != (other and other[0]):
            layers = (other or one or ("", ()))[1]
            ways.setdefault((key[0], one and one[0], other and other[0]), set()).update(layers)
    return tuple(MemoryDiff(name, tuple(sorted(layers)), one, other) for (name, one, other), layers in ways.items())


def _owned(graph: Graph) -> dict[tuple[str, int], tuple[str, tuple[int, ...]]]:
    """Return what each memory keeps, by its name and layer."""
    layers = ((m, layer_of(m.name)) for m in graph.memories())
    return {(relative(m.name), -1 if n is None else n): (_keeps(m), () if n is None else (n,)) for m, n in layers}


def _grouped(graph: Graph) -> dict[tuple[str, int], tuple[str, tuple[int, ...]]]:
    """Return what memories keep, by their name and a number for each form that has it, and the layers of these."""
    forms: dict[str, dict[str, list[int]]] = {}
    for memory in graph.memories():
        layer = layer_of(memory.name)
        owners = forms.setdefault(relative(memory.name), {}).setdefault(_keeps(memory), [])
        owners += [] if layer is None else [layer]
    return {
        (name, number): (keeps, tuple(layers))
        for name, found in forms.items()
        for number, (keeps, layers) in enumerate(sorted(found.items()))
    }


def _keeps(memory: Value) -> str:
    found = memory_facts([memory])
    return f"{found.holds}, {found.kept}, {found.dtype}"


def _rewired(before: Graph, after: Graph) -> tuple[Rewiring, ...]:
    """Return the layers that read the memory of another layer than before, those that changed alike together."""
    had, has = _read(before), _read(after)
    ways: dict[tuple[str, int | None, int | None], list[int]] = {}
    for layer, name in sorted(had.keys() & has.keys()):
        one, other = (None if owner == layer else owner for owner in (had[layer, name], has[layer, name]))
        if one != other:
            ways.setdefault((name, one, other), []).append(layer)
    return tuple(Rewiring(name, tuple(layers), one, other) for (name, one, other), layers in ways.items())


def _read(graph: Graph) -> dict[tuple[int, str], int]:
    """Return whose memory each layer reads, by layer and the memory's name."""
    found: dict[tuple[int, str], int] = {}
    for memory in graph.memories():
        owner = layer_of(memory.name)
        for op in memory.users:
            layer = layer_of(op.results[0].name)
            if op.reads_memory and layer is not None and owner is not None:
                found[layer, relative(memory.name)] = owner
    return found
