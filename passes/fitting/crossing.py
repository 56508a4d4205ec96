"""A reader whose heads each attend to all of the donor's heads at once, as they are kept.

A key that a head read before is met by a map of all heads' keys that passes the rotation: for each frequency a complex
number for each of the donor's heads. Queries take the map's transpose, so that the donor's rows stay what they are; the
result is mapped to values as they were, by a matrix for each KV head. Queries and results are as wide as all of the
donor's heads together, and so many times as many operations is what a row costs.

Source: specs/passes_math.md, section 5, level cross; section 1, S5.
"""

from __future__ import annotations

from dataclasses import dataclass

from regraft.ir.graph import Graph
from regraft.ir.op import Op, Value
from regraft.ir.ops.algebra import Eye
from regraft.ir.ops.attn import KV, Attend
from regraft.ir.ops.core import Flatten, GroupedLinear, Unflatten
from regraft.ir.ops.crossing import AlignAcross
from regraft.ir.ops.fits import Moment, Refit, width
from regraft.ir.ops.memory import ReadRows, ViewRows
from regraft.ir.ops.pos import Rope
from regraft.ir.ops.weight import Cast, Take
from regraft.passes.fitting.joint import module_of
from regraft.passes.matching.memories import is_turned
from regraft.passes.matching.rewrite import Editor
from regraft.passes.matching.sites import Refusal


@dataclass(frozen=True)
class _Heads:
    """Heads of queries or keys before rotation, and the rotation, if there is one."""

    before: Value
    rope: Rope | None

    @property
    def turn(self) -> dict[str, object]:
        """What the rotation does, wherever tokens stand."""
        return {} if self.rope is None else dict(self.rope.attributes)


def _heads(value: Value) -> _Heads | Refusal:
    if isinstance(value.op, Rope):
        return _Heads(value.op.x, value.op)
    if is_turned(value):
        return Refusal(f"%{value.name} does not end in the rotation of whole heads")
    return _Heads(value, None)


def across_refusal(graph: Graph, reader: Attend, donor: Attend) -> Refusal | None:
    """Return why a reader's heads cannot each attend to all of a donor's, or None where they can."""
    for attend in (reader, donor):
        if not isinstance(attend.memory.op, KV) or attend.memory in graph.outputs:
            return Refusal(f"%{attend.memory.name} keeps no keys and values as they are attended to")
    sides = [_heads(value) for value in (_state(reader).k, _state(donor).k, reader.q)]
    turns = [side.turn for side in sides if isinstance(side, _Heads)]
    for side in sides:
        if isinstance(side, Refusal):
            return side
    return None if turns[0] == turns[1] == turns[2] else Refusal("queries and keys are turned differently")


def _state(attend: Attend) -> KV:
    op = attend.memory.op
    assert isinstance(op, KV)
    return op


def read_across(edit: Editor, attend: Attend, donor: Attend, ridge: float) -> str:
    """Let each head of a reader attend to all heads that a donor keeps; see `across_refusal`.

    Args:
        edit: The editor.
        attend: The reader.
        donor: The attention whose memory it reads from now on.
        ridge: Draws the maps to each head's own place, in units of the mean second moment of the donor's rows.

    Returns:
        What was done, for the report.
    """
    own, memory, scope, groups = _state(attend), donor.memory, attend.scope, attend.groups
    fields = {"k": _state(donor).k, "v": _state(donor).v}
    keys, values = _key_map(edit, attend, own, fields["k"], ridge), _value_map(edit, attend, own, fields["v"], ridge)

    def joined(side: str) -> Value:
        rows = edit.add(ReadRows, f"{scope}.{side}_rows", memory, before=attend, field=side)
        return _regrouped(edit, f"{scope}.{side}_across", rows, 1, attend)

    view = edit.add(ViewRows, f"{scope}.view", memory, joined("k"), v=joined("v"), before=attend)
    asked = _asked(edit, attend, keys)
    old = attend.q
    edit.set_operand(attend, "q", asked)
    edit.set_operand(attend, "memory", view)
    edit.set_attribute(attend, "head_map", None)
    edit.erase_unread(old)
    name = attend.out.name
    edit.graph.rename(attend.out, edit.graph.fresh(f"{name}_across"))
    edit.retype([attend])
    after = edit.graph.ops.index(attend) + 1
    following = edit.graph.ops[after] if after < len(edit.graph.ops) else None
    back = GroupedLinear({"x": (attend.out,), "weight": (values,)}, {})
    edit.graph.replace_uses(attend.out, edit.graph.add(back, [name], before=following)[0])
    count = fields["k"].tensor.shape[2]
    return f"reads %{memory.name}, each of {len(groups)} heads all {count} of it"


def _key_map(edit: Editor, attend: Attend, own: KV, keys: Value, ridge: float) -> Value:
    """Return the maps by which queries ask for all keys at once ``[Hq * D, Hkv * D]``."""
    new, before = _heads(keys), _heads(own.k)
    assert isinstance(new, _Heads)
    assert isinstance(before, _Heads)
    name = f"{module_of(attend)}.q_across.weight"
    fit = _statistics(edit, attend, name, new.before, before.before)
    size = keys.tensor.shape[3]
    rest: dict[str, object] = {"width": size, "channels": 0, "ridge": ridge}
    if new.rope is not None:
        rest |= {"channels": new.rope.channels, "layout": new.rope.layout}
    fitted = edit.add(AlignAcross, f"{name}.fitted", *fit, before=attend, **rest)
    return _by_head(edit, attend, name, fitted, keys)


def _value_map(edit: Editor, attend: Attend, own: KV, values: Value, ridge: float) -> Value:
    """Return the maps from all values at once to those of a head ``[Hq * Dv, Hkv * Dv]``."""
    name = f"{module_of(attend)}.v_across.weight"
    fit = _statistics(edit, attend, name, values, own.v)
    size = width(values.tensor)
    whole = edit.add(Eye, f"{name}.whole", before=attend, dtype="f64", shape=(size, size))
    fitted = edit.add(Refit, f"{name}.fitted", *fit, whole, before=attend, ridge=ridge)
    return _by_head(edit, attend, name, fitted, values)


def _statistics(edit: Editor, attend: Attend, name: str, new: Value, old: Value) -> tuple[Value, Value]:
    rows, columns = width(new.tensor), width(old.tensor)
    gram = edit.add(Moment, f"{name}.gram", a=new, b=new, rows=rows, columns=rows, before=attend)
    wanted = edit.add(Moment, f"{name}.wanted", a=new, source_b=old.name, rows=rows, columns=columns, before=attend)
    return gram, wanted


def _by_head(edit: Editor, attend: Attend, name: str, fitted: Value, like: Value) -> Value:
    facts: dict[str, object] = {"block": like.tensor.shape[3], "indices": attend.groups}
    taken = edit.add(Take, f"{name}.taken", fitted, before=attend, **facts)
    return edit.add(Cast, name, taken, dtype=like.tensor.dtype, before=attend)


def _asked(edit: Editor, attend: Attend, keys: Value) -> Value:
    """Return queries for all keys at once, turned head by head of the donor's ``[B, T, Hq, Hkv * D]``."""
    queries, scope = _heads(attend.q), attend.scope
    assert isinstance(queries, _Heads)
    heads, size = attend.q.tensor.shape[2:]
    wide = edit.add(GroupedLinear, f"{scope}.q_across", queries.before, keys, before=attend, transposed=True)
    if queries.rope is None:
        return wide
    parts = width(wide.tensor) // int(str(size))
    split = _regrouped(edit, f"{scope}.q_split", wide, parts, attend)
    slots = {**queries.rope.slots, "x": (split,)}
    turn: Op = type(queries.rope)(slots, dict(queries.rope.attributes))
    turned = edit.graph.add(turn, [edit.graph.fresh(f"{scope}.q_across_rope")], before=attend)[0]
    return _regrouped(edit, f"{scope}.q_whole", turned, int(str(heads)), attend)


def _regrouped(edit: Editor, name: str, value: Value, parts: int, before: Op) -> Value:
    """Return the same channels in another number of heads."""
    flat = edit.add(Flatten, f"{name}_flat", value, before=before)
    return edit.add(Unflatten, name, flat, parts=parts, before=before)
