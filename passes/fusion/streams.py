"""Fusion into ``kernel.streams``: what a sublayer gives is written to the streams as the next one's input is read.

In a call of one token a router that starts from this input rides along.

Between two layers that takes a graph in which a layer gives what is to be written instead of writing it, so that the
next one, to which the maps that read belong, does both.
"""

from __future__ import annotations

from collections.abc import Iterator

from regraft.ir.forms.streams import streams_form
from regraft.ir.graph import Graph, layer_of
from regraft.ir.kinds import Layer, split_layers
from regraft.ir.op import Op, Value
from regraft.ir.ops.core import Gain, Linear, Repeat, Scale
from regraft.ir.ops.hyper import Collapse, Read, Spread, Write
from regraft.ir.ops.kernels import StreamsStep
from regraft.ir.ops.moe import Route
from regraft.passes.fusion.experts import choice_ops, inside, norm_ops
from regraft.passes.fusion.groups import Grouping


def group_routed_streams(grouping: Grouping) -> None:
    """Deal routers that start from what is read of streams to groups, with that and what has written the streams."""
    for ops in grouping.layers.values():
        for route in ops:
            if isinstance(route, Route) and grouping.free(route):
                _ride(grouping, route)


def _ride(grouping: Grouping, route: Route) -> None:
    """Take a router with what its start is read by, where a kernel computes both."""
    linear = route.logits.op
    if not isinstance(linear, Linear) or not grouping.free(linear):
        return
    scale = linear.x.op
    ops: list[Op] = [*choice_ops(route), linear, *([scale] if isinstance(scale, Scale) else [])]
    start = scale.x if isinstance(scale, Scale) else linear.x
    norm = norm_ops(grouping, start)
    read = (next(iter(norm[0].operands)) if norm else start).op
    if not isinstance(read, Read) or not all(value.users for value in read.results):
        return
    if not grouping.same_layer(read, route) or not inside(grouping, ops, route):
        return
    for writes in _writes(grouping, read):
        found = [*writes, read, *ops]
        if streams_form(grouping.ordered([*norm, *found])) is not None and grouping.take(StreamsStep, found, norm):
            return


def _writes(grouping: Grouping, read: Read | Collapse) -> Iterator[list[Op]]:
    """Yield what has written the streams that are read, if it may be in one kernel with that, and nothing."""
    write = read.streams.op
    if isinstance(write, Write) and grouping.free(write) and grouping.same_layer(write, read):
        yield [write]
    yield []


def group_scaled_streams(grouping: Grouping) -> None:
    """Deal what writes streams to groups with the number that multiplies them then."""
    for ops in grouping.layers.values():
        for gain in ops:
            write = gain.x.op if isinstance(gain, Gain) else None
            if not isinstance(write, Write) or not grouping.same_layer(write, gain):
                continue
            if streams_form([write, gain]) is not None and grouping.closed([write, gain], set(gain.results)):
                grouping.take(StreamsStep, [write, gain])


def group_streams(grouping: Grouping) -> None:
    """Deal what reads streams to groups, with what has written them, and then what writes alone."""
    for ops in grouping.layers.values():
        for op in ops:
            if isinstance(op, Read | Collapse) and grouping.free(op) and all(value.users for value in op.results):
                any(grouping.take(StreamsStep, [*writes, op]) for writes in _writes(grouping, op))
        for op in ops:
            if isinstance(op, Write) and grouping.free(op):
                grouping.take(StreamsStep, [op])


def carry_streams(graph: Graph) -> Graph:
    """Return a graph in which each layer begins by writing what the one before it gives; ``graph`` stays as it is.

    Before the first layer stands what makes it write the embedding to each stream. It is the same graph where layers
    are not joined by streams alone, which start as copies of a vector.
    """
    layers = [item for item in split_layers(graph) if isinstance(item, Layer)]
    following = [*layers[1:], None][: len(layers)]
    ends = [write for layer, after in zip(layers, following, strict=True) for write in _ends(layer, after)]
    enters = None if len(ends) < len(layers) or not ends else _entering(layers[0])
    if enters is None or any(v in graph.outputs for end in ends for v in (end.out, *end.operands)):
        return graph
    carried = graph.copy()
    start = carried[enters.out.name].op
    assert isinstance(start, Repeat)
    names = [carried.fresh(f"spread.{name}") for name in ("streams", "post", "comb")]
    streams, post, comb = carried.add(Spread({"x": [start.x]}, {"count": start.parts}), names, before=start)
    given = {"streams": [streams], "added": [start.x], "post": [post], "comb": [comb]}  # by what a write calls it
    before: Repeat | Write = start
    for layer, end in zip(layers, ends, strict=True):
        _write(carried, before, given, f"layers.{layer.number}.written")
        made = carried[end.out.name].op
        assert isinstance(made, Write)
        given = {slot: [*values] for slot, values in made.slots.items()}
        for slot, (value,) in given.items():
            carried.rename(value, carried.fresh(f"layers.{layer.number}.carried.{slot}"))
        before = made
    _write(carried, before, given, "written")
    return carried


def _write(graph: Graph, before: Repeat | Write, given: dict[str, list[Value]], name: str) -> None:
    """Write what is ``given`` where streams are first read, in place of what made them before."""
    first = min(before.out.users, key=graph.ops.index)
    (streams,) = graph.add(Write(given, {}), [graph.fresh(name)], before=first)
    graph.replace_uses(before.out, streams)
    graph.erase(before)


def _ends(layer: Layer, after: Layer | None) -> list[Write]:
    """Return what writes the streams that a layer leaves, if it leaves nothing else and all goes to the next one."""
    number = None if after is None else after.number
    found = [op for op in layer.ops if isinstance(op, Write) and op.out in layer.outputs]
    if len(found) != 1 or {layer_of(user.results[0].name) for user in found[0].out.users} != {number}:
        return []
    made = {value for op in layer.ops for value in op.results}
    inside = all(value in made for value in (found[0].added, found[0].post, found[0].comb))
    return found if inside and (found[0].streams in made or found[0].streams in layer.inputs) else []


def _entering(layer: Layer) -> Repeat | None:
    """Return what makes the streams that the first layer reads, if nobody else does."""
    makers = [value.op for value in layer.inputs if isinstance(value.op, Repeat)]
    inside = set(layer.ops)
    return makers[0] if len(makers) == 1 and inside.issuperset(makers[0].out.users) else None
