"""Fusion of the graph of a call of many tokens: one rule a kernel, in order."""

from __future__ import annotations

from collections.abc import Callable

from regraft.ir.forms.flash import flash_form, pooled_form, scores_form
from regraft.ir.graph import Graph
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.index import Index
from regraft.ir.ops.kernels import Flash, GroupedExperts, IndexStep, SparseStep
from regraft.ir.ops.moe import Experts
from regraft.passes.fusion.groups import Grouping
from regraft.passes.fusion.streams import group_streams


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


def group_scores(grouping: Grouping) -> None:
    """Make a group of each choice of rows by keys that all heads share."""
    for op in grouping.graph.run_time():
        if isinstance(op, Index) and scores_form([op]) is not None:
            grouping.take(IndexStep, [op])


PREFILL: tuple[Callable[[Grouping], None], ...] = (
    group_flash,
    group_scores,
    group_streams,
    group_grouped_experts,
)


def fuse_prefill(graph: Graph) -> Graph:
    """Return the graph of a call of many tokens, some ops of it fused; ``graph`` stays as it is.

    What has no kernel stays as it is too. Memories, parameters and results keep their names.
    """
    grouping = Grouping(graph)
    for rule in PREFILL:
        rule(grouping)
    return grouping.fused()
