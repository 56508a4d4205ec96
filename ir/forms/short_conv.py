"""The form of ``kernel.short_conv``: convolutions along the sequence, channel by channel, of one token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regraft.ir.forms.elements import of_token, width
from regraft.ir.op import Op, Value
from regraft.ir.ops.core import Activation
from regraft.ir.ops.seq import Conv, Tail


@dataclass(frozen=True)
class ShortConvForm:
    """A convolution of a body.

    Attributes:
        tail: What is kept of the rows before.
        conv: The convolution.
        activation: What is applied to it, if the body does that.
        out: What leaves.
    """

    tail: Tail
    conv: Conv
    activation: Activation | None
    out: Value


def channelwise(conv: Conv) -> bool:
    """Return whether a convolution is one of single channels, with a tail of its own that starts as zeros."""
    tail = conv.memory.op
    if not isinstance(tail, Tail) or tail.initial is not None or not of_token(tail.x):
        return False
    alone = set(tail.out.users) == {conv} and tail.rows == conv.weight.tensor.sizes[2] - 1
    weights = conv.weight.is_weight and (conv.bias is None or conv.bias.is_weight)
    return alone and weights and conv.groups == width(tail.x) == width(conv.out)


def short_conv_form(ops: Sequence[Op]) -> tuple[ShortConvForm, ...] | None:
    """Return the convolutions of a body, given in order, or none if it is not of this form."""
    inside, taken = set(ops), set[Op]()
    found: list[ShortConvForm] = []
    for conv in ops:
        if not isinstance(conv, Conv) or not channelwise(conv):
            continue
        tail = conv.memory.op
        assert isinstance(tail, Tail)
        users = [user for user in conv.out.users if user in inside]
        silu = users[0] if len(users) == 1 else None
        activation = silu if isinstance(silu, Activation) and silu.kind == "silu" else None
        form = ShortConvForm(tail, conv, activation, conv.out if activation is None else activation.out)
        taken.update(op for op in (tail, conv, activation) if op is not None)
        found.append(form)
    given = {form.tail.x.op for form in found}
    return tuple(found) if found and taken == inside and inside.isdisjoint(given) else None
