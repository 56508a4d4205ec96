"""Target ``triton``: calls of ``kernel.pool``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.codegen.kernels.compress import Compress
from regraft.codegen.torch.code import Code
from regraft.ir.errors.codegen import MissingEmitterError
from regraft.ir.forms.pool import pool_form
from regraft.ir.op import Value
from regraft.ir.ops.kernels import Kernel as KernelOp

if TYPE_CHECKING:
    from regraft.codegen.triton.target import StepBody


def emit_pool(op: KernelOp, at: StepBody) -> Code:
    """Return the call that takes a token into memories of pooled rows; their views are where the rows are kept."""
    form = pool_form(op.stands_for)
    if form is None:
        raise MissingEmitterError(target="triton", op=op.label, where=op.scope)
    first = form[0]
    kernel = Compress(
        name="",
        widths=tuple(rows.width for rows in form),
        rate=first.state.rate,
        overlap=first.state.overlap,
        turning=first.turning,
        eps=first.norm.eps,
    )

    def outside(value: Value) -> Value:
        found = op.outside(value)
        assert found is not None, value
        return found

    arguments: list[str] = []
    for rows in form:
        memory, state = at.memory(op.memory_of(rows.state.out)), rows.state
        at.show(outside(rows.view.out), memory)
        arguments += [f"{memory}[{field}]" for field in range(3 if state.overlap else 2)]
        arguments += [at.passed(outside(value)) for value in (state.values, rows.gates, state.bias, rows.weight)]
    if first.rope is not None:
        arguments += [f"{at.rope(first.rope)}[{part}]" for part in range(2)]
    arguments += [at.call("start"), at.call("count")]
    name = at.shared.kernel(f"pool_every_{kernel.rate}", kernel.called)
    return Code(f"{name}({', '.join(arguments)})")
