"""The form of ``kernel.pool``: memories of a row for every few tokens, normed and turned when it is complete."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regraft.ir.forms.taking import OtherFormError, Taking
from regraft.ir.op import Op, Value
from regraft.ir.ops.compress import Compressed
from regraft.ir.ops.core import Concat, Norm, Slice, Unflatten
from regraft.ir.ops.memory import ReadRows, RowPositions, ViewRows
from regraft.ir.ops.pos import Rope


@dataclass(frozen=True)
class PooledRows:
    """How the rows of one memory are made.

    Attributes:
        state: What pools them.
        gates: Its gates.
        norm: The norm of a row.
        weight: The norm's.
        rope: What turns a row's last channels, at the position of its first token.
        view: What shows the rows, as they are kept.
    """

    state: Compressed
    gates: Value
    norm: Norm
    weight: Value
    rope: Rope | None
    view: ViewRows

    @property
    def width(self) -> int:
        """Channels of a row."""
        return int(str(self.norm.out.tensor.shape[-1]))

    @property
    def turning(self) -> int:
        """How many of the channels turn."""
        return 0 if self.rope is None else self.rope.channels

    def alike(self, other: PooledRows) -> bool:
        """Return whether one call can pool two memories: of as many tokens a row, normed and turned alike."""
        mine, theirs = (
            (rows.state.rate, rows.state.overlap, rows.norm.eps, rows.rope and rows.rope.attributes)
            for rows in (self, other)
        )
        return mine == theirs


def pool_form(ops: Sequence[Op]) -> tuple[PooledRows, ...] | None:
    """Return how the rows of each memory are made that a body keeps, or none if it is not of this form."""
    body = Taking(ops)
    try:
        views = [op for op in ops if isinstance(op, ViewRows)]
        found = tuple(_rows(body, view) for view in views)
        body.check(bool(found), all(found[0].alike(rows) for rows in found))
        body.check_whole()
    except OtherFormError:
        return None
    return found


def _rows(body: Taking, view: ViewRows) -> PooledRows:
    body.taken.add(view)
    keys, rope = view.k, None
    whole = body.made_perhaps(keys, Concat)
    if whole is not None:
        body.check(len(whole.xs) == 2)
        still, rope = body.made(whole.xs[0], Slice), body.made(whole.xs[1], Rope)
        turning = body.made(rope.x, Slice)
        keys = still.x
        body.check(turning.x is keys, still.start == 0, still.stop == turning.start)
        body.check(turning.stop == keys.tensor.shape[-1], rope.channels == turning.stop - turning.start)
        positions = body.made(rope.pos, RowPositions)
        body.check(positions.memory is view.memory, rope.layout == "interleaved", not rope.inverse, not rope.offset)
    heads = body.made(keys, Unflatten)
    norm = body.made(heads.x, Norm)
    rows = body.made(norm.x, ReadRows)
    state = body.made(rows.memory, Compressed)
    body.check(view.v is None, view.memory is state.out, heads.parts == 1, not norm.clamp, not norm.offset)
    if state.gates is None or norm.weight is None or state.rate < 2:
        raise OtherFormError
    return PooledRows(state, state.gates, norm, norm.weight, rope, view)
