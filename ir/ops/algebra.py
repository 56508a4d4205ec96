"""``weight`` ops of plain linear algebra, from which passes compose the weights that they ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.ir.attributes import FLOAT, INT, INTS, STR
from regraft.ir.errors.graph import OpRuleError
from regraft.ir.op import Dims, attribute, defaulted, op, operand, optional_operand, result
from regraft.ir.ops.weight import Load, WeightOp, verify_sizes
from regraft.ir.source import torch_dtype
from regraft.ir.types import FLOATS as FLOAT_TYPES
from regraft.ir.types import TensorType, Type

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.ir.interpret import Run


@op("weight.matmul")
class MatMul(WeightOp):
    """Multiply matrices, in float64; leading axes agree. `weight.cast` rounds what is stored.

    Example:
        %w = weight.matmul %up, %down : f64[64, 128]
    """

    a = operand("... I K", dtype="float")
    b = operand("... K O", dtype="float")
    out = result()

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        *leading, rows, _ = self.a.tensor.sizes
        return (TensorType("f64", (*leading, rows, self.b.tensor.sizes[-1])),)

    def reference(self, run: Run, a: Tensor, b: Tensor) -> Tensor:
        return a.double() @ b.double()


@op("weight.scale")
class ScaleWeight(WeightOp):
    """Multiply along ``axis`` by a vector plus ``offset``, such as a norm's weight; in float32 at least.

    Example:
        %w = weight.scale %q, %norm {axis = 1} : bf16[128, 64]
    """

    x = operand("...", dtype="float")
    by = operand("C", dtype="float")
    out = result("...", dtype="x")
    axis = defaulted(INT, 0)
    offset = defaulted(FLOAT, 0.0)

    def verify(self, dim: Dims) -> None:
        sizes = self.x.tensor.sizes
        if not 0 <= self.axis < len(sizes) or sizes[self.axis] != dim["C"]:
            problem = f"{dim['C']} factors along axis {self.axis} of {self.x.tensor}"
            raise OpRuleError(op=self.label, problem=problem, fix="a factor for each row along the axis")

    def reference(self, run: Run, x: Tensor, by: Tensor) -> Tensor:
        wide = run.wide(x)
        shape = [-1 if axis == self.axis else 1 for axis in range(x.ndim)]
        return (wide * (by.to(wide.dtype) + self.offset).view(shape)).to(x.dtype)


@op("weight.log")
class Log(WeightOp):
    """Take the natural logarithm of each number.

    Example:
        %s = weight.log %mass : f64[8]
    """

    x = operand("...", dtype="float")
    out = result("...", dtype="x")

    def reference(self, run: Run, x: Tensor) -> Tensor:
        return x.log()


@op("weight.reshape")
class Reshape(WeightOp):
    """Give the same elements, in the same order, other axes.

    Example:
        %w = weight.reshape %x {shape = [4, 16, 64]} : bf16[4, 16, 64]
    """

    x = operand("...")
    out = result()
    shape = attribute(INTS)

    def verify(self, dim: Dims) -> None:
        verify_sizes(self, self.shape)

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        made = self.x.tensor.with_shape(*self.shape)
        if made.elements({}) != self.x.tensor.elements({}):
            problem = f"{self.x.tensor} as {list(self.shape)}"
            raise OpRuleError(op=self.label, problem=problem, fix="as many elements as before")
        return (made,)

    def reference(self, run: Run, x: Tensor) -> Tensor:
        return x.reshape(self.shape)


@op("weight.permute")
class Permute(WeightOp):
    """Put the axes in another order.

    Example:
        %w = weight.permute %x {axes = [1, 0, 2]} : bf16[16, 4, 64]
    """

    x = operand("...")
    out = result()
    axes = attribute(INTS)

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        sizes = self.x.tensor.sizes
        if sorted(self.axes) != list(range(len(sizes))):
            problem = f"axes {list(self.axes)} of {self.x.tensor}"
            raise OpRuleError(op=self.label, problem=problem, fix="each axis once, counted from 0")
        return (self.x.tensor.with_shape(*(sizes[axis] for axis in self.axes)),)

    def reference(self, run: Run, x: Tensor) -> Tensor:
        return x.permute(self.axes).contiguous()


class Made(WeightOp):
    """An op that makes a tensor of a given shape from nothing."""

    out = result()
    dtype = attribute(STR, choices=FLOAT_TYPES)
    shape = attribute(INTS)

    typed_attributes = ("dtype", "shape")

    @classmethod
    def attributes_of(cls, type: Type) -> dict[str, object]:
        return Load.attributes_of(type)

    def verify(self, dim: Dims) -> None:
        verify_sizes(self, self.shape)

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        return (TensorType(self.dtype, self.shape),)


@op("weight.fill")
class Fill(Made):
    """Make a tensor that holds one number, such as the zeros that a new part starts at.

    Example:
        %w = weight.fill {value = 1.0} : bf16[64]
    """

    value = defaulted(FLOAT, 0.0)

    def reference(self, run: Run) -> Tensor:
        import torch

        return torch.full(self.shape, self.value, dtype=torch_dtype(self.dtype))


@op("weight.eye")
class Eye(Made):
    """Make matrices with ones on the diagonal.

    Example:
        %w = weight.eye : f64[64, 64]
    """

    def verify(self, dim: Dims) -> None:
        super().verify(dim)
        if len(self.shape) < 2:
            raise OpRuleError(op=self.label, problem=f"shape {list(self.shape)}", fix="two axes at least")

    def reference(self, run: Run) -> Tensor:
        import torch

        return torch.eye(*self.shape[-2:], dtype=torch_dtype(self.dtype)).expand(self.shape).contiguous()


@op("weight.random")
class Random(Made):
    """Draw from a normal distribution around zero, such as the start of what training is to find.

    The same ``seed`` and shape give the same numbers on every machine.

    Example:
        %w = weight.random {std = 0.02, seed = 0} : bf16[64, 16]
    """

    std = attribute(FLOAT)
    seed = defaulted(INT, 0)

    def verify(self, dim: Dims) -> None:
        super().verify(dim)
        if self.std < 0 or self.seed < 0:
            problem = f"std {self.std}, seed {self.seed}"
            raise OpRuleError(op=self.label, problem=problem, fix="neither is negative")

    def reference(self, run: Run) -> Tensor:
        import torch

        drawn = torch.randn(self.shape, generator=torch.Generator().manual_seed(self.seed))
        return (drawn * self.std).to(torch_dtype(self.dtype))


@op("weight.join_convs")
class JoinConvs(WeightOp):
    """Give the weight and bias of one causal convolution that does what two do, one after the other.

    ``first [C, 1, K]`` convolves each channel alone, ``second [O, I, L]`` groups of ``I`` channels; nothing stands
    between them, and before the start the first one sees zeros and the second what that gives. Then
    ``w[o, i, a + b] += second[o, i, b] first[g I + i, 0, a]`` for ``o`` in group ``g``; the bias is the second one's
    plus the sum of ``second[o, i, b]`` times the first one's. In float32 at least. Source: specs/zaya_cca.md, 9.2.

    Example:
        %w, %b = weight.join_convs %first, %second : bf16[8, 4, 3], bf16[8]
    """

    first = operand("C 1 K", dtype="float")
    second = operand("O I L", dtype="first")
    first_bias = optional_operand("C", dtype="first")
    second_bias = optional_operand("O", dtype="first")
    weight = result()
    bias = result()

    def verify(self, dim: Dims) -> None:
        channels, of, out = dim.size("C"), dim.size("I"), dim.size("O")
        if channels % of or out % (channels // of):
            problem = f"{channels} channels into groups of {of}, {out} out"
            raise OpRuleError(op=self.label, problem=problem, fix="groups divide the channels on both sides")

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        out, taps = dim.size("O"), dim.size("K") + dim.size("L") - 1
        return self.second.tensor.with_shape(out, dim.size("I"), taps), self.second.tensor.with_shape(out)

    def reference(
        self,
        run: Run,
        first: Tensor,
        second: Tensor,
        first_bias: Tensor | None = None,
        second_bias: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        import torch

        wide, alone = run.wide(second), run.wide(first)[:, 0]
        of, taps = second.shape[1], second.shape[2]
        groups = len(first) // of
        by_group = wide.unflatten(0, (groups, -1))
        before = alone.unflatten(0, (groups, of))
        weight = wide.new_zeros(*second.shape[:2], first.shape[2] + taps - 1)
        for tap in range(first.shape[2]):
            weight[..., tap : tap + taps] += (by_group * before[:, None, :, tap, None]).flatten(0, 1)
        bias = wide.new_zeros(len(second)) if second_bias is None else run.wide(second_bias)
        if first_bias is not None:
            given = run.wide(first_bias).view(groups, of)
            bias = bias + torch.einsum("goil,gi->go", by_group, given).flatten()
        return weight.to(second.dtype), bias.to(second.dtype)
