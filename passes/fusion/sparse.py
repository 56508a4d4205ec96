"""Fusion into ``kernel.sparse``: attention to rows that are keys and values in one, and the memory's new row."""

from __future__ import annotations

from regraft.ir.forms.sparse import sparse_form
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.kernels import SparseStep
from regraft.passes.fusion.groups import Grouping


def group_sparse(grouping: Grouping) -> None:
    """Deal attentions to gathered rows, what leads to them alone, and the turn back, to groups."""
    for ops in grouping.layers.values():
        free = [op for op in ops if grouping.free(op)]
        for op in free:
            form = sparse_form(op, free) if isinstance(op, Attend) else None
            if form is not None and grouping.closed(form.ops, {form.out}):
                grouping.take(SparseStep, form.ops)
