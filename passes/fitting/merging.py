"""Merging the key/value heads of a memory: what its readers make of them, the fits, and the weights that absorb them.

All statistics are over what the layer reads in the rewritten model: projections of it are made anew, so that keys,
queries and values are those of the weights before the merge. Readers in later layers read what the layer that makes
the memory has not seen yet; theirs are statistics of the model as it was lifted.

Source: specs/passes_math.md, section 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

from regraft.ir.graph import Graph, layer_of
from regraft.ir.op import Op, Value
from regraft.ir.ops.algebra import Eye, MatMul, Permute, Reshape
from regraft.ir.ops.attn import KV, Attend
from regraft.ir.ops.core import Flatten, Gain, Linear, Mul, Scale
from regraft.ir.ops.fits import Align, Statistic
from regraft.ir.ops.layout import Transpose
from regraft.ir.ops.merging import Channels, GroupGram, GroupMoments, JointMoment, MergeHeads
from regraft.ir.ops.pos import Rope
from regraft.ir.ops.weight import Cast, Combine, Take
from regraft.passes.fitting.refit import add_refit, undo_refit
from regraft.passes.matching.heads import Cut, apply_cut, group_map, take_blocks, trace_gates
from regraft.passes.matching.projections import Projection, projection_of
from regraft.passes.matching.rewrite import Editor
from regraft.passes.matching.sites import Output, Refusal, output_of


@dataclass(frozen=True)
class Reader:
    """An attention over a memory: the KV heads that its heads read, how it makes its queries, what stands behind it.

    ``mixing`` says whether a map of a head's values passes all that stands before the output projection.
    """

    attend: Attend
    groups: tuple[int, ...]
    queries: Projection
    gates: Cut
    output: Output
    mixing: bool


@dataclass(frozen=True)
class Shared:
    """A memory of keys and values by head, how they are made, and all that read it."""

    state: KV
    keys: Projection
    values: Projection
    readers: tuple[Reader, ...]

    @property
    def heads(self) -> int:
        """The number of key/value heads."""
        return self.keys.heads

    @property
    def normalised(self) -> bool:
        """Whether heads are normalised, so that no map of them folds into their projections."""
        made = (self.keys, self.values, *(reader.queries for reader in self.readers))
        return any(each.norm is not None for each in made)

    @property
    def mixing(self) -> bool:
        """Whether a map of a head's values passes all that stands between the memory and the output projections."""
        return all(reader.mixing for reader in self.readers)

    def anchor(self, graph: Graph) -> Op:
        """Return the first projection of the layer that makes the memory: what is fitted is fitted before it."""
        linears = [self.keys.linear, self.values.linear]
        linears += [reader.queries.linear for reader in self.readers if self._near(reader)]
        return min(linears, key=graph.ops.index)

    def _near(self, reader: Reader) -> bool:
        return layer_of(reader.attend.out.name) == layer_of(self.state.out.name)

    def read(self, graph: Graph, linear: Linear, reader: Reader | None = None) -> dict[str, object]:
        """Return where a statistic finds what ``linear`` reads: in the graph, or in the model as it was lifted."""
        at, made = graph.ops.index(self.anchor(graph)), linear.x.op
        late = made is not None and graph.ops.index(made) > at
        far = reader is not None and not self._near(reader)
        return {"source": linear.x.name} if late or far else {"x": linear.x}


def shared_of(state: KV, graph: Graph) -> Shared | Refusal:
    """Return a memory whose heads can be merged, or why they cannot."""
    if state.out in graph.outputs:
        return Refusal(f"%{state.out.name} is an output of the graph")
    if state.k is state.v:
        return Refusal("its keys are its values, and what is one for both has no gauge of its own")
    keys, values = projection_of(state.k, state), projection_of(state.v, state)
    for each in (keys, values):
        if isinstance(each, Refusal):
            if "is read by" in each.reason and _common(state):
                return Refusal("its values are made from its keys, and what is one for both has no gauge of its own")
            return each
    keys, values = cast("Projection", keys), cast("Projection", values)
    if keys.linear is values.linear:
        return Refusal("its keys and values come from one projection, and what is one for both has no gauge of its own")
    if values.rope is not None:
        return Refusal(f"values go through {values.rope.label}, which no map of values passes")
    readers: list[Reader] = []
    for user in state.out.users:
        found = reader_of(user, state, keys)
        if isinstance(found, Refusal):
            return found
        readers.append(found)
    if not readers:
        return Refusal("nobody reads its memory")
    return Shared(state, keys, values, tuple(readers))


def _common(state: KV) -> bool:
    """Whether keys and values have an op above them in common, within the layer."""

    def above(value: Value) -> set[Op]:
        found: set[Op] = set()
        stack = [value.op]
        while stack:
            op = stack.pop()
            if op is None or op in found or op.weight_time:
                continue
            found.add(op)
            if not isinstance(op, Linear):
                stack.extend(operand.op for operand in op.operands)
        return found

    return bool(above(state.k) & above(state.v))


def reader_of(op: Op, state: KV, keys: Projection) -> Reader | Refusal:
    """Return how ``op`` reads a memory, or why it cannot follow a merge of its heads."""
    if not isinstance(op, Attend) or op.memory is not state.out:
        return Refusal(f"{op.label} reads %{state.out.name} too")
    if op.entries is not None:
        return Refusal(f"{op.label} reads entries of several tokens beside it")
    if op.sink is not None and not op.sink.is_weight:
        return Refusal(f"the sinks of {op.label} are known only at run time")
    queries, output = projection_of(op.q, op), output_of(op)
    if isinstance(queries, Refusal):
        return queries
    if isinstance(output, Refusal):
        return output
    if _rotation(queries.rope) != _rotation(keys.rope):
        return Refusal(f"the queries of {op.label} are rotated unlike the keys")
    gates = trace_gates(op.out, output)
    if isinstance(gates, Refusal):
        return gates
    mixing = _passes(op, output)
    return mixing if isinstance(mixing, Refusal) else Reader(op, op.groups, queries, gates, output, mixing)


def _rotation(rope: Rope | None) -> object:
    return None if rope is None else {k: v for k, v in rope.attributes.items() if k != "amplitude"}


def _passes(attend: Attend, output: Output) -> bool | Refusal:
    """Return whether a map of a head's values passes to the output projection: any, or one that keeps channels apart.

    Gates of each channel keep a channel's own factor only.
    """
    mixing, flat = True, False
    for op in output.chain:
        if isinstance(op, Flatten):
            flat = True
        elif isinstance(op, Mul) or (isinstance(op, Gain) and (flat or op.by.tensor.shape[-1:] not in ((), (1,)))):
            mixing = False
        elif not isinstance(op, Gain | Scale):
            return Refusal(f"{op.label} stands between the values and their output projection")
    return mixing


# -- statistics


def key_statistics(shared: Shared, graph: Graph) -> tuple[JointMoment, list[GroupMoments]]:
    """Return the statistics that keys are merged by: theirs, and each reader's queries'. They are in no graph yet."""
    keys = JointMoment(*heads_of(shared, graph, shared.keys, {"parts": shared.heads}))
    queries = [
        GroupMoments(*heads_of(shared, graph, r.queries, {"groups": r.groups, "parts": shared.heads}, reader=r))
        for r in shared.readers
    ]
    return keys, queries


def value_statistics(shared: Shared, graph: Graph) -> JointMoment:
    """Return the statistic that values are merged by, beside the output projections; it is in no graph yet."""
    return JointMoment(*heads_of(shared, graph, shared.values, {"parts": shared.heads}))


def heads_of(
    shared: Shared, graph: Graph, made: Projection, rest: dict[str, object], reader: Reader | None = None
) -> tuple[dict[str, tuple[Value, ...]], dict[str, object]]:
    """Return the slots and attributes of a statistic of heads as a projection makes them."""
    slots = {"weight": (made.weight,)}
    if made.linear.bias is not None:
        bias = made.linear.bias
        slots["bias"] = (bias.op.weight if isinstance(bias.op, Align) else bias,)
    if made.norm is not None:
        rest |= {"eps": made.norm.eps, "offset": made.norm.offset}
        if made.norm.weight is not None:
            slots["norm"] = (made.norm.weight,)
    for key, value in shared.read(graph, made.linear, reader).items():
        if isinstance(value, Value):
            slots[key] = (value,)
        else:
            rest[key] = value
    return slots, rest


def turning(made: Projection) -> Channels:
    """Return which channels of a head may be combined, by the rotation that it goes through."""
    rope = made.rope
    if rope is None:
        return Channels(made.width)
    pairs = rope.channels // 2 if rope.pairs is None else rope.pairs
    return Channels(made.width, rope.channels, pairs, rope.layout)


# -- the merge


@dataclass(frozen=True)
class Merge:
    """How to merge: the new head of each old one, the method, and the refit of the output (target, ridge) or none."""

    groups: tuple[int, ...]
    method: str
    refit: tuple[str, float] | None

    @property
    def heads(self) -> int:
        """The number of heads that stay."""
        return max(self.groups) + 1


@dataclass(frozen=True)
class Maps:
    """Weight-time maps of a merge: ``down [G' D, G D]`` and ``up [G, D, D]``."""

    down: Value
    up: Value


class Merger:
    """Merges the heads of one memory; queries and output projections absorb what undoes it."""

    told: ClassVar[str] = ""

    def __init__(self, edit: Editor, shared: Shared, merge: Merge) -> None:
        self.edit, self.graph, self.shared, self.merge = edit, edit.graph, shared, merge
        self.anchor = shared.anchor(edit.graph)

    def run(self) -> None:
        """Merge keys and values, and let every reader follow."""
        earlier = [undo_refit(self.edit, reader.output) for reader in self.shared.readers]
        self.edit.set_aside_measured(self.changed())
        keys, values = self.key_maps(), self.value_maps()
        self.make_keys(keys)
        self.make_values(values)
        self.edit.retype([self.shared.state])
        for reader, fit in zip(self.shared.readers, earlier, strict=True):
            if self.merge.method != "mean":
                self.turn_queries(reader, keys)
            self.follow(reader, values, self.merge.refit or fit)

    def changed(self) -> list[Op]:
        """Return the ops whose results change, in order."""
        shared = self.shared
        found = [*shared.keys.cut.ops, *shared.values.cut.ops, shared.state]
        for reader in shared.readers:
            found += [*reader.queries.cut.ops, *reader.gates.ops, reader.attend, *reader.output.chain]
        return sorted(dict.fromkeys(found), key=self.graph.ops.index)

    def new_groups(self, reader: Reader) -> list[int]:
        """Return the new head that each query head of a reader reads."""
        return [self.merge.groups[group] for group in reader.groups]

    def order(self, reader: Reader) -> list[int]:
        """Return the order in which a reader's query heads come to stand."""
        return head_order(self.new_groups(reader))

    def head_map(self, groups: Sequence[int]) -> tuple[int, ...] | None:
        """Return the attribute that says which head each query head reads."""
        return group_map(groups, self.merge.heads)

    # -- fits

    def put(self, op: Op, names: Sequence[str]) -> tuple[Value, ...]:
        """Add an op before the anchor, its weights before it."""
        for value in op.operands:
            if value.is_weight:
                self.edit.hoist(value, self.anchor)
        return self.graph.add(op, [self.graph.fresh(name) for name in names], before=self.anchor)

    def sum(self, values: Sequence[Value], name: str) -> Value:
        """Add up statistics."""
        if len(values) == 1:
            return values[0]
        op = Combine({"xs": tuple(values)}, {"factors": (1.0,) * len(values)})
        return self.put(op, [name])[0]

    def maps(self, gram: Statistic, readers: Value, name: str, **rest: object) -> Maps:
        """Add a statistic and the fit to it."""
        moments = self.put(gram, [f"{name}.heads"])
        attributes = {"groups": self.merge.groups, "method": self.merge.method, **rest}
        op = MergeHeads({"gram": moments, "readers": (readers,)}, attributes)
        return Maps(*self.put(op, [f"{name}.down", f"{name}.up"]))

    def mean(self, made: Projection, name: str) -> Maps:
        """Return the maps of a mean, which asks nothing of keys or readers."""
        eyes = [
            self.put(Eye({}, {"dtype": "f64", "shape": shape}), [f"{name}.{stem}"])
            for stem, shape in (
                ("heads", (made.heads * made.width,) * 2),
                ("readers", (made.heads, made.width, made.width)),
            )
        ]
        op = MergeHeads({"gram": eyes[0], "readers": eyes[1]}, {"groups": self.merge.groups, "method": "mean"})
        return Maps(*self.put(op, [f"{name}.down", f"{name}.up"]))

    def key_maps(self) -> Maps:
        """Add the fit of the keys."""
        name = self.shared.keys.linear.weight.name
        if self.merge.method == "mean":
            return self.mean(self.shared.keys, name)
        keys, queries = key_statistics(self.shared, self.graph)
        moments = [self.put(each, [f"{name}.queries"])[0] for each in queries]
        turn = turning(self.shared.keys)
        gram, readers = self.weighed(keys, self.sum(moments, f"{name}.readers"))
        return self.maps(gram, readers, name, channels=turn.channels, pairs=turn.pairs, layout=turn.layout)

    def weighed(self, keys: JointMoment, readers: Value) -> tuple[JointMoment, Value]:
        """Return the statistic that keys are merged by, and how their readers weigh them."""
        return keys, readers

    def value_maps(self) -> Maps:
        """Add the fit of the values."""
        name, heads = self.shared.values.linear.weight.name, self.shared.heads
        if self.merge.method == "mean":
            return self.mean(self.shared.values, name)
        metrics: list[Value] = []
        for reader in self.shared.readers:
            slots = {"weight": (reader.output.linear.weight,)}
            op = GroupGram(slots, {"groups": reader.groups, "parts": heads})
            metrics += self.put(op, [f"{name}.outputs"])
        readers = self.sum(metrics, f"{name}.readers")
        return self.maps(value_statistics(self.shared, self.graph), readers, name, mixing=self.shared.mixing)

    # -- weights

    def make_keys(self, keys: Maps) -> None:
        """Let the memory keep merged keys."""
        self.make_fewer(self.shared.keys, keys)

    def make_values(self, values: Maps) -> None:
        """Let the memory keep merged values."""
        self.make_fewer(self.shared.values, values)

    def make_fewer(self, made: Projection, maps: Maps) -> None:
        """Let a projection make the merged heads."""
        linear = made.linear
        for slot in ("weight", "bias"):
            if linear.slots[slot]:
                self.edit.replace_weight(linear, slot, lambda old, name: self._lowered(old, name, maps, linear))
        self.resize(made.cut, self.merge.heads)

    def _lowered(self, old: Value, name: str, maps: Maps, linear: Linear) -> Value:
        rows, *columns = old.tensor.sizes
        matrix = old if columns else self.edit.add(Reshape, f"{name}.column", old, shape=(rows, 1), before=linear)
        new = self.edit.add(MatMul, f"{name}.product", maps.down, matrix, before=linear)
        if not columns:
            new = self.edit.add(Reshape, f"{name}.flat", new, shape=new.tensor.sizes[:1], before=linear)
        return self.rounded(new, old, linear)

    def rounded(self, new: Value, old: Value, before: Op) -> Value:
        """Return a weight in the dtype of another."""
        if new.tensor.dtype == old.tensor.dtype:
            return new
        return self.edit.add(Cast, f"{new.name}.rounded", new, dtype=old.tensor.dtype, before=before)

    def resize(self, cut: Cut, heads: int) -> None:
        """Correct the types of what a projection's rows go through."""
        for op in cut.ops:
            if "parts" in op.attributes:
                self.edit.set_attribute(op, "parts", heads)
        self.edit.retype(cut.ops)

    def turn_queries(self, reader: Reader, keys: Maps) -> None:
        """Let a reader's queries score merged keys as they scored their own."""
        linear = reader.queries.linear
        width = reader.queries.width
        mine = {"axis": 0, "block": 1, "indices": reader.groups}

        def make(old: Value, name: str) -> Value:
            up = self.edit.add(Take, f"{name}.up", keys.up, before=linear, **mine)
            down = self.edit.add(Transpose, f"{name}.turn", up, before=linear)
            columns = old.tensor.sizes[1] if len(old.tensor.sizes) > 1 else 1
            shape = (len(reader.groups), width, columns)
            heads = self.edit.add(Reshape, f"{name}.heads", old, shape=shape, before=linear)
            turned = self.edit.add(MatMul, f"{name}.turned", down, heads, before=linear)
            flat = self.edit.add(Reshape, f"{name}.flat", turned, shape=old.tensor.sizes, before=linear)
            return self.rounded(flat, old, linear)

        for slot in ("weight", "bias"):
            if linear.slots[slot]:
                self.edit.replace_weight(linear, slot, make)

    def follow(self, reader: Reader, values: Maps, fit: tuple[str, float] | None) -> None:
        """Let a reader's output projection take merged values, put its heads in order, and fit it."""
        attend, linear = reader.attend, reader.output.linear
        new, order = self.new_groups(reader), self.order(reader)
        heads, width = len(new), self.shared.values.width
        indices = reader.groups

        def make(old: Value, name: str) -> Value:
            rows = old.tensor.sizes[0]
            up = self.edit.add(Take, f"{name}.up", values.up, axis=0, block=1, indices=indices, before=linear)
            blocks = self.edit.add(Reshape, f"{name}.blocks", old, shape=(rows, heads, width), before=linear)
            heads_first = self.edit.add(Permute, f"{name}.by_head", blocks, axes=(1, 0, 2), before=linear)
            taken = self.edit.add(MatMul, f"{name}.product", heads_first, up, before=linear)
            rows_first = self.edit.add(Permute, f"{name}.by_row", taken, axes=(1, 0, 2), before=linear)
            flat = self.edit.add(Reshape, f"{name}.flat", rows_first, shape=old.tensor.sizes, before=linear)
            if order != list(range(heads)):
                flat = self.edit.add(Take, f"{name}.sorted", flat, axis=1, block=width, indices=order, before=linear)
            prior = self.rounded(flat, old, linear)
            return add_refit(self.edit, reader.output, prior, name, *fit) if fit else prior

        if order != list(range(heads)):
            apply_cut(self.edit, reader.queries.cut, heads, order)
            apply_cut(self.edit, reader.gates, heads, order)
            if attend.sink is not None:
                take_blocks(self.edit, attend, "sink", 0, 1, order)
        self.edit.set_attribute(attend, "head_map", self.head_map([new[head] for head in order]))
        self.edit.retype([*reader.queries.cut.ops, attend, *reader.output.chain])
        self.edit.replace_weight(linear, "weight", make)


def head_order(groups: Sequence[int]) -> list[int]:
    """Return the order of heads in which those of a group stand together, where all groups have as many.

    Such heads need no explicit map. Otherwise they stay where they are.
    """
    heads = list(range(len(groups)))
    counts = {groups.count(group) for group in groups}
    return sorted(heads, key=lambda head: (groups[head], head)) if len(counts) == 1 else heads
