"""``moe``: mixtures of experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.ir.attributes import BOOL, INT, STR
from regraft.ir.dims import Sizes, evaluate
from regraft.ir.errors.graph import OpRuleError
from regraft.ir.op import Dims, Op, attribute, defaulted, op, operand, result
from regraft.ir.ops.core import ACTIVATIONS, activate
from regraft.ir.types import TensorType, Type

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.ir.interpret import Run


@op("moe.route")
class Route(Op):
    """Choose the ``chosen`` experts with the highest score and weigh them.

    Scores are a softmax over all experts in float32; with ``normalize`` the chosen ones are divided by their sum.

    Example:
        %w, %e = moe.route %logits {chosen = 8, normalize = true} : bf16[B, T, 8], i64[B, T, 8]
    """

    logits = operand("... E", dtype="float")
    weights = result()
    experts = result()
    chosen = attribute(INT)
    normalize = defaulted(BOOL, False)

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        experts = dim.size("E")
        if not 0 < self.chosen <= experts:
            raise OpRuleError(
                op=self.label, problem=f"{self.chosen} experts chosen of {experts}", fix=f"choose 1 to {experts}"
            )
        shape = (*self.logits.tensor.shape[:-1], self.chosen)
        return TensorType(self.logits.tensor.dtype, shape), TensorType("i64", shape)

    def reference(self, run: Run, logits: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        scores = torch.softmax(run.wide(logits), -1)
        weights, experts = torch.topk(scores, self.chosen, -1)
        if self.normalize:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights.to(logits.dtype), experts


@op("moe.experts")
class Experts(Op):
    """Sum the chosen experts' gated MLPs, each times its weight.

    ``gate_up`` holds the gate's rows first, then the up projection's: an expert is
    ``down(activation(gate x) * (up x))``.

    Example:
        %y = moe.experts %x, %w, %e, %gate_up, %down : bf16[B, T, 64]
    """

    x = operand("... M", dtype="float")
    weights = operand("... K", dtype="x")
    chosen = operand("... K", dtype="int")
    gate_up = operand("E F2 M", dtype="float")
    down = operand("E M F", dtype="float")
    out = result("... M", dtype="x")
    activation = defaulted(STR, "silu", choices=ACTIVATIONS)

    def verify(self, dim: Dims) -> None:
        if dim.size("F2") != 2 * dim.size("F"):
            raise OpRuleError(
                op=self.label,
                problem=f"gate_up has {dim['F2']} rows and down {dim['F']} columns",
                fix="gate_up holds gate and up, twice the rows",
            )

    def reference(self, run: Run, x: Tensor, weights: Tensor, chosen: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        import torch

        rows, picks, shares = x.flatten(0, -2), chosen.flatten(0, -2), weights.flatten(0, -2)
        out = torch.zeros_like(rows)
        for expert in picks.unique().tolist():
            row, rank = torch.where(picks == expert)
            gate, up = torch.nn.functional.linear(rows[row], gate_up[expert]).chunk(2, -1)
            y = torch.nn.functional.linear(activate(self.activation, gate) * up, down[expert])
            out.index_add_(0, row, y * shares[row, rank, None])
        return out.view_as(x)

    def _sizes(self, at: Sizes) -> tuple[int, int, int]:
        experts, chosen = self.gate_up.tensor.sizes[0], evaluate(self.weights.tensor.shape[-1], at)
        return experts, chosen, self.x.tensor.elements(at) // self.gate_up.tensor.sizes[2]

    def flops(self, at: Sizes) -> int:
        _, chosen, tokens = self._sizes(at)
        one = self.gate_up.tensor.elements(at) + self.down.tensor.elements(at)
        return 2 * tokens * chosen * (one // self.gate_up.tensor.sizes[0])

    def weight_bytes(self, at: Sizes) -> int:
        """Count each expert that some token is expected to choose, if all are as likely."""
        experts, chosen, tokens = self._sizes(at)
        whole = self.gate_up.tensor.nbytes(at) + self.down.tensor.nbytes(at)
        if tokens == 1:
            return whole // experts * chosen
        return round(whole * (1 - (1 - chosen / experts) ** tokens))

    def idle_parameters(self) -> int:
        experts, chosen, _ = self._sizes({"B": 1, "T": 1, "S": 1})
        whole = self.gate_up.tensor.elements({}) + self.down.tensor.elements({})
        return whole // experts * (experts - chosen)
