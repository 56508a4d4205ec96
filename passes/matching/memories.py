"""Memories of keys and values: how their rows come about, who reads them, and how to keep other rows instead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from regraft.ir.graph import Graph, layer_of
from regraft.ir.op import Op, Value
from regraft.ir.ops.attn import KV, Attend, Temper
from regraft.ir.ops.core import Concat, Flatten, Linear, Norm, Scale, Slice, Unflatten
from regraft.ir.ops.memory import ReadRows, RowPositions, StateRows, ViewRows
from regraft.ir.ops.pos import Rope
from regraft.passes.matching.rewrite import Editor
from regraft.passes.matching.sites import Refusal

Rebuild = Callable[["Reading"], tuple[Value, Value]]


@dataclass(frozen=True)
class Side:
    """How a memory's keys, or its values, come about.

    ``before`` is ``[B, T, Hkv, D]`` before anything that depends on the position; ``after`` are the ops that follow, a
    rotation first. ``linear`` makes them, under ``norm`` if there is one; None where that is done in some other way.
    """

    before: Value
    after: tuple[Op, ...]
    linear: Linear | None
    norm: Norm | None

    @property
    def heads(self) -> int:
        """KV heads."""
        size = self.before.tensor.shape[2]
        assert isinstance(size, int)
        return size

    @property
    def width(self) -> int:
        """Channels of a head."""
        size = self.before.tensor.shape[3]
        assert isinstance(size, int)
        return size

    @property
    def rope(self) -> Rope | None:
        """The rotation, if there is one."""
        return next((op for op in self.after if isinstance(op, Rope)), None)


@dataclass(frozen=True)
class KeyValues:
    """A memory of keys and values, as they are or as rows to rebuild them from, and all that attend to it."""

    memory: Value
    keys: Side
    values: Side
    readers: tuple[Attend, ...]

    @property
    def layer(self) -> int:
        """The layer that makes it."""
        found = layer_of(self.memory.name)
        assert found is not None
        return found

    @property
    def width(self) -> int:
        """Keys and values of a token, in numbers."""
        return self.keys.heads * self.keys.width + self.values.heads * self.values.width

    @property
    def state(self) -> KV | StateRows:
        """The op that keeps it."""
        op = self.memory.op
        assert isinstance(op, KV | StateRows)
        return op


def key_values(attend: Attend, graph: Graph) -> KeyValues | Refusal:
    """Return the memory that an attention reads in the end, or why it holds no keys and values by head."""
    maker = attend.memory.op
    memory = maker.memory if isinstance(maker, ViewRows) else attend.memory
    state = memory.op
    if memory in graph.outputs or layer_of(memory.name) is None or not isinstance(state, KV | StateRows):
        return Refusal(f"%{attend.memory.name} is no memory of keys and values in a layer")
    found = _readers(memory)
    if isinstance(found, Refusal):
        return found
    if isinstance(state, KV):
        keys, values = (_side(value) for value in (state.k, state.v))
    elif isinstance(maker, ViewRows):
        keys, values = _rebuilt(maker, state)
    else:
        return Refusal(f"%{memory.name} holds rows that are attended to as they are")
    for side in (keys, values):
        if isinstance(side, Refusal):
            return side
    assert isinstance(keys, Side)
    assert isinstance(values, Side)
    views = [op for op in memory.users if isinstance(op, ViewRows)]
    if isinstance(state, KV) and views:
        return Refusal(f"%{memory.name} holds heads that a layer reads all at once")
    if isinstance(state, StateRows) and any(
        isinstance(side, Refusal) for view in views for side in _rebuilt(view, state)
    ):
        return Refusal(f"%{memory.name} holds rows that a layer maps to keys and values of its own")
    return KeyValues(memory, keys, values, found)


def _readers(memory: Value) -> tuple[Attend, ...] | Refusal:
    """Return the attentions that read a memory, or a view of it."""
    found: list[Attend] = []
    for user in memory.users:
        if isinstance(user, ReadRows | RowPositions) or user.weight_time:
            continue
        for op in user.out.users if isinstance(user, ViewRows) else [user]:
            if not isinstance(op, Attend) or op.entries is not None or layer_of(op.out.name) is None:
                return Refusal(f"{op.label} reads %{memory.name} in another way than attention to it alone")
            found.append(op)
    return tuple(found)


def _side(value: Value) -> Side | Refusal:
    """Return how a value that is kept comes about."""
    chain: list[Op] = []
    at = value
    while isinstance(at.op, Rope | Norm | Scale | Temper):
        chain.append(at.op)
        at = at.op.x
    turns = [place for place, op in enumerate(chain) if isinstance(op, Rope)]
    if len(turns) > 1:
        return Refusal(f"%{value.name} is rotated more than once")
    if not turns and is_turned(value):
        return Refusal(f"%{value.name} is rotated in a part of its channels that is put together with others")
    after = tuple(reversed(chain[: turns[0] + 1])) if turns else ()
    before = after[0].slots["x"][0] if after else value
    return Side(before, after, *_made(before))


def is_turned(value: Value) -> bool:
    """Return whether a rotation stands between a projection and a value."""
    seen, stack = set[Value](), [value]
    while stack:
        at = stack.pop()
        if at in seen or at.op is None or isinstance(at.op, Linear):
            continue
        if isinstance(at.op, Rope):
            return True
        seen.add(at)
        stack.extend(at.op.operands)
    return False


def _made(value: Value) -> tuple[Linear | None, Norm | None]:
    """Return the projection that makes heads, and the norm of each head; none where something else does."""
    op, norm = value.op, None
    if isinstance(op, Norm) and not op.clamp:
        op, norm = op.x.op, op
    if not isinstance(op, Unflatten) or not isinstance(op.x.op, Linear):
        return None, None
    linear = op.x.op
    known = linear.weight.is_weight and (linear.bias is None or linear.bias.is_weight)
    return (linear, norm) if known else (None, None)


def _rebuilt(view: ViewRows, state: StateRows) -> tuple[Side | Refusal, Side | Refusal]:
    """Return how keys and values come about that are kept side by side, and turned when they are read."""
    parts = state.x.op.xs if isinstance(state.x.op, Concat) else ()
    sides: list[Side | Refusal] = []
    for value, part in zip((view.k, view.v), parts, strict=False):
        chain: list[Op] = []
        at = value
        while at is not None and isinstance(at.op, Rope | Norm | Scale | Temper):
            chain.append(at.op)
            at = at.op.x
        maker = at.op if at is not None else None
        plain = isinstance(maker, Unflatten) and isinstance(maker.x.op, Slice) and isinstance(part.op, Flatten)
        if not plain or not isinstance(part.op, Flatten):
            break
        before = part.op.x
        sides.append(Side(before, tuple(reversed(chain)), *_made(before)))
    if len(parts) != 2 or len(sides) != 2:
        refusal = Refusal(f"%{state.out.name} holds rows that are no keys and values side by side")
        return refusal, refusal
    return sides[0], sides[1]


@dataclass
class Reading:
    """A layer's reading of rows: where ops go, and what they start from."""

    edit: Editor
    attend: Attend
    memory: Value
    rows: Value
    scope: str

    def add(self, op: type[Op], name: str, *values: Value | Sequence[Value], **rest: object) -> Value:
        """Put an op of the layer before its attention."""
        return self.edit.add(op, f"{self.scope}.{name}", *values, before=self.attend, **rest)

    def weight(self, op: type[Op], name: str, *values: Value | Sequence[Value], **rest: object) -> Value:
        """Put a weight-time op before the layer's attention."""
        return self.edit.add(op, name, *values, before=self.attend, **rest)

    def part(self, name: str, start: int, stop: int) -> Value:
        """Return some channels of the rows."""
        whole = self.rows.tensor.shape[-1]
        return self.rows if (start, stop) == (0, whole) else self.add(Slice, name, self.rows, start=start, stop=stop)

    def finish(self, value: Value, after: Sequence[Op]) -> Value:
        """Return heads after the ops that followed before, rotated at the rows' own positions."""
        for op in after:
            slots: dict[str, Sequence[Value]] = dict(op.slots)
            slots["x"] = (value,)
            if isinstance(op, Rope):
                slots["pos"] = (self.positions(),)
            name = op.results[0].name.rpartition(".")[2]
            graph = self.edit.graph
            fresh = graph.fresh(f"{self.scope}.{name.removesuffix('_rows')}_rows")
            value = graph.add(type(op)(slots, dict(op.attributes)), [fresh], before=self.attend)[0]
        return value

    def positions(self) -> Value:
        """Return the rows' positions."""
        return self.add(RowPositions, "rows_at", self.memory)


def keep_rows(edit: Editor, site: KeyValues, row: Value, rebuild: Rebuild) -> Value:
    """Keep ``row`` instead of keys and values, and let each reader attend to what ``rebuild`` makes of the rows.

    Args:
        edit: The editor.
        site: The memory; its name, which is its cache's, goes over to the rows.
        row: What is kept ``[B, T, M]``.
        rebuild: Returns a reader's keys and values along the rows, by head.

    Returns:
        The memory of rows.
    """
    graph, state, name = edit.graph, site.state, site.memory.name
    graph.rename(site.memory, graph.fresh(f"{name}_before"))
    memory = edit.add(StateRows, name, row, before=state, window=state.window, first=state.first)
    views: dict[int | None, Value] = {}
    for attend in site.readers:
        layer, scope = layer_of(attend.out.name), attend.out.name.rpartition(".")[0]
        if layer not in views:
            rows = edit.add(ReadRows, f"{scope}.rows", memory, before=attend)
            keys, values = rebuild(Reading(edit, attend, memory, rows, scope))
            views[layer] = edit.add(ViewRows, f"{scope}.view", memory, keys, v=values, before=attend)
        edit.set_operand(attend, "memory", views[layer])
    return memory


def joined(edit: Editor, site: KeyValues) -> Value:
    """Return the keys and values of a token side by side, before rotation ``[B, T, M]``."""
    scope = site.memory.name.rpartition(".")[0]
    flat = [
        edit.add(Flatten, f"{scope}.{name}_row", side.before, before=site.state)
        for name, side in (("k", site.keys), ("v", site.values))
    ]
    return edit.add(Concat, f"{scope}.row", flat, before=site.state)


def keep_whole_rows(edit: Editor, site: KeyValues) -> Value:
    """Keep the keys and values of a memory as rows, before rotation."""
    width = site.keys.heads * site.keys.width

    def rebuild(reading: Reading) -> tuple[Value, Value]:
        k = reading.add(Unflatten, "k_rows", reading.part("k_part", 0, width), parts=site.keys.heads)
        v = reading.add(Unflatten, "v_rows", reading.part("v_part", width, site.width), parts=site.values.heads)
        return reading.finish(k, site.keys.after), reading.finish(v, site.values.after)

    return keep_rows(edit, site, joined(edit, site), rebuild)
