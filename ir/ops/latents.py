"""``weight`` ops that fit latents: few numbers a token from which keys and values are rebuilt.

A latent is a linear map of a token's row ``z``: ``c = down z``. Keys and values are linear in ``z`` too, the targets
``y = W z``, keys first. Statistics and fits are in float64. Source: specs/passes_math.md, sections 4.3 and 4.8.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from regraft.ir.attributes import FLOAT, INT, INTS, STR
from regraft.ir.dims import B, T
from regraft.ir.errors.graph import OpRuleError
from regraft.ir.op import (
    Dims,
    Value,
    attribute,
    defaulted,
    op,
    operand,
    optional,
    optional_operand,
    result,
)
from regraft.ir.ops.attn import seen_rows
from regraft.ir.ops.fits import Statistic
from regraft.ir.ops.weight import WeightOp
from regraft.ir.types import MemoryType, TensorType, Type

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.ir.graph import Graph
    from regraft.ir.interpret import Rows, Run

FLOOR = 1e-9  # of second moments, in units of their mean diagonal: directions that the text never shows stay in order


@op("weight.head_moment")
class HeadMoment(Statistic):
    """Return ``E[x xᵀ]`` of each head over the calibration text's tokens, in float64.

    Example:
        %c = weight.head_moment %q {heads = 8, width = 16} : f64[8, 16, 16]
    """

    x = operand("*", dtype="float")
    out = result()
    heads = attribute(INT)
    width = attribute(INT)

    def verify(self, dim: Dims) -> None:
        if self.x.is_weight or self.x.tensor.shape != (B, T, self.heads, self.width):
            problem = f"{self.x.type} for {self.heads} heads of {self.width} channels"
            raise OpRuleError(op=self.label, problem=problem, fix="a run-time value [B, T, heads, width]")

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        return (TensorType("f64", (self.heads, self.width, self.width)),)

    def batch_sum(self, run: Run, *values: Tensor) -> Tensor:
        import torch

        (x,) = (value.double() for value in values)
        return torch.einsum("bthd,bthe->hde", x, x)


class AttentionStatistic(Statistic):
    """A statistic of how queries share their attention among rows, in the memory of the graph as it was lifted."""

    q = operand("*", dtype="float")
    out = result()
    source = attribute(STR)
    groups = attribute(INTS)
    kv_heads = attribute(INT)
    scale = defaulted(FLOAT, 1.0)
    window = optional(INT)
    first = defaulted(INT, 0)
    softcap = optional(FLOAT)

    def verify(self, dim: Dims) -> None:
        shape = self.q.type.shape if isinstance(self.q.type, TensorType) else ()
        inside = all(0 <= group < self.kv_heads for group in self.groups)
        if self.groups and not inside:
            problem = f"groups {list(self.groups)} of {self.kv_heads} KV heads"
            raise OpRuleError(op=self.label, problem=problem, fix="a KV head for each query head")
        if self.q.is_weight or len(shape) != 4 or shape[:3] != (B, T, len(self.groups)):
            problem = f"{self.q.type} for {len(self.groups)} heads"
            raise OpRuleError(op=self.label, problem=problem, fix="run-time queries [B, T, heads, width]")

    def edges(self, original: Graph) -> list[Value]:
        return [self.q, original[self.source]]

    def misfit(self, original: Graph) -> str:
        """Return why the memory of the graph as it was lifted is not the one that is meant, or nothing."""
        if self.source not in original:
            return "does not exist"
        type = original[self.source].type
        if not isinstance(type, MemoryType) or {field.name for field in type.fields} != {"k", "v"}:
            return "is no memory of keys and values"
        heads, keys = type.field("k").shape
        if (heads, keys) != (self.kv_heads, self.q.tensor.shape[-1]):
            return f"has {heads} KV heads of {keys} channels"
        return ""

    def shares(self, run: Run, q: Tensor, rows: Rows) -> Iterator[tuple[int, int, int, Tensor]]:
        """Yield the number of each sequence and query head, its KV head, and its shares of the rows ``[T, S]``."""
        import torch

        seen = seen_rows(run, rows)
        if self.window is not None:
            near = run.pos[:, :, None] - rows.pos[:, None, :] < self.window
            seen = seen & (near | (rows.pos[:, None, :] < self.first))
        keys = run.wide(rows.fields["k"]).transpose(1, 2)
        for number, query in enumerate(run.wide(q).transpose(1, 2)):
            for head, group in enumerate(self.groups):
                scores = query[head] @ keys[number, group].T * self.scale
                if self.softcap is not None:
                    scores = torch.tanh(scores / self.softcap) * self.softcap
                shares = torch.softmax(scores.masked_fill(~seen[number], -torch.inf), -1)
                yield number, head, group, shares.nan_to_num(0.0)


@op("weight.attention_spread")
class AttentionSpread(AttentionStatistic):
    """Return what errors of keys and values come to, by query head: ``E Σ_s p² d dᵀ``, over rows ``s`` and tokens.

    ``p`` is a query's share of a row, and ``d`` the row's value less what the query gets, then a one. A small error
    ``e`` of a row's score moves a query's result by ``p e d``, one of its value by ``p`` times itself; errors of
    different rows are taken as independent. The memory is that of the graph as it was lifted; a sink is left out.

    Example:
        %c = weight.attention_spread %q {source = "m", groups = [0, 1], kv_heads = 2, width = 7} : f64[2, 8, 8]
    """

    width = attribute(INT)

    def verify(self, dim: Dims) -> None:
        super().verify(dim)
        if self.width < 1:
            raise OpRuleError(op=self.label, problem=f"values of {self.width} channels", fix="one at least")

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        return (TensorType("f64", (len(self.groups), self.width + 1, self.width + 1)),)

    def misfit(self, original: Graph) -> str:
        misfit = super().misfit(original)
        found = 0 if misfit else original[self.source].memory.field("v").shape[1]
        return misfit or ("" if found == self.width else f"has values of {found} channels")

    def batch_sum(self, run: Run, *values: Any, **options: Any) -> Tensor:
        import torch

        q, rows = values
        v = run.wide(rows.fields["v"]).transpose(1, 2)
        total = torch.zeros(len(self.groups), self.width + 1, self.width + 1, dtype=torch.float64)
        for number, head, group, shares in self.shares(run, q, rows):
            total[head] += self._spread(shares, v[number, group])
        return total

    def _spread(self, shares: Tensor, values: Tensor) -> Tensor:
        """Return a head's sum over the queries of one sequence; shares are ``[T, S]``."""
        import torch

        squared = shares.square()
        got, mixed, mass = shares @ values, squared @ values, squared.sum(1)
        cross = (mixed.T @ got).double()
        both = (values.T * squared.sum(0)) @ values + (got.T * mass) @ got
        plain = both.double() - cross - cross.T
        edge = (mixed - mass[:, None] * got).sum(0).double()[:, None]
        return torch.cat((torch.cat((plain, edge), 1), torch.cat((edge.T, mass.double().sum().view(1, 1)), 1)))


@op("weight.head_costs")
class HeadCosts(WeightOp):
    """Return what an error of a score costs, by query head: how far it moves the output behind its projection.

    ``spread`` is that of `weight.attention_spread`, ``output`` the projection: ``tr(O_h C_h O_hᵀ)``.

    Example:
        %c = weight.head_costs %s, %o : f64[4]
    """

    spread = operand("H E E", dtype="f64")
    output = operand("M J", dtype="float")
    out = result("H", dtype="spread")

    def verify(self, dim: Dims) -> None:
        heads, channels, joined = dim.size("H"), dim.size("E"), dim.size("J")
        if joined != heads * (channels - 1):
            problem = f"an output of {joined} channels for {heads} heads, a spread of {channels}"
            raise OpRuleError(op=self.label, problem=problem, fix="a spread of a value's channels, and one")

    def reference(self, run: Run, spread: Tensor, output: Tensor) -> Tensor:
        return head_costs(spread, output)


def head_costs(spread: Tensor, output: Tensor) -> Tensor:
    """Return what an error of a score costs by query head ``[Hq]``, given its spread and the output projection."""
    import torch

    rows = output.double().unflatten(1, (len(spread), -1))
    return torch.einsum("mhd,hde,mhe->h", rows, spread[:, :-1, :-1], rows)


@op("weight.latent_metric")
class LatentMetric(WeightOp):
    """Say what errors of keys and values cost a reader: a quadratic form over both, keys first, by KV head.

    ``queries`` are the reader's ``E[q qᵀ]`` by head and ``output`` its output projection. A key's error costs what it
    moves the scores of the query heads that read it, ``scale² E[q qᵀ]``; over the ``channels`` that a rotation turns,
    where relative positions mix a pair's channels and different frequencies, that is the mean energy of each pair. A
    value's error costs what it moves the output: ``Σ O_hᵀ O_h``. ``groups`` are the query heads' KV heads.
    ``key_gains`` and ``value_gains`` are ``E[s sᵀ]`` of what multiplies a head's keys or values once they are rebuilt.

    With a ``spread``, of `weight.attention_spread`, both are what they move the output: scores by how far the values
    that a head chooses among lie apart behind its projection, values by how few of them a query takes.

    Source: specs/passes_math.md, section 4.3; the spread is the first order of the output in both errors.

    Example:
        %m = weight.latent_metric %q, %o {groups = [0, 0, 1, 1], scale = 0.25, kv_heads = 2} : f64[64, 64]
    """

    queries = operand("H D D", dtype="f64")
    output = operand("M J", dtype="float")
    key_gains = optional_operand("G G", dtype="f64")
    value_gains = optional_operand("G G", dtype="f64")
    spread = optional_operand("H E E", dtype="f64")
    out = result()
    groups = attribute(INTS)
    scale = attribute(FLOAT)
    kv_heads = attribute(INT)
    channels = defaulted(INT, 0)
    layout = defaulted(STR, "halves", choices=("halves", "interleaved"))

    def verify(self, dim: Dims) -> None:
        heads, width, joined = dim.size("H"), dim.size("D"), dim.size("J")
        problem = fix = ""
        if len(self.groups) != heads or not all(0 <= group < self.kv_heads for group in self.groups):
            problem = f"groups {list(self.groups)} of {heads} heads, {self.kv_heads} KV heads"
            fix = "a KV head for each query head"
        elif joined % heads:
            problem, fix = f"an output of {joined} channels for {heads} heads", "as many channels for each head"
        elif self.channels % 2 or not 0 <= self.channels <= width:
            problem, fix = f"{self.channels} channels of {width} turn", f"an even number up to {width}"
        elif (self.key_gains or self.value_gains) and dim.size("G") != self.kv_heads:
            problem, fix = f"gains of {dim.size('G')} heads", f"one for each of {self.kv_heads} KV heads"
        elif self.spread is not None and dim.size("E") != joined // heads + 1:
            problem, fix = f"a spread of {dim.size('E')} channels", f"{joined // heads} of a value, and one"
        if problem:
            raise OpRuleError(op=self.label, problem=problem, fix=fix)

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        size = self.kv_heads * (dim.size("D") + dim.size("J") // dim.size("H"))
        return (TensorType("f64", (size, size)),)

    def reference(
        self,
        run: Run,
        queries: Tensor,
        output: Tensor,
        key_gains: Tensor | None = None,
        value_gains: Tensor | None = None,
        spread: Tensor | None = None,
    ) -> Tensor:
        import torch

        rows = output.double().unflatten(1, (len(queries), -1))
        by_key = torch.zeros(self.kv_heads, *queries.shape[1:], dtype=torch.float64)
        by_value = torch.zeros(self.kv_heads, rows.shape[2], rows.shape[2], dtype=torch.float64)
        costs = None if spread is None else head_costs(spread, output)
        for head, group in enumerate(self.groups):
            back = rows[:, head].T @ rows[:, head]
            apart = 1.0 if costs is None else costs[head]
            by_key[group] += apart * self.scale * self.scale * self._turned(queries[head])
            by_value[group] += back if spread is None else spread[head, -1, -1] * back
        return torch.block_diag(*_gained(by_key, key_gains), *_gained(by_value, value_gains))

    def _turned(self, q: Tensor) -> Tensor:
        """Return a head's ``E[q qᵀ]`` as keys at all relative positions see it."""
        import torch

        real, imaginary = pairs(self.channels, self.layout)
        energy = q.diagonal().clone()
        mean = (energy[real] + energy[imaginary]) / 2
        energy[real], energy[imaginary] = mean, mean
        still = torch.ones(len(q), dtype=torch.bool)
        still[real + imaginary] = False
        return torch.where(still[:, None] & still, q, torch.diag(energy))


def _gained(blocks: Tensor, gains: Tensor | None) -> Tensor:
    """Return each KV head's block times what multiplies the head, on average."""
    return blocks if gains is None else blocks * gains.diagonal()[:, None, None]


def pairs(channels: int, layout: str) -> tuple[list[int], list[int]]:
    """Return the channels of each frequency's pair: the real parts, and the imaginary ones."""
    half = channels // 2
    if layout == "halves":
        return list(range(half)), list(range(half, 2 * half))
    return list(range(0, 2 * half, 2)), list(range(1, 2 * half, 2))


@op("weight.latent")
class Latent(WeightOp):
    """Fit the map from rows to a latent of ``rank`` numbers that keeps most of the targets, in a metric.

    With targets ``W``, ``gram`` ``C = E[z zᵀ]`` (without it the identity: the weights alone decide) and a ``metric``
    ``S Sᵀ`` (without it the identity), the latent is the projection on the first eigenvectors of ``Sᵀ W C Wᵀ S``.
    The first ``keys`` targets are weighed ``balance`` times as much as the others; without ``balance`` so that both
    cost the same in all. Rows are scaled so that the latent's mean square is one.

    Source: specs/passes_math.md, equation (5).

    Example:
        %a = weight.latent %w, gram=%c, metric=%m {rank = 8, keys = 32, balance = 1.0} : f64[8, 128]
    """

    targets = operand("Y Z", dtype="float")
    gram = optional_operand("Z Z", dtype="f64")
    metric = optional_operand("Y Y", dtype="f64")
    out = result()
    rank = attribute(INT)
    keys = attribute(INT)
    balance = optional(FLOAT)

    def verify(self, dim: Dims) -> None:
        most = min(dim.size("Y"), dim.size("Z"))
        if not 0 < self.rank <= most:
            raise OpRuleError(op=self.label, problem=f"rank {self.rank}", fix=f"a rank from 1 to {most}")
        if not 0 < self.keys <= dim.size("Y") or (self.balance is not None and self.balance <= 0):
            problem = f"{self.keys} keys of {dim.size('Y')} targets, balance {self.balance}"
            raise OpRuleError(op=self.label, problem=problem, fix="keys among the targets, balance above 0")

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        return (TensorType("f64", (self.rank, dim.size("Z"))),)

    def reference(self, run: Run, targets: Tensor, gram: Tensor | None = None, metric: Tensor | None = None) -> Tensor:
        weighed, values, vectors = self.spectrum(targets, gram, metric)
        rows = vectors[:, : self.rank].T @ weighed
        size = float(values[: self.rank].mean().clamp(min=0))
        return rows / size**0.5 if size > 0 else rows

    def spectrum(
        self, targets: Tensor, gram: Tensor | None = None, metric: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``Sᵀ W``, and the eigenvalues and eigenvectors of ``Sᵀ W C Wᵀ S``, largest first."""
        import torch

        weighed = targets.double()
        if metric is not None:
            weighed = root(metric) @ weighed
        energy = (weighed * (weighed if gram is None else weighed @ floored(gram))).sum(1)
        balance = self.balance
        if balance is None:
            of_keys, of_values = float(energy[: self.keys].sum()), float(energy[self.keys :].sum())
            balance = (of_values / of_keys) ** 0.5 if of_keys > 0 and of_values > 0 else 1.0
        weighed = torch.cat((weighed[: self.keys] * balance, weighed[self.keys :]))
        square = weighed @ weighed.T if gram is None else weighed @ floored(gram) @ weighed.T
        values, vectors = eigen(square)
        return weighed, values, vectors


@op("weight.recover")
class Recover(WeightOp):
    """Fit the map back: ``U`` minimises ``E|W z - U down z|²``, for the targets ``W`` and the latent of ``down``.

    ``gram`` is ``E[z zᵀ]``, the identity where there is none. Exact where the rows of ``W`` are made of those of
    ``down``. The optimum is the same in every metric.

    Example:
        %u = weight.recover %w, %a, gram=%c : f64[64, 8]
    """

    targets = operand("Y Z", dtype="float")
    down = operand("R Z", dtype="float")
    gram = optional_operand("Z Z", dtype="f64")
    out = result()

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        return (TensorType("f64", (dim.size("Y"), dim.size("R"))),)

    def reference(self, run: Run, targets: Tensor, down: Tensor, gram: Tensor | None = None) -> Tensor:
        import torch

        rows = down.double()
        spread = rows if gram is None else rows @ floored(gram)
        inverse = torch.linalg.pinv(spread @ rows.T, hermitian=True)
        return targets.double() @ spread.T @ inverse


def floored(gram: Tensor) -> Tensor:
    """Return second moments with a trace of the identity added."""
    import torch

    amount = FLOOR * float(gram.trace()) / len(gram)
    return gram + (amount or 1.0) * torch.eye(len(gram), dtype=gram.dtype)


def eigen(square: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues and eigenvectors of a symmetric or Hermitian matrix, the largest first."""
    import torch

    values, vectors = torch.linalg.eigh((square + square.mH) / 2)
    return values.flip(0), vectors.flip(1)


def root(square: Tensor) -> Tensor:
    """Return the symmetric root of a positive semi-definite matrix."""
    values, vectors = eigen(square)
    return vectors @ (values.clamp(min=0).sqrt()[:, None] * vectors.T)


def spread_ranks(
    spectra: Sequence[Sequence[float]], total: int, least: int, most: Sequence[int], step: int
) -> list[int]:
    """Return a rank for each layer that sum up to ``total`` at most, ``step`` more at a time to where it helps most.

    A step helps by the share of the layer's whole spectrum that it adds. ``least`` is each layer's smallest rank.

    Source: specs/passes_math.md, section 4.8.
    """
    ranks = [min(least, top) for top in most]
    sums = [sum(max(value, 0.0) for value in spectrum) or 1.0 for spectrum in spectra]
    while True:
        left = total - sum(ranks)
        open_layers = [i for i, rank in enumerate(ranks) if rank < most[i] and min(step, most[i] - rank) <= left]
        if not open_layers:
            return ranks

        def gain(i: int) -> float:
            return sum(max(value, 0.0) for value in spectra[i][ranks[i] : ranks[i] + step]) / sums[i]

        best = max(open_layers, key=lambda i: (gain(i), -ranks[i], -i))
        ranks[best] = min(ranks[best] + step, most[best])
