"""Target ``triton``: calls of ``kernel.convolved``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.codegen.kernels.cca import CCA
from regraft.codegen.torch.code import Code
from regraft.ir.errors.codegen import MissingEmitterError
from regraft.ir.forms.convolved import convolved_form
from regraft.ir.forms.elements import width
from regraft.ir.op import Value
from regraft.ir.ops.kernels import Kernel as KernelOp

if TYPE_CHECKING:
    from regraft.codegen.triton.target import StepBody


def emit_convolved(op: KernelOp, at: StepBody) -> Code:
    """Return the call of what stands before a step's attention; its memories are kept by the call."""
    form = convolved_form(op.stands_for)
    if form is None:
        raise MissingEmitterError(target="triton", op=op.label, where=op.scope)
    kept = form.state.out.memory
    initial = form.tails[2].initial
    kernel = CCA(
        name="",
        heads=form.heads,
        kv_heads=form.kv_heads,
        width=width(form.queries) // form.heads,
        taps=form.taps,
        channels=form.rope.channels,
        eps=form.norm.eps,
        initial=initial is not None,
        window=kept.window is not None,
        first=kept.first,
    )

    def passed(value: Value) -> str:
        found = op.outside(value)
        assert found is not None, value
        return at.passed(found)

    memory, *tails = (at.memory(op.memory_of(state.out)) for state in (form.state, *form.tails))
    rope = at.rope(form.rope)
    weights = [value for conv in form.convs for value in (conv.weight, conv.bias) if value is not None]
    arguments = [
        *map(passed, (form.queries, form.keys, form.now, form.later)),
        *(f"{memory}[{field}]" for field in range(2)),
        *(f"{tail}[0]" for tail in tails),
        *([] if initial is None else [passed(initial)]),
        *(f"{rope}[{part}]" for part in range(2)),
        *(at.call(fact) for fact in ("start", "count")),
        *map(passed, (*weights, form.temper.by)),
    ]
    return Code(f"{at.shared.kernel('convolved', kernel.called)}({', '.join(arguments)})")
