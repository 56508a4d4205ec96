"""The form of ``kernel.sparse``: attention to rows that are keys and values in one: near, pooled or chosen ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from regraft.ir.forms.attend import Match, turns_alike, turns_by_position
from regraft.ir.op import Op, Value
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.core import Concat, Flatten, Norm, Slice, Unflatten
from regraft.ir.ops.memory import ReadRows, StateRows, ViewRows
from regraft.ir.ops.pos import Rope


@dataclass(frozen=True)
class SparseForm:
    """A body of attention to gathered rows: specs/deepseek_v4.md, sections 6 to 9; specs/mla.md, section 8.

    Attributes:
        attend: The attention.
        state: What makes the memory of tokens.
        q: Queries before their norm, ``[B, T, H, D]``; or those of the first channels, if `q_turned` are the others.
        q_turned: Queries of the channels that turn, where they come apart.
        q_norm: A norm of each query.
        row: What a new row is made of, before its norm: ``[B, T, D]``.
        row_norm: The norm of all its channels, or of the first.
        rope: How the last channels turn.
        out: The result.
        ops: All ops of the body.
    """

    attend: Attend
    state: StateRows
    q: Value
    q_turned: Value | None
    q_norm: Norm | None
    row: Value
    row_norm: Norm | None
    rope: Rope | None
    out: Value
    ops: frozenset[Op]

    @property
    def turned_back(self) -> bool:
        """Whether the last channels of the result turn back."""
        return self.out is not self.attend.out


def turned_part(found: Match, value: Value) -> tuple[Value, Rope | None, int] | None:
    """Return what a value is before some of its channels turn, how they do, and the first of them; none if unknown."""
    if isinstance(value.op, Rope) and value.op in found.inside:
        rope = found.one(value, Rope)
        return None if rope is None or not _turns(rope) else (rope.x, rope, 0)
    whole = found.one(value, Concat)
    if whole is None:
        return value, None, 0
    if len(whole.xs) != 2:
        return None
    plain, rope = found.one(whole.xs[0], Slice), found.one(whole.xs[1], Rope)
    turning = None if rope is None else found.one(rope.x, Slice)
    if plain is None or rope is None or turning is None or not _turns(rope) or plain.x is not turning.x:
        return None
    channels = plain.x.tensor.shape[-1]
    if plain.start or turning.start != plain.stop or turning.stop != channels or plain.stop + rope.channels != channels:
        return None
    return plain.x, rope, plain.stop


def sparse_form(attend: Attend, inside: Iterable[Op]) -> SparseForm | None:
    """Return the form of an attention with those of ``inside`` that belong to it; none if it has another form."""
    plain = not attend.first and attend.head_map is None and attend.softcap is None
    if not plain or attend.disjoint or attend.entries_bias:
        return None
    found = Match({attend, *inside})
    found.taken.add(attend)
    view = found.one(attend.memory, ViewRows)
    keys = None if view is None else found.one(view.k, Unflatten)
    read = None if keys is None else found.one(keys.x, ReadRows)
    state = None if read is None else found.one(read.memory, StateRows)
    if view is None or keys is None or state is None or keys.parts != 1 or state.window != attend.window or state.first:
        return None
    if attend.window is not None:
        return _windowed(found, attend, state) if view.v is None else None
    if attend.chosen is None or attend.entries is not None or view.v is None:
        return None
    values = found.one(view.v, Slice)
    return None if values is None or values.start or values.x is not keys.out else _latent(found, attend, state)


def _windowed(found: Match, attend: Attend, state: StateRows) -> SparseForm | None:
    """Return the form of attention to a window of rows, and to entries if there are any."""
    if attend.entries is not None and (len(attend.entries.memory.fields) != 1 or attend.entries.memory.rate is None):
        return None
    flat = found.one(state.x, Flatten)
    row, queries = None if flat is None else turned_part(found, flat.x), turned_part(found, attend.q)
    if row is None or queries is None:
        return None
    (key, k_rope, k_start), (q, rope, start) = row, queries
    one = found.one(key, Unflatten)
    if one is None or one.parts != 1 or not _alike(rope, k_rope) or start != k_start or not _last(rope, start, q):
        return None
    norm = found.one(one.x, Norm)
    q_norm = found.one(q, Norm)
    if not _scales(norm) or (q_norm is not None and (q_norm.weight is not None or q_norm.clamp)):
        return None
    out = attend.out if rope is None else _turned_back(found, attend, rope, start)
    row, q = one.x if norm is None else norm.x, q if q_norm is None else q_norm.x
    return SparseForm(attend, state, q, None, q_norm, row, norm, rope, out, frozenset(found.taken))


def _latent(found: Match, attend: Attend, state: StateRows) -> SparseForm | None:
    """Return the form of absorbed latent attention to chosen rows."""
    whole, row = found.one(attend.q, Concat), found.one(state.x, Concat)
    if whole is None or row is None or len(whole.xs) != 2 or len(row.xs) != 2:
        return None
    turned, norm, flat = found.one(whole.xs[1], Rope), found.one(row.xs[0], Norm), found.one(row.xs[1], Flatten)
    rope = None if flat is None else found.one(flat.x, Rope)
    if turned is None or norm is None or rope is None or not _turns(turned) or not turns_alike(rope, turned):
        return None
    latent, heads = found.one(norm.x, Slice), found.one(rope.x, Unflatten)
    key = None if heads is None else found.one(heads.x, Slice)
    if latent is None or key is None or latent.x is not key.x or latent.start or key.start != latent.stop:
        return None
    ends = latent.stop == attend.out.tensor.shape[3] and key.stop == latent.x.tensor.shape[2]
    if not ends or not _scales(norm) or not _last(turned, 0, turned.x):
        return None
    out, ops = attend.out, frozenset(found.taken)
    return SparseForm(attend, state, whole.xs[0], turned.x, None, latent.x, norm, turned, out, ops)


def _turned_back(found: Match, attend: Attend, rope: Rope, start: int) -> Value:
    """Return what a result is once its last channels turn back, if they do and that is all it is read for."""
    users = [op for op in attend.out.users if isinstance(op, Slice) and op in found.inside]
    parts = sorted(users, key=lambda op: op.start)
    if len(parts) != 2 or len(attend.out.users) != 2 or rope.layout != "interleaved":
        return attend.out
    plain, turning = parts
    back = next(iter(turning.out.users), None)
    whole = next(iter(plain.out.users), None)
    if (plain.start, plain.stop, turning.start, turning.stop) != (0, start, start, attend.out.tensor.shape[3]):
        return attend.out
    if not isinstance(back, Rope) or not isinstance(whole, Concat) or list(whole.xs) != [plain.out, back.out]:
        return attend.out
    once = all(len(op.results[0].users) == 1 for op in (plain, turning, back))
    straight = {**back.attributes, "inverse": False} == rope.attributes
    if not once or not back.inverse or not straight or back.pos is not rope.pos or whole not in found.inside:
        return attend.out
    if back not in found.inside:
        return attend.out
    found.taken |= {plain, turning, back, whole}
    return whole.out


def _turns(rope: Rope) -> bool:
    return turns_by_position(rope) and rope.pairs is None


def _alike(one: Rope | None, other: Rope | None) -> bool:
    return one is other if one is None or other is None else turns_alike(one, other)


def _last(rope: Rope | None, start: int, x: Value) -> bool:
    """Return whether the last channels turn, or none."""
    return rope is None or start + rope.channels == x.tensor.shape[-1]


def _scales(norm: Norm | None) -> bool:
    return norm is None or (norm.weight is not None and not norm.offset and not norm.clamp)
