"""Target ``triton``: the call of each kernel op, one entry in `KERNELS` for each class that the target can write."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from regraft.codegen.kernels.rows import LOCALS, RowsWriter
from regraft.codegen.names import Namespace, suffixes
from regraft.codegen.torch.body import GLOBALS, Body
from regraft.codegen.torch.code import ATOM, Code
from regraft.codegen.triton.attend import emit_attend
from regraft.codegen.triton.convolved import emit_convolved
from regraft.codegen.triton.delta import emit_delta
from regraft.codegen.triton.embed import emit_embed, emit_layer_rows
from regraft.codegen.triton.experts import emit_experts, emit_route
from regraft.codegen.triton.head import emit_head
from regraft.codegen.triton.pool import emit_pool
from regraft.codegen.triton.short_conv import emit_short_conv
from regraft.codegen.triton.sparse import emit_index, emit_sparse
from regraft.codegen.triton.streams import emit_streams
from regraft.ir.errors.codegen import MissingEmitterError
from regraft.ir.forms.rows import rows_form
from regraft.ir.graph import relative
from regraft.ir.op import Value
from regraft.ir.ops.attn import PickHeads
from regraft.ir.ops.core import Flatten, Slice, Unflatten
from regraft.ir.ops.kernels import (
    AttendStep,
    ConvolvedStep,
    DeltaStep,
    EmbedStep,
    ExpertsStep,
    Head,
    IndexStep,
    LayerRowsStep,
    PoolStep,
    RouteStep,
    Rows,
    ShortConvStep,
    SparseStep,
    StreamsStep,
)
from regraft.ir.ops.kernels import Kernel as KernelOp
from regraft.ir.ops.precision import CastLike, Widen

if TYPE_CHECKING:
    from regraft.codegen.triton.target import StepBody


def argument_names(op: KernelOp, taken: Sequence[str]) -> tuple[dict[Value, str], Namespace]:
    """Return what a kernel's function calls its operands, and the scope with these names."""
    names = Namespace([*GLOBALS, *taken])
    inner = op.inner
    given = {inner[name]: names.give(inner[name], *_stems(name)) for name in op.takes}
    return given, names


def _stems(name: str) -> list[str]:
    return suffixes(name.removesuffix(".weight")) if name.endswith(".weight") else suffixes(name)


def _rows(op: KernelOp, at: StepBody) -> Code:
    form = rows_form(op.stands_for)
    if form is None:
        raise MissingEmitterError(target="triton", op=op.label, where=op.scope)
    given, scope = argument_names(op, LOCALS)
    gives = list(op.inner.outputs)
    plain = Body(at.shared, {}, None, relative, scope)
    for each in op.stands_for:
        plain.write(each, set(gives))
    returned = ", ".join(_own(plain, value, gives) for value in gives)
    plain.assign("", f"return {returned}")
    names = {**given, **{value: f"{scope.give(value, *suffixes(value.name))}_out" for value in gives}}
    mapped = [*form.linears, *(each for end in form.ends for each in end.maps)]
    stem = "_".join(dict.fromkeys(_stem_of(each.weight.name) for each in mapped))
    like = next(name for value, name in given.items() if not value.is_weight)
    writer = RowsWriter(form, gives, names)
    name = at.shared.kernel(stem, lambda name: writer.kernel(name, like, plain.lines))
    return Code(f"{name}({', '.join(map(at.passed, op.inputs))})")


def _own(plain: Body, value: Value, gives: list[Value]) -> str:
    """Return the code of a result, copied where it would share memory with another result or with an operand."""
    source = _viewed(value)
    shared = [other for other in gives if other is not value and _viewed(other) is source]
    code = plain.of(value)
    return f"{code.within(ATOM)}.clone()" if shared or source.op is None or source.is_weight else code.text


def _viewed(value: Value) -> Value:
    """Return whose memory a value is a view of, itself perhaps."""
    while isinstance(value.op, CastLike | Flatten | PickHeads | Slice | Unflatten | Widen):
        value = value.op.x
    return value


def _stem_of(weight: str) -> str:
    return suffixes(weight.removesuffix(".weight"))[0].removesuffix("_proj")


KERNELS: Mapping[type[KernelOp], Callable[[Any, StepBody], Code]] = {
    AttendStep: emit_attend,
    ConvolvedStep: emit_convolved,
    DeltaStep: emit_delta,
    EmbedStep: emit_embed,
    LayerRowsStep: emit_layer_rows,
    ExpertsStep: emit_experts,
    Head: emit_head,
    PoolStep: emit_pool,
    IndexStep: emit_index,
    RouteStep: emit_route,
    Rows: _rows,
    SparseStep: emit_sparse,
    ShortConvStep: emit_short_conv,
    StreamsStep: emit_streams,
}


def emit_kernel(op: KernelOp, at: StepBody) -> Code:
    """Return the call of a kernel.

    Raises:
        MissingEmitterError: The target has none of that kind.
    """
    emitter = KERNELS.get(type(op))
    if emitter is None:
        raise MissingEmitterError(target="triton", op=op.label, where=op.scope)
    return emitter(op, at)
