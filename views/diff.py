"""What differs between two graphs, block kind by block kind, as data that reports and pictures show.

Graphs of as many layers are compared layer by layer, as a rewrite leaves them: the layers that go from one kind to the
same other are one entry. Otherwise each kind is compared with the one of the other graph that is most like it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from regraft.views.facts import Facts

Status = Literal["same", "changed", "added", "removed"]


@dataclass(frozen=True)
class Change:
    """Something with a name that differs; none where it is not there at all."""

    name: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class OpDiff:
    """An op of a kind that is only in one graph, or that differs.

    Attributes:
        name: The local name of its first result, such as ``attn.q_proj``: the same in every layer.
        before: Its operation in the first graph, such as ``core.linear``, none where it is added.
        after: The same in the second graph, none where it is removed.
        changes: Attributes, operands, shapes of weights and memories that differ.
    """

    name: str
    before: str | None
    after: str | None
    changes: tuple[Change, ...] = ()

    @property
    def status(self) -> Status:
        """Whether it is added, removed or changed."""
        return "added" if self.before is None else "removed" if self.after is None else "changed"


@dataclass(frozen=True)
class KindDiff:
    """A block kind of one graph and its counterpart in the other.

    Attributes:
        before: The kind's name in the first graph, none where it is added.
        after: The same in the second graph, none where it is removed.
        layers_before: The layers of the first graph that this is about.
        layers_after: Those of the second graph.
        words: How it mixes tokens and what it does with each, in words, where these differ.
        parameters: Parameters of one layer, before and after; none where there is no such layer.
        ops: The ops that differ, those of the first graph first where they stand beside new ones.
    """

    before: str | None
    after: str | None
    layers_before: tuple[int, ...]
    layers_after: tuple[int, ...]
    words: tuple[Change, ...]
    parameters: tuple[int | None, int | None]
    ops: tuple[OpDiff, ...]

    @property
    def status(self) -> Status:
        """Whether it is added, removed, changed or the same."""
        if self.before is None or self.after is None:
            return "added" if self.before is None else "removed"
        return "changed" if self.ops else "same"


@dataclass(frozen=True)
class MemoryDiff:
    """Memories that are only in one graph, or that keep something else.

    Attributes:
        name: Their name, with ``*`` for the layer.
        layers: The layers that own them; of the second graph where they are added.
        before: What they keep, in words, none where they are added.
        after: The same in the second graph, none where they are removed.
    """

    name: str
    layers: tuple[int, ...]
    before: str | None
    after: str | None

    @property
    def status(self) -> Status:
        """Whether they are added, removed or changed."""
        return "added" if self.before is None else "removed" if self.after is None else "changed"


@dataclass(frozen=True)
class Rewiring:
    """Layers that read the memory of another layer than before.

    Attributes:
        name: The memory's name, with ``*`` for the layer.
        layers: The layers that read.
        before: The layer whose memory they read, none for their own.
        after: The same in the second graph.
    """

    name: str
    layers: tuple[int, ...]
    before: int | None
    after: int | None


@dataclass(frozen=True)
class Diff:
    """What differs between two graphs.

    Attributes:
        before: Facts of the first graph.
        after: Facts of the second, at the same contexts.
        model: What differs of what the graphs say of themselves: family, dtype, vocabulary, trained context.
        by_layer: Whether layers were compared one by one: both graphs have as many.
        kinds: The kinds with their counterparts, in the order of their first layers.
        outside: Ops outside of layers that differ: embedding, head.
        memories: Memories that are added, removed or changed.
        rewired: Who reads another memory than before; only where layers were compared one by one.
    """

    before: Facts
    after: Facts
    model: tuple[Change, ...]
    by_layer: bool
    kinds: tuple[KindDiff, ...]
    outside: tuple[OpDiff, ...]
    memories: tuple[MemoryDiff, ...]
    rewired: tuple[Rewiring, ...]

    @property
    def identical(self) -> bool:
        """Whether nothing differs but the name."""
        return not (
            self.model
            or self.outside
            or self.memories
            or self.rewired
            or any(kind.status != "same" for kind in self.kinds)
        )

    def to_json(self) -> dict[str, Any]:
        """Return what differs as the ``diff`` of ``regraft.compare/1``."""
        return {
            "identical": self.identical,
            "by_layer": self.by_layer,
            "model": [asdict(change) for change in self.model],
            "kinds": [_kind_json(kind) for kind in self.kinds],
            "outside": [_op_json(op) for op in self.outside],
            "memories": [{"status": memory.status, **asdict(memory)} for memory in self.memories],
            "rewired": [asdict(each) for each in self.rewired],
        }


def _kind_json(kind: KindDiff) -> dict[str, Any]:
    return {"status": kind.status, **asdict(kind), "ops": [_op_json(op) for op in kind.ops]}


def _op_json(op: OpDiff) -> dict[str, Any]:
    return {"status": op.status, **asdict(op)}
