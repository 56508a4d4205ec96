"""Fusion into ``kernel.head``: the last norm, the scores of the vocabulary, and with them the choice of a token."""

from __future__ import annotations

from regraft.ir.forms.head import head_form
from regraft.ir.op import Op
from regraft.ir.ops.core import Linear, Norm, Scale, Softcap
from regraft.ir.ops.kernels import Head
from regraft.ir.ops.precision import CastLike
from regraft.passes.fusion.groups import Grouping


def group_head(grouping: Grouping) -> None:
    """Deal the ops that end in the graph's result to a group."""
    group: list[Op] = []
    value = grouping.graph.outputs[0]
    while isinstance(value.op, Linear | Norm | Scale | Softcap) and grouping.free(value.op):
        if group and len(value.users) > 1:
            break
        group.insert(0, value.op)
        if isinstance(value.op, Norm):
            narrow = value.op.x.op
            if isinstance(narrow, CastLike) and grouping.free(narrow) and len(narrow.out.users) == 1:
                group.insert(0, narrow)
            break
        value = value.op.x
    if group and head_form(group) is not None and all(grouping.same_layer(op, group[-1]) for op in group):
        grouping.take(Head, group)
