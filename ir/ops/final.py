"""``seq.last``: the last tokens of a call, those whose logits are wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.ir.dims import B, L, T
from regraft.ir.errors.graph import OpRuleError
from regraft.ir.op import Dims, Op, op, operand, result
from regraft.ir.types import Type

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.ir.interpret import Run


@op("seq.last")
class Last(Op):
    """Keep the rows of each sequence's last tokens in this call, padding left out: those whose logits are wanted.

    How many, a call says; by default they are all that it has, as they are, padding included. A sequence that has fewer
    repeats its first one. What follows runs along ``L``, and may read memories but not extend them.

    Example:
        %y = seq.last %x : bf16[B, L, 64]
    """

    x = operand("*")
    out = result()

    def verify(self, dim: Dims) -> None:
        if self.x.tensor.shape[:2] != (B, T):
            problem = f"{self.x.tensor} does not run along the tokens of a call"
            raise OpRuleError(op=self.label, problem=problem, fix="[B, T, ...]")

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        return (self.x.tensor.with_shape(B, L, *self.x.tensor.shape[2:]),)

    def reference(self, run: Run, x: Tensor) -> Tensor:
        return run.of_last(x)
