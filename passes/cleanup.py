"""Passes that only tidy: `dce` and `cse`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from regraft.ir.graph import Graph
from regraft.passes.base import Note, Pass, Preserves, Report


def _report(graph: Graph, count: int, what: str) -> Report:
    ops = f"{count} op{'' if count == 1 else 's'}"
    return Report((Note(graph.name, count > 0, f"{ops} {what}" if count else f"no op to remove: none {what}"),))


@dataclass(frozen=True)
class DropDead(Pass):
    """Remove ops whose results nobody reads."""

    name: ClassVar[str] = "dce"
    preserves: ClassVar[Preserves] = "exact"

    def rewrite(self, graph: Graph) -> Report:
        """Remove dead ops; memories that nobody reads go too."""
        return _report(graph, graph.drop_dead(), "unread")


@dataclass(frozen=True)
class MergeEqual(Pass):
    """Let one op serve where several compute the same. Memories stay apart."""

    name: ClassVar[str] = "cse"
    preserves: ClassVar[Preserves] = "exact"

    def rewrite(self, graph: Graph) -> Report:
        """Merge equal ops; the first one stays."""
        return _report(graph, graph.merge_equal(), "computed twice")
