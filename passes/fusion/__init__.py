"""Fusion: ops of a graph become ``kernel.*`` ops, each of which a program computes in one launch or few."""

from __future__ import annotations

from regraft.ir.graph import Graph
from regraft.passes.fitting.fold import folded
from regraft.passes.fusion.attend import group_attend, pick_first, read_apart
from regraft.passes.fusion.convolved import group_convolved
from regraft.passes.fusion.delta import group_delta
from regraft.passes.fusion.embed import group_embed
from regraft.passes.fusion.experts import group_experts
from regraft.passes.fusion.groups import Grouping
from regraft.passes.fusion.head import group_head
from regraft.passes.fusion.index import group_index
from regraft.passes.fusion.pool import group_pool
from regraft.passes.fusion.pool_heads import group_pool_heads
from regraft.passes.fusion.rebuilt import rebuild_apart
from regraft.passes.fusion.rows import group_rows
from regraft.passes.fusion.rows_and_pool import group_rows_and_pool
from regraft.passes.fusion.short_conv import group_short_convs
from regraft.passes.fusion.sparse import group_sparse
from regraft.passes.fusion.streams import carry_streams, group_routed_streams, group_scaled_streams, group_streams

DECODE = (
    group_embed,
    group_convolved,
    group_delta,
    group_short_convs,
    group_index,
    group_sparse,
    group_attend,
    group_routed_streams,
    group_experts,
    group_pool_heads,
    group_pool,
    group_scaled_streams,
    group_streams,
    group_head,
    group_rows,
    group_rows_and_pool,
)


def fuse_decode(graph: Graph) -> Graph:
    """Return the graph of a call of one token for each sequence, its ops fused; ``graph`` stays as it is.

    What has no kernel stays as it is too. Memories, parameters and results keep their names; parameters that are fitted
    to statistics are loaded in it, since a step has no calibration text to take them of.
    """
    graph = rebuild_apart(graph)
    graph = folded(graph) if any(op.reads_run_time for op in graph.ops) else graph
    grouping = Grouping(read_apart(pick_first(carry_streams(graph))))
    for rule in DECODE:
        rule(grouping)
    return grouping.fused()
