"""``core`` ops between element types: a value kept wider than a model computes in, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.ir.dims import Sizes
from regraft.ir.op import Dims, Op, op, operand, result
from regraft.ir.ops.seq import wide_dtype
from regraft.ir.types import TensorType, Type

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.ir.interpret import Run


@op("core.widen")
class Widen(Op):
    """Give the same numbers in float32, or in float64 if they are that already.

    Example:
        %y = core.widen %x : f32[B, T, 64]
    """

    x = operand("...", dtype="float")
    out = result()

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        type = self.x.tensor
        return (TensorType(wide_dtype(type.dtype), type.shape),)

    def reference(self, run: Run, x: Tensor) -> Tensor:
        return run.wide(x)


@op("core.cast_like")
class CastLike(Op):
    """Round to the element type of ``like``, such as a norm's weight: that of the model, whatever it is run in.

    Example:
        %y = core.cast_like %x, %w : bf16[B, T, 64]
    """

    x = operand("...", dtype="float")
    like = operand("*", dtype="float")
    out = result("...", dtype="like")

    def weight_bytes(self, at: Sizes) -> int:
        return 0

    def reference(self, run: Run, x: Tensor, like: Tensor) -> Tensor:
        return x.to(like.dtype)
