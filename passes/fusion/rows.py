"""Fusion into ``kernel.rows``: maps of one vector, each with the norms before it and the sums behind."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.ir.forms.elements import ROW_LOCAL, elementwise, reduced
from regraft.ir.forms.rows import maps, of_heads, rows_form
from regraft.ir.op import Op, Value
from regraft.ir.ops.core import Flatten, GroupedLinear, Linear, Slice, Unflatten
from regraft.ir.ops.kernels import Rows
from regraft.passes.fusion.groups import Grouping

_VIEWS = (Flatten, Slice, Unflatten)


def group_rows(grouping: Grouping) -> None:
    """Deal the maps that are in no group yet, and what can go with them, to groups."""
    for ops in grouping.layers.values():
        here = set(ops)
        free = [op for op in ops if grouping.free(op)]
        anchors: dict[Value, list[Linear | GroupedLinear]] = {}
        for op in free:
            if maps(op):
                anchors.setdefault(op.x, []).append(op)
        for x, linears in anchors.items():
            before = _before(grouping, x, here)
            for lead in (before, _alone(before, linears), []):
                group: dict[Op, None] = dict.fromkeys([*lead, *linears])
                _grow(grouping, group, ops)
                if grouping.take(Rows, group) or grouping.take(Rows, [*lead, *linears]):
                    break
        _add_last(grouping, ops)


def _before(grouping: Grouping, x: Value, here: set[Op]) -> list[Op]:
    """Return the free ops that lead to ``x`` element by element, or by norms."""
    found: dict[Op, None] = {}
    stack = [x]
    while stack:
        op = stack.pop().op
        if op is None or op in found or op not in here or not grouping.free(op):
            continue
        if elementwise(op) or reduced(op):
            found[op] = None
            stack.extend(v for v in op.operands if not v.is_weight)
    return list(found)


def _alone(before: Sequence[Op], linears: Sequence[Op]) -> list[Op]:
    """Return what leads to maps, up to views that others read as well."""
    found = dict.fromkeys([*before, *linears])
    changed = True
    while changed:
        kept = {user for op in found for value in op.operands for user in [value.op] if user in found}
        shared = {op for op in found if isinstance(op, _VIEWS) and not found.keys() >= set(op.results[0].users)}
        left = {op: None for op in found if op in linears or (op in kept and op not in shared)}
        changed, found = len(left) < len(found), left
    return [op for op in found if op not in linears]


def _grow(grouping: Grouping, group: dict[Op, None], ops: Sequence[Op]) -> None:
    """Add what follows element by element, or head by head, where nothing else is waited for."""
    first = min(map(grouping.place.__getitem__, group))
    for op in ops:
        if op in group or not grouping.free(op) or not _follows(op):
            continue
        makers = [v.op for v in op.operands if not v.is_weight]
        waited = [maker for maker in makers if maker is not None and maker not in group]
        late = [maker for maker in waited if grouping.free(maker) and grouping.place[maker] > first]
        if not any(maker in group for maker in makers):
            continue
        lead = _lead(grouping, late, group)
        if lead is None or not grouping.convex(dict.fromkeys(grouping.ordered([*group, *lead, op]))):
            continue
        ended = of_heads(op) or any(maker is not None and of_heads(maker) for maker in makers)
        if not ended or rows_form(grouping.ordered([*group, *lead, op])) is not None:
            group.update(dict.fromkeys([*lead, op]))


def _lead(grouping: Grouping, late: Sequence[Op], group: dict[Op, None]) -> list[Op] | None:
    """Return what leads, element by element and for them alone, to ops that are waited for; none if more than that."""
    found: dict[Op, None] = {}
    stack = list(late)
    while stack:
        op = stack.pop()
        if not isinstance(op, ROW_LOCAL) or not elementwise(op) or len(op.results[0].users) > 1 or op in group:
            return None
        found[op] = None
        makers = [v.op for v in op.operands if v.op is not None and grouping.free(v.op) and v.op not in found]
        stack += [maker for maker in makers if grouping.same_layer(maker, op)]
    return list(found)


def _follows(op: Op) -> bool:
    """Return whether an op can be computed of rows as they are made, or of a head's once they are there."""
    return of_heads(op) or (isinstance(op, ROW_LOCAL) and elementwise(op))


def _add_last(grouping: Grouping, ops: Sequence[Op]) -> None:
    """Add what is left to the group that makes the last of what it reads."""
    for op in ops:
        if not grouping.free(op) or not (elementwise(op) or reduced(op)):
            continue
        groups = [grouping.of.get(v.op) for v in op.operands if v.op is not None]
        rows = [group for group in groups if group is not None and group.kind is Rows]
        for group in sorted(rows, key=lambda group: -grouping.place[next(reversed(group.ops))]):
            if rows_form([*group.ops, op]) is not None and grouping.extend(group, op):
                break
