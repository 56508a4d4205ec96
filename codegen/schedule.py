"""What a step of a program launches and moves, told from what was written, not measured."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from regraft.codegen.kernels.kernel import Kernel, Moved
from regraft.codegen.kernels.tables import Tiles
from regraft.codegen.torch.body import Body
from regraft.codegen.triton.target import StepBody, StepTarget, TritonTarget
from regraft.ir.cost import call_sizes
from regraft.ir.dims import Sizes
from regraft.ir.graph import Graph
from regraft.ir.op import Op
from regraft.ir.types import ITEM_BITS, TensorType


@dataclass(frozen=True)
class Line:
    """A kernel, or an op that has none and is left to PyTorch.

    Attributes:
        name: The kernel's function, or the op's name and that of its result.
        fused: Whether it is a kernel.
        moved: What one call moves and launches; of an op of PyTorch one launch is counted.
    """

    name: str
    fused: bool
    moved: Moved


@dataclass(frozen=True)
class Part:
    """Layers that are alike, or what stands around the layers.

    Attributes:
        name: The class.
        layers: Its layers' numbers; none around the layers.
        lines: What each of them runs, in order.
    """

    name: str
    layers: tuple[int, ...]
    lines: tuple[Line, ...]

    @property
    def each(self) -> Moved:
        """What one layer moves."""
        return total(line.moved for line in self.lines)


@dataclass(frozen=True)
class Schedule:
    """A step of one token for each sequence.

    Attributes:
        batch: Sequences.
        context: Tokens of each after the step.
        parts: The layers by class, then what stands around them.
    """

    batch: int
    context: int
    parts: tuple[Part, ...]

    @property
    def whole(self) -> Moved:
        """What a step moves."""
        return total(part.each for part in self.parts for _ in part.layers or (0,))


def total(moved: Iterable[Moved]) -> Moved:
    """Return the sum of what is moved."""
    return sum(moved, Moved(0, 0, 0, 0, 0))


def schedule(graph: Graph, fused: Graph, batch: int = 1, context: int = 4096, tiles: Tiles | None = None) -> Schedule:
    """Return what the step of a package for target ``triton`` launches and moves.

    Args:
        graph: The model.
        fused: Its step, as `fuse_decode` makes it.
        batch: Sequences.
        context: Tokens of each after the step.
        tiles: Where the kernels' tiles come from, which some leave more bytes with than others.

    Raises:
        MissingEmitterError: The target lacks an op.
        ValueError: A number is not positive.
    """
    plain = TritonTarget(graph, [], "", fused, tiles=tiles)
    plain.written()
    step = StepTarget(fused, plain)
    around = step.written()
    at = call_sizes(fused, batch, 1, context)
    item = ITEM_BITS[graph.outputs[0].tensor.dtype] // 8

    def lines(body: Body) -> tuple[Line, ...]:
        assert isinstance(body, StepBody)
        return tuple(_line(call, item, at) for call in body.launched)

    parts = [
        Part(step.classes[kind.name], kind.numbers, lines(step.blocks[kind.name].body)) for kind in step.wiring.kinds
    ]
    return Schedule(batch, context, (*parts, Part("Model", (), (*lines(around), *_decoder(batch)))))


def _decoder(batch: int) -> tuple[Line, Line]:
    """Return what an emitted ``Decoder`` does of its own: lengths grow, and the choices become the next tokens."""
    row = 8 * batch
    return (
        Line("aten.add_ lengths", False, Moved(2 * row, row, 0)),
        Line("aten.where tokens", False, Moved(2 * row + batch, row, 0)),
    )


def _line(call: Kernel | Op, item: int, at: Sizes) -> Line:
    if isinstance(call, Kernel):
        return Line(call.name, True, call.moved(item, at["B"], at["S"]))
    cost = call.cost(at)
    made = sum(v.type.nbytes(at) for v in call.results if isinstance(v.type, TensorType))
    read = cost.weights + cost.cache_read + max(cost.activations - made, 0)
    least = cost.weights + cost.cache_read + cost.cache_written
    name = f"{call.opname} {call.results[0].name}"
    return Line(name, False, Moved(read, made + cost.cache_written, least, 1, cost.flops))
