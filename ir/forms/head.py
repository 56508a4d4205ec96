"""The form of ``kernel.head``: the last norm and the map to the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regraft.ir.forms.elements import of_token
from regraft.ir.op import Op, Value
from regraft.ir.ops.core import Linear, Norm, Scale, Softcap
from regraft.ir.ops.precision import CastLike


@dataclass(frozen=True)
class HeadForm:
    """A body of an output head.

    Attributes:
        x: The stream before its norm.
        wide: Whether it is in float32, and its norm takes it as the parameters are.
        norm: The norm, with a weight.
        linear: The map, without a bias.
        scale: What logits are multiplied by, above 0.
        cap: What bounds them after that.
    """

    x: Value
    wide: bool
    norm: Norm
    linear: Linear
    scale: float
    cap: float | None


def head_form(ops: Sequence[Op]) -> HeadForm | None:
    """Return the form of a body, given in order, or none if it is not of this form."""
    narrow = ops[0] if ops and isinstance(ops[0], CastLike) else None
    ops = ops if narrow is None else ops[1:]
    if len(ops) < 2 or not isinstance(ops[0], Norm) or not isinstance(ops[1], Linear):
        return None
    norm, linear, rest = ops[0], ops[1], list(ops[2:])
    plain = norm.weight is not None and not norm.clamp and linear.bias is None and linear.weight.is_weight
    if not plain or linear.x is not norm.out or not of_token(norm.x) or len(norm.x.tensor.shape) != 3:
        return None
    if narrow is not None and (norm.x is not narrow.out or narrow.x.tensor.dtype != "f32"):
        return None
    value, scale, cap = linear.out, 1.0, None
    if rest and isinstance(rest[0], Scale) and rest[0].x is value and rest[0].factor > 0:
        scale, value = rest[0].factor, rest.pop(0).results[0]
    if rest and isinstance(rest[0], Softcap) and rest[0].x is value:
        cap = rest.pop(0).attributes["cap"]
    if rest:
        return None
    x = norm.x if narrow is None else narrow.x
    return HeadForm(x, narrow is not None, norm, linear, scale, cap if isinstance(cap, float) else None)
