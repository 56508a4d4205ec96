"""Target ``triton``: calls of ``kernel.delta``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.codegen.kernels.delta import DeltaRule, Heads
from regraft.codegen.torch.code import Code
from regraft.codegen.triton.short_conv import convolution
from regraft.ir.errors.codegen import MissingEmitterError
from regraft.ir.forms.delta import DeltaHeads, delta_form
from regraft.ir.forms.elements import width
from regraft.ir.op import Value
from regraft.ir.ops.kernels import Kernel as KernelOp

if TYPE_CHECKING:
    from regraft.codegen.triton.target import StepBody


def emit_delta(op: KernelOp, at: StepBody) -> Code:
    """Return the call of a step of the delta rule; its matrices and tail are changed by the call."""
    form = delta_form(op.stands_for)
    if form is None:
        raise MissingEmitterError(target="triton", op=op.label, where=op.scope)
    norm, conv = form.norm, form.conv
    heads, value_heads = (int(str(value.tensor.shape[2])) for value in (form.delta.q, form.delta.v))
    kernel = DeltaRule(
        name="",
        channels=width(form.x),
        heads=heads,
        value_heads=value_heads,
        width=width(form.delta.q) // heads,
        value_width=width(form.delta.v) // value_heads,
        q=_heads(form.q),
        k=_heads(form.k),
        v=_heads(form.v),
        norm=None if norm is None else norm.eps,
        weighted=norm is not None and norm.weight is not None,
        offset=0.0 if norm is None else norm.offset,
        gated=form.gate is not None,
        conv=None if conv is None else convolution(conv),
    )

    def passed(value: Value) -> str:
        found = op.outside(value)
        assert found is not None, value
        return at.passed(found)

    given = (form.decay.a, form.decay.a_log, form.decay.dt_bias, form.delta.beta)
    after = (None if norm is None else norm.weight, form.gate)
    tail = [] if conv is None else [f"{at.memory(op.memory_of(conv.tail.out))}[0]"]
    taps = () if conv is None else (conv.conv.weight, conv.conv.bias)
    arguments = [
        passed(form.x),
        *tail,
        *(passed(value) for value in taps if value is not None),
        *map(passed, given),
        f"{at.memory(op.memory_of(form.delta.matrix))}[0]",
        *(passed(value) for value in after if value is not None),
        at.call("count"),
    ]
    return Code(f"{at.shared.kernel('delta', kernel.called)}({', '.join(arguments)})")


def _heads(heads: DeltaHeads) -> Heads:
    return Heads(heads.start, None if heads.norm is None else heads.norm.eps, heads.factor)
