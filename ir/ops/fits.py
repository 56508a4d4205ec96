"""``weight`` ops over calibration text: statistics, and what is fitted to them.

Fits are computed in float64 and given in the prior's dtype. An op per fit: its declaration says what it minimises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from regraft.ir.attributes import FLOAT, INT, INTS, STR
from regraft.ir.dims import B, T
from regraft.ir.errors.graph import OpRuleError
from regraft.ir.op import Dims, Value, attribute, defaulted, memory, op, operand, optional, optional_operand, result
from regraft.ir.ops.weight import WeightOp, verify_sizes
from regraft.ir.types import TensorType, Type

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.ir.graph import Graph
    from regraft.ir.interpret import Rows, Run

MOST_RIDGE = 1e12
"""Beyond it a fit is its prior to rounding, and sums with it overflow."""
RIDGE_FIX = f"a ridge from 0 to {MOST_RIDGE:g}"


class Statistic(WeightOp):
    """An op that takes the mean of something over the calibration text's tokens, in float64.

    Its operands are run-time values; edges of the graph as it was lifted are named by attributes.
    """

    reads_run_time = True

    def edges(self, original: Graph) -> list[Value]:
        """Return the run-time values that it is over; ``original`` is the graph as it was lifted."""
        return list(self.operands)

    @property
    def weights(self) -> list[Value]:
        """The weight-time values that it reads beside them."""
        return []

    def targets(self) -> list[tuple[str, int]]:
        """Return the edges of the graph as it was lifted that it names, each with the channels it must have."""
        return []

    def batch_sum(self, run: Run, *values: Any, **options: Any) -> Tensor:
        """Return the sum over the tokens of a batch: of what `edges` names, tensors or rows, given the `weights`."""
        raise NotImplementedError(self.opname)

    def reference(self, run: Run) -> Tensor:
        return run.statistic(self)


@op("weight.moment")
class Moment(Statistic):
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

    def edges(self, original: Graph) -> list[Value]:
        sides = ((self.a, self.source_a), (self.b, self.source_b))
        return [value if value is not None else original[str(name)] for value, name in sides]

    def targets(self) -> list[tuple[str, int]]:
        sides = ((self.source_a, self.rows), (self.source_b, self.columns))
        return [(name, channels) for name, channels in sides if name is not None]

    def batch_sum(self, run: Run, *values: Tensor) -> Tensor:
        a, b = (value.flatten(2).flatten(0, 1).double() for value in values)
        return a.T @ b


@op("weight.beyond_window")
class BeyondWindow(Statistic):
    """Return what a window hides of each head's softmax: the mean sum of ``exp(score)`` over the rows before it.

    The mean is over the queries that have such rows. ``groups`` are the KV heads that the query heads read. Source:
    specs/passes_math.md, section 6.1.

    Example:
        %s = weight.beyond_window %q, %m {scale = 0.25, window = 64, groups = [0, 0, 1, 1]} : f64[4]
    """

    q = operand("B T Hq D", dtype="float")
    memory = memory("k Hkv D, v? Hkv Dv")
    out = result()
    scale = attribute(FLOAT)
    window = attribute(INT)
    groups = attribute(INTS)
    reads_memory = True

    def verify(self, dim: Dims) -> None:
        heads, kv_heads = dim.size("Hq"), dim.size("Hkv")
        if len(self.groups) != heads or not all(0 <= group < kv_heads for group in self.groups):
            problem = f"groups {list(self.groups)} of {heads} heads over {kv_heads}"
            raise OpRuleError(op=self.label, problem=problem, fix="the KV head of each query head")
        if self.window < 1:
            raise OpRuleError(op=self.label, problem=f"window {self.window}", fix="a window shows at least one row")

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        return (TensorType("f64", (dim.size("Hq"),)),)

    def batch_sum(self, run: Run, q: Tensor, rows: Rows) -> Tensor:
        import torch

        keys = rows.fields["k"][:, :, list(self.groups)].double()
        scores = torch.einsum("bthd,bshd->bhts", q.double() * self.scale, keys)
        hidden = run.pos[:, :, None] - rows.pos[:, None, :] >= self.window
        some = hidden.any(-1)
        total = scores.exp().masked_fill(~hidden[:, None], 0.0).sum((0, 2, 3))
        return total * (some.numel() / max(1, int(some.sum())))


def second_moment(x: Value) -> Moment:
    """Return ``E[x xᵀ]`` of a run-time value, an op in no graph yet."""
    size = width(x.tensor)
    return Moment({"a": (x,), "b": (x,)}, {"rows": size, "columns": size})


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
        if not 0 <= self.ridge <= MOST_RIDGE:
            raise OpRuleError(op=self.label, problem=f"ridge is {self.ridge}", fix=RIDGE_FIX)

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


def inside(sides: Sequence[tuple[Sequence[int], int]], width: int) -> bool:
    """Return whether statistics hold each group's ``width`` channels: ``sides`` pair groups with how many they hold."""
    return all(group >= 0 and (group + 1) * width <= size for groups, size in sides for group in groups)


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
        elif not inside(((self.donor, dim.size("K")), (self.own, dim.size("J"))), width):
            problem, fix = "a head reads keys that the statistics do not hold", f"{width} channels a KV head"
        elif not 0 <= self.ridge <= MOST_RIDGE:
            problem, fix = f"ridge is {self.ridge}", RIDGE_FIX
        if problem:
            raise OpRuleError(op=self.label, problem=problem, fix=fix)

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


@op("weight.align_values")
class AlignValues(WeightOp):
    """Turn the columns of an output projection towards other values, by a map for each KV head.

    ``gram`` is ``E[n nᵀ]`` of the values that are read now and ``cross`` ``E[n oᵀ]`` of these and those read before,
    all KV heads side by side; ``donor`` and ``own`` are the KV heads that each query head reads and read. A head's
    map ``M`` minimises ``E|o - M n|² + λ|M - 1|²`` with ``λ = ridge * tr(gram) / K``; its columns are multiplied by it.

    Source: specs/passes_math.md, sections 1 (S2) and 5.

    Example:
        %o = weight.align_values %w, %gram, %cross {own = [0, 0], donor = [0, 0]} : bf16[64, 32]
    """

    weight = operand("O I", dtype="float")
    gram = operand("K K", dtype="f64")
    cross = operand("K J", dtype="f64")
    out = result("O I", dtype="weight")
    own = attribute(INTS)
    donor = attribute(INTS)
    ridge = defaulted(FLOAT, 1e-4)

    def verify(self, dim: Dims) -> None:
        heads, columns = len(self.donor), dim.size("I")
        problem = fix = ""
        if len(self.own) != heads or not heads or columns % heads:
            problem, fix = f"{columns} columns, {len(self.own)} and {heads} heads", "list each query head in both"
        elif not inside(((self.donor, dim.size("K")), (self.own, dim.size("J"))), columns // heads):
            problem, fix = "a head reads values that the statistics do not hold", "as wide as a head's columns"
        elif not 0 <= self.ridge <= MOST_RIDGE:
            problem, fix = f"ridge is {self.ridge}", RIDGE_FIX
        if problem:
            raise OpRuleError(op=self.label, problem=problem, fix=fix)

    def reference(self, run: Run, weight: Tensor, gram: Tensor, cross: Tensor) -> Tensor:
        import torch

        heads = len(self.donor)
        columns = weight.double().unflatten(1, (heads, -1)).transpose(0, 1)
        width = columns.shape[-1]
        new, old = (torch.tensor(each)[:, None] * width + torch.arange(width) for each in (self.donor, self.own))
        amount = self.ridge * gram.trace() / gram.shape[0] * torch.eye(width, dtype=gram.dtype)
        left = gram[new[:, :, None], new[:, None, :]] + amount
        right = cross[new[:, :, None], old[:, None, :]] + amount
        inverse: Callable[..., Tensor] = torch.linalg.pinv
        turned = columns @ (inverse(left, hermitian=True) @ right).transpose(1, 2)
        return turned.transpose(0, 1).flatten(1).to(weight.dtype)
