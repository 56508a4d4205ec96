"""``weight`` ops that bring a checkpoint's order of rows and axes into that of the graph."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.ir.attributes import INT
from regraft.ir.errors.graph import OpRuleError
from regraft.ir.op import Dims, defaulted, op, operand, result
from regraft.ir.ops.weight import WeightOp
from regraft.ir.types import Type

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.ir.interpret import Run


@op("weight.transpose")
class Transpose(WeightOp):
    """Swap the last two axes.

    Example:
        %w = weight.transpose %x : bf16[8, 64, 32]
    """

    x = operand("... I O")
    out = result()

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        *leading, rows, columns = self.x.tensor.sizes
        return (self.x.tensor.with_shape(*leading, columns, rows),)

    def reference(self, run: Run, x: Tensor) -> Tensor:
        return x.transpose(-1, -2).contiguous()


@op("weight.deinterleave")
class Deinterleave(WeightOp):
    """Take the rows with even numbers along ``axis``, then the odd ones, such as gates and what they gate.

    Example:
        %w = weight.deinterleave %x {axis = 1} : bf16[8, 64, 32]
    """

    x = operand("...")
    out = result()
    axis = defaulted(INT, 0)

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        sizes = self.x.tensor.sizes
        if not 0 <= self.axis < len(sizes) or sizes[self.axis] % 2:
            problem = f"axis {self.axis} of {self.x.tensor}"
            raise OpRuleError(op=self.label, problem=problem, fix="an axis of even length, counted from 0")
        return (self.x.tensor,)

    def reference(self, run: Run, x: Tensor) -> Tensor:
        import torch

        order = torch.arange(x.shape[self.axis], device=x.device).view(-1, 2).T.flatten()
        return x.index_select(self.axis, order)
