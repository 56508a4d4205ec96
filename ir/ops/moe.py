"""``moe``: mixtures of experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.ir.attributes import BOOL, FLOAT, INT, STR
from regraft.ir.dims import Sizes, evaluate
from regraft.ir.errors.checkpoint import ExpertNumberError
from regraft.ir.errors.graph import OpRuleError
from regraft.ir.op import Dims, Op, attribute, defaulted, op, operand, optional, optional_operand, result
from regraft.ir.ops.core import ACTIVATIONS, activate
from regraft.ir.types import TensorType, Type

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.ir.interpret import Run


SCORES = ("softmax", "sigmoid", "sqrt_softplus")


@op("moe.assign")
class Assign(Op):
    """Look up the experts of each token in a table.

    Example:
        %e = moe.assign %tokens, %table : i64[B, T, 6]
    """

    tokens = operand("...", dtype="int")
    table = operand("V K", dtype="int")
    out = result()

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        return (TensorType("i64", (*self.tokens.tensor.shape, dim["K"])),)

    def reference(self, run: Run, tokens: Tensor, table: Tensor) -> Tensor:
        return table[tokens.long()].long()

    def weight_bytes(self, at: Sizes) -> int:
        return self.out.tensor.nbytes(at) if self.table.is_weight else 0


@op("moe.route")
class Route(Op):
    """Choose the ``chosen`` experts with the highest score and weigh them.

    Scores are a softmax over all experts, a sigmoid of each or the root of its softplus, in float32 at least. ``bias``
    is added to choose, not to weigh. With ``groups`` experts are dealt in order to as many groups; the ``kept`` groups
    with the highest sum of their ``best`` highest scores stay, and the chosen ones come from these. Experts that are
    ``given`` are weighed as they are. With ``normalize`` the weights are divided by their sum plus ``eps``; then all
    are multiplied by ``scale``, and each by its expert's entry in ``gain``. Source: specs/mla.md, section 7;
    specs/gemma4.md, section 6; specs/deepseek_v4.md, section 10.

    Example:
        %w, %e = moe.route %logits {chosen = 8, normalize = true} : bf16[B, T, 8], i64[B, T, 8]
    """

    logits = operand("... E", dtype="float")
    bias = optional_operand("E", dtype="float")
    gain = optional_operand("E", dtype="float")
    given = optional_operand("... K", dtype="int")
    weights = result()
    experts = result()
    chosen = attribute(INT)
    normalize = defaulted(BOOL, False)
    score = defaulted(STR, "softmax", choices=SCORES)
    eps = defaulted(FLOAT, 0.0)
    scale = defaulted(FLOAT, 1.0)
    groups = defaulted(INT, 1)
    kept = defaulted(INT, 1)
    best = defaulted(INT, 1)

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        experts = dim.size("E")
        if not 0 < self.chosen <= experts:
            raise OpRuleError(
                op=self.label, problem=f"{self.chosen} experts chosen of {experts}", fix=f"choose 1 to {experts}"
            )
        self._verify_groups(experts)
        if self.given is not None and dim["K"] != self.chosen:
            raise OpRuleError(op=self.label, problem=f"{self.chosen} of {dim['K']} given", fix="choose all of them")
        shape = (*self.logits.tensor.shape[:-1], self.chosen)
        return TensorType(self.logits.tensor.dtype, shape), TensorType("i64", shape)

    def _verify_groups(self, experts: int) -> None:
        if self.groups < 1 or experts % self.groups:
            problem, fix = f"{experts} experts in {self.groups} groups", "groups are equal"
        elif not 0 < self.kept <= self.groups:
            problem, fix = f"{self.kept} groups kept of {self.groups}", f"keep 1 to {self.groups}"
        elif not 0 < self.best <= experts // self.groups:
            problem, fix = f"the {self.best} best of {experts // self.groups} experts", "a group has as many"
        elif self.kept * (experts // self.groups) < self.chosen:
            problem, fix = f"{self.chosen} experts chosen of {self.kept} groups that hold fewer", "keep more groups"
        elif self.eps < 0:
            problem, fix = f"eps is {self.eps}", "eps is not negative"
        else:
            return
        raise OpRuleError(op=self.label, problem=problem, fix=fix)

    def reference(
        self,
        run: Run,
        logits: Tensor,
        bias: Tensor | None = None,
        gain: Tensor | None = None,
        given: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        import torch

        wide = run.wide(logits)
        match self.score:
            case "softmax":
                scores = torch.softmax(wide, -1)
            case "sigmoid":
                scores = torch.sigmoid(wide)
            case _:
                scores = torch.nn.functional.softplus(wide).sqrt()
        ranks = scores if bias is None else scores + bias.to(scores.dtype)
        if self.kept < self.groups:
            ranks = self._kept_ranks(ranks)
        experts = torch.topk(ranks, self.chosen, -1).indices if given is None else given.long()
        if given is not None:
            self._check_given(given, logits.shape[-1])
        weights = scores.gather(-1, experts)
        if self.normalize:
            weights = weights / (weights.sum(-1, keepdim=True) + self.eps)
        weights = weights * self.scale
        if gain is not None:
            weights = weights * run.wide(gain)[experts]
        return weights.to(logits.dtype), experts

    def _check_given(self, given: Tensor, experts: int) -> None:
        """Refuse numbers of experts that there are not, which a damaged table names."""
        wrong = given[(given < 0) | (given >= experts)]
        if wrong.numel():
            assert self.given is not None
            table = getattr(self.given.op, "table", self.given)
            raise ExpertNumberError(table=table.name, found=int(wrong[0]), last=experts - 1)

    def _kept_ranks(self, ranks: Tensor) -> Tensor:
        """Return what the experts are chosen by, -inf in the groups that do not stay."""
        import torch

        groups = ranks.unflatten(-1, (self.groups, -1))
        order = torch.topk(torch.topk(groups, self.best, -1).values.sum(-1), self.kept, -1).indices
        stays = torch.zeros_like(groups[..., 0], dtype=torch.bool).scatter(-1, order, True)
        return groups.masked_fill(~stays[..., None], -torch.inf).flatten(-2)


@op("moe.experts")
class Experts(Op):
    """Sum the chosen experts' gated MLPs, each times its weight.

    ``gate_up`` holds the gate's rows first, then the up projection's: an expert is
    ``down(activation(gate x) * (up x))``. ``gate_up_bias`` and ``down_bias`` belong to these maps. With ``limit`` the
    gate is cut above it and the up projection at both sides, before ``shift`` is added to the latter. With ``skip``
    numbers after the last expert's may be chosen: they give nothing (``zero``), or the input (``identity``).

    Example:
        %y = moe.experts %x, %w, %e, %gate_up, %down : bf16[B, T, 64]
    """

    x = operand("... M", dtype="float")
    weights = operand("... K", dtype="x")
    chosen = operand("... K", dtype="int")
    gate_up = operand("E F2 M", dtype="float")
    down = operand("E M F", dtype="float")
    gate_up_bias = optional_operand("E F2", dtype="float")
    down_bias = optional_operand("E M", dtype="float")
    out = result("... M", dtype="x")
    activation = defaulted(STR, "silu", choices=ACTIVATIONS)
    limit = optional(FLOAT)
    shift = defaulted(FLOAT, 0.0)
    skip = defaulted(STR, "none", choices=("none", "zero", "identity"))

    def verify(self, dim: Dims) -> None:
        if dim.size("F2") != 2 * dim.size("F"):
            raise OpRuleError(
                op=self.label,
                problem=f"gate_up has {dim['F2']} rows and down {dim['F']} columns",
                fix="gate_up holds gate and up, twice the rows",
            )
        if self.limit is not None and self.limit <= 0:
            raise OpRuleError(op=self.label, problem=f"limit is {self.limit}", fix="a limit must be positive")

    def reference(
        self,
        run: Run,
        x: Tensor,
        weights: Tensor,
        chosen: Tensor,
        gate_up: Tensor,
        down: Tensor,
        gate_up_bias: Tensor | None = None,
        down_bias: Tensor | None = None,
    ) -> Tensor:
        import torch

        rows, picks, shares = x.flatten(0, -2), chosen.flatten(0, -2), weights.flatten(0, -2)
        out = torch.zeros_like(rows)
        for expert in picks.unique().tolist():
            row, rank = torch.where(picks == expert)
            if expert >= len(gate_up) and self.skip != "none":
                if self.skip == "identity":
                    out.index_add_(0, row, rows[row] * shares[row, rank, None])
                continue
            biases = [None if bias is None else bias[expert] for bias in (gate_up_bias, down_bias)]
            gate, up = torch.nn.functional.linear(rows[row], gate_up[expert], biases[0]).chunk(2, -1)
            y = torch.nn.functional.linear(self._gated(gate, up), down[expert], biases[1])
            out.index_add_(0, row, y * shares[row, rank, None])
        return out.view_as(x)

    def _gated(self, gate: Tensor, up: Tensor) -> Tensor:
        if self.limit is not None:
            gate, up = gate.clamp(max=self.limit), up.clamp(-self.limit, self.limit)
        return activate(self.activation, gate) * (up + self.shift if self.shift else up)

    def _sizes(self, at: Sizes) -> tuple[int, int, int]:
        experts, chosen = self.gate_up.tensor.sizes[0], evaluate(self.weights.tensor.shape[-1], at)
        return experts, min(chosen, experts), self.x.tensor.elements(at) // self.gate_up.tensor.sizes[2]

    def flops(self, at: Sizes) -> int:
        _, chosen, tokens = self._sizes(at)
        one = self.gate_up.tensor.elements(at) + self.down.tensor.elements(at)
        return 2 * tokens * chosen * (one // self.gate_up.tensor.sizes[0])

    def _parts(self) -> list[TensorType]:
        """Return the types of the experts' parameters."""
        parts = (self.gate_up, self.down, self.gate_up_bias, self.down_bias)
        return [part.tensor for part in parts if part is not None]

    def weight_bytes(self, at: Sizes) -> int:
        """Count each expert that some token is expected to choose, if all are as likely."""
        experts, chosen, tokens = self._sizes(at)
        whole = sum(part.nbytes(at) for part in self._parts())
        if tokens == 1:
            return whole // experts * chosen
        return round(whole * (1 - (1 - chosen / experts) ** tokens))

    def idle_parameters(self) -> int:
        experts, chosen, _ = self._sizes({"B": 1, "T": 1, "S": 1})
        whole = sum(part.elements({}) for part in self._parts())
        return whole // experts * (experts - chosen)
