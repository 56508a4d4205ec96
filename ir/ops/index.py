"""``seq.index``: choosing, for each query, the rows that attention may look at."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from regraft.ir.attributes import FLOAT, INT
from regraft.ir.dims import Sizes, evaluate
from regraft.ir.errors.graph import OpRuleError
from regraft.ir.op import Cost, Dims, Op, attribute, defaulted, memory, op, operand, optional, result
from regraft.ir.ops.attn import before_window, pairs, seen_rows
from regraft.ir.types import TensorType, Type

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.ir.interpret import Rows, Run


@op("seq.index")
class Index(Op):
    """Score a memory's rows for each query with a few light heads, and give the numbers of the best ``chosen``.

    The score of a row is ``Σ_h weight[h] * relu(scale * q[h] · row)``, in float32 at least; a query sees the rows whose
    tokens all stand at or before it. The memory's first field is the keys. Where these are of several heads, head ``h``
    reads ``h // (Hi // heads)``. Where a query sees fewer than ``chosen``, the rest is -1. Of equal scores the earlier
    row is chosen, so that any split of a sequence into calls chooses the same. With a ``window`` and ``first`` it sees
    the rows that disjoint entries of `attn.attend` are. Source: specs/mla.md, section 8.

    Example:
        %i = seq.index %q, %w, %m {scale = 0.25, chosen = 8} : i64[B, T, 8]
    """

    q = operand("B T Hi Di", dtype="float")
    weight = operand("B T Hi", dtype="q")
    memory = memory("*")
    out = result()
    scale = attribute(FLOAT)
    chosen = attribute(INT)
    window = optional(INT)
    first = defaulted(INT, 0)
    reads_memory = True

    def verify(self, dim: Dims) -> None:
        kept, dtype = self.memory.memory, self.q.tensor.dtype
        heads, width = self._keys
        if width != dim["Di"] or dim.size("Hi") % heads:
            fix = f"heads of {dim['Di']} channels, as many as divide {dim['Hi']}"
            raise OpRuleError(op=self.label, problem=f"keys are {kept}", fix=fix)
        if self.chosen < 1:
            raise OpRuleError(op=self.label, problem=f"{self.chosen} rows chosen", fix="choose at least one row")
        if self.window is not None and (kept.rate is None or self.window < kept.rate):
            problem = f"window {self.window} before rows of {kept.rate or 1} tokens"
            raise OpRuleError(op=self.label, problem=problem, fix="pooled rows of no more tokens than the window")
        if kept.window is not None or kept.fixed is not None:
            raise OpRuleError(op=self.label, problem="the memory forgets rows", fix="an index is over all tokens")
        if kept.dtype != dtype:
            raise OpRuleError(
                op=self.label, problem=f"{dtype} queries, {kept.dtype} memory", fix="both need the same dtype"
            )

    @property
    def _keys(self) -> tuple[int, int]:
        """The heads of a row's key, and the channels of each."""
        shape = self.memory.memory.fields[0].shape
        return (shape[0], shape[1]) if len(shape) == 2 else (1, math.prod(shape))

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        return (TensorType("i64", (*self.q.tensor.shape[:2], self.chosen)),)

    def cost(self, at: Sizes) -> Cost:
        heads, width = (evaluate(d, at) for d in self.q.tensor.shape[2:])
        kept, source = self.memory.memory, self.memory.op
        read = kept.rows(at["S"]) * kept.row_bytes * at["B"] if source is None or source.is_state else 0
        rate = kept.rate or 1
        seen = at if self.window is None else before_window(at, self.window, self.first, rate)
        return Cost(
            flops=2 * at["B"] * heads * width * pairs(seen, rate=rate),
            cache_read=read,
            activations=self.activation_bytes(at),
        )

    def reference(self, run: Run, q: Tensor, weight: Tensor, rows: Rows) -> Tensor:
        import torch

        keys = next(iter(rows.fields.values())).flatten(2).unflatten(2, self._keys)
        queries = q.unflatten(2, (keys.shape[2], -1))
        products = torch.einsum("btghd,bsgd->btghs", run.wide(queries), run.wide(keys)).flatten(2, 3) * self.scale
        scores = torch.einsum("bth,bths->bts", run.wide(weight), products.relu())
        seen = seen_rows(run, rows, self.memory.memory.rate or 1, self.window, self.first)
        best = torch.sort(scores.masked_fill(~seen, -torch.inf), dim=-1, descending=True, stable=True)
        numbers = torch.where(best.values == -torch.inf, -1, best.indices)[..., : self.chosen]
        return torch.nn.functional.pad(numbers, (0, self.chosen - numbers.shape[-1]), value=-1)
