"""The forms of ``kernel.embed`` and ``kernel.layer_rows``: a step's front, and what layers are given of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regraft.ir.forms.elements import of_token
from regraft.ir.forms.taking import Found, OtherFormError, Taking
from regraft.ir.op import Op, Value
from regraft.ir.ops.core import Add, Bias, Embed, Flatten, Gain, Norm, Scale
from regraft.ir.ops.hyper import Spread
from regraft.ir.ops.precision import Widen


@dataclass(frozen=True)
class Row:
    """A token's row of a table, as it leaves the body.

    Attributes:
        embed: Looks it up.
        scale: What it is multiplied by.
        bias: What is added to it then.
        gain: What the sum is multiplied by.
        wide: Whether it leaves in float32.
        out: What leaves.
    """

    embed: Embed
    scale: float
    bias: Value | None
    gain: Value | None
    wide: bool
    out: Value


@dataclass(frozen=True)
class EmbedForm:
    """A body that looks tokens up.

    Attributes:
        x: The stream's row.
        own: The row that layers have of their own.
        spread: What makes the stream's row one that is written to several streams.
    """

    x: Row
    own: Row | None
    spread: Spread | None = None


@dataclass(frozen=True)
class LayerRowsForm:
    """A body that adds rows of tokens to normed ones.

    Attributes:
        x: What is normed, ``[B, T, L, D]``.
        norm: The norm of each layer's.
        own: What is added, ``[B, T, L * D]``.
        scale: What the sum is multiplied by.
    """

    x: Value
    norm: Norm
    own: Value
    scale: float


def embed_form(ops: Sequence[Op]) -> EmbedForm | None:
    """Return the form of a body, given in order, or none if it is not of this form."""
    inside = set(ops)
    embeds = [op for op in ops if isinstance(op, Embed)]
    if not 1 <= len(embeds) <= 2 or len({op.tokens for op in embeds}) != 1:
        return None
    if not all(op.table.is_weight and of_token(op.out) and len(op.out.tensor.shape) == 3 for op in embeds):
        return None
    taken = set[Op](embeds)
    try:
        rows = [_row(embed, inside, taken) for embed in embeds]
    except OtherFormError:
        return None
    own = rows[1] if len(rows) > 1 else None
    spread = next((op for op in ops if isinstance(op, Spread)), None)
    if spread is not None and (own is not None or spread.x is not rows[0].out):
        return None
    taken |= {spread} if spread is not None else set()
    if taken != inside or (own is not None and (own.bias is not None or own.wide)):
        return None
    return EmbedForm(rows[0], own, spread)


def _row(embed: Embed, inside: set[Op], taken: set[Op]) -> Row:
    """Return what a body does to a row, in the order in which the kernel does it; ``taken`` grows by it.

    Raises:
        OtherFormError: A row is shifted and not scaled.
    """
    value = embed.out

    def then(kind: type[Found]) -> Found | None:
        nonlocal value
        users = [user for user in value.users if user in inside]
        op = users[0] if len(users) == 1 else None
        if not isinstance(op, kind) or next(iter(op.operands)) is not value:
            return None
        taken.add(op)
        (value,) = op.results
        return op

    scale = then(Scale)
    bias = then(Bias)
    gain = None if bias is None else then(Gain)
    wide = then(Widen) is not None
    if bias is not None and gain is None:
        raise OtherFormError
    factor = 1.0 if scale is None else scale.factor
    return Row(embed, factor, None if bias is None else bias.bias, None if gain is None else gain.by, wide, value)


def layer_rows_form(ops: Sequence[Op]) -> LayerRowsForm | None:
    """Return the form of a body, given in order, or none if it is not of this form."""
    try:
        return _layer_rows(Taking(ops), ops[-1].results[0])
    except OtherFormError:
        return None


def _layer_rows(body: Taking, value: Value) -> LayerRowsForm:
    scale = body.made_perhaps(value, Scale)
    both = body.made(value if scale is None else scale.x, Add)
    of_a = both.a.op in body.inside
    flat = body.made(both.a if of_a else both.b, Flatten)
    own = both.b if of_a else both.a
    norm = body.made(flat.x, Norm)
    weight = norm.weight
    body.check(len(norm.x.tensor.shape) == 4, not norm.clamp, weight is None or weight.is_weight)
    body.check(of_token(norm.x), of_token(own))
    body.check_whole()
    return LayerRowsForm(norm.x, norm, own, 1.0 if scale is None else scale.factor)
