"""``weight.fit_scores``: normalised queries and keys fitted to scores that no map of theirs could keep.

A norm undoes what a projection scales, so that maps of heads do not fold into projections under it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from regraft.ir.attributes import FLOAT, INT, INTS, STR
from regraft.ir.errors.graph import OpRuleError
from regraft.ir.op import Dims, attribute, defaulted, op, operand, result
from regraft.ir.ops.merging import Channels, verify_groups
from regraft.ir.ops.weight import WeightOp

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.ir.interpret import Run

LEAST_SAMPLES = 2048


@op("weight.fit_scores")
class FitScores(WeightOp):
    """Fit projections and norm weights of merged keys and their queries to the scores before the merge.

    ``gram`` is ``E[x xᵀ]`` of what both projections read; ``queries`` and ``keys`` are their weights, ``q_norm`` and
    ``k_norm`` the norms of each head; ``down`` and ``up`` what `MergeHeads` gives. ``groups`` lists the old key head of
    each query head, ``merged`` the new head of each old one. The error is the score's over tokens that are independent
    of each other, at any distance: ``Σ E|conj(q') k' - conj(q) k|²`` over query heads and rotary frequencies, and the
    square of the scores' difference over the other channels. Tokens are drawn from a normal distribution with the
    moments of ``gram``, twice as many as it has channels and 2048 at least.

    The start is linear: merged keys and turned queries regressed on ``x``, norms that make all channels alike.
    ``steps`` of L-BFGS follow, from the same numbers every time.

    Source: specs/passes_math.md, section 1 (last paragraph); Liu and Nocedal 1989 (L-BFGS).

    Example:
        %q, %k, %m, %n = weight.fit_scores %c, %a, %b, %s, %t, %d, %u {groups = [0, 1], merged = [0, 0], eps = 1e-06}
    """

    gram = operand("I I", dtype="f64")
    queries = operand("Q I", dtype="float")
    keys = operand("K I", dtype="float")
    q_norm = operand("D", dtype="float")
    k_norm = operand("D", dtype="float")
    down = operand("N K", dtype="f64")
    up = operand("G D D", dtype="f64")
    new_queries = result("Q I", dtype="queries")
    new_keys = result("N I", dtype="keys")
    new_q_norm = result("D", dtype="q_norm")
    new_k_norm = result("D", dtype="k_norm")
    groups = attribute(INTS)
    merged = attribute(INTS)
    eps = attribute(FLOAT)
    offset = defaulted(FLOAT, 0.0)
    steps = defaulted(INT, 60)
    seed = defaulted(INT, 0)
    channels = defaulted(INT, 0)
    pairs = defaulted(INT, 0)
    layout = defaulted(STR, "halves", choices=("halves", "interleaved"))

    def verify(self, dim: Dims) -> None:
        heads, width = dim.size("G"), dim.size("D")
        verify_groups(self, self.groups, heads)
        problem = fix = ""
        if len(self.merged) != heads or sorted(set(self.merged)) != list(range(max(self.merged, default=-1) + 1)):
            problem, fix = f"merged {list(self.merged)} for {heads} heads", "each head's new one, counted from 0"
        elif dim.size("Q") != len(self.groups) * width or dim.size("K") != heads * width:
            problem, fix = f"{dim['Q']} and {dim['K']} rows for heads of {width}", "rows for each head in groups and up"
        elif dim.size("N") != (max(self.merged) + 1) * width:
            problem, fix = f"down gives {dim['N']} channels", f"{width} for each head that merged lists"
        elif self.channels % 2 or not 0 <= self.channels <= width or not 0 <= self.pairs <= self.channels // 2:
            problem = f"{self.pairs} pairs of {self.channels} channels of {width} turn"
            fix = f"pairs among an even number of channels up to {width}"
        elif self.eps <= 0 or self.steps < 0 or self.seed < 0:
            problem = f"eps {self.eps}, {self.steps} steps, seed {self.seed}"
            fix = "eps is positive, the others are not negative"
        if problem:
            raise OpRuleError(op=self.label, problem=problem, fix=fix)

    def reference(
        self,
        run: Run,
        gram: Tensor,
        queries: Tensor,
        keys: Tensor,
        q_norm: Tensor,
        k_norm: Tensor,
        down: Tensor,
        up: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        import torch

        x = drawn(gram, self.seed)
        channels = Channels(up.shape[-1], self.channels, self.pairs, self.layout)
        q = self._made(x, queries.double(), q_norm.double() + self.offset)
        k = self._made(x, keys.double(), k_norm.double() + self.offset)
        turned = torch.einsum("xhd,hde->xhe", q, up[list(self.groups)])
        merged = (k.flatten(1) @ down.T).unflatten(-1, (-1, up.shape[-1]))
        sides = [self._start(x, each, channels) for each in (turned, merged)]
        scores = _Scores(q, k, self.groups, self.merged, channels)
        with torch.enable_grad():
            (wq, gq), (wk, gk) = self._tuned(x, sides, scores)
        old = (queries, keys, q_norm, k_norm)
        new = (wq, wk, gq - self.offset, gk - self.offset)
        fitted = [b.to(a.dtype) for a, b in zip(old, new, strict=True)]
        return fitted[0], fitted[1], fitted[2], fitted[3]

    def _made(self, x: Tensor, weight: Tensor, gain: Tensor) -> Tensor:
        """Return normalised heads ``[S, H, D]``."""
        heads = (x @ weight.T).unflatten(-1, (-1, len(gain)))
        return heads * (heads.square().mean(-1, keepdim=True) + self.eps).rsqrt() * gain

    def _start(self, x: Tensor, wanted: Tensor, channels: Channels) -> tuple[Tensor, Tensor]:
        """Return a projection and a norm weight whose heads come near ``wanted``, by linear regression."""
        import torch

        power = wanted.square().mean((0, 1))
        real, imaginary = (list(side) for side in channels.turning())
        both = (power[real] + power[imaginary]) / 2
        power[real], power[imaginary] = both, both
        gain = power.clamp(min=1e-12 * float(power.max())).sqrt()
        flat = (wanted / gain).flatten(1)
        gram = x.T @ x
        amount = 1e-6 * gram.trace() / len(gram) + torch.finfo(x.dtype).tiny  # of silent inputs: nothing
        solve: Callable[[Tensor, Tensor], Tensor] = torch.linalg.solve
        weight = solve(gram + amount * torch.eye(len(gram), dtype=x.dtype), x.T @ flat).T
        made = self._made(x, weight, gain)
        return weight, gain * (made * wanted).sum() / made.square().sum()

    def _tuned(self, x: Tensor, sides: Sequence[tuple[Tensor, Tensor]], scores: _Scores) -> list[tuple[Tensor, Tensor]]:
        """Return projections and norm weights after L-BFGS from a start."""
        import torch

        free = [part.clone().requires_grad_() for weight, gain in sides for part in (weight, gain.log())]
        search = torch.optim.LBFGS(free, max_iter=self.steps, history_size=10, line_search_fn="strong_wolfe")

        def error() -> Tensor:
            search.zero_grad()
            q = self._made(x, free[0], free[1].exp())
            value = scores.error(q, self._made(x, free[2], free[3].exp()))
            value.backward()
            return value

        if self.steps:
            search.step(error)
        found = [part.detach() for part in free]
        return [(found[0], found[1].exp()), (found[2], found[3].exp())]


@dataclass(frozen=True)
class _Moments:
    """Moments of heads ``a`` and others ``b``: ``E[conj(a) b]`` by frequency, ``E[a bᵀ]`` of the other channels."""

    real: Tensor
    imaginary: Tensor
    resting: Tensor

    @classmethod
    def of(cls, a: Tensor, b: Tensor, channels: Channels) -> _Moments:
        """Return the moments over the tokens of ``a`` and ``b [S, H, D]``."""
        import torch

        (ar, ai, at), (br, bi, bt) = channels.split(a), channels.split(b)
        resting = torch.einsum("xha,xhb->hab", at, bt) / len(a)
        return cls((ar * br + ai * bi).mean(0), (ar * bi - ai * br).mean(0), resting)

    def at(self, heads: Tensor) -> _Moments:
        """Return the moments of some heads, in the order given."""
        return _Moments(self.real[heads], self.imaginary[heads], self.resting[heads])

    def __matmul__(self, other: _Moments) -> Tensor:
        """Return the mean product of two scores of these queries with those keys, at a distance of any angle."""
        # a rotation by any angle between query and key leaves of a product of two scores half of this product
        turning = (self.real * other.real + self.imaginary * other.imaginary).sum() / 2
        return turning + (self.resting * other.resting).sum()


class _Scores:
    """The scores to keep: of queries ``[S, H, D]`` and keys ``[S, G, D]``, each over tokens of its own.

    Args:
        q: The queries.
        k: The keys.
        groups: The key head of each query head.
        merged: The new head of each key head.
        channels: Which channels turn.
    """

    def __init__(self, q: Tensor, k: Tensor, groups: Sequence[int], merged: Sequence[int], channels: Channels) -> None:
        import torch

        self.q, self.k, self.channels = q, k, channels
        self.groups, self.merged = torch.tensor(groups), torch.tensor(merged)
        square = self._moments(q, q) @ self._moments(k, k).at(self.groups)
        self.square = square if square > 0 else torch.ones_like(square)

    def _moments(self, a: Tensor, b: Tensor) -> _Moments:
        return _Moments.of(a, b, self.channels)

    def error(self, q: Tensor, k: Tensor) -> Tensor:
        """Return the mean square of what scores of other queries and keys differ by, over that of the scores."""
        both = self._moments(k.index_select(1, self.merged), self.k).at(self.groups)
        new = self._moments(q, q) @ self._moments(k, k).at(self.merged[self.groups])
        return 1 + (new - 2 * (self._moments(q, self.q) @ both)) / self.square


def score_error(
    old: tuple[Tensor, Tensor],
    new: tuple[Tensor, Tensor],
    groups: Sequence[int],
    merged: Sequence[int],
    channels: Channels,
) -> Tensor:
    """Return what `FitScores` minimises for queries and keys, old ``[S, H, D], [S, G, D]`` and new ``[S, N, D]``."""
    return _Scores(*old, groups, merged, channels).error(*new)


def drawn(gram: Tensor, seed: int) -> Tensor:
    """Return tokens ``[S, I]`` drawn from a normal distribution with second moments ``gram``."""
    import torch

    values, vectors = torch.linalg.eigh(gram)
    count = max(LEAST_SAMPLES, 2 * len(gram))
    normal = torch.randn(count, len(gram), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return normal * values.clamp(min=0).sqrt() @ vectors.T
