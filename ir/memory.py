"""Memories: how long they keep their rows, inferred from their readers."""

from __future__ import annotations

from regraft.ir.graph import Graph
from regraft.ir.op import Value
from regraft.ir.ops.memory import ReadRows, RowPositions, ViewRows


def readers_window(memory: Value) -> int | None:
    """Return how many rows back the furthest reader of ``memory`` looks, or none for all.

    Rows that are read as values are looked at through a view of the memory.
    """
    windows = [
        readers_window(op.out) if isinstance(op, ViewRows) else op.attributes.get("window")
        for op in memory.users
        if op.reads_memory and not op.weight_time and not isinstance(op, ReadRows | RowPositions)
    ]
    if not windows or None in windows:
        return None
    return max(window for window in windows if isinstance(window, int))


def readers_first(memory: Value) -> int:
    """Return how many of a sequence's first rows the readers of ``memory`` see from anywhere."""
    firsts = [
        readers_first(op.out) if isinstance(op, ViewRows) else op.attributes.get("first", 0) for op in memory.users
    ]
    return max((first for first in firsts if isinstance(first, int)), default=0)


def infer_windows(graph: Graph) -> None:
    """Let every memory keep just what its furthest reader can still ask for."""
    for memory in graph.memories():
        if memory.op is None or "window" not in memory.op.attributes:
            continue
        window = readers_window(memory)
        first = 0 if window is None else readers_first(memory)
        if (memory.op.attributes["window"], memory.op.attributes["first"]) != (window, first):
            graph.set_attribute(memory.op, "window", window)
            graph.set_attribute(memory.op, "first", first)
            memory.type = memory.memory.with_window(window, first)
            for op in memory.users:
                if isinstance(op, ViewRows):
                    op.out.type = op.out.memory.with_window(window, first)
