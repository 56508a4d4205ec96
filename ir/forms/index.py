"""The form of ``kernel.index``: the choice of rows by the keys of a memory, and what leads to it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from regraft.ir.forms.attend import Match, turns_alike
from regraft.ir.forms.sparse import turned_part
from regraft.ir.op import Op, Value
from regraft.ir.ops.core import Flatten
from regraft.ir.ops.index import Index
from regraft.ir.ops.memory import StateRows
from regraft.ir.ops.pos import Rope


@dataclass(frozen=True)
class IndexForm:
    """A body that chooses rows.

    Attributes:
        index: The choice.
        q: Queries before they turn, ``[B, T, H, D]``.
        rope: How they turn, and the new key too.
        offset: The first channel that turns.
        state: What makes the memory, if the body does.
        k: The new key before it turns, ``[B, T, 1, D]``.
        ops: All ops of the body.
    """

    index: Index
    q: Value
    rope: Rope | None
    offset: int
    state: StateRows | None
    k: Value | None
    ops: frozenset[Op]


def index_form(index: Index, inside: Iterable[Op]) -> IndexForm | None:
    """Return the form of a choice of rows with those of ``inside`` that belong to it; none if it has another form."""
    found = Match({index, *inside})
    part = turned_part(found, index.q)
    if part is None:
        return None
    x, rope, offset = part
    key = _own_key(index, found.inside, rope) if rope is not None and not offset else None
    if key is None:
        return IndexForm(index, x, rope, offset, None, None, frozenset({index, *found.taken}))
    state, k, ops = key
    return IndexForm(index, x, rope, offset, state, k, frozenset({index, *found.taken, *ops}))


def _own_key(index: Index, inside: set[Op], rope: Rope) -> tuple[StateRows, Value, set[Op]] | None:
    """Return what adds a key to the memory, if it turns as queries do: the state, the key and all ops on the way."""
    found = Match(inside)
    state = found.one(index.memory, StateRows)
    if state is None or state.window is not None or index.window is not None or index.first:
        return None
    flat = found.one(state.x, Flatten)
    turned = None if flat is None else found.one(flat.x, Rope)
    if turned is None or not turns_alike(turned, rope) or turned.x.tensor.shape[2:] != (1, rope.x.tensor.shape[3]):
        return None
    return state, turned.x, found.taken
