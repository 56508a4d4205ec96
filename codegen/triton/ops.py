"""Target ``triton``: the call of each kernel op, one entry in `KERNELS` for each class that the target can write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from regraft.codegen.torch.code import Code
from regraft.codegen.triton.attend import emit_attend
from regraft.codegen.triton.convolved import emit_convolved
from regraft.codegen.triton.delta import emit_delta
from regraft.codegen.triton.embed import emit_embed, emit_layer_rows
from regraft.codegen.triton.experts import emit_experts, emit_route
from regraft.codegen.triton.head import emit_head
from regraft.codegen.triton.pool import emit_pool
from regraft.codegen.triton.rows import emit_rows, emit_rows_and_pool
from regraft.codegen.triton.short_conv import emit_short_conv
from regraft.codegen.triton.sparse import emit_index, emit_sparse
from regraft.codegen.triton.streams import emit_streams
from regraft.ir.errors.codegen import MissingEmitterError
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
    RowsAndPool,
    ShortConvStep,
    SparseStep,
    StreamsStep,
)
from regraft.ir.ops.kernels import Kernel as KernelOp

if TYPE_CHECKING:
    from regraft.codegen.triton.target import StepBody


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
    Rows: emit_rows,
    RowsAndPool: emit_rows_and_pool,
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
