"""``weight``: what is known before run time. ``apply`` folds these ops; no emitted program holds one.

Their reference meanings take and give plain tensors. Fits are computed in float64 and given in the prior's dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from regraft.ir.attributes import BOOL, FLOAT, FLOATS, INT, INTS, STR
from regraft.ir.dims import B, T
from regraft.ir.errors.graph import OpRuleError
from regraft.ir.op import (
    Dims,
    Op,
    Value,
    attribute,
    defaulted,
    op,
    operand,
    operands,
    optional,
    optional_operand,
    result,
)
from regraft.ir.source import torch_dtype
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


@op("weight.moment")
class Moment(WeightOp):
    """Return ``E[a bᵀ]`` over the calibration text's tokens, in float64.

    ``a`` and ``b`` are run-time values ``[B, T, ...]``, flattened after the token axis. ``source_a`` and ``source_b``
    name an edge of the graph as it was lifted instead, so that a fit can aim at the original.

    Example:
        %c = weight.moment a=%z {source_b = "layers.0.attn.out"} : f64[128, 64]
    """

    a = optional_operand("*", dtype="float")
    b = optional_operand("*", dtype="float")
    out = result()
    source_a = optional(STR)
    source_b = optional(STR)
    rows = attribute(INT)
    columns = attribute(INT)

    typed_attributes = ("rows", "columns")
    reads_run_time = True

    @classmethod
    def attributes_of(cls, type: Type) -> dict[str, object]:
        if not isinstance(type, TensorType) or not type.static or len(type.shape) != 2:
            return {}
        return dict(zip(cls.typed_attributes, type.sizes, strict=True))

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        return (TensorType("f64", (self.rows, self.columns)),)

    def verify(self, dim: Dims) -> None:
        verify_sizes(self, (self.rows, self.columns))
        for side, value, name, size in (
            ("a", self.a, self.source_a, self.rows),
            ("b", self.b, self.source_b, self.columns),
        ):
            if (value is None) == (name is None):
                fix = f"give either {side} or source_{side}"
                raise OpRuleError(op=self.label, problem=f"side {side} is given twice or not at all", fix=fix)
            if value is not None:
                self._verify_side(side, value, size)

    def _verify_side(self, side: str, value: Value, size: int) -> None:
        shape = value.tensor.shape
        if value.is_weight or shape[:2] != (B, T) or not all(isinstance(d, int) for d in shape[2:]):
            problem = f"side {side} is {value.type}"
            raise OpRuleError(op=self.label, problem=problem, fix="a statistic is over run-time values [B, T, ...]")
        if width(value.tensor) != size:
            problem = f"side {side} has {width(value.tensor)} channels, not {size}"
            raise OpRuleError(op=self.label, problem=problem, fix="the result's shape is the channels of a and of b")

    def reference(self, run: Run) -> Tensor:
        return run.moment(self)


def width(type: TensorType) -> int:
    """Return the channels of a run-time value ``[B, T, ...]``."""
    return TensorType(type.dtype, type.shape[2:]).elements({})


@op("weight.refit")
class Refit(WeightOp):
    """Fit a linear map to statistics by least squares, drawn towards a prior.

    ``gram`` is ``E[z zᵀ]``, ``cross`` ``E[z yᵀ]``, the result ``W [O, I]`` minimises
    ``E|W z - y|² + λ|W - prior|²`` with ``λ = ridge * tr(gram) / I``. Source: specs/passes_math.md, equation (2).

    Example:
        %o = weight.refit %gram, %cross, %prior {ridge = 0.0001} : bf16[64, 128]
    """

    gram = operand("I I", dtype="f64")
    cross = operand("I O", dtype="f64")
    prior = operand("O I", dtype="float")
    out = result("O I", dtype="prior")
    ridge = defaulted(FLOAT, 1e-4)

    def verify(self, dim: Dims) -> None:
        if self.ridge < 0:
            raise OpRuleError(op=self.label, problem=f"ridge is {self.ridge}", fix="ridge is not negative")

    def reference(self, run: Run, gram: Tensor, cross: Tensor, prior: Tensor) -> Tensor:
        import torch

        amount = self.ridge * gram.trace() / gram.shape[0]
        left = gram + amount * torch.eye(gram.shape[0], dtype=gram.dtype, device=gram.device)
        right = cross + amount * prior.double().T
        solve: Callable[[Tensor, Tensor], Tensor] = torch.linalg.solve
        try:
            fitted = solve(left, right)
        except RuntimeError:  # singular: statistics of silent channels, and no ridge
            inverse: Callable[..., Tensor] = torch.linalg.pinv
            fitted = inverse(left, hermitian=True) @ right
        return fitted.T.contiguous().to(prior.dtype)


@op("weight.align")
class Align(WeightOp):
    """Turn the rows of a query projection towards other keys, by a complex factor for each head and rotary frequency.

    ``gram`` is ``E[n nᵀ]`` of the keys that are read now and ``cross`` ``E[n oᵀ]`` of these and those read before, all
    KV heads side by side, before rotation; ``donor`` and ``own`` are the KV heads that each query head reads and read.
    A factor ``a`` minimises ``E|o - a n|² + λ|a - 1|²`` over a frequency's pair of channels as one complex number, with
    ``λ = 2 * ridge * tr(gram) / K``. Queries take its conjugate, so that scores come as near to the old ones. Where the
    query is normalised after the projection, ``norm`` is that norm's weight; the rows of a channel that it all but
    silences change little. Channels that do not turn stay as they are.

    Source: specs/passes_math.md, sections 1 (S3) and 5.

    Example:
        %q = weight.align %w, %gram, %cross {own = [0, 0], donor = [0, 0], channels = 16} : bf16[32, 64]
    """

    weight = operand("...", dtype="float")
    gram = operand("K K", dtype="f64")
    cross = operand("K J", dtype="f64")
    norm = optional_operand("D", dtype="float")
    out = result("...", dtype="weight")
    own = attribute(INTS)
    donor = attribute(INTS)
    channels = attribute(INT)
    layout = defaulted(STR, "halves", choices=("halves", "interleaved"))
    offset = defaulted(FLOAT, 0.0)
    ridge = defaulted(FLOAT, 1e-4)

    def verify(self, dim: Dims) -> None:
        heads, rows = len(self.donor), self.weight.tensor.sizes[0] if self.weight.tensor.sizes else 0
        width = rows // heads if heads else 0
        problem = fix = ""
        if len(self.own) != heads or not heads or rows % heads:
            problem, fix = f"{rows} rows, {len(self.own)} and {heads} heads", "list each query head in own and donor"
        elif self.channels % 2 or not 0 < self.channels <= width:
            problem, fix = f"{self.channels} channels of {width} turn", f"an even number from 2 to {width}"
        elif self.norm is not None and dim["D"] != width:
            problem, fix = f"a norm of {dim['D']} channels for heads of {width}", "norm is one head's"
        elif not self._inside(dim, width):
            problem, fix = "a head reads keys that the statistics do not hold", f"{width} channels a KV head"
        elif self.ridge < 0:
            problem, fix = f"ridge is {self.ridge}", "ridge is not negative"
        if problem:
            raise OpRuleError(op=self.label, problem=problem, fix=fix)

    def _inside(self, dim: Dims, width: int) -> bool:
        sides = ((self.donor, dim.size("K")), (self.own, dim.size("J")))
        return all(group >= 0 and (group + 1) * width <= size for groups, size in sides for group in groups)

    def pairs(self) -> tuple[list[int], list[int]]:
        """Return the channels of each frequency's pair: the real parts, and the imaginary ones."""
        half = self.channels // 2
        if self.layout == "halves":
            return list(range(half)), list(range(half, 2 * half))
        return list(range(0, 2 * half, 2)), list(range(1, 2 * half, 2))

    def reference(self, run: Run, weight: Tensor, gram: Tensor, cross: Tensor, norm: Tensor | None = None) -> Tensor:
        import torch

        rows = weight.double().reshape(len(self.donor), weight.shape[0] // len(self.donor), -1)
        width = rows.shape[1]
        real, imaginary = (torch.tensor(side) for side in self.pairs())
        new, old = (torch.tensor(groups)[:, None] * width for groups in (self.donor, self.own))
        nr, ni, br, bi = new + real, new + imaginary, old + real, old + imaginary
        amount = 2 * self.ridge * gram.trace() / gram.shape[0]
        square = gram[nr, nr] + gram[ni, ni] + amount
        silent = square <= 0
        along = torch.where(silent, 1.0, (cross[nr, br] + cross[ni, bi] + amount) / square)[..., None]
        across = torch.where(silent, 0.0, (cross[nr, bi] - cross[ni, br]) / square)[..., None]
        gain = torch.ones(width, dtype=torch.float64) if norm is None else norm.double() + self.offset
        # a channel that the norm all but silences cannot carry its pair's turn: it would only drown the others
        least = 0.1 * gain.square().mean().sqrt()
        back = torch.where(gain.abs() < least, gain / least.square(), 1 / gain)[:, None]
        a, b = gain[real, None] * rows[:, real], gain[imaginary, None] * rows[:, imaginary]
        turned = rows.clone()
        turned[:, real] += (a * along + b * across - a) * back[real]
        turned[:, imaginary] += (b * along - a * across - b) * back[imaginary]
        return turned.reshape(weight.shape).to(weight.dtype)
