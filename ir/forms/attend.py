"""The form of ``kernel.attend``: attention of one token, and what stands between the projections and it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from regraft.ir.forms.elements import of_token
from regraft.ir.op import Op, Value
from regraft.ir.ops.attn import KV, Attend, Temper
from regraft.ir.ops.core import Concat, Flatten, Gain, Norm, Slice, Unflatten
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
        state: What makes it, if the body does; what follows of its row is none if not.
        plain: Queries of the latent's channels.
        turned: Queries of those that turn, if any do.
        row: What holds the latent before its norm and the channels that turn, side by side, if one value does.
        latent: The latent before its norm.
        key: The channels that turn.
        norm: The latent's norm.
        rope: Both rotations are as this one.
    """

    attend: Attend
    memory: Value
    state: StateRows | None
    plain: Value
    turned: Value | None
    row: Value | None
    latent: Value | None
    key: Value | None
    norm: Norm | None
    rope: Rope | None


@dataclass(frozen=True)
class ValuesForm:
    """A body of attention to a memory of values, of which keys are made: the pass ``key-from-value``.

    Attributes:
        attend: The attention.
        memory: Its memory.
        heads: Its heads.
        q: Queries.
        weight: That of the keys' norm.
        rope: What turns queries and keys; of keys those channels are kept that turn.
        norm: The keys' norm, if the body makes the memory: over the same numbers as that of values.
    """

    attend: Attend
    memory: Value
    heads: int
    q: Heads
    weight: Value | None
    rope: Rope
    norm: Norm | None


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
    if len(attends) != 1 or not _pools_by_head(attends[0]):
        return None
    attend = attends[0]
    state = attend.memory.op if attend.memory.op in inside else None
    q = peeled(attend.q, inside)
    if q is None or q.temper is not None or attend.memory.memory.rate is not None:
        return None
    if state is None:
        plain = {attend, *q.ops} == inside and _plain(attend) and attend.entries is None
        return AttendForm(attend, attend.memory, None, q, None, None) if plain else None
    if not isinstance(state, KV) or (attend.entries is not None and state.window is None):
        return None
    k, v = peeled(state.k, inside), peeled(state.v, inside)
    if k is None or v is None or v.temper is not None or v.rope is not None:
        return None
    if v.norm is not None and v.norm.weight is not None:
        return None
    if {attend, state, *q.ops, *k.ops, *v.ops} != inside or not _alike(q.rope, k.rope):
        return None
    return AttendForm(attend, state.out, state, q, k, v)


def _pools_by_head(attend: Attend) -> bool:
    """Return whether an attention sees one memory, or pooled rows of keys and values before a window as well."""
    if attend.entries is None:
        return attend.chosen is None
    fields = [field.name for field in attend.entries.memory.fields]
    return attend.disjoint and fields == ["k", "v"]


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
    found = Match(set(ops))
    attend = next((op for op in ops if isinstance(op, Attend)), None)
    if attend is None or attend.chosen is not None or attend.entries is not None:
        return None
    view = found.one(attend.memory, ViewRows)
    if view is None or view.v is None:
        return None
    keys, values = found.one(view.k, Unflatten), found.one(view.v, Slice)
    read = None if keys is None else found.one(keys.x, ReadRows)
    if keys is None or values is None or read is None:
        return None
    if keys.parts != 1 or values.x is not keys.out or values.start:
        return None
    state, queries = found.one(read.memory, StateRows), _latent_queries(attend.q, found)
    row = None if state is None else _latent_row(state.x, found)
    if queries is None or (row is None) != (state is None) or found.taken | {attend} != set(ops):
        return None
    plain, turned = queries
    q_turned = None if turned is None else turned.x
    if row is None:
        return LatentForm(attend, read.memory, None, plain, q_turned, None, None, None, None, turned)
    if row.width != values.stop or not _alike(turned, row.rope):
        return None
    return LatentForm(attend, read.memory, state, plain, q_turned, row.row, row.latent, row.key, row.norm, row.rope)


@dataclass(frozen=True)
class _Row:
    row: Value | None
    latent: Value
    key: Value | None
    norm: Norm | None
    rope: Rope | None
    width: int


def _latent_queries(q: Value, found: Match) -> tuple[Value, Rope | None] | None:
    """Return queries of a latent, and the rotation of the others; none if they are put together in another way."""
    whole = found.one(q, Concat)
    if whole is None:
        return q, None
    turned = found.one(whole.xs[-1], Rope)
    if len(whole.xs) != 2 or turned is None or not turns_by_position(turned):
        return None
    return whole.xs[0], turned


def _latent_row(x: Value, found: Match) -> _Row | None:
    """Return what a row is made of: a latent, normed or not, and a key that turns or none."""
    whole = found.one(x, Concat)
    parts = [x] if whole is None else list(whole.xs)
    if len(parts) > 2:
        return None
    norm = found.one(parts[0], Norm)
    latent = parts[0] if norm is None else norm.x
    width = int(str(latent.tensor.shape[-1]))
    if (norm is not None and norm.clamp) or len(latent.tensor.shape) != 3:
        return None
    if len(parts) == 1:
        return _Row(None, latent, None, norm, None, width)
    flat = found.one(parts[1], Flatten)
    rope = None if flat is None else found.one(flat.x, Rope)
    if rope is None:
        return None
    heads = found.one(rope.x, Unflatten)
    key = rope.x if heads is None else heads.x
    cuts = found.one(latent, Slice), found.one(key, Slice)
    if cuts == (None, None):
        return _Row(None, latent, key, norm, rope, width)
    first, second = cuts
    if first is None or second is None or first.x is not second.x or first.start or second.start != first.stop:
        return None
    return _Row(first.x, latent, key, norm, rope, width)


def values_form(ops: Sequence[Op]) -> ValuesForm | None:
    """Return the form of a body of attention to kept values, or none if it is not of this form."""
    found = Match(set(ops))
    attend = next((op for op in ops if isinstance(op, Attend)), None)
    view = None if attend is None else found.one(attend.memory, ViewRows)
    if attend is None or view is None or view.v is None or attend.chosen is not None or attend.entries is not None:
        return None
    q, values = peeled(attend.q, found.inside), found.one(view.v, Slice)
    heads = None if values is None else found.one(values.x, Unflatten)
    read = None if heads is None else found.one(heads.x, ReadRows)
    if q is None or q.rope is None or q.temper is not None or values is None or heads is None or read is None:
        return None
    state = found.one(read.memory, StateRows)
    norm = None if state is None else _values_row(state.x, q.rope, found)
    weight = _gain(view.k, found) if norm is None else norm.weight
    if (norm is None) != (state is None) or values.start or not _woven(view.k, values, weight, q.rope, found):
        return None
    if found.taken | {attend, *q.ops} != set(ops):
        return None
    return ValuesForm(attend, read.memory, heads.parts, q, weight, q.rope, norm)


def _values_row(x: Value, turns: Rope, found: Match) -> Norm | None:
    """Return the keys' norm of a row of normed values and of keys' channels that turn; none if it is another row."""
    flat = found.one(x, Flatten)
    row = None if flat is None else found.one(flat.x, Concat)
    normed = None if row is None else found.one(row.xs[0], Norm)
    turned = () if row is None else tuple(found.one(x, Slice) for x in row.xs[1:])
    rope = found.one(turned[0].x, Rope) if turned and turned[0] is not None else None
    norm = None if rope is None else found.one(rope.x, Norm)
    if normed is None or rope is None or norm is None or not _alike(turns, rope):
        return None
    spans = _turned_spans(rope)
    if [None if cut is None else (cut.x, cut.start, cut.stop) for cut in turned] != [(rope.out, *s) for s in spans]:
        return None
    alike = norm.x is normed.x and norm.eps == normed.eps
    plain = not (norm.offset or norm.clamp or normed.clamp or normed.weight)
    return norm if alike and plain else None


def _gain(k: Value, found: Match) -> Value | None:
    """Return what values are multiplied by where keys are made of them."""
    cuts = k.op.xs if isinstance(k.op, Concat) and k.op in found.inside else ()
    makers = [cut.op.x.op for cut in cuts if isinstance(cut.op, Slice)]
    return next((op.by for op in makers if isinstance(op, Gain) and op in found.inside), None)


def _turned_spans(rope: Rope) -> tuple[tuple[int, int], ...]:
    """Return which channels turn at all."""
    half = rope.channels // 2
    pairs = half if rope.pairs is None else rope.pairs
    if rope.layout != "halves" or pairs == half:
        return ((0, 2 * pairs),)
    return ((0, pairs), (half, half + pairs))


def _woven(k: Value, values: Slice, weight: Value | None, rope: Rope, found: Match) -> bool:
    """Return whether keys are put together of kept channels, which turn, and of values times the norm's weight."""
    spans = _turned_spans(rope)
    whole = found.one(k, Concat)
    width = values.stop
    wanted: list[tuple[bool, int, int]] = []
    at, kept = 0, width
    for start, stop in spans:
        wanted += [(False, at, start)] if at < start else []
        wanted.append((True, kept, kept + stop - start))
        at, kept = stop, kept + stop - start
    wanted += [(False, at, width)] if at < width else []
    cuts = [] if whole is None else [found.one(x, Slice) for x in whole.xs]
    for cut, (turns, start, stop) in zip(cuts, wanted, strict=False):
        if cut is None or (cut.start, cut.stop) != (start, stop):
            return False
        if not (cut.x is values.x if turns else _plain_keys(cut.x, values, weight, found)):
            return False
    return len(cuts) == len(wanted)


def _plain_keys(x: Value, values: Slice, weight: Value | None, found: Match) -> bool:
    if weight is None:
        return x is values.out
    gain = found.one(x, Gain)
    return gain is not None and gain.x is values.out and gain.by is weight


Found = TypeVar("Found", bound=Op)


class Match:
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
