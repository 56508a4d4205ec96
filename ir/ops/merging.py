"""``weight`` ops that merge heads: statistics of heads as a projection makes them, and maps fitted to those.

A group of heads becomes one: `MergeHeads` gives what makes the new head from the old ones (``down``), and what gives
each old head back from the new one (``up``). Keys are merged with their queries as readers, values with the rows of the
output projection. Whoever read the old heads absorbs ``up``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from regraft.ir.attributes import BOOL, FLOAT, INT, INTS, STR
from regraft.ir.dims import B, T
from regraft.ir.errors.graph import OpRuleError
from regraft.ir.op import Dims, Value, attribute, defaulted, op, operand, optional, optional_operand, result
from regraft.ir.ops.fits import Statistic
from regraft.ir.ops.weight import WeightOp
from regraft.ir.types import TensorType, Type

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.ir.graph import Graph
    from regraft.ir.interpret import Run

METHODS = ("mean", "procrustes", "pca")
ROUNDS = 50  # of turning heads towards their mean and taking the mean anew
SMALLEST = 1e-12  # of the largest weight of a metric


class HeadStatistic(Statistic):
    """A statistic of heads that a projection makes of a run-time value, whether or not the graph still makes them.

    ``x`` is what the projection reads; ``source`` names an edge of the graph as it was lifted instead. With ``eps``
    each head is normalised as `core.norm` does it, then scaled by ``norm`` plus ``offset``.
    """

    weight = operand("O I", dtype="float")
    x = optional_operand("B T I", dtype="float")
    bias = optional_operand("O", dtype="float")
    norm = optional_operand("D", dtype="float")
    out = result()
    source = optional(STR)
    eps = optional(FLOAT)
    offset = defaulted(FLOAT, 0.0)

    @property
    def heads(self) -> int:
        """How many heads the projection makes."""
        raise NotImplementedError(self.opname)

    def verify(self, dim: Dims) -> None:
        problem = fix = ""
        rows, heads = dim.size("O"), self.heads
        if (self.x is None) == (self.source is None):
            problem, fix = "what the projection reads is given twice or not at all", "give either x or source"
        elif self.x is not None and (self.x.is_weight or self.x.tensor.shape[:2] != (B, T)):
            problem, fix = f"x is {self.x.type}", "a statistic is over run-time values [B, T, I]"
        elif not self.weight.is_weight:
            problem, fix = "the weight is known only at run time", "a projection's weight"
        elif heads < 1 or rows % heads:
            problem, fix = f"{rows} rows for {heads} heads", "as many rows for each head"
        elif self.norm is not None and (self.eps is None or dim["D"] != rows // heads):
            problem, fix = f"a norm of {dim['D']} channels, eps {self.eps}", "norm is one head's, and comes with eps"
        if problem:
            raise OpRuleError(op=self.label, problem=problem, fix=fix)

    @property
    def weights(self) -> list[Value]:
        return [each for each in (self.weight, self.bias, self.norm) if each is not None]

    def edges(self, original: Graph) -> list[Value]:
        return [original[str(self.source)] if self.x is None else self.x]

    def targets(self) -> list[tuple[str, int]]:
        return [] if self.source is None else [(self.source, self.weight.tensor.sizes[1])]

    def projected(self, x: Tensor, weight: Tensor, rest: Sequence[Tensor]) -> Tensor:
        """Return the heads of every token before a norm, in float64, ``[N, H, D]``."""
        heads = x.flatten(0, 1).double() @ weight.double().T
        if self.bias is not None:
            heads = heads + rest[0].double()
        return heads.unflatten(-1, (self.heads, -1))

    def made(self, x: Tensor, weight: Tensor, rest: Sequence[Tensor]) -> Tensor:
        """Return the heads of every token in float64, ``[N, H, D]``."""
        heads = self.projected(x, weight, rest)
        if self.eps is not None:
            heads = heads * (heads.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return heads * (rest[-1].double() + self.offset) if self.norm is not None else heads


@op("weight.joint_moment")
class JointMoment(HeadStatistic):
    """Return ``E[k kᵀ]`` over the calibration text's tokens, for all heads of a projection side by side, in float64.

    Example:
        %c = weight.joint_moment %w, x=%h {parts = 4} : f64[64, 64]
    """

    parts = attribute(INT)

    @property
    def heads(self) -> int:
        return self.parts

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        return (TensorType("f64", (dim.size("O"), dim.size("O"))),)

    def batch_sum(self, run: Run, *values: Tensor) -> Tensor:
        x, weight, *rest = values
        heads = self.made(x, weight, rest).flatten(1)
        return heads.T @ heads


@op("weight.group_moments")
class GroupMoments(HeadStatistic):
    """Return ``Σ E[q qᵀ]`` over the calibration text's tokens, summed over the heads of each group, in float64.

    ``groups`` lists each head's group, such as the key/value head that a query head reads, of ``parts`` groups.

    Example:
        %c = weight.group_moments %w, x=%h {groups = [0, 0, 1, 1], parts = 2} : f64[2, 16, 16]
    """

    groups = attribute(INTS)
    parts = attribute(INT)

    @property
    def heads(self) -> int:
        return len(self.groups)

    def verify(self, dim: Dims) -> None:
        super().verify(dim)
        verify_groups(self, self.groups, self.parts)

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        width = dim.size("O") // len(self.groups)
        return (TensorType("f64", (self.parts, width, width)),)

    def batch_sum(self, run: Run, *values: Tensor) -> Tensor:
        import torch

        x, weight, *rest = values
        heads = self.made(x, weight, rest).transpose(0, 1)
        total = torch.zeros(self.parts, heads.shape[-1], heads.shape[-1], dtype=torch.float64)
        return total.index_add(0, torch.tensor(self.groups), heads.transpose(1, 2) @ heads)


@op("weight.inverse_power")
class InversePower(HeadStatistic):
    """Return what norms multiply heads by, squared: ``E[1 / (mean of k² + eps)]`` of each head, in float64.

    ``eps`` must be given; there is no ``norm``.

    Example:
        %s = weight.inverse_power %w, x=%h {parts = 4, eps = 1e-06} : f64[4]
    """

    parts = attribute(INT)

    @property
    def heads(self) -> int:
        return self.parts

    def verify(self, dim: Dims) -> None:
        super().verify(dim)
        if self.eps is None or self.norm is not None:
            problem = f"eps {self.eps}" + ("" if self.norm is None else " and a norm")
            raise OpRuleError(op=self.label, problem=problem, fix="give eps, and no norm")

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        return (TensorType("f64", (self.parts,)),)

    def batch_sum(self, run: Run, *values: Tensor) -> Tensor:
        x, weight, *rest = values
        heads = self.projected(x, weight, rest)
        assert self.eps is not None
        return (heads.square().mean(-1) + self.eps).reciprocal().sum(0)


@op("weight.group_gram")
class GroupGram(WeightOp):
    """Return ``Σ O_hᵀ O_h`` of an output projection's columns by head, summed over the heads of each group, in float64.

    It is the metric in which errors of a group's values count in the output.

    Example:
        %s = weight.group_gram %o {groups = [0, 0, 1, 1], parts = 2} : f64[2, 16, 16]
    """

    weight = operand("M I", dtype="float")
    out = result()
    groups = attribute(INTS)
    parts = attribute(INT)

    def verify(self, dim: Dims) -> None:
        verify_groups(self, self.groups, self.parts)
        if dim.size("I") % len(self.groups):
            problem = f"{dim['I']} columns for {len(self.groups)} heads"
            raise OpRuleError(op=self.label, problem=problem, fix="as many columns for each head")

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        width = dim.size("I") // len(self.groups)
        return (TensorType("f64", (self.parts, width, width)),)

    def reference(self, run: Run, weight: Tensor) -> Tensor:
        return group_gram(weight, self.groups, self.parts)


def group_gram(weight: Tensor, groups: Sequence[int], parts: int) -> Tensor:
    """Return what `GroupGram` does for an output projection ``[M, H * D]``."""
    import torch

    columns = weight.double().unflatten(1, (len(groups), -1)).transpose(0, 1)
    total = torch.zeros(parts, columns.shape[-1], columns.shape[-1], dtype=torch.float64)
    return total.index_add(0, torch.tensor(groups), columns.transpose(1, 2) @ columns)


def verify_groups(op: WeightOp, groups: Sequence[int], parts: int) -> None:
    """Refuse heads of groups that are not there."""
    if not groups or not all(0 <= group < parts for group in groups):
        raise OpRuleError(op=op.label, problem=f"groups {list(groups)}", fix=f"each head's, from 0 to {parts - 1}")


@op("weight.merge_heads")
class MergeHeads(WeightOp):
    """Fit one head to each group of heads: ``down`` makes it from all old ones, ``up`` gives each of them back.

    ``gram`` is ``E[k kᵀ]`` of all heads side by side, ``readers`` for each head the second moment of what is multiplied
    with it: errors count in that metric. ``groups`` lists the new head of each old one. The first ``pairs`` rotary
    frequencies among ``channels`` stay apart: a pair of channels is one complex number, a head a complex multiple of
    the group's. The other channels mix unless ``mixing`` is off; then each stays apart.

    ``pca`` minimises the error ``Σ_j w_j E|k_j - a_j u|²`` with ``w_j = E|q_j|²``, for what mixes
    ``Σ_j E|S_j (k_j - A_j u)|²`` with ``S_jᵀ S_j`` the reader's moment, by leading eigenvectors. ``procrustes`` turns
    each head towards their mean, without scaling, and averages; ``mean`` averages.

    Source: specs/passes_math.md, section 2.

    Example:
        %down, %up = weight.merge_heads %c, %q {groups = [0, 0], channels = 16, pairs = 8} : f64[16, 32], f64[2, 16, 16]
    """

    gram = operand("K K", dtype="f64")
    readers = operand("G D D", dtype="f64")
    down = result()
    up = result()
    groups = attribute(INTS)
    channels = defaulted(INT, 0)
    pairs = defaulted(INT, 0)
    layout = defaulted(STR, "halves", choices=("halves", "interleaved"))
    mixing = defaulted(BOOL, True)
    method = defaulted(STR, "pca", choices=METHODS)

    def verify(self, dim: Dims) -> None:
        heads, width = dim.size("G"), dim.size("D")
        problem = fix = ""
        if len(self.groups) != heads or sorted(set(self.groups)) != list(range(max(self.groups, default=-1) + 1)):
            problem, fix = f"groups {list(self.groups)} for {heads} heads", "each head's new one, counted from 0"
        elif dim.size("K") != heads * width:
            problem, fix = f"moments of {dim['K']} channels for {heads} heads of {width}", "all heads side by side"
        elif self.channels % 2 or not 0 <= self.channels <= width or not 0 <= self.pairs <= self.channels // 2:
            problem = f"{self.pairs} pairs of {self.channels} channels of {width} turn"
            fix = f"pairs among an even number of channels up to {width}"
        if problem:
            raise OpRuleError(op=self.label, problem=problem, fix=fix)

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        heads, width = dim.size("G"), dim.size("D")
        new = max(self.groups) + 1
        return TensorType("f64", (new * width, heads * width)), TensorType("f64", (heads, width, width))

    def reference(self, run: Run, gram: Tensor, readers: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        heads, width, _ = readers.shape
        channels = Channels(width, self.channels, self.pairs, self.layout, self.mixing)
        new = max(self.groups) + 1
        down = torch.zeros(new, width, heads, width, dtype=torch.float64)
        up = torch.zeros(heads, width, width, dtype=torch.float64)
        blocks = gram.view(heads, width, heads, width)
        for group in range(new):
            members = [head for head in range(heads) if self.groups[head] == group]
            merged = merge(blocks[members][:, :, members], readers[members], channels, self.method)
            down[group][:, members], up[members] = merged.down.transpose(0, 1), merged.up
        return down.view(new * width, heads * width), up


@dataclass(frozen=True)
class Channels:
    """Which channels of a head may be combined: see `MergeHeads`."""

    width: int
    channels: int = 0
    pairs: int = 0
    layout: str = "halves"
    mixing: bool = True

    def turning(self) -> tuple[list[int], list[int]]:
        """Return the channels of each frequency that turns: the real parts, and the imaginary ones."""
        if self.layout == "halves":
            return list(range(self.pairs)), [self.channels // 2 + pair for pair in range(self.pairs)]
        return list(range(0, 2 * self.pairs, 2)), list(range(1, 2 * self.pairs, 2))

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return views of ``x [..., D]``: the real parts of what turns, the imaginary ones, and a copy of the rest."""
        import torch

        pairs, half = self.pairs, self.channels // 2
        if self.layout == "interleaved":
            return x[..., 0 : 2 * pairs : 2], x[..., 1 : 2 * pairs : 2], x[..., 2 * pairs :]
        rest = (x[..., pairs:half], x[..., half + pairs :])
        return x[..., :pairs], x[..., half : half + pairs], torch.cat(rest, -1)

    def resting(self) -> list[int]:
        """Return the channels that do not turn."""
        turning = {channel for side in self.turning() for channel in side}
        return [channel for channel in range(self.width) if channel not in turning]


@dataclass(frozen=True)
class Merged:
    """One head made of ``n``: ``down [n, D, D]`` and ``up [n, D, D]``; the error in the readers' metric, and the mass.

    The new head is ``Σ_j down_j k_j``, and ``k_j`` about ``up_j`` times it.
    """

    down: Tensor
    up: Tensor
    lost: float
    mass: float


def merge(gram: Tensor, readers: Tensor, channels: Channels, method: str) -> Merged:
    """Fit one head to the heads of a group.

    Args:
        gram: ``[n, D, n, D]``, ``E[k kᵀ]``.
        readers: ``[n, D, D]``, the metric of each head's errors.
        channels: Which channels may be combined.
        method: One of `METHODS`.
    """
    import torch

    heads, width = gram.shape[:2]
    eye = torch.eye(width, dtype=torch.float64).expand(heads, width, width)
    if heads == 1 or method == "mean":
        down, up = eye / heads, eye.clone()
    else:
        down, up = torch.zeros(heads, width, width, dtype=torch.float64), torch.zeros_like(eye)
        real, imaginary = channels.turning()
        if real:
            _merge_pairs(gram, readers, real, imaginary, method, down, up)
        resting = channels.resting()
        for chosen in [resting] if channels.mixing else [[channel] for channel in resting]:
            if chosen:
                _merge_mixing(gram, readers, chosen, method, down, up)
    return Merged(down, up, *_lost(gram, readers, down, up))


def _lost(gram: Tensor, readers: Tensor, down: Tensor, up: Tensor) -> tuple[float, float]:
    """Return ``Σ_j E|k_j - up_j u|²`` in each reader's metric, and the same of the keys themselves."""
    import torch

    heads, width = gram.shape[:2]
    flat = gram.reshape(heads * width, heads * width)
    round_trip = up.reshape(-1, width) @ down.transpose(0, 1).reshape(width, -1)
    rest = torch.eye(heads * width, dtype=torch.float64) - round_trip
    error, each = (rest @ flat @ rest.T).view(gram.shape), torch.arange(heads)
    lost, mass = (float((part[each, :, each] * readers).sum()) for part in (error, gram))
    return max(lost, 0.0), mass


def _merge_pairs(
    gram: Tensor,
    readers: Tensor,
    real: Sequence[int],
    imaginary: Sequence[int],
    method: str,
    down: Tensor,
    up: Tensor,
) -> None:
    """Fill in what channels that turn contribute to ``down`` and ``up``: a complex factor a head and frequency."""
    import torch

    r, i = torch.tensor(real), torch.tensor(imaginary)

    def block(a: Tensor, b: Tensor) -> Tensor:  # E[a_j b_l] by frequency: [F, n, n]
        return gram[:, a][:, :, :, b].diagonal(dim1=1, dim2=3).permute(2, 0, 1)

    z = torch.complex(block(r, r) + block(i, i), block(i, r) - block(r, i))
    energy = z.diagonal(dim1=1, dim2=2).real
    if method == "pca":
        weight = readers.diagonal(dim1=1, dim2=2)
        root = _floored(weight[:, r] + weight[:, i]).T.sqrt()
        e = torch.linalg.eigh(root[:, :, None] * z * root[:, None, :]).eigenvectors[..., -1]
        a, c = e / root, e.conj() * root
    else:
        a = _phases(z)
        c = a.conj() / len(gram)
    # S3: any complex factor may move from c to a; the first head keeps its phase, the keys keep their size
    size = torch.einsum("fj,fjl,fl->f", c, z, c.conj()).real
    t = (energy.mean(1) / torch.where(size > 0, size, 1.0)).sqrt() * torch.where(a[:, 0] == 0, 1.0, a[:, 0]).sgn()
    if method == "procrustes":
        t = t.sgn()
    t = torch.where(t == 0, 1.0, t)
    c, a = (c * t[:, None]).T, (a / t[:, None]).T
    for target, factor in ((down, c), (up, a)):
        target[:, r, r], target[:, i, i] = factor.real, factor.real
        target[:, r, i], target[:, i, r] = -factor.imag, factor.imag


def _phases(z: Tensor) -> Tensor:
    """Return the phases ``[F, n]`` that turn heads towards their mean, given ``E[k k^H]``, ``[F, n, n]``."""
    import torch

    a = torch.ones(z.shape[:2], dtype=z.dtype)
    for _ in range(ROUNDS):
        toward = torch.einsum("fjl,fl->fj", z, a)
        a = torch.where(toward.abs() > 0, toward.sgn(), a)
    return a


def _merge_mixing(gram: Tensor, readers: Tensor, chosen: Sequence[int], method: str, down: Tensor, up: Tensor) -> None:
    """Fill in what channels that may mix contribute to ``down`` and ``up``."""
    import torch

    heads, width, at = len(gram), len(chosen), torch.tensor(chosen)
    c = gram[:, at][:, :, :, at].reshape(heads * width, heads * width)
    if method == "pca":
        root, inverse = _roots(readers[:, at][:, :, at])
        whitened = torch.einsum("jab,jbkc,kcd->jakd", root, c.view(heads, width, heads, width), root)
        leading = torch.linalg.eigh(whitened.reshape(c.shape)).eigenvectors[:, -width:].flip(-1).view(heads, width, -1)
        make, back = torch.einsum("jaw,jab->jwb", leading, root), inverse @ leading
        flat = make.transpose(0, 1).reshape(width, -1)
        size, energy = torch.einsum("ab,bc,ac->", flat, c, flat), c.trace() / heads
        t = (energy / size).sqrt() if size > 0 and energy > 0 else torch.ones((), dtype=c.dtype)
        make, back = make * t, back / t
    else:
        back = _rotations(c.view(heads, width, heads, width))
        make = back.transpose(1, 2) / heads
    each = torch.arange(heads)[:, None, None]
    down[each, at[:, None], at], up[each, at[:, None], at] = make, back


def _rotations(c: Tensor) -> Tensor:
    """Return the orthogonal maps ``[n, D, D]`` that turn the mean towards each head, given ``[n, D, n, D]``."""
    import torch

    back = torch.eye(c.shape[1], dtype=c.dtype).repeat(len(c), 1, 1)
    for _ in range(ROUNDS):
        toward = torch.einsum("jalb,lbc->jac", c, back)  # E[k_j (Σ_l back_lᵀ k_l)ᵀ]
        u, _, v = torch.linalg.svd(toward)
        back = u @ v
    return back


def _floored(weight: Tensor) -> Tensor:
    """Return weights of which none is so small, beside the largest, that its inverse would be noise."""
    import torch

    largest = weight.amax()
    return weight.clamp(min=SMALLEST * largest) if largest > 0 else torch.ones_like(weight)


def _roots(metric: Tensor) -> tuple[Tensor, Tensor]:
    """Return the symmetric square roots of ``[n, D, D]``, and their inverses."""
    import torch

    values, vectors = torch.linalg.eigh(metric)
    root = _floored(values).sqrt()
    back = vectors.transpose(1, 2)
    return (vectors * root[:, None]) @ back, (vectors / root[:, None]) @ back
