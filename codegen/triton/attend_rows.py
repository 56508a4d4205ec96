"""Target ``triton``: calls of ``kernel.attend`` whose keys and values are made of rows as they are read."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from regraft.codegen.kernels.attend_rows import AttendRows, Made
from regraft.codegen.torch.code import Code
from regraft.codegen.triton.heads import (
    head_norm,
    outside,
    piece_of,
    rope_codes,
    sight,
    slots,
    stem,
    turn_of,
    weight_of,
)
from regraft.ir.forms.attend_rows import RowPart, RowsForm
from regraft.ir.op import Value
from regraft.ir.ops.kernels import Kernel as KernelOp

if TYPE_CHECKING:
    from regraft.codegen.triton.target import StepBody


def emit_attend_rows(op: KernelOp, form: RowsForm, at: StepBody) -> Code:
    """Return the call of a step's attention to rows."""
    attend, kept = form.attend, form.memory.memory
    heads, width = (int(str(dim)) for dim in attend.q.tensor.shape[2:])
    turn = turn_of(form.q.rope, 0)
    late = form.rope is not None
    amplitude = form.rope.amplitude if form.rope is not None else 1.0
    if turn is not None and amplitude != 1.0:
        turn = replace(turn, pairs=None)
    seen = sight(attend)
    seen["head_map"] = _head_map(form, heads)
    kernel = AttendRows(
        name="",
        heads=heads,
        kv_heads=form.keys.heads,
        width=width,
        value_width=int(str(attend.out.tensor.shape[3])),
        scale=attend.scale,
        slots=slots(kept),
        ring=kept.window is not None,
        kept=kept.first,
        **seen,
        row=kept.field("x").shape[0],
        keys=_made(form.keys),
        values=_made(form.values),
        pieces=tuple(map(piece_of, form.pieces)),
        q_norm=head_norm(form.q.norm),
        turn=turn,
        late=late,
        amplitude=amplitude,
        gain=form.gain is not None,
        factors=form.factors,
        factor_heads=form.factor_heads,
        value_factors=form.value_factors,
        writes=form.state is not None,
    )
    given: dict[str, Value | None] = {"q": form.q.x, "q_norm": weight_of(form.q.norm), "sink": attend.sink}
    given |= {f"piece_{i}": piece.x for i, piece in enumerate(form.pieces)}
    given |= {f"norm_{i}": weight_of(piece.norm) for i, piece in enumerate(form.pieces)}
    given["gain"] = form.gain
    for name, part in (("k", form.keys), ("v", form.values)):
        if part.linear is not None:
            given |= {f"{name}_map": part.linear.weight, f"{name}_bias": part.linear.bias}
    codes = {name: at.passed(outside(op, value)) for name, value in given.items() if value is not None}
    codes |= rope_codes(form.q.rope, at) | {
        "rows": f"{at.memory(outside(op, form.memory))}[0]",
        "start": at.call("start"),
    }
    if form.rope is not None:
        codes["angles"] = at.angles(form.rope)
    name = at.shared.kernel(stem(kernel, "attention_of_rows"), kernel.called)
    return Code(f"{name}({', '.join(codes[argument] for argument in kernel.arguments)})")


def _head_map(form: RowsForm, heads: int) -> tuple[int, ...] | None:
    """Return the kept head that each query head reads, or none where they are dealt evenly."""
    picks = form.keys.picks
    if picks is None:
        return form.attend.head_map
    found = tuple(picks[view] for view in form.attend.groups)
    kept = form.keys.heads
    even = heads % kept == 0 and found == tuple(head // (heads // kept) for head in range(heads))
    return None if even else found


def _made(part: RowPart) -> Made:
    linear = part.linear
    return Made(part.start, part.stop, linear is not None, linear is not None and linear.bias is not None)
