"""Target ``triton``: calls of ``kernel.embed``, which give a step's rotations too, and of ``kernel.layer_rows``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.codegen.kernels.embed import Embedding, Wave
from regraft.codegen.kernels.layer_rows import LayerRows
from regraft.codegen.torch.code import Code
from regraft.ir.errors.codegen import MissingEmitterError
from regraft.ir.forms.elements import width
from regraft.ir.forms.embed import embed_form, layer_rows_form
from regraft.ir.op import Value
from regraft.ir.ops.kernels import Kernel as KernelOp

if TYPE_CHECKING:
    from regraft.codegen.triton.target import StepBody, Turning


def emit_embed(op: KernelOp, at: StepBody) -> Code:
    """Return the call that a step begins with; it gives cosine and sine of each of the step's rotations as well."""
    form = embed_form(op.stands_for)
    if form is None:
        raise MissingEmitterError(target="triton", op=op.label, where=op.scope)
    x, own = form.x, form.own
    turns = at.turned_first()
    kernel = Embedding(
        name="",
        width=width(x.out),
        scale=x.scale,
        shifted=x.bias is not None,
        wide=x.wide,
        own=0 if own is None else width(own.out),
        own_scale=1.0 if own is None else own.scale,
        streams=0 if form.spread is None else form.spread.count,
        waves=tuple(map(wave_of, turns.values())),
    )
    tables = [x.embed.table, x.bias, x.gain, None if own is None else own.embed.table]
    arguments = [
        at.passed(_outside(op, x.embed.tokens)),
        at.call("start"),
        *(at.passed(_outside(op, value)) for value in tables if value is not None),
        *(f"self.{turn.of}_angles" for turn in turns.values()),
    ]
    name = at.shared.kernel("embed_token", kernel.called)
    alone = len(kernel.results) == 1  # the function gives a tuple
    return Code(f"{name}({', '.join(arguments)}){'[0]' if alone else ''}")


def wave_of(turn: Turning) -> Wave:
    """Return the table of a rotation, given its parameters as the bodies of a program share them."""
    channels, layout, amplitude = turn.key[1], turn.key[2], turn.key[-1]
    assert isinstance(channels, int)
    assert isinstance(amplitude, float)
    return Wave(channels // 2, layout == "halves", amplitude, turn.rate, turn.offset)


def emit_layer_rows(op: KernelOp, at: StepBody) -> Code:
    """Return the call that gives what layers have of their own."""
    form = layer_rows_form(op.stands_for)
    if form is None:
        raise MissingEmitterError(target="triton", op=op.label, where=op.scope)
    layers, channels = (int(str(dim)) for dim in form.x.tensor.shape[2:])
    weight = form.norm.weight
    kernel = LayerRows(
        name="",
        layers=layers,
        width=channels,
        eps=form.norm.eps,
        offset=form.norm.offset,
        weighted=weight is not None,
        scale=form.scale,
    )
    given = [value for value in (form.x, form.own, weight) if value is not None]
    name = at.shared.kernel("rows_by_layer", kernel.called)
    return Code(f"{name}({', '.join(at.passed(_outside(op, value)) for value in given)})")


def _outside(op: KernelOp, value: Value) -> Value:
    found = op.outside(value)
    assert found is not None, value
    return found
