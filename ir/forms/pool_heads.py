"""The form of ``kernel.pool`` whose rows are keys and values by head, as the pass compress-seq makes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regraft.ir.forms.pieces import RowPiece, row_pieces
from regraft.ir.forms.taking import OtherFormError, Taking
from regraft.ir.op import Op, Value
from regraft.ir.ops.compress import Compressed
from regraft.ir.ops.core import Concat, Slice, Unflatten
from regraft.ir.ops.memory import ReadRows, RowPositions, ViewRows
from regraft.ir.ops.pos import Rope


@dataclass(frozen=True)
class PooledHeads:
    """How the rows of a memory are made.

    Attributes:
        state: What pools them.
        pieces: What a token's row is made of: heads of keys, and of values if the view has some.
        rope: What turns pooled keys.
        view: What shows the rows, as they are kept.
    """

    state: Compressed
    pieces: tuple[RowPiece, ...]
    rope: Rope | None
    view: ViewRows


def pool_heads_form(ops: Sequence[Op]) -> PooledHeads | None:
    """Return how a body makes a memory's rows, or none if it is not of this form."""
    body = Taking(ops)
    views = [op for op in ops if isinstance(op, ViewRows)]
    try:
        body.check(len(views) == 1)
        form = _form(body, views[0])
        body.check_whole()
    except OtherFormError:
        return None
    return form


def _form(body: Taking, view: ViewRows) -> PooledHeads:
    body.taken.add(view)
    rope = body.made_perhaps(view.k, Rope)
    if rope is not None:
        positions = body.made(rope.pos, RowPositions)
        body.check(positions.memory is view.memory, not rope.inverse)
    parts = [_part(body, view.k if rope is None else rope.x, view)]
    parts += [] if view.v is None else [_part(body, view.v, view)]
    state = body.made(view.memory, Compressed)
    row = state.values
    if state.overlap:
        both = body.made(row, Concat)
        body.check(len(both.xs) == 2, both.xs[0] is both.xs[1])
        row = both.xs[0]
    pieces = row_pieces(body, row)
    body.check(len(pieces) == len(parts), state.rate > 1, all(piece.inverse is None for piece in pieces))
    at = 0
    for (start, heads, width), piece in zip(parts, pieces, strict=True):
        shape = [int(str(dim)) for dim in piece.x.tensor.shape[2:]]
        body.check(start == at, shape == [heads, width] if len(shape) == 2 else heads == 1 and shape == [width])
        at += heads * width
    turned = [piece.rope.attributes for piece in pieces if piece.rope is not None]
    turned += [] if rope is None else [{**rope.attributes, "offset": 0.0}]
    body.check(all(each == turned[0] for each in turned))
    weighted = [piece for piece in pieces if piece.norm is not None and piece.norm.weight is not None]
    body.check(all(piece.x.tensor.shape[-1] == pieces[0].x.tensor.shape[-1] for piece in weighted))
    return PooledHeads(state, pieces, rope, view)


def _part(body: Taking, x: Value, view: ViewRows) -> tuple[int, int, int]:
    """Return the first channel of a row that keys or values are, and how many heads they are of so many channels."""
    heads = body.made(x, Unflatten)
    cut = body.made_perhaps(heads.x, Slice)
    rows = body.made(heads.x if cut is None else cut.x, ReadRows)
    body.check(rows.memory is view.memory)
    return 0 if cut is None else cut.start, heads.parts, int(str(x.tensor.shape[3]))
