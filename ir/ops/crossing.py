"""The ``weight`` op of keys that one layer's heads make up of all heads' keys of another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.ir.attributes import FLOAT, INT, STR
from regraft.ir.errors.graph import OpRuleError
from regraft.ir.op import Dims, attribute, defaulted, op, operand, result
from regraft.ir.ops.fits import MOST_RIDGE, RIDGE_FIX
from regraft.ir.ops.latents import pairs
from regraft.ir.ops.weight import WeightOp
from regraft.ir.types import TensorType, Type

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from regraft.ir.interpret import Run


@op("weight.align_across")
class AlignAcross(WeightOp):
    """Fit the map from all heads' keys that are read now to those read before, as far as it passes a rotation.

    ``gram`` is ``E[n nᵀ]`` of the keys that are read now and ``cross`` ``E[n oᵀ]`` of these and those read before, all
    heads of ``width`` side by side, before rotation. The first ``channels`` of a head are pairs that turn: for each
    frequency a complex matrix ``A`` from heads to heads minimises ``E|o - A n|² + λ|A - 1|²`` over the pairs as complex
    numbers, with ``λ = 2 * ridge * tr(gram) / K``. Channels that do not turn are mapped to each other in any way, by
    the same rule with half of ``λ``.

    Source: specs/passes_math.md, sections 1 (S5) and 5, level cross.

    Example:
        %a = weight.align_across %gram, %cross {width = 16, channels = 16} : f64[16, 32]
    """

    gram = operand("K K", dtype="f64")
    cross = operand("K J", dtype="f64")
    out = result()
    width = attribute(INT)
    channels = attribute(INT)
    layout = defaulted(STR, "halves", choices=("halves", "interleaved"))
    ridge = defaulted(FLOAT, 1e-4)

    def verify(self, dim: Dims) -> None:
        joined, own = dim.size("K"), dim.size("J")
        problem = fix = ""
        if self.width < 1 or joined % self.width or own % self.width:
            problem, fix = f"heads of {self.width} channels, of {joined} and {own}", "whole heads on both sides"
        elif self.channels % 2 or not 0 <= self.channels <= self.width:
            problem, fix = f"{self.channels} channels of {self.width} turn", f"an even number from 0 to {self.width}"
        elif not 0 <= self.ridge <= MOST_RIDGE:
            problem, fix = f"ridge is {self.ridge}", RIDGE_FIX
        if problem:
            raise OpRuleError(op=self.label, problem=problem, fix=fix)

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        return (TensorType("f64", (dim.size("J"), dim.size("K"))),)

    def reference(self, run: Run, gram: Tensor, cross: Tensor) -> Tensor:
        import torch

        joined, own = cross.shape
        new, old = (torch.arange(0, size, self.width) for size in (joined, own))
        amount = 2 * self.ridge * float(gram.trace()) / joined
        found = torch.zeros(own, joined, dtype=torch.float64)
        for real, imaginary in zip(*pairs(self.channels, self.layout), strict=True):
            nr, ni, br, bi = new + real, new + imaginary, old + real, old + imaginary
            square = _block(gram, nr, nr) + _block(gram, ni, ni), _block(gram, ni, nr) - _block(gram, nr, ni)
            both = _block(cross, nr, br) + _block(cross, ni, bi), _block(cross, nr, bi) - _block(cross, ni, br)
            best = _fitted(torch.complex(*square), torch.complex(*both).T, amount)
            found[br[:, None], nr], found[bi[:, None], ni] = best.real, best.real
            found[bi[:, None], nr], found[br[:, None], ni] = best.imag, -best.imag
        still = torch.arange(self.channels, self.width)
        if len(still):
            ns, bs = ((heads[:, None] + still).flatten() for heads in (new, old))
            found[bs[:, None], ns] = _fitted(_block(gram, ns, ns), _block(cross, ns, bs).T, amount / 2)
        return found


def _block(matrix: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return matrix[rows[:, None], columns]


def _fitted(square: Tensor, both: Tensor, amount: float) -> Tensor:
    """Return ``A`` with ``A (square + amount) = both + amount``, the shortest where there are several."""
    import torch

    prior, whole = (torch.eye(rows, len(square), dtype=square.dtype) for rows in (len(both), len(square)))
    inverse: Callable[..., Tensor] = torch.linalg.pinv
    return (both + amount * prior) @ inverse(square + amount * whole, hermitian=True)
