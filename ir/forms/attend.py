"""The form of ``kernel.attend``: attention of one token, and what stands between the projections and it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from regraft.ir.forms.elements import of_token
from regraft.ir.op import Op, Value
from regraft.ir.ops.attn import KV, Attend, Temper
from regraft.ir.ops.core import Concat, Flatten, Norm, Slice, Unflatten
from regraft.ir.ops.memory import ReadRows, StateRows, ViewRows
from regraft.ir.ops.pos import Rope
from regraft.ir.types import MemoryType


@dataclass
class Heads:
    """What is done to heads before they are attended with.

    Attributes:
        x: What it is done to: ``[B, T, H, D]``, or without the axis of heads.
        norm: A norm of each head, if there is one.
        temper: A factor of each head.
        rope: A rotation.
    """

    x: Value
    norm: Norm | None = None
    temper: Temper | None = None
    rope: Rope | None = None
    ops: list[Op] = field(default_factory=list[Op])


@dataclass(frozen=True)
class AttendForm:
    """A body of attention to keys and values in tensors of their own.

    Attributes:
        attend: The attention.
        memory: Its memory.
        state: What makes it, if the body does.
        q: Queries.
        k: New keys.
        v: New values.
    """

    attend: Attend
    memory: Value
    state: KV | None
    q: Heads
    k: Heads | None
    v: Heads | None


@dataclass(frozen=True)
class LatentForm:
    """A body of attention in a latent that all heads share, its first channels the values: specs/mla.md, absorbed.

    Attributes:
        attend: The attention.
        memory: Its memory.
        state: What makes it.
        plain: Queries of the latent's channels.
        turned: Queries of those that turn.
        row: What a new row is made of: the latent before its norm, and the channels that turn.
        norm: The latent's norm.
        rope: Both rotations are as this one.
    """

    attend: Attend
    memory: Value
    state: StateRows
    plain: Value
    turned: Value
    row: Value
    norm: Norm
    rope: Rope


def turns_alike(one: Rope, other: Rope) -> bool:
    """Return whether two rotations turn by the same angles."""
    return one.attributes == other.attributes and one.pos is other.pos


def turns_by_position(op: Rope) -> bool:
    """Return whether a rotation turns by the positions of a call's tokens."""
    return not op.inverse and not op.offset and op.pos.name.rpartition(".")[2] == "pos" and op.pos.op is None


def peeled(value: Value, inside: set[Op]) -> Heads | None:
    """Return what ops of ``inside`` do to heads on the way to a value; none if it is not of this form."""
    heads = Heads(value)
    while heads.x.op in inside:
        op = heads.x.op
        if isinstance(op, Rope) and not heads.ops and turns_by_position(op):
            heads.rope = op
        elif isinstance(op, Temper) and heads.norm is None and heads.temper is None:
            heads.temper = op
        elif isinstance(op, Norm) and heads.norm is None and not op.clamp and len(op.x.tensor.shape) == 4:
            heads.norm = op
        else:
            return None
        heads.ops.append(op)
        heads.x = op.x
    return heads if of_token(heads.x) else None


def attend_form(ops: Sequence[Op]) -> AttendForm | None:
    """Return the form of a body, given in order, or none if it is not of this form."""
    inside = set(ops)
    attends = [op for op in ops if isinstance(op, Attend)]
    if len(attends) != 1 or attends[0].chosen is not None or attends[0].entries is not None:
        return None
    attend = attends[0]
    state = attend.memory.op if attend.memory.op in inside else None
    q = peeled(attend.q, inside)
    if q is None or q.temper is not None or attend.memory.memory.rate is not None:
        return None
    if state is None:
        found = {attend, *q.ops}
        return AttendForm(attend, attend.memory, None, q, None, None) if found == inside and _plain(attend) else None
    if not isinstance(state, KV):
        return None
    k, v = peeled(state.k, inside), peeled(state.v, inside)
    if k is None or v is None or v.temper is not None or v.rope is not None:
        return None
    if v.norm is not None and v.norm.weight is not None:
        return None
    if {attend, state, *q.ops, *k.ops, *v.ops} != inside or not _alike(q.rope, k.rope):
        return None
    return AttendForm(attend, state.out, state, q, k, v)


def _plain(attend: Attend) -> bool:
    """Return whether a memory of another layer keeps keys and values as they are attended to."""
    names = [field.name for field in attend.memory.memory.fields]
    return isinstance(attend.memory.type, MemoryType) and names == ["k", "v"]


def _alike(q: Rope | None, k: Rope | None) -> bool:
    if q is None or k is None:
        return q is k
    return turns_alike(q, k)


def latent_form(ops: Sequence[Op]) -> LatentForm | None:
    """Return the form of a body of absorbed latent attention, or none if it is not of this form."""
    found = _Match(set(ops))
    attend = next((op for op in ops if isinstance(op, Attend)), None)
    if attend is None or attend.chosen is not None or attend.entries is not None or attend.sink is not None:
        return None
    whole = found.one(attend.q, Concat)
    view = found.one(attend.memory, ViewRows)
    if whole is None or view is None or len(whole.xs) != 2 or view.v is None:
        return None
    keys, values = found.one(view.k, Unflatten), found.one(view.v, Slice)
    turned = found.one(whole.xs[1], Rope)
    if keys is None or values is None or turned is None or keys.parts != 1 or values.x is not keys.out:
        return None
    read = found.one(keys.x, ReadRows)
    state = None if read is None else found.one(read.memory, StateRows)
    row = None if state is None else found.one(state.x, Concat)
    if state is None or row is None or len(row.xs) != 2 or values.start or not turns_by_position(turned):
        return None
    norm, flat = found.one(row.xs[0], Norm), found.one(row.xs[1], Flatten)
    rope = None if flat is None else found.one(flat.x, Rope)
    if norm is None or norm.clamp or rope is None or not turns_alike(rope, turned):
        return None
    latent, heads = found.one(norm.x, Slice), found.one(rope.x, Unflatten)
    key = None if heads is None else found.one(heads.x, Slice)
    if latent is None or key is None or latent.x is not key.x or latent.start or key.start != latent.stop:
        return None
    if values.stop != latent.stop or found.taken | {attend} != set(ops):
        return None
    return LatentForm(attend, state.out, state, whole.xs[0], turned.x, latent.x, norm, rope)


Found = TypeVar("Found", bound=Op)


class _Match:
    """Ops of a body, taken one by one."""

    def __init__(self, inside: set[Op]) -> None:
        self.inside = inside
        self.taken: set[Op] = set()

    def one(self, value: Value, kind: type[Found]) -> Found | None:
        """Return the op of the body that makes a value, if it is of a kind."""
        op = value.op
        if op not in self.inside or not isinstance(op, kind):
            return None
        self.taken.add(op)
        return op
