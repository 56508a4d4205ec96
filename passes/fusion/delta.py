"""Fusion into ``kernel.delta``: the gated delta rule with what leads to it, and the norm and the gate behind it.

A convolution of single channels that makes its queries, keys and values goes with it, if nothing else reads these.
"""

from __future__ import annotations

from regraft.ir.forms.delta import delta_form
from regraft.ir.op import Op, Value
from regraft.ir.ops.core import Activation, Mul, Norm, Scale, Slice, Unflatten
from regraft.ir.ops.kernels import DeltaStep
from regraft.ir.ops.seq import Conv, Decay, Delta
from regraft.passes.fusion.groups import Grouping
from regraft.passes.fusion.short_conv import convolution

_BEFORE = (Decay, Norm, Scale, Slice, Unflatten)


def group_delta(grouping: Grouping) -> None:
    """Deal each delta rule to a group, with as much of what follows as can go with it."""
    for op in [op for op in grouping.graph.ops if isinstance(op, Delta)]:
        if not grouping.free(op):
            continue
        before, after = _before(grouping, op), _after(grouping, op)
        front = _convolution(grouping, before)
        for first in ([*front, *before], before) if front else (before,):
            if any(_take(grouping, [*first, op, *after[:end]]) for end in range(len(after), -1, -1)):
                break


def _take(grouping: Grouping, ops: list[Op]) -> bool:
    group = grouping.ordered(ops)
    form = delta_form(group)
    return form is not None and grouping.closed(group, {form.out}) and grouping.take(DeltaStep, group)


def _before(grouping: Grouping, delta: Delta) -> list[Op]:
    """Return what leads to queries, keys, values and the decay, back to what they are slices of."""
    found: dict[Op, None] = {}
    stack = [delta.q, delta.k, delta.v, delta.g]
    while stack:
        op = stack.pop().op
        if isinstance(op, _BEFORE) and grouping.free(op) and grouping.same_layer(op, delta):
            found[op] = None
            stack += [] if isinstance(op, Decay | Slice) else [op.x]
    return list(found)


def _convolution(grouping: Grouping, before: list[Op]) -> list[Op]:
    """Return the convolution whose channels the first of `before` are slices of, if there is one."""
    made = next((op.x.op for op in before if isinstance(op, Slice)), None)
    conv = made.x.op if isinstance(made, Activation) else made
    return convolution(grouping, conv) if isinstance(conv, Conv) else []


def _after(grouping: Grouping, delta: Delta) -> list[Op]:
    """Return the norm and the product that follow, where nothing else reads what comes before them."""
    found: list[Op] = []
    value: Value = delta.out
    for kind in (Norm, Mul):
        users = [] if value in grouping.graph.outputs else list(value.users)
        op = users[0] if len(users) == 1 else None
        if isinstance(op, kind) and grouping.free(op) and grouping.same_layer(op, delta):
            found.append(op)
            value = op.results[0]
    return found
