"""The forms of ``kernel.flash`` and, for many tokens, of ``kernel.index``, ``kernel.sparse`` and ``kernel.delta``."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.ir.dims import T
from regraft.ir.op import Op
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.core import Slice
from regraft.ir.ops.index import Index
from regraft.ir.ops.memory import ViewRows
from regraft.ir.ops.seq import Delta


def flash_form(ops: Sequence[Op]) -> Attend | None:
    """Return the attention that a body is, or none: all queries of a call, each to all rows that its window shows."""
    attend = ops[0]
    if len(ops) != 1 or not isinstance(attend, Attend):
        return None
    kept = attend.memory.memory
    dense = attend.chosen is None and attend.entries is None and kept.rate is None and kept.fixed is None
    fits = attend.q.tensor.shape[1] == T and attend.scale > 0
    return attend if dense and fits else None


def scores_form(ops: Sequence[Op]) -> Index | None:
    """Return the choice of rows that a body is, or none: by keys that all heads share."""
    index = ops[0]
    if len(ops) != 1 or not isinstance(index, Index):
        return None
    shape = index.memory.memory.fields[0].shape
    return index if index.q.tensor.shape[1] == T and (len(shape) == 1 or shape[0] == 1) else None


def pooled_form(ops: Sequence[Op]) -> Attend | None:
    """Return the attention that a body is, or none: to a window and to pooled rows, keys being values, one for all."""
    attend = ops[0]
    if len(ops) != 1 or not isinstance(attend, Attend) or attend.entries is None or attend.window is None:
        return None
    kept = attend.memory.memory
    plain = attend.softcap is None and not attend.disjoint and not attend.entries_bias and not attend.first
    shared = len(kept.fields) == 1 and kept.fields[0].shape[0] == 1 and kept.window is not None and not kept.first
    fits = attend.entries.memory.rate is not None and attend.q.tensor.shape[1] == T and attend.scale > 0
    return attend if plain and shared and fits else None


def latent_form(ops: Sequence[Op]) -> Attend | None:
    """Return the attention that a body is, or none: to chosen rows that all heads share, values being a part of them.

    The body makes them values: it is what cuts the rows, the view of both, and the attention.
    """
    match list(ops):
        case [Slice() as cut, ViewRows() as view, Attend() as attend]:
            pass
        case _:
            return None
    plain = attend.softcap is None and not attend.first and attend.head_map is None and attend.sink is None
    among = attend.chosen is not None and attend.entries is None and attend.window is None
    kept = view.memory.memory
    fits = kept.rate is None and kept.window is None and attend.q.tensor.shape[1] == T and attend.scale > 0
    first = cut.start == 0 and cut.x is view.k and view.v is cut.out and attend.memory is view.out
    one = view.k.tensor.shape[2] == 1
    return attend if plain and among and fits and first and one else None


def rule_form(ops: Sequence[Op]) -> Delta | None:
    """Return the gated delta rule that a body is, or none."""
    rule = ops[0]
    return rule if len(ops) == 1 and isinstance(rule, Delta) and rule.q.tensor.shape[1] == T else None
