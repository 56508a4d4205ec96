"""Fusion into ``kernel.rows_and_pool``: pooled memories in the launch of maps that stand beside them."""

from __future__ import annotations

from regraft.ir.forms.rows_and_pool import rows_and_pool_form
from regraft.ir.ops.kernels import PoolStep, Rows, RowsAndPool
from regraft.passes.fusion.groups import Group, Grouping


def group_rows_and_pool(grouping: Grouping) -> None:
    """Join each step of pooled memories with the first maps of its layer that it does not wait for, nor they for it."""
    for ops in grouping.layers.values():
        groups = {id(group): group for group in map(grouping.of.get, ops) if group is not None}.values()
        left = [group for group in groups if group.kind is Rows]
        for pool in (group for group in groups if group.kind is PoolStep):
            found = next((rows for rows in left if _join(grouping, rows, pool)), None)
            left = [rows for rows in left if rows is not found]


def _join(grouping: Grouping, rows: Group, pool: Group) -> bool:
    beside = rows_and_pool_form(grouping.ordered([*rows.ops, *pool.ops])) is not None
    return beside and grouping.join(RowsAndPool, (rows, pool))
