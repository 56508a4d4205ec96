"""Fusion into ``kernel.attend``: attention with the heads' norms and rotations, and the memory's new row."""

from __future__ import annotations

from regraft.ir.forms.attend import attend_form, latent_form, values_form
from regraft.ir.forms.elements import of_token
from regraft.ir.op import Op
from regraft.ir.ops.attn import KV, Attend, Temper
from regraft.ir.ops.core import Concat, Flatten, Gain, Norm, Slice, Unflatten
from regraft.ir.ops.kernels import AttendStep
from regraft.ir.ops.memory import ReadRows, StateRows, ViewRows
from regraft.ir.ops.pos import Rope
from regraft.passes.fusion.groups import Grouping

_HEADS = (KV, Norm, Rope, Temper)
_LATENT = (Concat, Flatten, Norm, ReadRows, Rope, Slice, StateRows, Unflatten, ViewRows)


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
    elif not here or isinstance(state, KV):
        group = _leading(grouping, attend, _HEADS)
        if attend_form(grouping.ordered(group)) is not None:
            grouping.take(AttendStep, group)


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
    return isinstance(op, KV) or all(user in group for value in op.results for user in value.users)


def _of_vector(op: Op, kinds: tuple[type[Op], ...]) -> bool:
    """Return whether an op norms a whole vector where heads are wanted."""
    return kinds is _HEADS and isinstance(op, Norm) and len(op.x.tensor.shape) != 4
