"""The form of attention to heads side by side as one, for ``kernel.attend``: what share-kv makes at level cross."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regraft.ir.forms.attend import turns_by_position
from regraft.ir.forms.elements import of_token
from regraft.ir.forms.taking import OtherFormError, Taking
from regraft.ir.op import Op, Value
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.core import Flatten, Unflatten
from regraft.ir.ops.memory import ReadRows, ViewRows
from regraft.ir.ops.pos import Rope


@dataclass(frozen=True)
class AcrossForm:
    """A body of attention to all heads at once.

    Attributes:
        attend: The attention.
        memory: The memory, of keys and values by head.
        q: Queries, each as wide as all heads' keys together.
        rope: How each part of a query turns that meets one head.
        head: Channels of such a part.
    """

    attend: Attend
    memory: Value
    q: Value
    rope: Rope | None
    head: int


def across_form(ops: Sequence[Op]) -> AcrossForm | None:
    """Return the form of a body, given in order, or none if it is not of this form."""
    attends = [op for op in ops if isinstance(op, Attend)]
    body = Taking(ops)
    try:
        body.check(len(attends) == 1)
        form = _form(body, attends[0])
        body.check_whole()
    except OtherFormError:
        return None
    return form


def _form(body: Taking, attend: Attend) -> AcrossForm:
    body.check(attend.chosen is None, attend.entries is None)
    body.taken.add(attend)
    view = body.made(attend.memory, ViewRows)
    if view.v is None:
        raise OtherFormError
    for rows, field in ((view.k, "k"), (view.v, "v")):
        read = body.made(_side_by_side(body, rows, 1), ReadRows)
        body.check(read.memory is view.memory, read.field == field)
    head = view.memory.memory.field("k").shape[1]
    wide = attend.q.op
    rope = None
    q = attend.q
    if wide in body.inside:
        heads = int(str(attend.q.tensor.shape[2]))
        rope = body.made(_side_by_side(body, attend.q, heads), Rope)
        q = _side_by_side(body, rope.x, int(str(rope.x.tensor.shape[2])))
        body.check(turns_by_position(rope), rope.x.tensor.shape[3] == head, q.tensor.shape == attend.q.tensor.shape)
    body.check(of_token(q), len(q.tensor.shape) == 4)
    return AcrossForm(attend, view.memory, q, rope, head)


def _side_by_side(body: Taking, x: Value, parts: int) -> Value:
    """Return heads that are cut into others."""
    heads = body.made(x, Unflatten)
    body.check(heads.parts == parts)
    return body.made(heads.x, Flatten).x
