"""``pos``: rotary position embeddings."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from regraft.ir.attributes import BOOL, FLOAT, FLOATS, INT, STR
from regraft.ir.errors.graph import OpRuleError
from regraft.ir.op import Dims, Op, attribute, defaulted, op, operand, optional, result

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.ir.interpret import Run


@op("pos.rope")
class Rope(Op):
    """Rotate pairs of channels by the position times a frequency.

    The first ``channels`` of the last axis turn, the rest pass. Pair ``i`` is ``(i, i + channels/2)`` in the ``halves``
    layout and ``(2i, 2i + 1)`` in the ``interleaved`` one. Frequencies are ``base ** (-2i / channels)``, then scaled:
    ``linear`` divides by ``factor``; ``llama3`` and ``yarn`` as specs/relatives.md, section 0, has them; ``longrope``
    divides each pair's by its own of ``factors`` (Ding et al. 2024, "LongRoPE"). ``amplitude`` multiplies cosine and
    sine. With ``pairs`` only the first so many turn; the others have frequency 0. ``inverse`` turns the other way.
    ``offset`` is added to the position: to the middle of the tokens that a row is made of.

    Example:
        %qr = pos.rope %q, %pos {base = 10000.0, channels = 16} : bf16[B, T, 8, 16]
    """

    x = operand("B T H D", dtype="float")
    pos = operand("B T", dtype="int")
    out = result("B T H D", dtype="x")
    base = attribute(FLOAT)
    channels = attribute(INT)
    layout = defaulted(STR, "halves", choices=("halves", "interleaved"))
    scaling = defaulted(STR, "none", choices=("none", "linear", "llama3", "yarn", "longrope"))
    factor = defaulted(FLOAT, 1.0)
    original = optional(INT)
    low = defaulted(FLOAT, 1.0)
    high = defaulted(FLOAT, 4.0)
    truncate = defaulted(BOOL, True)
    amplitude = defaulted(FLOAT, 1.0)
    pairs = optional(INT)
    factors = optional(FLOATS)
    inverse = defaulted(BOOL, False)
    offset = defaulted(FLOAT, 0.0)

    def verify(self, dim: Dims) -> None:
        width = dim.size("D")
        if self.channels % 2 or not 0 < self.channels <= width:
            raise OpRuleError(
                op=self.label,
                problem=f"{self.channels} channels of {width} rotate",
                fix=f"an even number from 2 to {width}",
            )
        if self.base <= 1 or self.factor <= 0 or self.amplitude <= 0:
            problem = f"base {self.base}, factor {self.factor}, amplitude {self.amplitude}"
            raise OpRuleError(op=self.label, problem=problem, fix="base must exceed 1, the others 0")
        if self.pairs is not None and not 0 < self.pairs <= self.channels // 2:
            problem = f"{self.pairs} pairs of {self.channels // 2} turn"
            raise OpRuleError(op=self.label, problem=problem, fix=f"a number from 1 to {self.channels // 2}")
        if self.scaling in ("llama3", "yarn"):
            self._verify_scaling()
        wanted = self.channels // 2 if self.scaling == "longrope" else 0
        if len(self.factors or ()) != wanted or min(self.factors or (1.0,)) <= 0:
            problem = f"{len(self.factors or ())} factors under scaling {self.scaling}"
            raise OpRuleError(op=self.label, problem=problem, fix=f"{wanted} numbers above 0")

    def _verify_scaling(self) -> None:
        if self.original is None or self.original < 1:
            raise OpRuleError(
                op=self.label, problem=f"{self.scaling} without the original context", fix="give original"
            )
        if not 0 < self.low < self.high:
            raise OpRuleError(op=self.label, problem=f"low {self.low}, high {self.high}", fix="0 < low < high")

    def frequencies(self) -> Tensor:
        """Return the angle a position adds to each pair, float32 ``[channels / 2]``, computed as transformers does."""
        import torch

        exponents = torch.arange(0, self.channels, 2, dtype=torch.int64).to(torch.float32) / self.channels
        if self.factors is not None:
            return 1.0 / (torch.tensor(self.factors) * self.base**exponents)
        plain = 1.0 / (self.base**exponents)
        if self.pairs is not None:
            plain[self.pairs :] = 0.0
        if self.scaling == "linear":
            return plain / self.factor
        if self.scaling == "llama3":
            return self._llama3(plain)
        if self.scaling == "yarn":
            return self._yarn(plain)
        return plain

    def _llama3(self, plain: Tensor) -> Tensor:
        import torch

        assert self.original is not None
        wavelength = 2 * math.pi / plain
        smooth = (self.original / wavelength - self.low) / (self.high - self.low)
        blend = (1 - smooth) * plain / self.factor + smooth * plain
        slow, fast = wavelength > self.original / self.low, wavelength < self.original / self.high
        return torch.where(slow, plain / self.factor, torch.where(fast, plain, blend))

    def _yarn(self, plain: Tensor) -> Tensor:
        import torch

        assert self.original is not None
        channels, original = self.channels, self.original

        def turns(n: float) -> float:  # the pair that turns n times over the original context
            return channels * math.log(original / (n * 2 * math.pi)) / (2 * math.log(self.base))

        first, last = turns(self.high), turns(self.low)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, channels - 1)
        span = last - first if last != first else 0.001
        ramp = ((torch.arange(channels // 2, dtype=torch.float32) - first) / span).clamp(0, 1)
        return plain / self.factor * ramp + plain * (1 - ramp)

    def reference(self, run: Run, x: Tensor, pos: Tensor) -> Tensor:
        angle = (run.wide(pos.float()) + self.offset)[..., None] * self.frequencies().to(run.wide(x))
        cos = (angle.cos() * self.amplitude).to(x.dtype)[..., None, :]
        sin = (angle.sin() * self.amplitude).to(x.dtype)[..., None, :]
        return rotate(x, cos, -sin if self.inverse else sin, self.channels, self.layout)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, channels: int, layout: str) -> Tensor:
    """Rotate the first ``channels`` of ``x [B, T, H, D]``; ``cos`` and ``sin`` are ``[B, T, 1, channels / 2]``."""
    import torch

    turning, passing = x[..., :channels], x[..., channels:]
    if layout == "halves":
        a, b = turning.chunk(2, -1)
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
    else:
        a, b = turning[..., 0::2], turning[..., 1::2]
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    return torch.cat((turned, passing), -1) if passing.shape[-1] else turned
