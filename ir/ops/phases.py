"""``weight`` ops that take rotation off most of a key's frequencies, and put what is left of it into one shared key.

Pairs of channels that turn are complex numbers, one for each frequency. Source: specs/passes_math.md, sections 4.2, 4.4
and 4.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from regraft.ir.attributes import FLOATS, INT, INTS, STR
from regraft.ir.errors.graph import OpRuleError
from regraft.ir.op import Dims, attribute, defaulted, op, operand, result
from regraft.ir.ops.latents import AttentionStatistic, eigen, pairs
from regraft.ir.ops.weight import WeightOp
from regraft.ir.types import TensorType, Type

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.ir.interpret import Run


@op("weight.attention_phases")
class AttentionPhases(AttentionStatistic):
    """Return the mean turn between a query and the rows that it attends to: ``E Σ_s p e^{i(s - t)θ}``.

    By query head and frequency, real part and imaginary part. Its square says how much of a rotation is the same
    wherever a head looks, so that a constant can stand for it. The memory is that of the graph as it was lifted.

    Example:
        %p = weight.attention_phases %q {source = "m", groups = [0, 1], kv_heads = 2, angles = [1.0]} : f64[2, 1, 2]
    """

    angles = attribute(FLOATS)

    def verify(self, dim: Dims) -> None:
        super().verify(dim)
        if not self.angles:
            raise OpRuleError(op=self.label, problem="no angles", fix="a frequency at least")

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        return (TensorType("f64", (len(self.groups), len(self.angles), 2)),)

    def batch_sum(self, run: Run, *values: Any, **options: Any) -> Tensor:
        import torch

        q, rows = values
        angles = torch.tensor(self.angles, dtype=torch.float64)
        total = torch.zeros(len(self.groups), len(self.angles), 2, dtype=torch.float64)
        for number, head, _, shares in self.shares(run, q, rows):
            turned = torch.polar(torch.ones(1, 1).double(), rows.pos[number].double()[:, None] * angles)
            back = torch.polar(torch.ones(1, 1).double(), -run.pos[number].double()[:, None] * angles)
            mixed = torch.complex(shares @ turned.real.to(shares.dtype), shares @ turned.imag.to(shares.dtype))
            total[head] += torch.view_as_real((mixed * back).sum(0))
        return total


class Turning(WeightOp):
    """An op over pairs of channels: the first ``channels`` of a head are pairs, in a layout."""

    out = result()
    channels = attribute(INT)
    layout = defaulted(STR, "halves", choices=("halves", "interleaved"))

    def verify_pairs(self, width: int, frequencies: int) -> None:
        """Refuse channels that are not as many pairs as there are frequencies."""
        if self.channels % 2 or not 0 < self.channels <= width or frequencies != self.channels // 2:
            problem = f"{frequencies} frequencies, {self.channels} channels of {width} turn"
            raise OpRuleError(op=self.label, problem=problem, fix="a frequency for each pair of channels of a head")


@op("weight.phase_maps")
class PhaseMaps(Turning):
    """Return for each head the map that multiplies the pairs of a key by its phases; other channels pass.

    Example:
        %f = weight.phase_maps %p {width = 16, channels = 8} : f64[4, 16, 16]
    """

    phases = operand("H F 2", dtype="f64")
    width = attribute(INT)

    def verify(self, dim: Dims) -> None:
        self.verify_pairs(self.width, dim.size("F"))

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        return (TensorType("f64", (dim.size("H"), self.width, self.width)),)

    def reference(self, run: Run, phases: Tensor) -> Tensor:
        import torch

        real, imaginary = pairs(self.channels, self.layout)
        found = torch.eye(self.width, dtype=torch.float64).repeat(len(phases), 1, 1)
        found[:, real, real], found[:, imaginary, imaginary] = phases[..., 0], phases[..., 0]
        found[:, real, imaginary], found[:, imaginary, real] = -phases[..., 1], phases[..., 1]
        return found


@op("weight.shared_keys")
class SharedKeys(Turning):
    """Fit the one rotated key that all heads share: the map from their keys to it, and the map back, transposed.

    ``keys`` is ``E[k kᵀ]`` of all KV heads' keys before rotation, ``queries`` each query head's ``E[q qᵀ]``, ``phases``
    its mean turns. ``kept`` names a frequency for each pair of the shared key: as often as a frequency stands there, so
    many of the first eigenvectors of its keys across KV heads are kept, weighed by what it costs not to turn them. The
    pairs of the result are halves. Source: specs/passes_math.md, sections 4.2 and 4.4.

    Example:
        %s = weight.shared_keys %k, %q, %p {groups = [0, 0, 1, 1], kept = [0, 0, 1], channels = 16} : f64[2, 6, 32]
    """

    keys = operand("K K", dtype="f64")
    queries = operand("H D D", dtype="f64")
    phases = operand("H F 2", dtype="f64")
    groups = attribute(INTS)
    kept = attribute(INTS)

    def verify(self, dim: Dims) -> None:
        width, frequencies, joined = dim.size("D"), dim.size("F"), dim.size("K")
        self.verify_pairs(width, frequencies)
        heads = joined // width
        if len(self.groups) != dim.size("H") or joined % width or not all(0 <= g < heads for g in self.groups):
            problem = f"groups {list(self.groups)} of {dim.size('H')} heads, keys of {joined} channels"
            raise OpRuleError(op=self.label, problem=problem, fix="a KV head for each query head")
        often = {frequency: self.kept.count(frequency) for frequency in self.kept}
        if not often or not all(0 <= f < frequencies and count <= heads for f, count in often.items()):
            problem = f"frequencies {list(self.kept)} of {frequencies}, {heads} KV heads"
            raise OpRuleError(op=self.label, problem=problem, fix="each at most as often as there are KV heads")

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        return (TensorType("f64", (2, 2 * len(self.kept), dim.size("K"))),)

    def reference(self, run: Run, keys: Tensor, queries: Tensor, phases: Tensor) -> Tensor:
        import torch

        weights, _, vectors = rotary_spectra(keys, queries, phases, self.groups, self.channels, self.layout)
        count, width = len(self.kept), queries.shape[1]
        real, imaginary = pairs(self.channels, self.layout)
        maps = torch.zeros(2, 2 * count, keys.shape[0] // width, width, dtype=torch.float64)
        used = dict.fromkeys(self.kept, 0)
        for place, frequency in enumerate(self.kept):
            vector, amount = vectors[frequency, :, used[frequency]], weights[:, frequency].sqrt()
            used[frequency] += 1
            a, b = real[frequency], imaginary[frequency]
            down, up = vector.conj() * amount, vector / amount
            for side, factor in ((0, down), (1, up.conj())):  # u = Σ down k, and back k = up u, which is upᵀ transposed
                maps[side, place, :, a], maps[side, place, :, b] = factor.real, -factor.imag
                maps[side, place + count, :, a], maps[side, place + count, :, b] = factor.imag, factor.real
        return maps.flatten(2)


def rotary_spectra(
    keys: Tensor, queries: Tensor, phases: Tensor, groups: tuple[int, ...], channels: int, layout: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what keeping keys turned is worth, frequency by frequency.

    Args:
        keys: ``E[k kᵀ]`` of all KV heads side by side ``[Hkv * D, Hkv * D]``.
        queries: ``E[q qᵀ]`` by query head ``[Hq, D, D]``.
        phases: Mean turns by query head and frequency ``[Hq, F, 2]``.
        groups: Each query head's KV head.
        channels: How many of a head's channels are pairs.
        layout: How they are paired.

    Returns:
        What an error of each KV head's keys costs where it is not turned ``[Hkv, F]``; for each frequency the
        eigenvalues ``[F, Hkv]`` of keys so weighed, largest first; and the eigenvectors ``[F, Hkv, Hkv]``, complex.
    """
    import torch

    width = queries.shape[1]
    heads = keys.shape[0] // width
    real, imaginary = pairs(channels, layout)
    energy = queries.diagonal(dim1=1, dim2=2).clamp(min=0)
    lost = (energy[:, real] + energy[:, imaginary]) * (1 - phases.square().sum(-1)).clamp(min=0)
    weights = torch.zeros(heads, len(real), dtype=torch.float64)
    for head, group in enumerate(groups):
        weights[group] += lost[head]
    weights += 1e-12 * weights.mean() + 1e-300
    blocks = keys.view(heads, width, heads, width)
    spectra = torch.zeros(len(real), heads, dtype=torch.float64)
    vectors = torch.zeros(len(real), heads, heads, dtype=torch.complex128)
    for frequency, (a, b) in enumerate(zip(real, imaginary, strict=True)):
        plain = blocks[:, a, :, a] + blocks[:, b, :, b]
        crossed = blocks[:, b, :, a] - blocks[:, a, :, b]
        amount = weights[:, frequency].sqrt()
        spectra[frequency], vectors[frequency] = eigen(torch.complex(plain, crossed) * amount[:, None] * amount)
    return weights, spectra, vectors
