"""``weight`` ops over tensors as checkpoints pack them: quantised blocks, and heads that are interleaved."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.ir.attributes import INT, INTS, STR
from regraft.ir.errors.checkpoint import NotFiniteError
from regraft.ir.errors.graph import OpRuleError
from regraft.ir.op import Dims, Value, attribute, op, operand, result
from regraft.ir.ops.weight import WeightOp
from regraft.ir.source import torch_dtype
from regraft.ir.types import FLOATS as FLOAT_TYPES
from regraft.ir.types import TensorType, Type

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.ir.interpret import Run

_LARGEST = 448.0  # of float8 e4m3
_EXPONENTS = (-126, 127)  # of scales that are powers of two, and no subnormal float32


class Unpack(WeightOp):
    """An op that turns a quantised tensor, its codes and its scales, into numbers; they are its first operands."""

    @property
    def packed(self) -> Value:
        """The operand that holds the codes."""
        return next(iter(self.operands))

    def pack(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes and the scales of the operands' shapes and types that are nearest to ``values``.

        Args:
            values: Finite numbers of the result's shape.
        """
        raise NotImplementedError


def _power(largest: Tensor, limit: float) -> Tensor:
    """Return the exponents of the least powers of two by which ``largest`` comes within ``limit``."""
    import torch

    return torch.ceil(torch.log2(largest.double() / limit)).clamp(*_EXPONENTS)


@op("weight.dequantize")
class Dequantize(Unpack):
    """Multiply each block of the last two axes by its scale; blocks at the edges may be smaller.

    Example:
        %w = weight.dequantize %packed, %scales {block = [128, 128], dtype = "bf16"} : bf16[1536, 7168]
    """

    x = operand("... O I")
    scale = operand("... P J")
    out = result()
    block = attribute(INTS)
    dtype = attribute(STR, choices=FLOAT_TYPES)

    def verify(self, dim: Dims) -> None:
        if len(self.block) != 2 or min(self.block) < 1:
            raise OpRuleError(op=self.label, problem=f"block {list(self.block)}", fix="rows and columns of a block")
        sizes = dim.size("O"), dim.size("I")
        blocks = tuple(-(-size // side) for size, side in zip(sizes, self.block, strict=True))
        if blocks != (dim["P"], dim["J"]):
            problem = f"{self.scale.tensor} scales for {self.x.tensor} in blocks of {list(self.block)}"
            raise OpRuleError(op=self.label, problem=problem, fix=f"{blocks[0]} by {blocks[1]} scales")

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        return (TensorType(self.dtype, self.x.tensor.shape),)

    def reference(self, run: Run, x: Tensor, scale: Tensor) -> Tensor:
        rows, columns = x.shape[-2:]
        wide = scale.float().repeat_interleave(self.block[0], -2).repeat_interleave(self.block[1], -1)
        return (x.float() * wide[..., :rows, :columns]).to(torch_dtype(self.dtype))

    def pack(self, values: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        assert self.x.tensor.dtype == "f8e4m3", self
        sizes = tuple(zip(values.shape[-2:], self.block, strict=True))
        (below, rows), (right, columns) = ((-size % side, side) for size, side in sizes)
        padded = torch.nn.functional.pad(values.float(), (0, right, 0, below))
        blocks = padded.unflatten(-1, (-1, columns)).unflatten(-3, (-1, rows))
        largest = blocks.abs().amax((-3, -1)).clamp_min(torch.finfo(torch.float32).tiny)
        kept = torch_dtype(self.scale.tensor.dtype)
        scale = largest / _LARGEST if kept.itemsize > 1 else torch.exp2(_power(largest, _LARGEST)).float()
        scale = scale.to(kept)
        codes = (blocks / scale.float()[..., :, None, :, None]).flatten(-2).flatten(-3, -2)
        trimmed = codes[..., : sizes[0][0], : sizes[1][0]].clamp(-_LARGEST, _LARGEST)
        return trimmed.contiguous().to(torch.float8_e4m3fn), scale


_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # the values of a nibble without its sign


def _unpacked(codes: Tensor) -> Tensor:
    """Return the values of bytes that hold two codes each, the low one first, with a last axis twice as long."""
    import torch

    table = torch.tensor([*_FP4, *(-value for value in _FP4)], device=codes.device)
    both = torch.stack((codes & 15, codes >> 4 & 15), -1).flatten(-2)
    return table[both.long()]


def _packed(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return groups ``[..., G, 32]`` as bytes of two codes each, ``u8[..., G, 16]``, and their scales' exponents.

    A scale is the least power of two by which no value is cut.
    """
    import torch

    exponents = _power(values.abs().amax(-1).clamp_min(torch.finfo(torch.float32).tiny), _FP4[-1])
    levels = torch.tensor(_FP4)
    scaled = (values.double() / torch.exp2(exponents)[..., None]).float()
    codes = (scaled.abs()[..., None] - levels).abs().argmin(-1) + 8 * (scaled < 0)
    return (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8), exponents


@op("weight.mxfp4")
class Mxfp4(Unpack):
    """Unpack values of four bits, two in a byte, the low one first, each block times a power of two.

    A block is 16 bytes, a scale the power's exponent plus 127. Source: specs/relatives.md, section 3.

    Example:
        %w = weight.mxfp4 %blocks, %scales {dtype = "bf16"} : bf16[8, 64, 96]
    """

    blocks = operand("... G 16", dtype="u8")
    scales = operand("... G", dtype="u8")
    out = result()
    dtype = attribute(STR, choices=FLOAT_TYPES)

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        *leading, groups, _ = self.blocks.tensor.sizes
        return (TensorType(self.dtype, (*leading, 32 * groups)),)

    def reference(self, run: Run, blocks: Tensor, scales: Tensor) -> Tensor:
        import torch

        turned = torch.ldexp(_unpacked(blocks), scales[..., None].int() - 127)
        if wild := int((~turned.isfinite()).any(-1).sum()):  # 255 stands for no number
            raise NotFiniteError(tensor=self.scales.name, count=wild, total=scales.numel())
        return turned.flatten(-2).to(torch_dtype(self.dtype))

    def pack(self, values: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        codes, exponents = _packed(values.unflatten(-1, (-1, 32)))
        return codes, (exponents + 127).to(torch.uint8)


@op("weight.fp4")
class Fp4(Unpack):
    """Unpack values of four bits along the last axis, two in a byte, the low one first, each group times its scale.

    Source: specs/deepseek_v4.md, section 15.

    Example:
        %w = weight.fp4 %codes, %scales {dtype = "bf16"} : bf16[8, 64, 128]
    """

    codes = operand("... I", dtype="i8")
    scales = operand("... G", dtype="f8e8m0")
    out = result()
    dtype = attribute(STR, choices=FLOAT_TYPES)

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        width, groups = 2 * dim.size("I"), dim.size("G")
        if width % groups:
            raise OpRuleError(op=self.label, problem=f"{width} values in {groups} groups", fix="groups are equal")
        return (TensorType(self.dtype, (*self.codes.tensor.shape[:-1], width)),)

    def reference(self, run: Run, codes: Tensor, scales: Tensor) -> Tensor:
        values = _unpacked(codes).unflatten(-1, (scales.shape[-1], -1))
        return (values * scales.float()[..., None]).flatten(-2).to(torch_dtype(self.dtype))

    def pack(self, values: Tensor) -> tuple[Tensor, Tensor]:
        import torch

        groups = self.scales.tensor.sizes[-1]
        codes, exponents = _packed(values.unflatten(-1, (groups, -1)))
        return codes.flatten(-2).view(torch.int8), torch.exp2(exponents).to(torch.float8_e8m0fnu)


@op("weight.slice_each")
class SliceEach(WeightOp):
    """Take the rows from ``start`` up to ``stop`` of each of ``parts`` equal parts of the first axis, such as heads.

    Example:
        %uk = weight.slice_each %kv {parts = 16, start = 0, stop = 128} : bf16[2048, 512]
    """

    x = operand("...")
    out = result()
    parts = attribute(INT)
    start = attribute(INT)
    stop = attribute(INT)

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        sizes = self.x.tensor.sizes
        if not sizes or self.parts < 1 or sizes[0] % self.parts:
            raise OpRuleError(
                op=self.label, problem=f"{self.x.tensor} in {self.parts} parts", fix="parts must divide the first axis"
            )
        rows = sizes[0] // self.parts
        if not 0 <= self.start < self.stop <= rows:
            problem = f"rows {self.start} to {self.stop} of {rows}"
            raise OpRuleError(op=self.label, problem=problem, fix=f"0 <= start < stop <= {rows}")
        return (self.x.tensor.with_shape(self.parts * (self.stop - self.start), *sizes[1:]),)

    def reference(self, run: Run, x: Tensor) -> Tensor:
        return x.unflatten(0, (self.parts, -1))[:, self.start : self.stop].flatten(0, 1)
