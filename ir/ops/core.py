"""``core``: what every decoder is made of, one token at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.ir.attributes import BOOL, FLOAT, INT, STR
from regraft.ir.dims import Sizes, evaluate
from regraft.ir.errors.graph import MemoryRuleError, OpRuleError
from regraft.ir.op import Dims, Op, attribute, defaulted, op, operand, operands, optional, optional_operand, result
from regraft.ir.types import Type

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.ir.interpret import Run

ACTIVATIONS = ("silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "sigmoid", "softplus", "tanh")


@op("core.embed")
class Embed(Op):
    """Look up each token's row of a table.

    Example:
        %x = core.embed %tokens, %table : bf16[B, T, 64]
    """

    tokens = operand("...", dtype="int")
    table = operand("V M", dtype="float")
    out = result("... M", dtype="table")

    def reference(self, run: Run, tokens: Tensor, table: Tensor) -> Tensor:
        import torch

        return torch.nn.functional.embedding(tokens.long(), table)  # as an index, u8 would be a mask

    def weight_bytes(self, at: Sizes) -> int:
        return self.out.tensor.nbytes(at) if self.table.is_weight else 0


@op("core.linear")
class Linear(Op):
    """Multiply by a weight stored ``[out, in]``, and add a bias if there is one.

    Example:
        %q = core.linear %x, %w : bf16[B, T, 128]
    """

    x = operand("... I", dtype="float")
    weight = operand("O I", dtype="float")
    bias = optional_operand("O", dtype="float")
    out = result("... O", dtype="x")

    def reference(self, run: Run, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        import torch

        return torch.nn.functional.linear(x, weight, bias)

    def flops(self, at: Sizes) -> int:
        return 2 * self.out.tensor.elements(at) * evaluate(self.x.tensor.shape[-1], at)


@op("core.grouped_linear")
class GroupedLinear(Op):
    """Multiply each group of channels by rows of its own: ``[O, I]`` holds as many rows for each, group by group.

    With ``transposed`` each group's rows are multiplied the other way: ``[G * I, O]`` holds ``I`` rows for each, and
    they are added up, each times its channel. So one matrix serves both to expand a latent and to go back to it.

    Example:
        %y = core.grouped_linear %x, %w : bf16[B, T, 8, 64]
    """

    x = operand("... G I", dtype="float")
    weight = operand("R C", dtype="float")
    out = result()
    transposed = defaulted(BOOL, False)

    def verify(self, dim: Dims) -> None:
        groups, width, rows = dim.size("G"), dim.size("I"), dim.size("R")
        if self.transposed:
            if rows != groups * width:
                problem = f"{rows} rows for {groups} groups of {width} channels"
                raise OpRuleError(op=self.label, problem=problem, fix=f"{groups * width} rows, one for each channel")
        elif rows % groups or dim["C"] != width:
            problem = f"{rows} rows for {groups} groups"
            problem += "" if dim["C"] == width else f", of {dim['C']} columns for {width} channels"
            raise OpRuleError(op=self.label, problem=problem, fix="as many rows for each, a column for each channel")

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        width = dim.size("C") if self.transposed else dim.size("R") // dim.size("G")
        return (self.x.tensor.with_shape(*self.x.tensor.shape[:-1], width),)

    def reference(self, run: Run, x: Tensor, weight: Tensor) -> Tensor:
        import torch

        form = "...gi,gio->...go" if self.transposed else "...gi,goi->...go"
        return torch.einsum(form, x, weight.unflatten(0, (x.shape[-2], -1)))

    def flops(self, at: Sizes) -> int:
        return 2 * self.out.tensor.elements(at) * evaluate(self.x.tensor.shape[-1], at)


@op("core.norm")
class Norm(Op):
    """Divide by the root mean square of the last axis, then scale by a weight, ``1 + weight``, or nothing.

    Computed in float32 at least. ``cast`` says when the input's dtype returns: ``before`` the product with the weight
    (Llama, Qwen3) or ``after`` it (Gemma). ``eps`` is added to the mean square; with ``clamp`` the root is at least
    ``eps`` instead, which is for norms without a weight (ZAYA).

    Example:
        %h = core.norm %x, weight=%w {eps = 1e-06} : bf16[B, T, 64]
    """

    x = operand("... M", dtype="float")
    weight = optional_operand("M", dtype="float")
    out = result("... M", dtype="x")
    eps = attribute(FLOAT)
    offset = defaulted(FLOAT, 0.0)
    cast = defaulted(STR, "before", choices=("before", "after"))
    clamp = defaulted(BOOL, False)

    def verify(self, dim: Dims) -> None:
        if self.eps <= 0:
            raise OpRuleError(op=self.label, problem=f"eps is {self.eps}", fix="eps must be positive")
        if self.clamp and self.weight is not None:
            raise OpRuleError(op=self.label, problem="a weight and clamp", fix="multiply by the weight afterwards")

    def reference(self, run: Run, x: Tensor, weight: Tensor | None = None) -> Tensor:
        import torch

        wide = run.wide(x)
        if self.clamp:
            return (wide / wide.pow(2).mean(-1, keepdim=True).sqrt().clamp(min=self.eps)).to(x.dtype)
        y = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        if weight is None:
            return y.to(x.dtype)
        if self.cast == "before":
            return (weight + self.offset if self.offset else weight) * y.to(x.dtype)
        return (y * (run.wide(weight) + self.offset)).to(x.dtype)


@op("core.inverse_rms")
class InverseRMS(Op):
    """Give one over the root mean square of the last axis: what a norm without a weight multiplies by.

    Computed in float32 at least, ``eps`` added to the mean square.

    Example:
        %s = core.inverse_rms %k {eps = 1e-06} : bf16[B, T, 4]
    """

    x = operand("... M", dtype="float")
    out = result()
    eps = attribute(FLOAT)

    def verify(self, dim: Dims) -> None:
        if self.eps <= 0:
            raise OpRuleError(op=self.label, problem=f"eps is {self.eps}", fix="eps must be positive")

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        return (self.x.tensor.with_shape(*self.x.tensor.shape[:-1]),)

    def reference(self, run: Run, x: Tensor) -> Tensor:
        wide = run.wide(x)
        return (wide.pow(2).mean(-1) + self.eps).rsqrt().to(x.dtype)


@op("core.layer_norm")
class LayerNorm(Op):
    """Subtract the mean of the last axis, divide by its standard deviation, multiply by a weight and add a bias.

    Computed in float32 at least.

    Example:
        %h = core.layer_norm %x, %w, %b {eps = 1e-06} : bf16[B, T, 64]
    """

    x = operand("... M", dtype="float")
    weight = operand("M", dtype="float")
    bias = operand("M", dtype="float")
    out = result("... M", dtype="x")
    eps = attribute(FLOAT)

    def verify(self, dim: Dims) -> None:
        if self.eps <= 0:
            raise OpRuleError(op=self.label, problem=f"eps is {self.eps}", fix="eps must be positive")

    def reference(self, run: Run, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        import torch

        wide = run.wide(x)
        scale, shift = weight.to(wide.dtype), bias.to(wide.dtype)
        return torch.nn.functional.layer_norm(wide, wide.shape[-1:], scale, shift, self.eps).to(x.dtype)


@op("core.add")
class Add(Op):
    """Add two tensors of the same shape.

    Example:
        %y = core.add %a, %b : bf16[B, T, 64]
    """

    a = operand("...", dtype="float")
    b = operand("...", dtype="a")
    out = result("...", dtype="a")

    def reference(self, run: Run, a: Tensor, b: Tensor) -> Tensor:
        return a + b


@op("core.mul")
class Mul(Op):
    """Multiply two tensors of the same shape, element by element.

    Example:
        %y = core.mul %a, %b : bf16[B, T, 64]
    """

    a = operand("...", dtype="float")
    b = operand("...", dtype="a")
    out = result("...", dtype="a")

    def reference(self, run: Run, a: Tensor, b: Tensor) -> Tensor:
        return a * b


@op("core.gain")
class Gain(Op):
    """Multiply by what is repeated along some axes: a weight of each channel, a gate of each head, one number for all.

    ``by`` has no more axes than ``x``; counted from the last one, each is as long as that of ``x``, or 1.

    Example:
        %y = core.gain %x, %gate : bf16[B, T, 8, 16]
    """

    x = operand("...", dtype="float")
    by = operand("*", dtype="float")
    out = result("...", dtype="x")

    def verify(self, dim: Dims) -> None:
        x, by = self.x.tensor, self.by.tensor
        if x.sequence and by.sequence and x.sequence != by.sequence:
            raise MemoryRuleError(op=self.label, first=x.sequence, second=by.sequence)
        short = len(by.shape) > len(x.shape)
        if short or any(b not in (1, a) for a, b in zip(x.shape[::-1], by.shape[::-1], strict=False)):
            raise OpRuleError(op=self.label, problem=f"{by} along {x}", fix="each axis is that of x, or 1")
        if not self.by.is_weight and by.dtype != x.dtype:
            raise OpRuleError(op=self.label, problem=f"{by.dtype} beside {x.dtype}", fix="both need the same dtype")

    def reference(self, run: Run, x: Tensor, by: Tensor) -> Tensor:
        return x * by


@op("core.bias")
class Bias(Op):
    """Add a weight of each channel.

    Example:
        %y = core.bias %x, %b : bf16[B, T, 64]
    """

    x = operand("... M", dtype="float")
    bias = operand("M", dtype="float")
    out = result("... M", dtype="x")

    def reference(self, run: Run, x: Tensor, bias: Tensor) -> Tensor:
        return x + bias.to(x.dtype)


@op("core.scale")
class Scale(Op):
    """Multiply by a constant.

    Example:
        %y = core.scale %x {factor = 0.5} : bf16[B, T, 64]
    """

    x = operand("...", dtype="float")
    out = result("...", dtype="x")
    factor = attribute(FLOAT)

    def reference(self, run: Run, x: Tensor) -> Tensor:
        return x * self.factor


@op("core.activation")
class Activation(Op):
    """Apply an elementwise function.

    Example:
        %y = core.activation %x {kind = "silu"} : bf16[B, T, 192]
    """

    x = operand("...", dtype="float")
    out = result("...", dtype="x")
    kind = attribute(STR, choices=ACTIVATIONS)

    def reference(self, run: Run, x: Tensor) -> Tensor:
        return activate(self.kind, x)


def activate(kind: str, x: Tensor) -> Tensor:
    """Apply the activation called ``kind``."""
    import torch
    import torch.nn.functional as F

    match kind:
        case "silu":
            return F.silu(x)
        case "gelu":
            return F.gelu(x)
        case "gelu_tanh":
            return F.gelu(x, approximate="tanh")
        case "quick_gelu":
            return x * torch.sigmoid(1.702 * x)
        case "relu":
            return F.relu(x)
        case "sigmoid":
            return torch.sigmoid(x)
        case "softplus":
            return F.softplus(x)
        case _:
            return torch.tanh(x)


@op("core.clamp")
class Clamp(Op):
    """Cut what is below ``low`` or above ``high``.

    Example:
        %y = core.clamp %x {low = -7.0, high = 7.0} : bf16[B, T, 64]
    """

    x = operand("...", dtype="float")
    out = result("...", dtype="x")
    low = optional(FLOAT)
    high = optional(FLOAT)

    def verify(self, dim: Dims) -> None:
        if self.low is not None and self.high is not None and self.low > self.high:
            raise OpRuleError(op=self.label, problem=f"low {self.low}, high {self.high}", fix="low is not above high")

    def reference(self, run: Run, x: Tensor) -> Tensor:
        if self.low is None and self.high is None:
            return x
        return x.clamp(self.low, self.high)


@op("core.softcap")
class Softcap(Op):
    """Squash to the range ``(-cap, cap)``: ``cap * tanh(x / cap)``.

    Example:
        %y = core.softcap %logits {cap = 30.0} : bf16[B, T, 1024]
    """

    x = operand("...", dtype="float")
    out = result("...", dtype="x")
    cap = attribute(FLOAT)

    def verify(self, dim: Dims) -> None:
        if self.cap <= 0:
            raise OpRuleError(op=self.label, problem=f"cap is {self.cap}", fix="cap must be positive")

    def reference(self, run: Run, x: Tensor) -> Tensor:
        import torch

        return torch.tanh(x / self.cap) * self.cap


@op("core.concat")
class Concat(Op):
    """Join tensors along the last axis.

    Example:
        %y = core.concat %a, %b : bf16[B, T, 128]
    """

    xs = operands("*", dtype="xs")
    out = result()

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        first, width = self.xs[0].tensor, 0
        for x in self.xs:
            sequence, shape = x.tensor.sequence, x.tensor.shape
            if sequence and first.sequence and sequence != first.sequence:
                raise MemoryRuleError(op=self.label, first=first.sequence, second=sequence)
            if not shape or not isinstance(shape[-1], int):
                raise OpRuleError(
                    op=self.label, problem=f"{x.tensor} has no channels", fix="the last axis is an integer"
                )
            if shape[:-1] != first.shape[:-1]:
                raise OpRuleError(
                    op=self.label, problem=f"{x.tensor} beside {first}", fix="parts differ in the last axis only"
                )
            width += shape[-1]
        return (first.with_shape(*first.shape[:-1], width),)

    def reference(self, run: Run, *xs: Tensor) -> Tensor:
        import torch

        return torch.cat(xs, -1)


@op("core.slice")
class Slice(Op):
    """Take the channels from ``start`` up to ``stop`` of the last axis.

    Example:
        %gate = core.slice %x {start = 0, stop = 64} : bf16[B, T, 64]
    """

    x = operand("... I")
    out = result()
    start = attribute(INT)
    stop = attribute(INT)

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        width = dim.size("I")
        if not 0 <= self.start < self.stop <= width:
            raise OpRuleError(
                op=self.label,
                problem=f"channels {self.start} to {self.stop} of {width}",
                fix=f"0 <= start < stop <= {width}",
            )
        return (self.x.tensor.with_shape(*self.x.tensor.shape[:-1], self.stop - self.start),)

    def reference(self, run: Run, x: Tensor) -> Tensor:
        return x[..., self.start : self.stop]


@op("core.unflatten")
class Unflatten(Op):
    """Split the last axis into ``parts`` equal ones, such as heads.

    Example:
        %q = core.unflatten %x {parts = 8} : bf16[B, T, 8, 16]
    """

    x = operand("... I")
    out = result()
    parts = attribute(INT)

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        width = dim.size("I")
        if self.parts < 1 or width % self.parts:
            raise OpRuleError(
                op=self.label, problem=f"{width} channels in {self.parts} parts", fix="parts must divide the width"
            )
        return (self.x.tensor.with_shape(*self.x.tensor.shape[:-1], self.parts, width // self.parts),)

    def reference(self, run: Run, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.parts, -1))


@op("core.repeat")
class Repeat(Op):
    """Give each of ``parts`` parts, such as heads, the same channels.

    Example:
        %k = core.repeat %x {parts = 8} : bf16[B, T, 8, 16]
    """

    x = operand("... I")
    out = result()
    parts = attribute(INT)

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        if self.parts < 1:
            raise OpRuleError(op=self.label, problem=f"{self.parts} parts", fix="there is at least one part")
        return (self.x.tensor.with_shape(*self.x.tensor.shape[:-1], self.parts, dim.size("I")),)

    def reference(self, run: Run, x: Tensor) -> Tensor:
        return x[..., None, :].expand(*x.shape[:-1], self.parts, x.shape[-1])


@op("core.mean")
class Mean(Op):
    """Average over the last axis but one, such as the heads of a group.

    Example:
        %y = core.mean %q : bf16[B, T, 2, 16]
    """

    x = operand("... H D", dtype="float")
    out = result()

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        return (self.x.tensor.with_shape(*self.x.tensor.shape[:-2], dim["D"]),)

    def reference(self, run: Run, x: Tensor) -> Tensor:
        return x.mean(-2)


@op("core.flatten")
class Flatten(Op):
    """Join the last two axes.

    Example:
        %y = core.flatten %ctx : bf16[B, T, 128]
    """

    x = operand("... H D")
    out = result()

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        leading = self.x.tensor.shape[:-2]
        return (self.x.tensor.with_shape(*leading, dim.size("H") * dim.size("D")),)

    def reference(self, run: Run, x: Tensor) -> Tensor:
        return x.flatten(-2)
