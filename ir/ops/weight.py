"""``weight``: what is known before run time. ``apply`` folds these ops; no emitted program holds one.

Their reference meanings take and give plain tensors. Fits are computed in float64 and given in the prior's dtype.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.ir.attributes import BOOL, FLOATS, INT, INTS, STR
from regraft.ir.errors.graph import OpRuleError
from regraft.ir.op import (
    Dims,
    Op,
    attribute,
    defaulted,
    op,
    operand,
    operands,
    optional,
    result,
)
from regraft.ir.source import TensorInfo, torch_dtype
from regraft.ir.types import FLOATS as FLOAT_TYPES
from regraft.ir.types import ITEM_BITS, TensorType, Type

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.ir.interpret import Run


DTYPES = tuple(ITEM_BITS)


class WeightOp(Op):
    """An op over parameters, evaluated once, when weights are written or loaded."""

    weight_time = True

    @property
    def sources(self) -> tuple[str, ...]:
        """The tensors of the checkpoint that the op itself reads."""
        return ()


def verify_sizes(op: WeightOp, sizes: tuple[int, ...]) -> None:
    """Refuse axes without elements."""
    if not all(size > 0 for size in sizes):
        raise OpRuleError(op=op.label, problem=f"shape {list(sizes)}", fix="every axis has at least one element")


@op("weight.load")
class Load(WeightOp):
    """Read a tensor of the checkpoint. ``tensor`` is its name there, by default the value's own.

    A ``buffer`` is no parameter: training does not move it by gradients, and counts of parameters leave it out.

    Example:
        %w = weight.load : bf16[128, 64]
    """

    out = result()
    tensor = optional(STR)
    dtype = attribute(STR, choices=DTYPES)
    shape = attribute(INTS)
    buffer = defaulted(BOOL, False)

    typed_attributes = ("dtype", "shape")

    @classmethod
    def attributes_of(cls, type: Type) -> dict[str, object]:
        return {"dtype": type.dtype, "shape": type.sizes} if isinstance(type, TensorType) and type.static else {}

    def verify(self, dim: Dims) -> None:
        verify_sizes(self, self.shape)

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        return (TensorType(self.dtype, self.shape),)

    @property
    def source(self) -> str:
        """The tensor's name in the checkpoint."""
        return self.tensor or self.out.name

    def key(self) -> object:
        return (type(self), self.source, self.dtype, self.shape, self.buffer)

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,)

    @property
    def tensor_infos(self) -> tuple[TensorInfo, ...]:
        """The tensor of the checkpoint as it must be."""
        return (TensorInfo(self.source, self.dtype, self.shape),)

    def reference(self, run: Run) -> Tensor:
        return run.load(self)


@op("weight.load_each")
class LoadEach(WeightOp):
    """Read tensors that are numbered from 0, such as experts, and put them on a new first axis.

    ``tensors`` is their name with ``{}`` for the number; the result's first axis says how many there are.

    Example:
        %e = weight.load_each {tensors = "experts.{}.up_proj.weight"} : bf16[8, 32, 64]
    """

    out = result()
    tensors = attribute(STR)
    dtype = attribute(STR, choices=DTYPES)
    shape = attribute(INTS)

    typed_attributes = ("dtype", "shape")

    @classmethod
    def attributes_of(cls, type: Type) -> dict[str, object]:
        return Load.attributes_of(type)

    def verify(self, dim: Dims) -> None:
        if self.tensors.count("{}") != 1 or self.tensors.replace("{}", "").count("{"):
            raise OpRuleError(op=self.label, problem=f"tensors is {self.tensors!r}", fix="a name with one {} in it")
        if not self.shape:
            raise OpRuleError(op=self.label, problem="there are no tensors", fix="the first axis counts them")
        verify_sizes(self, self.shape)

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        return (TensorType(self.dtype, self.shape),)

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(self.tensors.replace("{}", str(number)) for number in range(self.shape[0]))

    @property
    def tensor_infos(self) -> tuple[TensorInfo, ...]:
        """The tensors of the checkpoint as they must be."""
        return tuple(TensorInfo(name, self.dtype, self.shape[1:]) for name in self.sources)

    def reference(self, run: Run) -> Tensor:
        import torch

        facts = {"dtype": self.dtype, "shape": self.shape[1:]}
        return torch.stack([run.load(Load({}, {"tensor": name, **facts})) for name in self.sources])


@op("weight.slice")
class SliceWeight(WeightOp):
    """Take the rows from ``start`` up to ``stop`` along ``axis``.

    Example:
        %k = weight.slice %qkv {axis = 0, start = 128, stop = 192} : bf16[64, 64]
    """

    x = operand("...")
    out = result()
    axis = defaulted(INT, 0)
    start = attribute(INT)
    stop = attribute(INT)

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        sizes = list(self.x.tensor.sizes)
        if not 0 <= self.axis < len(sizes) or not 0 <= self.start < self.stop <= sizes[self.axis]:
            raise OpRuleError(
                op=self.label,
                problem=f"{self.start} to {self.stop} along axis {self.axis} of {self.x.tensor}",
                fix="stay within the tensor",
            )
        sizes[self.axis] = self.stop - self.start
        return (self.x.tensor.with_shape(*sizes),)

    def reference(self, run: Run, x: Tensor) -> Tensor:
        return x.narrow(self.axis, self.start, self.stop - self.start)


@op("weight.take")
class Take(WeightOp):
    """Take the blocks ``indices`` of ``block`` rows each along ``axis``, such as the heads that stay.

    Example:
        %q = weight.take %w {axis = 0, block = 16, indices = [0, 2, 3]} : bf16[48, 64]
    """

    x = operand("...")
    out = result()
    axis = defaulted(INT, 0)
    block = attribute(INT)
    indices = attribute(INTS)

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        sizes = list(self.x.tensor.sizes)
        blocks = sizes[self.axis] // self.block if self.block > 0 and 0 <= self.axis < len(sizes) else 0
        if not self.indices or not all(0 <= i < blocks for i in self.indices):
            raise OpRuleError(
                op=self.label,
                problem=f"blocks {list(self.indices)} of {self.block} along axis {self.axis} of {self.x.tensor}",
                fix=f"there are blocks 0 to {blocks - 1}",
            )
        sizes[self.axis] = len(self.indices) * self.block
        return (self.x.tensor.with_shape(*sizes),)

    def rows(self) -> list[int]:
        """Return the single rows that stay, in order."""
        return [i * self.block + row for i in self.indices for row in range(self.block)]

    def reference(self, run: Run, x: Tensor) -> Tensor:
        import torch

        return x.index_select(self.axis, torch.tensor(self.rows(), device=x.device))


@op("weight.concat")
class ConcatWeight(WeightOp):
    """Join tensors along ``axis``.

    Example:
        %qkv = weight.concat %q, %k, %v : bf16[256, 64]
    """

    xs = operands("*", dtype="xs")
    out = result()
    axis = defaulted(INT, 0)

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        first = self.xs[0].tensor
        shapes = [list(x.tensor.sizes) for x in self.xs]
        rest = {tuple(s[: self.axis] + s[self.axis + 1 :]) for s in shapes}
        if not 0 <= self.axis < len(shapes[0]):
            raise OpRuleError(op=self.label, problem=f"axis {self.axis} of {first}", fix="count axes from 0")
        if len(rest) > 1:
            raise OpRuleError(
                op=self.label,
                problem=" beside ".join(str(x.tensor) for x in self.xs[:4]),
                fix=f"parts differ in axis {self.axis} only",
            )
        sizes = list(first.sizes)
        sizes[self.axis] = sum(s[self.axis] for s in shapes)
        return (first.with_shape(*sizes),)

    def reference(self, run: Run, *xs: Tensor) -> Tensor:
        import torch

        return torch.cat(xs, self.axis)


@op("weight.stack")
class Stack(WeightOp):
    """Put tensors of one shape on a new first axis, such as experts.

    Example:
        %e = weight.stack %e0, %e1 : bf16[2, 64, 32]
    """

    xs = operands("...", dtype="xs")
    out = result()

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        first = self.xs[0].tensor
        return (first.with_shape(len(self.xs), *first.shape),)

    def reference(self, run: Run, *xs: Tensor) -> Tensor:
        import torch

        return torch.stack(xs)


@op("weight.cast")
class Cast(WeightOp):
    """Round to another dtype.

    Example:
        %y = weight.cast %x {dtype = "bf16"} : bf16[64, 64]
    """

    x = operand("...", dtype="float")
    out = result()
    dtype = attribute(STR, choices=FLOAT_TYPES)

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        return (TensorType(self.dtype, self.x.tensor.shape),)

    def reference(self, run: Run, x: Tensor) -> Tensor:
        return x.to(torch_dtype(self.dtype))


@op("weight.combine")
class Combine(WeightOp):
    """Add tensors of one shape, each times its factor.

    Example:
        %t = weight.combine %a, %b {factors = [1.0, -1.0]} : f64[64, 64]
    """

    xs = operands("...", dtype="xs")
    out = result("...", dtype="xs")
    factors = attribute(FLOATS)

    def verify(self, dim: Dims) -> None:
        if self.xs[0].tensor.dtype not in FLOAT_TYPES:
            raise OpRuleError(op=self.label, problem=f"parts are {self.xs[0].type}", fix="parts are floating-point")
        if len(self.factors) != len(self.xs):
            raise OpRuleError(
                op=self.label, problem=f"{len(self.factors)} factors for {len(self.xs)}", fix="one factor each"
            )

    def reference(self, run: Run, *xs: Tensor) -> Tensor:
        total = xs[0] * self.factors[0]
        for x, factor in zip(xs[1:], self.factors[1:], strict=True):
            total = total + x * factor
        return total
