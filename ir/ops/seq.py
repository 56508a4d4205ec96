"""``seq``: what mixes along the sequence through a memory of fixed size: convolutions, shifts, the delta rule."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from regraft.ir.attributes import INT
from regraft.ir.dims import B, Dim, Sizes, T
from regraft.ir.errors.graph import HeadGroupError, OpRuleError
from regraft.ir.op import Cost, Dims, Op, attribute, defaulted, memory, op, operand, optional_operand, result
from regraft.ir.ops.attn import State
from regraft.ir.types import Field, MemoryType, TensorType, Type

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.ir.interpret import Rows, Run


def wide_dtype(dtype: str) -> str:
    """Return the dtype that ``dtype`` is computed in: float32, or float64 if it is that already."""
    return "f64" if dtype == "f64" else "f32"


@op("state.tail")
class Tail(State):
    """Keep the last ``rows`` rows, for a convolution or a shift to read before those of this call.

    Rows before a sequence's start are ``initial``, or zero.

    Example:
        %m = state.tail %x {rows = 3} : memory<bf16; x [1280]; fixed 3>
    """

    x = operand("B T C", dtype="float")
    initial = optional_operand("C", dtype="float")
    out = result()
    rows = attribute(INT)

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        if self.rows < 1:
            raise OpRuleError(op=self.label, problem=f"{self.rows} rows", fix="a tail keeps at least one row")
        return (MemoryType(self.x.tensor.dtype, (Field("x", (dim.size("C"),)),), fixed=self.rows),)

    def reference(self, run: Run, x: Tensor, initial: Tensor | None = None) -> Rows:
        import torch

        from regraft.ir.interpret import Rows

        before = run.past(self.out, "x")
        if before is None:
            first = torch.zeros_like(x[0, 0]) if initial is None else initial.to(x.dtype)
            before = first.expand(len(x), self.rows, -1)
        rows = torch.cat((before, x), 1)
        last = run.valid.sum(1)[:, None] + torch.arange(self.rows, device=x.device)
        run.keep(self.out, "x", torch.take_along_dim(rows, last[..., None], 1))
        return Rows({"x": rows}, run.pos, run.valid)


class FromTail(Op):
    """An op that reads a tail from this call's rows."""

    reads_memory = True

    def verify_tail(self, tail: MemoryType, rows: int) -> None:
        """Refuse a memory that is no tail of at least ``rows`` rows."""
        if tail.fixed is None or tail.fixed < rows:
            raise OpRuleError(op=self.label, problem=f"reads {rows} rows back in {tail}", fix="keep a tail of as many")

    def tail_cost(self, at: Sizes, tail: MemoryType, rows: int) -> Cost:
        """Count the rows read of the tail, beside what any op reads."""
        return Cost(
            flops=self.flops(at),
            weights=self.weight_bytes(at),
            cache_read=rows * tail.row_bytes * at["B"],
            activations=self.activation_bytes(at),
        )


@op("seq.conv")
class Conv(FromTail):
    """Convolve causally along the sequence: ``y_t = sum_j w[..., j] x_{t-K+1+j} + b``, in ``groups`` of channels.

    ``weight`` is ``[O, C / groups, K]``; its last tap is the newest row's.

    Example:
        %y = seq.conv %tail, %w, bias=%b {groups = 1280} : bf16[B, T, 1280]
    """

    memory = memory("x C")
    weight = operand("O I K", dtype="float")
    bias = optional_operand("O", dtype="float")
    out = result()
    groups = defaulted(INT, 1)

    def verify(self, dim: Dims) -> None:
        channels, out, of = dim.size("C"), dim.size("O"), dim.size("I")
        if self.groups < 1 or channels != self.groups * of or out % self.groups:
            raise OpRuleError(
                op=self.label,
                problem=f"{self.groups} groups of {of} channels, {channels} in and {out} out",
                fix="groups divide both, and the weight's second axis is a group's",
            )
        self.verify_tail(self.memory.memory, dim.size("K") - 1)

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        return (TensorType(self.memory.memory.dtype, (B, T, dim["O"])),)

    def reference(self, run: Run, rows: Rows, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        import torch

        x = rows.fields["x"][:, -run.pos.shape[1] - weight.shape[-1] + 1 :]
        return torch.nn.functional.conv1d(x.transpose(1, 2), weight, bias, groups=self.groups).transpose(1, 2)

    def flops(self, at: Sizes) -> int:
        return 2 * at["B"] * at["T"] * math.prod(self.weight.tensor.sizes)

    def cost(self, at: Sizes) -> Cost:
        return self.tail_cost(at, self.memory.memory, self.weight.tensor.sizes[2] - 1)


@op("seq.shift")
class Shift(FromTail):
    """Give each token the row of the one before it.

    Example:
        %y = seq.shift %tail : bf16[B, T, 128]
    """

    memory = memory("x C")
    out = result()

    def verify(self, dim: Dims) -> None:
        self.verify_tail(self.memory.memory, 1)

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        return (TensorType(self.memory.memory.dtype, (B, T, dim["C"])),)

    def reference(self, run: Run, rows: Rows) -> Tensor:
        return rows.fields["x"][:, -run.pos.shape[1] - 1 : -1]

    def cost(self, at: Sizes) -> Cost:
        return self.tail_cost(at, self.memory.memory, 1)


@op("seq.decay")
class Decay(Op):
    """Give the logarithm of a head's decay: ``-exp(a_log) softplus(a + dt_bias)``, in float32.

    Example:
        %g = seq.decay %a, %a_log, %dt_bias : f32[B, T, 32]
    """

    a = operand("... H", dtype="float")
    a_log = operand("H", dtype="float")
    dt_bias = operand("H", dtype="float")
    out = result()

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        return (TensorType(wide_dtype(self.a.tensor.dtype), dim.shape("... H")),)

    def reference(self, run: Run, a: Tensor, a_log: Tensor, dt_bias: Tensor) -> Tensor:
        import torch

        wide = run.wide(a)
        return -a_log.to(wide.dtype).exp() * torch.nn.functional.softplus(wide + dt_bias.to(wide.dtype))


@op("state.delta")
class Delta(State):
    """Write to and read from a matrix of keys and values by the gated delta rule.

    A value head's matrix ``S [Dk, Dv]`` is zero at the start. Each token, in this order: ``S <- exp(g) S``,
    ``u = beta (v - Sᵀ k)``, ``S <- S + k uᵀ``, ``o = Sᵀ q``. Value head ``j`` takes queries and keys of head
    ``j // (Hv // H)``. Computed in float32 at least. Source: Yang et al. 2024, "Gated Delta Networks".

    Example:
        %o, %m = state.delta %q, %k, %v, %g, %beta : bf16[B, T, 32, 128], memory<f32; s [32, 128, 128]; fixed 1>
    """

    q = operand("B T H Dk", dtype="float")
    k = operand("B T H Dk", dtype="q")
    v = operand("B T Hv Dv", dtype="q")
    g = operand("B T Hv", dtype="float")
    beta = operand("B T Hv", dtype="float")
    out = result()
    matrix = result()

    def verify(self, dim: Dims) -> None:
        heads, value_heads = dim.size("H"), dim.size("Hv")
        if value_heads % heads:
            raise HeadGroupError(op=self.label, heads=value_heads, kv_heads=heads)

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        shape: tuple[Dim, ...] = dim.shape("B T Hv Dv")
        matrix = Field("s", (dim.size("Hv"), dim.size("Dk"), dim.size("Dv")))
        dtype = self.q.tensor.dtype
        return TensorType(dtype, shape), MemoryType(wide_dtype(dtype), (matrix,), fixed=1)

    def reference(self, run: Run, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, Rows]:
        import torch

        from regraft.ir.interpret import Rows

        repeat = v.shape[2] // q.shape[2]
        q, k = (run.wide(x).repeat_interleave(repeat, 2) for x in (q, k))
        real = run.valid[..., None]
        values, out = run.wide(v), torch.empty_like(run.wide(v))
        decay, beta = (torch.where(real, x.to(values.dtype), 0.0) for x in (g, beta))
        decay = decay.exp()
        past = run.past(self.matrix, "s")
        state = values.new_zeros(len(v), v.shape[2], q.shape[-1], v.shape[-1]) if past is None else past[:, 0]
        for t in range(q.shape[1]):
            state = state * decay[:, t, :, None, None]
            error = beta[:, t, :, None] * (values[:, t] - torch.einsum("bhkv,bhk->bhv", state, k[:, t]))
            state = state + k[:, t, :, :, None] * error[:, :, None]
            out[:, t] = torch.einsum("bhkv,bhk->bhv", state, q[:, t])
        run.keep(self.matrix, "s", state[:, None])
        return out.to(v.dtype), Rows({"s": state[:, None]}, run.pos, run.valid)

    def flops(self, at: Sizes) -> int:
        """Count the step form: two products with the matrix, and one outer product."""
        return 6 * at["B"] * at["T"] * self.matrix.memory.row_elements

    def cost(self, at: Sizes) -> Cost:
        held = self.matrix.memory.row_bytes * at["B"]
        return Cost(
            flops=self.flops(at),
            cache_read=held,
            cache_written=held,
            cache=held,
            activations=self.activation_bytes(at),
        )
