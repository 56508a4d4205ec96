"""Fusion into ``kernel.convolved``: convolutions, coupling, norms and rotations before attention, and its new row."""

from __future__ import annotations

from regraft.ir.forms.convolved import convolved_form
from regraft.ir.op import Op
from regraft.ir.ops.attn import KV, Attend, Temper
from regraft.ir.ops.core import Add, Concat, Flatten, Linear, Mean, Norm, Repeat, Scale, Slice, Unflatten
from regraft.ir.ops.kernels import ConvolvedStep
from regraft.ir.ops.pos import Rope
from regraft.ir.ops.seq import Conv, Shift, Tail
from regraft.passes.fusion.groups import Grouping

_BEFORE = (Add, Concat, Conv, Flatten, KV, Mean, Norm, Repeat, Rope, Scale, Shift, Slice, Tail, Temper, Unflatten)


def group_convolved(grouping: Grouping) -> None:
    """Deal what stands between latent projections and attention to groups; attention reads their memories."""
    _group(grouping, least=1)


def group_convolved_rows(grouping: Grouping) -> None:
    """Deal the same in calls of many tokens to groups: where there are two convolutions."""
    _group(grouping, least=2)


def _group(grouping: Grouping, least: int) -> None:
    for ops in grouping.layers.values():
        for op in ops:
            if isinstance(op, Attend) and grouping.free(op) and any(isinstance(other, Conv) for other in ops):
                group = _before(grouping, op)
                form = convolved_form(grouping.ordered(group))
                if form is not None and len(form.convs) >= least and grouping.closed(group, {form.q}):
                    grouping.take(ConvolvedStep, group)


def _before(grouping: Grouping, attend: Attend) -> set[Op]:
    """Return what leads to an attention, back to the maps of a token's vector."""
    found: set[Op] = set()
    stack = [attend.q, attend.memory]
    while stack:
        op = stack.pop().op
        if op is None or op in found or not isinstance(op, _BEFORE) or not grouping.free(op):
            continue
        if grouping.same_layer(op, attend) and not _of_map(op):
            found.add(op)
            stack.extend(value for value in op.operands if not value.is_weight)
    return found


def _of_map(op: Op) -> bool:
    """Return whether an op is a part of what a map gives."""
    return isinstance(op, Slice) and isinstance(op.x.op, Linear)
