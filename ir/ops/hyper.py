"""``hyper``: residual streams side by side, read into one and written back by maps that depend on them.

Source: specs/deepseek_v4.md, section 4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.ir.attributes import FLOAT, INT
from regraft.ir.dims import Sizes
from regraft.ir.errors.graph import OpRuleError
from regraft.ir.op import Dims, Op, attribute, op, operand, result
from regraft.ir.ops.seq import wide_dtype
from regraft.ir.types import TensorType, Type

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.ir.interpret import Run


@op("hyper.spread")
class Spread(Op):
    """Give what `hyper.write` takes to put a vector into each of ``count`` streams: nothing before, whole shares.

    Example:
        %x, %post, %comb = hyper.spread %h {count = 4}
    """

    x = operand("... M", dtype="float")
    streams = result()
    post = result()
    comb = result()
    count = attribute(INT)

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        if self.count < 1:
            raise OpRuleError(op=self.label, problem=f"{self.count} streams", fix="there is at least one stream")
        *leading, width = self.x.tensor.shape
        wide = wide_dtype(self.x.tensor.dtype)
        shares = TensorType(wide, (*leading, self.count))
        mixed = TensorType(wide, (*leading, self.count, self.count))
        return self.x.tensor.with_shape(*leading, self.count, width), shares, mixed

    def reference(self, run: Run, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        import torch

        shape = (*x.shape[:-1], self.count)
        post = run.wide(torch.ones(shape, dtype=x.dtype, device=x.device))
        return x.new_zeros(*shape, x.shape[-1]), post, post.new_zeros(*shape, self.count)


class FromStreams(Op):
    """An op whose maps come from all streams of a token: normed, flattened stream by stream, through ``fn``."""

    streams = operand("... N M", dtype="float")
    fn = operand("P W", dtype="float")
    base = operand("P", dtype="float")
    eps = attribute(FLOAT)
    floor = attribute(FLOAT)

    def maps_of(self, dim: Dims) -> int:
        """Return how many numbers a token's maps hold."""
        raise NotImplementedError

    def verify(self, dim: Dims) -> None:
        streams, width, rows = dim.size("N"), dim.size("M"), self.maps_of(dim)
        if (dim["P"], dim["W"]) != (rows, streams * width):
            problem = f"a map of {dim['P']} by {dim['W']} from {streams} streams of {width}"
            raise OpRuleError(op=self.label, problem=problem, fix=f"{rows} by {streams * width}")
        if self.eps <= 0 or self.floor < 0:
            problem = f"eps is {self.eps}, floor {self.floor}"
            raise OpRuleError(op=self.label, problem=problem, fix="eps must be positive, floor not negative")

    def flops(self, at: Sizes) -> int:
        rows, width = self.fn.tensor.sizes
        return 2 * rows * (self.streams.tensor.elements(at) // width) * width

    def projected(self, run: Run, streams: Tensor, fn: Tensor) -> Tensor:
        """Return the maps' numbers ``[..., P]``, before scale and base."""
        import torch

        flat = run.wide(streams).flatten(-2)
        flat = flat * torch.rsqrt(flat.square().mean(-1, keepdim=True) + self.eps)
        return torch.nn.functional.linear(flat, fn.to(flat.dtype))


@op("hyper.read")
class Read(FromStreams):
    """Collapse the streams into one input, and give the maps to write its result back.

    ``post`` is each stream's share of the result; ``comb`` says how much of stream ``j`` goes on in stream ``k``, a
    softmax over ``k`` whose columns and rows are then normalised in turn, ``iterations`` times the columns. ``floor``
    is added to shares and sums; ``scale`` has a factor for each of the three maps.

    Example:
        %u, %post, %comb = hyper.read %x, %fn, %base, %scale {eps = 1e-06, floor = 1e-06, iterations = 20}
    """

    scale = operand("3", dtype="float")
    out = result()
    post = result()
    comb = result()
    iterations = attribute(INT)

    def maps_of(self, dim: Dims) -> int:
        return (2 + dim.size("N")) * dim.size("N")

    def verify(self, dim: Dims) -> None:
        super().verify(dim)
        if self.iterations < 1:
            raise OpRuleError(op=self.label, problem=f"{self.iterations} iterations", fix="at least one")

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        leading, streams = self.streams.tensor.shape[:-2], dim.size("N")
        out = self.streams.tensor.with_shape(*leading, dim.size("M"))
        wide = wide_dtype(self.streams.tensor.dtype)
        return out, TensorType(wide, (*leading, streams)), TensorType(wide, (*leading, streams, streams))

    def reference(
        self, run: Run, streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        import torch

        count = streams.shape[-2]
        sizes = [count, count, count * count]
        parts = self.projected(run, streams, fn).split(sizes, -1)
        bases, factors = run.wide(base).split(sizes), run.wide(scale)
        pre, post, comb = (part * factors[i] + bases[i] for i, part in enumerate(parts))
        pre, post = torch.sigmoid(pre) + self.floor, 2 * torch.sigmoid(post)
        comb = torch.softmax(comb.unflatten(-1, (count, count)), -1) + self.floor
        comb = comb / (comb.sum(-2, keepdim=True) + self.floor)
        for _ in range(self.iterations - 1):
            comb = comb / (comb.sum(-1, keepdim=True) + self.floor)
            comb = comb / (comb.sum(-2, keepdim=True) + self.floor)
        return (pre[..., None] * streams).sum(-2).to(streams.dtype), post, comb


@op("hyper.write")
class Write(Op):
    """Mix the streams by ``comb``, stream ``j`` into ``k``, and add ``post`` times a result to each.

    Example:
        %y = hyper.write %x, %out, %post, %comb : bf16[B, T, 4, 64]
    """

    streams = operand("... N M", dtype="float")
    added = operand("... M", dtype="streams")
    post = operand("... N", dtype="float")
    comb = operand("... N N", dtype="post")
    out = result("... N M", dtype="streams")

    def reference(self, run: Run, streams: Tensor, added: Tensor, post: Tensor, comb: Tensor) -> Tensor:
        post, comb = post.to(streams.dtype), comb.to(streams.dtype)
        return post[..., None] * added[..., None, :] + comb.transpose(-1, -2) @ streams


@op("hyper.collapse")
class Collapse(FromStreams):
    """Collapse the streams into one, each by a sigmoid gate; after the last layer.

    Example:
        %h = hyper.collapse %x, %fn, %base, %scale {eps = 1e-06, floor = 1e-06} : bf16[B, T, 64]
    """

    scale = operand("1", dtype="float")
    out = result("... M", dtype="streams")

    def maps_of(self, dim: Dims) -> int:
        return dim.size("N")

    def reference(self, run: Run, streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor) -> Tensor:
        import torch

        gates = torch.sigmoid(self.projected(run, streams, fn) * run.wide(scale) + run.wide(base)) + self.floor
        return (gates[..., None] * streams).sum(-2).to(streams.dtype)
