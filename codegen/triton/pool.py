"""Target ``triton``: calls of ``kernel.pool``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.codegen.kernels.compress import Compress, CompressPrefill
from regraft.codegen.torch.code import Code
from regraft.codegen.torch.ops import emit_op
from regraft.codegen.triton.pool_heads import emit_pool_heads
from regraft.ir.errors.codegen import MissingEmitterError
from regraft.ir.forms.pool import PooledRows, pool_form
from regraft.ir.forms.pool_heads import pool_heads_form
from regraft.ir.op import Value
from regraft.ir.ops.kernels import Kernel as KernelOp

if TYPE_CHECKING:
    from regraft.codegen.triton.prefill import PrefillBody
    from regraft.codegen.triton.target import StepBody


def emit_pool(op: KernelOp, at: StepBody) -> Code:
    """Return the call that takes a token into memories of pooled rows; their views are where the rows are kept."""
    heads = pool_heads_form(op.stands_for)
    if heads is not None:
        return emit_pool_heads(op, heads, at)
    kernel, arguments = pool_call(op, _form(op), at)
    return Code(f"{at.shared.kernel(f'pool_every_{kernel.rate}', kernel.called)}({', '.join(arguments)})")


def pool_call(op: KernelOp, form: tuple[PooledRows, ...], at: StepBody) -> tuple[Compress, list[str]]:
    """Return a step of pooled memories, without a name, and what it is given, in order."""
    arguments: list[str] = []
    for rows in form:
        memory = at.memory(op.memory_of(rows.state.out))
        at.show(_outside(op, rows.view.out), memory)
        arguments += [f"{memory}[{field}]" for field in range(3 if rows.state.overlap else 2)]
        arguments += [at.passed(_outside(op, value)) for value in _taken(rows)]
    return Compress(*_constants(form)), [*arguments, *_shared(form[0], at)]


def emit_pool_in_blocks(op: KernelOp, at: PrefillBody) -> None:
    """Write the call that pools the windows that many tokens end, and what keeps their rows and shows them."""
    form = _form(op)
    rate = form[0].state.rate
    tails = f"{rate - 1}, {2 * rate - 1}" if form[0].state.overlap else f"{rate - 1}"
    arguments: list[str] = []
    for rows in form:
        memory, values = at.past(rows.state), at.of(_outside(op, rows.state.values)).text
        arguments.append(f"*{at.helper('unfinished')}({memory}, {values}, {tails})")
        arguments += [at.passed(_outside(op, value)) for value in _taken(rows)]
    name = at.shared.kernel(f"pool_every_{rate}_in_blocks", CompressPrefill(*_constants(form)).called)
    made = [at.names.give((op, rows.view), f"{at.names[rows.view.out]}_rows") for rows in form]
    at.assign(", ".join(made), f"{name}({', '.join([*arguments, *_shared(form[0], at)])})")
    for rows, row in zip(form, made, strict=True):
        at.names.alias(rows.view.k, row)
        at.assign(at.names[rows.view.out], emit_op(rows.view, at).text)


def _form(op: KernelOp) -> tuple[PooledRows, ...]:
    form = pool_form(op.stands_for)
    if form is None:
        raise MissingEmitterError(target="triton", op=op.label, where=op.scope)
    return form


def _constants(form: tuple[PooledRows, ...]) -> tuple[str, tuple[int, ...], int, bool, int, float]:
    """Return the constants that steps and calls of many tokens share, no name first."""
    first = form[0]
    widths = tuple(rows.width for rows in form)
    return "", widths, first.state.rate, first.state.overlap, first.turning, first.norm.eps


def _taken(rows: PooledRows) -> tuple[Value, ...]:
    return (rows.state.values, rows.gates, rows.state.bias, rows.weight)


def _shared(rows: PooledRows, at: StepBody | PrefillBody) -> list[str]:
    """Return the arguments that memories share: how rows turn, and where the call stands."""
    turn = [] if rows.rope is None else [f"{at.rope(rows.rope)}[{part}]" for part in range(2)]
    return [*turn, at.call("start"), at.call("count")]


def _outside(op: KernelOp, value: Value) -> Value:
    found = op.outside(value)
    assert found is not None, value
    return found
