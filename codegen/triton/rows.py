"""Target ``triton``: calls of ``kernel.rows``, and of ``kernel.rows_and_pool``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from regraft.codegen.kernels.rows import LOCALS, RowsKernel, RowsWriter
from regraft.codegen.kernels.rows_and_pool import LOCALS as LOCALS_BESIDE
from regraft.codegen.kernels.rows_and_pool import RowsAndPool, beside
from regraft.codegen.names import Namespace, suffixes
from regraft.codegen.torch.body import GLOBALS, Body
from regraft.codegen.torch.code import ATOM, Code
from regraft.codegen.triton.pool import pool_call
from regraft.ir.errors.codegen import MissingEmitterError
from regraft.ir.forms.rows import RowsForm, rows_form
from regraft.ir.forms.rows_and_pool import rows_and_pool_form
from regraft.ir.graph import relative
from regraft.ir.op import Op, Value
from regraft.ir.ops.attn import PickHeads
from regraft.ir.ops.core import Flatten, GroupedLinear, Slice, Unflatten
from regraft.ir.ops.kernels import Kernel as KernelOp
from regraft.ir.ops.precision import CastLike, Widen

if TYPE_CHECKING:
    from regraft.codegen.triton.target import StepBody


@dataclass(frozen=True)
class RowsCall:
    """A call of maps.

    Attributes:
        stem: What the kernel may be called.
        kernel: The kernel, without a name.
        arguments: What it is given, in order.
    """

    stem: str
    kernel: RowsKernel
    arguments: list[str]


def emit_rows(op: KernelOp, at: StepBody) -> Code:
    """Return the call of maps of one vector."""
    form = rows_form(op.stands_for)
    if form is None:
        raise MissingEmitterError(target="triton", op=op.label, where=op.scope)
    call = _rows_call(op, form, op.stands_for, at)
    return Code(f"{at.shared.kernel(call.stem, call.kernel.called)}({', '.join(call.arguments)})")


def emit_rows_and_pool(op: KernelOp, at: StepBody) -> Code:
    """Return the call of maps with pooled memories beside; their views are where the rows are kept."""
    form = rows_and_pool_form(op.stands_for)
    if form is None:
        raise MissingEmitterError(target="triton", op=op.label, where=op.scope)
    pooled, arguments = pool_call(op, form.pooled, at)
    call = _rows_call(op, form.rows, form.mapped, at, [*beside(pooled).values(), *LOCALS_BESIDE])
    kernel = RowsAndPool("", call.kernel, pooled)
    name = at.shared.kernel(f"{call.stem}_and_pool_every_{pooled.rate}", kernel.called)
    return Code(f"{name}({', '.join([*call.arguments, *arguments])})")


def _rows_call(op: KernelOp, form: RowsForm, ops: Sequence[Op], at: StepBody, others: Sequence[str] = ()) -> RowsCall:
    """Return the call of maps that are some of a kernel's ops; ``others`` are names that it leaves to the rest."""
    taken = [*LOCALS, *others]
    given, scope = _argument_names(op, ops, taken)
    gives = [value for value in op.inner.outputs if value.op in ops]
    plain = Body(at.shared, {}, None, relative, scope)
    for each in ops:
        plain.write(each, set(gives))
    returned = ", ".join(_own(plain, value, gives) for value in gives)
    plain.assign("", f"return {returned}")
    names = {**given, **{value: f"{scope.give(value, *suffixes(value.name))}_out" for value in gives}}
    mapped = [*form.linears, *(each for end in form.ends for each in end.maps)]
    stem = "_".join(dict.fromkeys(_stem_of(each.weight.name) for each in mapped))
    like = next(name for value, name in given.items() if not value.is_weight)
    kernel = RowsWriter(form, gives, names, taken).kernel("", like, plain.lines)
    outside = [op.outside(value) for value in given]
    return RowsCall(stem, kernel, [at.passed(value) for value in outside if value is not None])


def _argument_names(op: KernelOp, ops: Sequence[Op], taken: Sequence[str]) -> tuple[dict[Value, str], Namespace]:
    """Return what the function of some of a kernel's ops calls their operands, and the scope with these names."""
    names = Namespace([*GLOBALS, *taken])
    read = {value for each in ops for value in each.operands}
    given = {op.inner[name]: name for name in op.takes if op.inner[name] in read}
    return {value: names.give(value, *_stems(name)) for value, name in given.items()}, names


def _stems(name: str) -> list[str]:
    return suffixes(name.removesuffix(".weight")) if name.endswith(".weight") else suffixes(name)


def _own(plain: Body, value: Value, gives: list[Value]) -> str:
    """Return the code of a result, copied where it would share memory with another one or does not lie in order."""
    source = _viewed(value)
    shared = [other for other in gives if other is not value and _viewed(other) is source]
    code = plain.of(value)
    if shared or source.op is None or source.is_weight:
        return f"{code.within(ATOM)}.clone(memory_format=torch.contiguous_format)"
    return f"{code.within(ATOM)}.contiguous()" if _scattered(value) else code.text


def _scattered(value: Value) -> bool:
    """Return whether a value may lie otherwise than a new tensor: a part of another's channels, a product by groups."""
    while isinstance(value.op, CastLike | Flatten | Unflatten | Widen):
        value = value.op.x
    return isinstance(value.op, GroupedLinear | PickHeads | Slice)


def _viewed(value: Value) -> Value:
    """Return whose memory a value is a view of, itself perhaps."""
    while isinstance(value.op, CastLike | Flatten | PickHeads | Slice | Unflatten | Widen):
        value = value.op.x
    return value


def _stem_of(weight: str) -> str:
    return suffixes(weight.removesuffix(".weight"))[0].removesuffix("_proj")
