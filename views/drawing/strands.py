"""Strands: operations of a branch that follow each other without a fork, drawn as the rows of one box.

A part that forks and comes together again at once, such as rotating some channels of a head, stays in its strand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from regraft.views.drawing.scene import Node

_LIGHT = {
    "core.slice",
    "core.concat",
    "core.unflatten",
    "core.flatten",
    "core.repeat",
    "core.scale",
    "core.norm",
    "pos.rope",
    "mem.pos",
}
_MOST = 5  # light operations side by side that stay in a strand


@dataclass
class Strand:
    """Rows of one box, and the strands before and after it."""

    nodes: list[Node]
    before: dict[int, None] = field(default_factory=dict[int, None])
    after: dict[int, None] = field(default_factory=dict[int, None])

    @property
    def alone(self) -> bool:
        """Whether it is a memory, which stands in a box of its own."""
        return self.nodes[0].memory is not None

    @property
    def light(self) -> bool:
        """Whether it only takes apart, joins, rotates or scales."""
        return all(node.opname in _LIGHT for node in self.nodes)


def strands(nodes: Sequence[Node], ends: Set[str] = frozenset()) -> list[list[Node]]:
    """Return the strands of the nodes of a branch, in order; positions join nothing.

    Args:
        nodes: The nodes of a branch.
        ends: Ids of nodes with which a strand ends, for others read them too.
    """
    home = {node.id: i for i, node in enumerate(nodes)}
    found = {i: Strand([node]) for i, node in enumerate(nodes)}
    for i, node in enumerate(nodes):
        for source in sources(node):
            if source in home:
                found[i].before[home[source]] = None
                found[home[source]].after[i] = None
    changed = True
    while changed:
        changed = False
        for i in list(found):
            while i in found and _grow(found, i, ends):
                changed = True
    return [found[i].nodes for i in sorted(found)]


def sources(node: Node) -> list[str]:
    """Return the ids of what a node reads, without positions, and without the memory that the rows of a view are of."""
    left_out = ("pos", "memory") if node.opname == "mem.view" else ("pos",)
    return [operand.source for operand in node.operands if operand.slot not in left_out]


def _grow(found: dict[int, Strand], i: int, ends: Set[str]) -> bool:
    """Join a strand with what follows it alone, if anything does; return whether it was."""
    strand = found[i]
    if strand.alone or strand.nodes[-1].id in ends:
        return False
    if all(node.opname == "mem.pos" for node in strand.nodes) and (beside := _beside(found, i)) is not None:
        _join(found, beside, [i])
        return True
    follows = list(strand.after) if len(strand.after) == 1 else _diamond(found, i)
    if not follows or (len(follows) == 1 and (len(found[follows[0]].before) > 1 or found[follows[0]].alone)):
        return False
    _join(found, i, follows)
    return True


def _beside(found: Mapping[int, Strand], i: int) -> int | None:
    """Return the strand that reads the rows whose positions ``i`` gives to nobody but rotations."""
    if found[i].after or len(found[i].before) != 1:
        return None
    (memory,) = found[i].before
    return next((j for j in found[memory].after if j != i and found[j].nodes[0].opname == "mem.read"), None)


def _diamond(found: Mapping[int, Strand], i: int) -> list[int]:
    """Return the light strands between ``i`` and the one where all its ways meet again, with that; else none."""
    middle = list(found[i].after)
    if len(middle) < 2 or sum(len(found[m].nodes) for m in middle) > _MOST:
        return []
    ends = {e for m in middle for e in found[m].after if e not in middle}
    if len(ends) != 1:
        return []
    (end,) = ends
    aside = [m for m in middle if m != end]
    if not all(found[m].light and set(found[m].before) == {i} and set(found[m].after) == {end} for m in aside):
        return []
    whole = {i, *aside}
    if found[end].nodes[0].opname != "core.concat" or not set(found[end].before) <= whole:
        return []
    return [*aside, end]


def _join(found: dict[int, Strand], first: int, others: Iterable[int]) -> None:
    """Put other strands after the rows of the first."""
    into = found[first]
    gone = list(others)
    for i in gone:
        strand = found.pop(i)
        into.nodes += strand.nodes
        for before in strand.before:
            if before in found:
                found[before].after.pop(i, None)
                if before != first:
                    found[before].after[first] = None
                    into.before[before] = None
        for after in strand.after:
            if after in found:
                found[after].before.pop(i, None)
                found[after].before[first] = None
                into.after[after] = None
    for i in (first, *gone):
        into.before.pop(i, None)
        into.after.pop(i, None)
