"""Values that can be computed element by element: which elements of its operands each one needs."""

from __future__ import annotations

import math

from regraft.ir.dims import T
from regraft.ir.op import Op, Value
from regraft.ir.ops.attn import PickHeads
from regraft.ir.ops.core import (
    Activation,
    Add,
    Bias,
    Clamp,
    Concat,
    Flatten,
    Gain,
    InverseRMS,
    LayerNorm,
    Mul,
    Norm,
    Repeat,
    Scale,
    Slice,
    Softcap,
    Unflatten,
)
from regraft.ir.ops.precision import CastLike, Widen
from regraft.ir.types import FLOATS, TensorType

ROW_LOCAL = (
    Activation, Add, Bias, CastLike, Clamp, Flatten, Gain, Mul, PickHeads, Scale, Slice, Softcap, Unflatten, Widen,
)  # fmt: skip
"""Ops of which an element needs one element of each operand."""

GATHERED = (Concat, Repeat)
"""Ops of which an element needs one element of one operand or another."""

REDUCED = (InverseRMS, LayerNorm, Norm)
"""Ops of which an element needs a sum over the last axis."""


def of_token(value: Value) -> bool:
    """Return whether a value holds numbers of each token of the call."""
    type = value.type
    if not isinstance(type, TensorType) or type.dtype not in FLOATS or len(type.shape) < 2:
        return False
    return type.shape[1] == T and all(isinstance(dim, int) for dim in type.shape[2:])


def width(value: Value) -> int:
    """Return how many numbers a token has, or a weight."""
    shape = value.tensor.shape if value.is_weight else value.tensor.shape[2:]
    return math.prod(dim for dim in shape if isinstance(dim, int))


def elementwise(op: Op) -> bool:
    """Return whether each element of a token's result can be told from elements of its operands alone."""
    return isinstance(op, (*ROW_LOCAL, *GATHERED)) and _of_tokens(op)


def reduced(op: Op) -> bool:
    """Return whether an op needs one sum over all of a token's vector, or two."""
    return isinstance(op, REDUCED) and _of_tokens(op) and len(op.x.tensor.shape) == 3


def _of_tokens(op: Op) -> bool:
    return all(of_token(v) or v.is_weight for v in op.operands) and all(map(of_token, op.results))
