"""Target ``triton``: calls of ``kernel.delta`` for many tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.codegen.kernels.delta_rows import DeltaRows
from regraft.ir.errors.codegen import MissingEmitterError
from regraft.ir.forms.flash import rule_form
from regraft.ir.ops.kernels import Kernel as KernelOp

if TYPE_CHECKING:
    from regraft.codegen.triton.prefill import PrefillBody


def emit_rule_in_blocks(op: KernelOp, at: PrefillBody) -> None:
    """Write the call of the gated delta rule, and what keeps the matrices after it."""
    rule = rule_form(op.stands_for)
    if rule is None:
        raise MissingEmitterError(target="triton", op=op.label, where=op.scope)
    heads, width = (int(str(dim)) for dim in rule.q.tensor.shape[2:])
    value_heads, value_width = (int(str(dim)) for dim in rule.v.tensor.shape[2:])
    kernel = DeltaRows("", heads, value_heads, width, value_width)
    name, past = at.shared.kernel("delta_in_blocks", kernel.called), at.past(rule)
    given = [at.of(value).text for value in (rule.q, rule.k, rule.v, rule.g, rule.beta)]
    held = f"{at.helper('held')}({past}, {given[2]}, 1, {value_heads}, {width}, {value_width}, wide=True)"
    after = at.names.give((op, past), f"{past}_then")
    arguments = ", ".join([*(f"{value}.contiguous()" for value in given), held, at.call("count")])
    at.assign(f"{at.names[rule.out]}, {after}", f"{name}({arguments})")
    at.assign("", f"{at.helper('leave')}(({past},), ({after},))")
