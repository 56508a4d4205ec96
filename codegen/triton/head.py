"""Target ``triton``: calls of ``kernel.head``, which gives logits, or at once the token that is chosen by them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.codegen.kernels.head import Head
from regraft.codegen.torch.code import Code
from regraft.ir.errors.codegen import MissingEmitterError
from regraft.ir.forms.head import head_form
from regraft.ir.ops.kernels import Kernel as KernelOp

if TYPE_CHECKING:
    from regraft.codegen.triton.target import StepBody


def emit_head(op: KernelOp, at: StepBody) -> Code:
    """Return the call that gives logits; a choice among them is written before it."""
    form = head_form(op.stands_for)
    if form is None:
        raise MissingEmitterError(target="triton", op=op.label, where=op.scope)
    kernel = Head(
        name="",
        width=form.linear.weight.tensor.sizes[1],
        vocab=form.linear.weight.tensor.sizes[0],
        eps=form.norm.eps,
        offset=form.norm.offset,
        scale=form.scale,
        cap=form.cap,
        wide=form.wide,
    )
    name = at.shared.kernel("head", kernel.called)
    values = [op.outside(value) for value in (form.x, form.norm.weight, form.linear.weight) if value is not None]
    given = ", ".join(at.passed(value) for value in values if value is not None)
    at.lines += [
        "if choice is not None and choice.temperature == 0:",
        f"    return {name}({given})",
        "if choice is not None:",
        f"    return {name}_sample({given}, *choice)",
    ]
    return Code(f"{name}_logits({given})")
