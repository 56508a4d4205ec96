"""The form of attention to kept rows of which keys and values are made as they are read, for ``kernel.attend``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regraft.ir.forms.attend import Heads, peeled, turns_alike
from regraft.ir.forms.pieces import RowPiece, row_pieces
from regraft.ir.forms.taking import OtherFormError, Taking
from regraft.ir.op import Op, Value
from regraft.ir.ops.attn import Attend, PickHeads
from regraft.ir.ops.core import Gain, Linear, Slice, Unflatten
from regraft.ir.ops.memory import ReadRows, RowPositions, StateRows, ViewRows
from regraft.ir.ops.pos import Rope


@dataclass(frozen=True)
class RowPart:
    """What keys or values are made of.

    Attributes:
        start: The first channel of a row.
        stop: The first that is none of them.
        linear: What maps them, if anything does.
        heads: Into how many heads they are cut.
        picks: Which of these are attended to, in their order; all if None.
    """

    start: int
    stop: int
    linear: Linear | None
    heads: int
    picks: tuple[int, ...] | None


@dataclass(frozen=True)
class RowsForm:
    """A body of attention to keys and values made of kept rows.

    Attributes:
        attend: The attention.
        memory: Its memory.
        state: What makes it, if the body does.
        pieces: What the token's row is made of.
        q: Queries.
        keys: What keys are made of.
        values: What values are made of.
        gain: What each channel of keys is multiplied by.
        factors: The first channel of what each head's keys are multiplied by.
        factor_heads: How many numbers that are.
        value_factors: The first channel of what each head's values are multiplied by.
        rope: How keys turn when they are read.
    """

    attend: Attend
    memory: Value
    state: StateRows | None
    pieces: tuple[RowPiece, ...]
    q: Heads
    keys: RowPart
    values: RowPart
    gain: Value | None
    factors: int | None
    factor_heads: int
    value_factors: int | None
    rope: Rope | None


def attend_rows_form(ops: Sequence[Op]) -> RowsForm | None:
    """Return the form of a body, given in order, or none if it is not of this form."""
    attends = [op for op in ops if isinstance(op, Attend)]
    body = Taking(ops)
    try:
        body.check(len(attends) == 1)
        form = _Reader(body, attends[0]).form()
        body.check_whole()
    except OtherFormError:
        return None
    return form


class _Reader:
    """Reads a body, from the attention back.

    Raises:
        OtherFormError: By any method, where the body is of another form.
    """

    def __init__(self, body: Taking, attend: Attend) -> None:
        self.body = body
        self.attend = attend
        body.check(attend.chosen is None, attend.entries is None)
        body.taken.add(attend)
        self.view = body.made(attend.memory, ViewRows)
        self.memory = self.view.memory
        self.rope: Rope | None = None
        self.gain: Value | None = None
        self.factors: tuple[int, int] | None = None

    def form(self) -> RowsForm:
        """Return the whole."""
        body, attend = self.body, self.attend
        if self.view.v is None:
            raise OtherFormError
        q = peeled(attend.q, body.inside)
        if q is None or q.temper is not None:
            raise OtherFormError
        body.taken |= set(q.ops)
        keys = self._part(self._plain_keys(self.view.k))
        gain = body.made_perhaps(self.view.v, Gain)
        value_factors = None if gain is None else self._factors(gain.by)
        values = self._part(self.view.v if gain is None else gain.x)
        body.check(value_factors is None or (value_factors[1] == values.heads and values.picks is None))
        body.check(keys.heads == values.heads, keys.picks == values.picks)
        both = keys.linear is not None and values.linear is not None
        body.check(not both or (keys.start, keys.stop) == (values.start, values.stop))
        body.check(self.rope is None or (q.rope is not None and q.rope.attributes == self.rope.attributes))
        state = body.made_perhaps(self.memory, StateRows)
        pieces = () if state is None else row_pieces(body, state.x)
        body.check(
            all(piece.rope is None or (q.rope is not None and turns_alike(piece.rope, q.rope)) for piece in pieces)
        )
        start, count = self.factors or (None, 1)
        self._check_dealt(count, keys)
        late = None if value_factors is None else value_factors[0]
        return RowsForm(attend, self.memory, state, pieces, q, keys, values, self.gain, start, count, late, self.rope)

    def _plain_keys(self, keys: Value) -> Value:
        """Return keys before they turn and are multiplied."""
        body = self.body
        self.rope = body.made_perhaps(keys, Rope)
        if self.rope is not None:
            positions = body.made(self.rope.pos, RowPositions)
            body.check(positions.memory is self.memory, not self.rope.inverse, not self.rope.offset)
            keys = self.rope.x
        while (gain := body.made_perhaps(keys, Gain)) is not None:
            if gain.by.is_weight:
                body.check(self.gain is None, gain.by.tensor.shape == keys.tensor.shape[3:])
                self.gain = gain.by
            else:
                body.check(self.factors is None)
                self.factors = self._factors(gain.by)
            keys = gain.x
        return keys

    def _factors(self, by: Value) -> tuple[int, int]:
        """Take what a number of each head is read by, and return its channel and how many heads there are."""
        body = self.body
        heads = body.made(by, Unflatten)
        cut = body.made(heads.x, Slice)
        rows = body.made(cut.x, ReadRows)
        body.check(rows.memory is self.memory, cut.stop - cut.start == heads.parts)
        return cut.start, heads.parts

    def _check_dealt(self, count: int, keys: RowPart) -> None:
        """Insist that keys' factors are dealt to key/value heads, or evenly to query heads and are more or fewer."""
        if self.factors is not None:
            kept = keys.picks is None or keys.picks == tuple(range(keys.heads))
            even = self.attend.head_map is None and int(str(self.attend.q.tensor.shape[2])) % count == 0
            self.body.check(kept if count == keys.heads else even)

    def _part(self, x: Value) -> RowPart:
        """Return what keys or values are made of."""
        body = self.body
        pick = body.made_perhaps(x, PickHeads)
        heads = body.made(x if pick is None else pick.x, Unflatten)
        linear = body.made_perhaps(heads.x, Linear)
        source = heads.x if linear is None else linear.x
        cut = body.made_perhaps(source, Slice)
        rows = body.made(source if cut is None else cut.x, ReadRows)
        width = int(str(source.tensor.shape[2]))
        body.check(rows.memory is self.memory, linear is None or linear.weight.is_weight)
        body.check(len(rows.out.tensor.shape) == 3)
        start = 0 if cut is None else cut.start
        return RowPart(start, start + width, linear, heads.parts, None if pick is None else tuple(pick.heads))
