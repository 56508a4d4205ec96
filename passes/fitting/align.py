"""The query refit: a reader's queries turned towards the keys that it reads now, in closed form.

One complex factor for each query head and rotary frequency: the only maps of a head's queries that pass a rotation.
They fold into the query projection; under a query norm the fold keeps directions and loses the factors' common size.

Source: specs/passes_math.md, section 5 (level gauge) and section 8, step 2.
"""

from __future__ import annotations

from dataclasses import dataclass

from regraft.ir.op import Value
from regraft.ir.ops.attn import KV, Attend
from regraft.ir.ops.core import Linear, Norm, Scale, Unflatten
from regraft.ir.ops.fits import Align, Moment, width
from regraft.ir.ops.pos import Rope
from regraft.passes.matching.heads import trace
from regraft.passes.matching.rewrite import Editor
from regraft.passes.matching.sites import Refusal, key_rotation


@dataclass(frozen=True)
class Queries:
    """How an attention's queries are made: a projection, a norm of each head if there is one, and a rotation."""

    linear: Linear
    norm: Norm | None
    rope: Rope


def queries_of(attend: Attend) -> Queries | Refusal:
    """Return how an attention's queries are made, or why that is not a projection, a norm at most, and a rotation."""
    cut = trace(attend.q, attend)
    if isinstance(cut, Refusal):
        return cut
    norms = [op for op in cut.ops if isinstance(op, Norm)]
    ropes = [op for op in cut.ops if isinstance(op, Rope)]
    others = [op for op in cut.ops if not isinstance(op, Norm | Rope | Linear | Unflatten | Scale)]
    if len(cut.linears) != 1 or len(ropes) != 1 or len(norms) > 1 or others:
        return Refusal(f"%{attend.q.name} is no projection with one rotation")
    if norms and cut.ops.index(norms[0]) > cut.ops.index(ropes[0]):
        return Refusal(f"{norms[0].label} comes after the rotation")
    return Queries(cut.linears[0], norms[0] if norms else None, ropes[0])


def align_queries(edit: Editor, attend: Attend, donor: Value, ridge: float) -> Refusal | None:
    """Turn an attention's queries towards the keys of ``donor``, which it is about to read.

    Args:
        edit: The editor.
        attend: The attention, still reading its own memory.
        donor: The memory that it will read, with as many KV heads.
        ridge: Draws the factors to one, in units of the mean second moment of the donor's keys.

    Returns:
        Why the queries stay as they are, or None where they were turned.
    """
    queries, own, new = queries_of(attend), key_rotation(attend.memory), key_rotation(donor)
    if isinstance(queries, Refusal):
        return queries
    if own is None or new is None:
        return Refusal("keys without rotation")
    if not isinstance(attend.memory.op, KV) or not isinstance(donor.op, KV):
        return Refusal("keys are rebuilt from rows")
    rope, linear = queries.rope, queries.linear
    if (rope.channels, rope.layout) != (new.channels, new.layout):
        return Refusal("queries and keys are rotated differently")
    name, rows, columns = linear.weight.name, width(new.x.tensor), width(own.x.tensor)
    gram = edit.add(Moment, f"{name}.keys", a=new.x, b=new.x, rows=rows, columns=rows, before=linear)
    cross = edit.add(
        Moment, f"{name}.own_keys", a=new.x, source_b=own.x.name, rows=rows, columns=columns, before=linear
    )
    rest: dict[str, object] = {"own": attend.groups, "donor": attend.groups, "channels": rope.channels}
    rest |= {"layout": rope.layout, "ridge": ridge}
    if queries.norm is not None and queries.norm.weight is not None:
        edit.hoist(queries.norm.weight, linear)
        rest |= {"norm": queries.norm.weight, "offset": queries.norm.offset}

    def make(old: Value, name: str) -> Value:
        return edit.add(Align, f"{name}.aligned", old, gram, cross, before=linear, **rest)

    for slot in ("weight", "bias"):
        if linear.slots[slot]:
            edit.replace_weight(linear, slot, make)
    return None
