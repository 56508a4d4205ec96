"""Target ``triton``: calls of ``kernel.short_conv``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.codegen.kernels.short_conv import Convolution, ShortConv
from regraft.codegen.torch.code import Code
from regraft.ir.errors.codegen import MissingEmitterError
from regraft.ir.forms.elements import width
from regraft.ir.forms.short_conv import ShortConvForm, short_conv_form
from regraft.ir.ops.kernels import Kernel as KernelOp

if TYPE_CHECKING:
    from regraft.codegen.triton.target import StepBody


def emit_short_conv(op: KernelOp, at: StepBody) -> Code:
    """Return the call of a step's convolutions; what they keep is changed by the call."""
    forms = short_conv_form(op.stands_for)
    if forms is None:
        raise MissingEmitterError(target="triton", op=op.label, where=op.scope)
    kernel = ShortConv("", tuple(map(convolution, forms)))
    arguments: list[str] = []
    for form in forms:
        tail = at.memory(op.memory_of(form.tail.out))
        outside = [op.outside(v) for v in (form.tail.x, form.conv.weight, form.conv.bias) if v is not None]
        x, *weights = [at.passed(value) for value in outside if value is not None]
        arguments += [x, f"{tail}[0]", *weights]
    return Code(f"{at.shared.kernel('short_conv', kernel.called)}({', '.join(arguments)}, {at.call('count')})")


def convolution(form: ShortConvForm) -> Convolution:
    """Return the constants of a convolution."""
    conv, activation = form.conv, form.activation
    kind = None if activation is None else activation.kind
    return Convolution(width(conv.out), conv.weight.tensor.sizes[2], conv.bias is not None, kind)
