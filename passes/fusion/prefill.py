"""Fusion of the graph of a call of many tokens: one rule a kernel, in order."""

from __future__ import annotations

from collections.abc import Callable

from regraft.ir.forms.flash import flash_form, latent_form, pooled_form, rule_form, scores_form
from regraft.ir.graph import Graph
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.index import Index
from regraft.ir.ops.kernels import DeltaStep, Flash, GroupedExperts, IndexStep, SparseStep
from regraft.ir.ops.memory import ViewRows
from regraft.ir.ops.moe import Experts
from regraft.ir.ops.seq import Delta
from regraft.passes.fusion.convolved import group_convolved_rows
from regraft.passes.fusion.groups import Grouping
from regraft.passes.fusion.pool import group_pool
from regraft.passes.fusion.streams import group_streams
from regraft.passes.latent_forms import choosing_form


def group_grouped_experts(grouping: Grouping) -> None:
    """Make a group of each mixture of experts."""
    for op in grouping.graph.run_time():
        if isinstance(op, Experts) and (op.gate_up_bias is None) == (op.down_bias is None):
            grouping.take(GroupedExperts, [op])


def group_flash(grouping: Grouping) -> None:
    """Make a group of each attention to all rows that a window shows, and of those to pooled rows beside it."""
    for op in grouping.graph.run_time():
        if isinstance(op, Attend) and flash_form([op]) is not None:
            grouping.take(Flash, [op])
        if isinstance(op, Attend) and pooled_form([op]) is not None:
            grouping.take(SparseStep, [op])
        if isinstance(op, Attend) and op.chosen is not None:
            _group_latent(grouping, op)


def _group_latent(grouping: Grouping, attend: Attend) -> None:
    """Make a group of attention to chosen rows of a latent, with the view that makes values of them."""
    view = attend.memory.op
    cut = view.v.op if isinstance(view, ViewRows) and view.v is not None else None
    if view is None or cut is None:
        return
    ops = grouping.ordered([cut, view, attend])
    if latent_form(ops) is not None and grouping.closed(ops, {attend.out}):
        grouping.take(SparseStep, ops)


def group_scores(grouping: Grouping) -> None:
    """Make a group of each choice of rows by keys that all heads share."""
    for op in grouping.graph.run_time():
        if isinstance(op, Index) and scores_form([op]) is not None:
            grouping.take(IndexStep, [op])


def group_rules(grouping: Grouping) -> None:
    """Make a group of each gated delta rule."""
    for op in grouping.graph.run_time():
        if isinstance(op, Delta) and rule_form([op]) is not None:
            grouping.take(DeltaStep, [op])


PREFILL: tuple[Callable[[Grouping], None], ...] = (
    group_pool,
    group_convolved_rows,
    group_rules,
    group_flash,
    group_scores,
    group_streams,
    group_grouped_experts,
)


def fuse_prefill(graph: Graph) -> Graph:
    """Return the graph of a call of many tokens, some ops of it fused; ``graph`` stays as it is.

    What has no kernel stays as it is too. Memories, parameters and results keep their names.
    """
    grouping = Grouping(choosing_form(graph) or graph)
    for rule in PREFILL:
        rule(grouping)
    return grouping.fused()
