"""Heads as projections make them: a linear op, a norm of each head if there is one, and a rotation if there is one."""

from __future__ import annotations

from dataclasses import dataclass

from regraft.ir.op import Op, Value
from regraft.ir.ops.core import Linear, Norm, Scale, Unflatten
from regraft.ir.ops.fits import Align
from regraft.ir.ops.pos import Rope
from regraft.passes.matching.heads import Cut, trace
from regraft.passes.matching.sites import Refusal


@dataclass(frozen=True)
class Projection:
    """What makes the heads of a value; ``cut`` are the ops on the way, as `trace` finds them."""

    cut: Cut
    linear: Linear
    norm: Norm | None
    rope: Rope | None
    heads: int
    width: int

    @property
    def weight(self) -> Value:
        """The weight as it was before a turn towards other keys, if there was one."""
        made = self.linear.weight
        return made.op.weight if isinstance(made.op, Align) else made


def projection_of(value: Value, reader: Op) -> Projection | Refusal:
    """Return how the heads of ``value [B, T, H, D]`` are made for ``reader``, or why that is nothing so plain."""
    cut = trace(value, reader)
    if isinstance(cut, Refusal):
        return cut
    norms = [op for op in cut.ops if isinstance(op, Norm)]
    ropes = [op for op in cut.ops if isinstance(op, Rope)]
    others = [op for op in cut.ops if not isinstance(op, Norm | Rope | Linear | Unflatten | Scale)]
    if others or len(cut.linears) != 1 or len(norms) > 1 or len(ropes) > 1:
        what = others[0].label if others else "more than one projection, norm or rotation"
        return Refusal(f"%{value.name} is made by {what}, not by a projection, a norm at most, and a rotation")
    if norms and ropes and cut.ops.index(norms[0]) > cut.ops.index(ropes[0]):
        return Refusal(f"{norms[0].label} comes after the rotation")
    if norms and norms[0].clamp:
        return Refusal(f"{norms[0].label} bounds its root mean square from below")
    heads, width = value.tensor.shape[-2:]
    assert isinstance(heads, int)
    assert isinstance(width, int)
    return Projection(cut, cut.linears[0], norms[0] if norms else None, ropes[0] if ropes else None, heads, width)
