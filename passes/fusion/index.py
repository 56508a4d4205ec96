"""Fusion into ``kernel.index``: the choice of rows, with the rotation of queries and the memory's new key."""

from __future__ import annotations

from regraft.ir.forms.index import index_form
from regraft.ir.ops.index import Index
from regraft.ir.ops.kernels import IndexStep
from regraft.passes.fusion.groups import Grouping


def group_index(grouping: Grouping) -> None:
    """Deal choices of rows, and what leads to them alone, to groups."""
    for ops in grouping.layers.values():
        free = [op for op in ops if grouping.free(op)]
        for op in free:
            if isinstance(op, Index):
                forms = [index_form(op, free), index_form(op, [])]
                found = [form.ops for form in forms if form is not None and grouping.closed(form.ops, {op.out})]
                any(grouping.take(IndexStep, each) for each in found)
