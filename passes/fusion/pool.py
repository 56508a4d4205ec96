"""Fusion into ``kernel.pool``: memories of pooled rows, each with the norm and the rotation of a row."""

from __future__ import annotations

from regraft.ir.forms.pool import pool_form
from regraft.ir.op import Op
from regraft.ir.ops.compress import Compressed
from regraft.ir.ops.kernels import PoolStep
from regraft.ir.ops.memory import ViewRows
from regraft.passes.fusion.groups import Grouping


def group_pool(grouping: Grouping) -> None:
    """Deal memories of pooled rows to groups, up to the views that show them; a layer's in one where they are alike."""
    for ops in grouping.layers.values():
        states = [op for op in ops if isinstance(op, Compressed) and grouping.free(op)]
        rows = [found for found in (_rows(grouping, state) for state in states) if found]
        together = grouping.ordered(op for found in rows for op in found)
        if len(rows) > 1 and pool_form(together) is not None and grouping.take(PoolStep, together):
            continue
        for found in rows:
            grouping.take(PoolStep, found)


def _rows(grouping: Grouping, state: Compressed) -> list[Op]:
    """Return what makes a memory's rows, if it is of the form and nothing else reads what is made on the way."""
    ops = grouping.ordered(made_of(state))
    here = all(grouping.free(op) and grouping.same_layer(op, state) for op in ops)
    return ops if here and pool_form(ops) is not None else []


def made_of(state: Compressed) -> list[Op]:
    """Return a memory's op, and what is made of its rows up to views of them."""
    found: dict[Op, None] = {state: None}
    stack: list[Op] = [state]
    while stack:
        op = stack.pop()
        for user in (user for value in op.results for user in value.users):
            if user not in found:
                found[user] = None
                stack += [] if isinstance(user, ViewRows) else [user]
    return list(found)
