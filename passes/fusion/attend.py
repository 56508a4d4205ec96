"""Fusion into ``kernel.attend``: attention with the heads' norms and rotations, and the memory's new row."""

from __future__ import annotations

from regraft.ir.forms.across import across_form
from regraft.ir.forms.attend import attend_form, latent_form, values_form
from regraft.ir.forms.attend_rows import attend_rows_form
from regraft.ir.forms.elements import of_token
from regraft.ir.graph import Graph
from regraft.ir.op import Op, Value
from regraft.ir.ops.attn import KV, Attend, PickHeads, Temper
from regraft.ir.ops.compress import Compressed
from regraft.ir.ops.core import Concat, Flatten, Gain, InverseRMS, Linear, Norm, Slice, Unflatten
from regraft.ir.ops.index import Index
from regraft.ir.ops.kernels import AttendStep
from regraft.ir.ops.memory import ReadRows, RowPositions, StateRows, ViewRows
from regraft.ir.ops.pos import Rope
from regraft.passes.fusion.groups import Grouping

_HEADS = (KV, Norm, Rope, Temper)
_ROWS = (
    Concat, Flatten, Gain, InverseRMS, Linear, Norm, PickHeads, ReadRows, Rope, RowPositions, Slice, StateRows,
    Unflatten, ViewRows,
)  # fmt: skip
_LATENT = (Concat, Flatten, Norm, ReadRows, Rope, Slice, StateRows, Unflatten, ViewRows)


def pick_first(graph: Graph) -> Graph:
    """Return a graph in which heads are picked before they are normed and turned; ``graph`` stays as it is.

    So what is done to heads goes with the attention that reads them. It is the same graph where none are picked.
    """
    if not any(isinstance(op, PickHeads) and done_to_heads(op.x) for op in graph.ops):
        return graph
    changed = graph.copy()
    for op in list(changed.ops):
        chain = done_to_heads(op.x) if isinstance(op, PickHeads) else []
        if not isinstance(op, PickHeads) or not chain:
            continue
        x, name = chain[-1].x, op.out.name
        (picked,) = changed.add(PickHeads({"x": [x]}, op.attributes), [changed.fresh(f"{name}_plain")], before=op)
        for each in reversed(chain):
            copy = each.rebuilt(lambda value, old=each.x, new=picked: new if value is old else value)
            stem = "turned" if isinstance(each, Rope) else "normed"
            (picked,) = changed.add(copy, [changed.fresh(f"{name}_{stem}")], before=op)
        changed.replace_uses(op.out, picked)
        changed.erase(op)
        for each in chain:
            if not each.out.users and each.out not in changed.outputs:
                changed.erase(each)
    return changed


def read_apart(graph: Graph) -> Graph:
    """Return a graph in which heads are normed and turned once more for each that reads them beside an attention.

    Such are pooled memories and what chooses their rows. So what is done to heads goes with the attention, and with
    their pooling. It is the same graph where there are none; ``graph`` stays as it is.
    """
    if not any(_read_beside(op) for op in graph.ops):
        return graph
    changed = graph.copy()
    for reader in [op for op in changed.ops if _read_beside(op)]:
        for user, read, chain in _read_beside(reader):
            value = chain[-1].x
            for each in reversed(chain):
                copy = each.rebuilt(lambda given, old=each.x, new=value: new if given is old else given)
                (value,) = changed.add(copy, [changed.fresh(f"{each.out.name}_apart")], before=user)
            apart = user.rebuilt(lambda given, old=read, new=value: new if given is old else given)
            results = changed.add(apart, [changed.fresh(f"{made.name}_apart") for made in user.results], before=user)
            for old, new in zip(user.results, results, strict=True):
                changed.replace_uses(old, new)
            changed.erase(user)
    return changed


def _read_beside(op: Op) -> list[tuple[Op, Value, list[Norm | Rope]]]:
    """Return what reads heads for a pooled memory, or to choose rows, that others read too; and what was done to them.

    That is an op, what it reads, and what norms and turns that, the last first.
    """
    found: list[tuple[Op, Value, list[Norm | Rope]]] = []
    stack: list[Op | None] = [op] if isinstance(op, Index) else []
    stack += [op.values.op] if isinstance(op, Compressed) else []
    while stack:
        maker = stack.pop()
        if isinstance(maker, Concat):
            stack.extend(value.op for value in dict.fromkeys(maker.xs))
        elif isinstance(maker, Flatten | Index):
            read = maker.q if isinstance(maker, Index) else maker.x
            chain = done_to_heads(read)
            shared = any(user is not maker for user in read.users)
            found += [(maker, read, chain)] if chain and shared else []
    return found


def done_to_heads(value: Value) -> list[Norm | Rope]:
    """Return what norms and turns heads, the last first."""
    found: list[Norm | Rope] = []
    while isinstance(value.op, Norm | Rope) and len(value.op.x.tensor.shape) == 4 and of_token(value.op.x):
        found.append(value.op)
        value = value.op.x
    return found


def group_attend(grouping: Grouping) -> None:
    """Deal attentions of one token, and what leads to them, to groups."""
    for ops in grouping.layers.values():
        for op in ops:
            if isinstance(op, Attend) and grouping.free(op):
                _group(grouping, op)


def _group(grouping: Grouping, attend: Attend) -> None:
    state = attend.memory.op
    here = state is not None and grouping.same_layer(state, attend)
    if isinstance(state, ViewRows):
        group = _leading(grouping, attend, _LATENT)
        if latent_form(grouping.ordered(group)) is not None:
            grouping.take(AttendStep, group)
            return
        group = _leading(grouping, attend, (*_LATENT, Gain))
        group = [op for op in group if not (isinstance(op, Unflatten) and of_token(op.x))]  # the projections' matter
        if values_form(grouping.ordered(group)) is not None:
            grouping.take(AttendStep, group)
            return
        group = _leading(grouping, attend, (Flatten, ReadRows, Rope, Unflatten, ViewRows))
        if across_form(grouping.ordered(group)) is not None:
            grouping.take(AttendStep, group)
            return
        group = _of_rows(grouping, attend)
        if attend_rows_form(grouping.ordered(group)) is not None and grouping.closed(group, {attend.out}):
            grouping.take(AttendStep, group)
    elif not here or isinstance(state, KV):
        group = _leading(grouping, attend, _HEADS)
        if attend_form(grouping.ordered(group)) is not None:
            grouping.take(AttendStep, group)


def _of_rows(grouping: Grouping, attend: Attend) -> dict[Op, None]:
    """Return an attention with what makes its keys and values of kept rows, and the token's row."""
    group = _leading(grouping, attend, (Norm, Rope))
    stack = [attend.memory]
    while stack:
        op = stack.pop().op
        if op is None or op in group or not grouping.free(op) or not isinstance(op, _ROWS):
            continue
        ends = isinstance(op, Unflatten | Slice | Linear) and of_token(op.results[0])  # the projections' matter
        if grouping.same_layer(op, attend) and not ends:
            group[op] = None
            stack.extend(value for value in op.operands if not value.is_weight)
    return group


def _leading(grouping: Grouping, attend: Attend, kinds: tuple[type[Op], ...]) -> dict[Op, None]:
    """Return an attention with the ops of some kinds that lead to it and to nothing else."""
    group: dict[Op, None] = {attend: None}
    given = _queries(attend)
    grown = True
    while grown:
        makers = [v.op for op in group for v in op.operands if v.op is not None and v.op not in group]
        found = [op for op in makers if isinstance(op, kinds) and grouping.free(op) and op not in given]
        found = [op for op in found if _only_for(op, group)]
        found = [
            op for op in found if grouping.same_layer(op, attend) and op not in given and not _of_vector(op, kinds)
        ]
        group.update(dict.fromkeys(found))
        grown = bool(found)
    return group


def _queries(attend: Attend) -> set[Op]:
    """Return what makes the parts of queries in a latent, before they turn: the projections' matter."""
    whole = attend.q.op
    parts = whole.xs if isinstance(whole, Concat) else ()
    return {made for part in parts for made in [part.op.x.op if isinstance(part.op, Rope) else part.op] if made}


def _only_for(op: Op, group: dict[Op, None]) -> bool:
    """Return whether all that reads what an op makes is in a group; memories may be read by other layers too."""
    return isinstance(op, KV | StateRows) or all(user in group for value in op.results for user in value.users)


def _of_vector(op: Op, kinds: tuple[type[Op], ...]) -> bool:
    """Return whether an op norms a whole vector where heads are wanted."""
    return kinds is _HEADS and isinstance(op, Norm) and len(op.x.tensor.shape) != 4
