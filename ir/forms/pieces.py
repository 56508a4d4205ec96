"""What a token's row is put together of, where a kernel makes it: heads side by side, normed and turned, or vectors."""

from __future__ import annotations

from dataclasses import dataclass

from regraft.ir.forms.attend import turns_by_position
from regraft.ir.forms.elements import of_token
from regraft.ir.forms.taking import Taking
from regraft.ir.op import Value
from regraft.ir.ops.core import Concat, Flatten, InverseRMS, Norm
from regraft.ir.ops.pos import Rope


@dataclass(frozen=True)
class RowPiece:
    """A part of the token's row.

    Attributes:
        x: Heads, ``[B, T, H, D]``, or a vector ``[B, T, M]``.
        norm: What each head is normed by.
        rope: How each turns.
        inverse: What takes one over each head's root mean square, if that alone is kept.
    """

    x: Value
    norm: Norm | None = None
    rope: Rope | None = None
    inverse: InverseRMS | None = None


def row_pieces(body: Taking, row: Value) -> tuple[RowPiece, ...]:
    """Return what a token's row is put together of.

    Raises:
        OtherFormError: Of something else.
    """
    whole = body.made_perhaps(row, Concat)
    return tuple(_piece(body, x) for x in ([row] if whole is None else whole.xs))


def _piece(body: Taking, x: Value) -> RowPiece:
    inverse = body.made_perhaps(x, InverseRMS)
    if inverse is not None:
        body.check(of_token(inverse.x), len(inverse.x.tensor.shape) == 4)
        return RowPiece(inverse.x, inverse=inverse)
    flat = body.made_perhaps(x, Flatten)
    if flat is None:
        body.check(of_token(x), len(x.tensor.shape) == 3)
        return RowPiece(x)
    rope = body.made_perhaps(flat.x, Rope)
    body.check(rope is None or turns_by_position(rope))
    of = flat.x if rope is None else rope.x
    norm = body.made_perhaps(of, Norm)
    body.check(norm is None or not norm.clamp)
    of = of if norm is None else norm.x
    body.check(of_token(of), len(of.tensor.shape) == 4)
    return RowPiece(of, norm, rope)
