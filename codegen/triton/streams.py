"""Target ``triton``: calls of ``kernel.streams``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.codegen.kernels.streams import Streams, StreamsPrefill
from regraft.codegen.torch.code import Code
from regraft.codegen.triton.experts import route_kernel, route_operands
from regraft.ir.errors.codegen import MissingEmitterError
from regraft.ir.forms.streams import StreamsForm, streams_form
from regraft.ir.ops.hyper import Read
from regraft.ir.ops.kernels import Kernel as KernelOp
from regraft.ir.types import ITEM_BITS

if TYPE_CHECKING:
    from regraft.codegen.triton.prefill import PrefillBody
    from regraft.codegen.triton.target import StepBody


def emit_streams(op: KernelOp, at: StepBody) -> Code:
    """Return the call of a boundary between two sublayers."""
    return _call(op, at, Streams, "streams")


def emit_streams_in_blocks(op: KernelOp, at: PrefillBody) -> Code:
    """Return such a call for many tokens."""
    return _call(op, at, StreamsPrefill, "streams_in_blocks")


def _call(op: KernelOp, at: StepBody | PrefillBody, kind: type[Streams], what: str) -> Code:
    form = streams_form(op.stands_for)
    given = [] if form is None else [op.outside(value) for value in form.results]
    if form is None or None in given[1:] or (form.route is not None and kind is not Streams):
        raise MissingEmitterError(target="triton", op=op.label, where=op.scope)
    kernel = _kernel(form, kind)
    verbs = [] if form.write is None else ["write"]
    verbs += [] if form.read is None else ["read" if isinstance(form.read, Read) else "collapse"]
    what = what if form.route is None else "streams_and_route"
    name = at.shared.kernel(f"{'_and_'.join(verbs)}_{what}", kernel.called)
    routed = [] if form.route is None else route_operands(form.route)
    operands = [op.outside(value) for value in (*form.operands, *routed)]
    call = f"{name}({', '.join(at.passed(value) for value in operands if value is not None)})"
    skipped = "[1]" if len(given) == 2 else "[1:]"
    return Code(call if given[0] is not None else f"{call}{skipped}")  # the streams themselves go no further


def _kernel(form: StreamsForm, kind: type[Streams]) -> Streams:
    read, streams = form.read, form.streams.tensor
    count, width = (int(str(dim)) for dim in streams.shape[-2:])
    comes = "whole" if form.write is None else "written"
    if read is None:
        return kind("", count, width, comes=comes, gives="none", gain=form.gain is not None)
    wide = ITEM_BITS[read.fn.tensor.dtype] > ITEM_BITS[streams.dtype]  # it stays so when the program is loaded
    return kind(
        "",
        count,
        width,
        comes=comes,
        gives="maps" if isinstance(read, Read) else "collapsed",
        eps=read.eps,
        floor=read.floor,
        iterations=read.iterations if isinstance(read, Read) else 1,
        weights="fp32" if wide else None,
        route=None if form.route is None else route_kernel(form.route),
    )
