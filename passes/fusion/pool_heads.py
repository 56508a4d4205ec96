"""Fusion into ``kernel.pool``: memories of pooled rows of keys and values by head."""

from __future__ import annotations

from regraft.ir.forms.pool_heads import pool_heads_form
from regraft.ir.op import Op
from regraft.ir.ops.compress import Compressed
from regraft.ir.ops.core import Concat, Flatten, Norm
from regraft.ir.ops.kernels import PoolStep
from regraft.ir.ops.memory import ViewRows
from regraft.ir.ops.pos import Rope
from regraft.passes.fusion.groups import Grouping
from regraft.passes.fusion.pool import made_of


def group_pool_heads(grouping: Grouping) -> None:
    """Deal memories of heads' pooled rows to groups, with the norms and rotations that are for them alone."""
    for ops in grouping.layers.values():
        for op in ops:
            if isinstance(op, Compressed) and grouping.free(op):
                _group(grouping, op)


def _group(grouping: Grouping, state: Compressed) -> None:
    found: dict[Op, None] = dict.fromkeys(made_of(state))
    stack = [state.values]
    while stack:
        op = stack.pop().op
        if isinstance(op, Concat | Flatten | Norm | Rope) and grouping.free(op) and grouping.same_layer(op, state):
            if len(op.results[0].tensor.shape) == 3 and isinstance(op, Norm):
                continue  # the projections' matter
            found[op] = None
            stack.extend(value for value in op.operands if not value.is_weight)
    ops = grouping.ordered(found)
    views = {value for op in ops if isinstance(op, ViewRows) for value in op.results}
    here = all(grouping.free(op) and grouping.same_layer(op, state) for op in ops)
    if here and grouping.closed(ops, views) and pool_heads_form(ops) is not None:
        grouping.take(PoolStep, ops)
