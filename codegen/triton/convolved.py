"""Target ``triton``: calls of ``kernel.convolved``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from regraft.codegen.kernels.cca import CCA, CCARows
from regraft.codegen.torch.code import Code
from regraft.codegen.torch.ops import emit_op
from regraft.ir.errors.codegen import MissingEmitterError
from regraft.ir.forms.convolved import ConvolvedForm, convolved_form
from regraft.ir.forms.elements import width
from regraft.ir.op import Value
from regraft.ir.ops.kernels import Kernel as KernelOp

if TYPE_CHECKING:
    from regraft.codegen.triton.prefill import PrefillBody
    from regraft.codegen.triton.target import StepBody


def emit_convolved(op: KernelOp, at: StepBody) -> Code:
    """Return the call of what stands before a step's attention; its memories are kept by the call."""
    form = _form(op)
    kept = form.state.out.memory
    kernel = CCA(**_constants(form), window=kept.window is not None, first=kept.first)
    memory, *tails = (at.memory(op.memory_of(state.out)) for state in (form.state, *form.tails))
    arguments = [
        *(at.passed(_outside(op, value)) for value in _projected(form)),
        *(f"{memory}[{field}]" for field in range(2)),
        *(f"{tail}[0]" for tail in tails),
        *_shared(op, form, at),
    ]
    return Code(f"{at.shared.kernel('convolved', kernel.called)}({', '.join(arguments)})")


def emit_convolved_in_blocks(op: KernelOp, at: PrefillBody) -> None:
    """Write the call for many tokens, and what keeps their rows and the tails that it gives."""
    form = _form(op)
    kernel = CCARows(**_constants(form))
    name = at.shared.kernel("convolved_in_blocks", kernel.called)
    projected = [at.of(_outside(op, value)).text for value in _projected(form)]
    x = at.names.give((op, "x"), "projected")
    at.assign(x, f"torch.cat(({', '.join(projected)}), -1)")
    pasts = [at.past(tail) for tail in form.tails]
    sizes = [(tail.rows, width(tail.x)) for tail in form.tails]
    held = [
        f"{at.helper('held')}({past}, {x}, {rows}, {wide})" for past, (rows, wide) in zip(pasts, sizes, strict=True)
    ]
    made = [at.names[form.q], *(at.names.give((op, part), f"{part}_row") for part in ("k", "v"))]
    tails = [at.names.give((op, past), f"{past}_then") for past in pasts]
    at.assign(", ".join([*made, *tails]), f"{name}({', '.join([x, *held, *_shared(op, form, at)])})")
    at.assign("", f"{at.helper('leave')}(({', '.join(pasts)}), ({', '.join(tails)}))")
    for value, row in zip((form.state.k, form.state.v), made[1:], strict=True):
        at.names.alias(value, row)
    at.assign(at.names[form.state.out], emit_op(form.state, at).text)


def _form(op: KernelOp) -> ConvolvedForm:
    form = convolved_form(op.stands_for)
    if form is None:
        raise MissingEmitterError(target="triton", op=op.label, where=op.scope)
    return form


def _constants(form: ConvolvedForm) -> dict[str, Any]:
    return {
        "name": "",
        "heads": form.heads,
        "kv_heads": form.kv_heads,
        "width": width(form.queries) // form.heads,
        "taps": form.taps,
        "channels": form.rope.channels,
        "eps": form.norm.eps,
        "initial": form.tails[-1].initial is not None,
    }


def _projected(form: ConvolvedForm) -> tuple[Value, ...]:
    return (form.queries, form.keys, form.now, form.later)


def _shared(op: KernelOp, form: ConvolvedForm, at: StepBody | PrefillBody) -> list[str]:
    """Return the arguments after the tails, the same for one token and for many."""
    initial, rope = form.tails[-1].initial, at.rope(form.rope)
    weights = [value for conv in form.convs for value in (conv.weight, conv.bias) if value is not None]
    return [
        *([] if initial is None else [at.passed(_outside(op, initial))]),
        *(f"{rope}[{part}]" for part in range(2)),
        *(at.call(fact) for fact in ("start", "count")),
        *(at.passed(_outside(op, value)) for value in (*weights, form.temper.by)),
    ]


def _outside(op: KernelOp, value: Value) -> Value:
    found = op.outside(value)
    assert found is not None, value
    return found
