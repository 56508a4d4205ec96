"""What stays quantised when a model is written, what does not, and what that costs on disk."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass

from regraft.ir.graph import Graph
from regraft.ir.op import Op, Value
from regraft.ir.ops.quantized import Unpack
from regraft.ir.ops.weight import Load, LoadEach
from regraft.ir.source import TensorInfo


@dataclass(frozen=True)
class Packing:
    """The quantised tensors of a checkpoint, and what becomes of them.

    Attributes:
        tensors: How many there are, scales not counted.
        bytes: What they take, scales included.
        kept_tensors: How many are copied as they are, with their scales.
        kept_bytes: What those take.
        dequantized: The parameters that are written as plain numbers.
        dequantized_from_bytes: What they take now.
    """

    tensors: int
    bytes: int
    kept_tensors: int
    kept_bytes: int
    dequantized: tuple[TensorInfo, ...]
    dequantized_from_bytes: int

    @property
    def dequantized_bytes(self) -> int:
        """What the dequantised ones will take on disk."""
        return sum(info.nbytes for info in self.dequantized)

    @property
    def added_bytes(self) -> int:
        """How much more the dequantised ones take on disk."""
        return self.dequantized_bytes - self.dequantized_from_bytes

    def to_json(self) -> dict[str, object]:
        """Return it as data, the dequantised parameters counted."""
        more = {"dequantized_bytes": self.dequantized_bytes, "added_bytes": self.added_bytes}
        return {**asdict(self), "dequantized": len(self.dequantized), **more}


def unpacked_by(value: Value) -> list[Op]:
    """Return the ops that dequantise what a weight is computed from, in order."""
    return [op for op in _ancestors([value]) if isinstance(op, Unpack)]


def kept_packed(graph: Graph, original: Graph) -> frozenset[str]:
    """Return the parameters of ``graph`` that can be written as they are stored: quantised, and touched by no pass.

    One is not if a tensor that it reads would have the name of another that is written.

    Args:
        graph: The rewritten graph.
        original: The graph before, over the same checkpoint.
    """
    parameters = graph.parameters()
    numbers: dict[object, int] = {}
    untouched = {_meaning(value, numbers) for value in original.parameters() if unpacked_by(value)}
    quantized = [value for value in parameters if unpacked_by(value)]
    kept = {value.name: value for value in quantized if _meaning(value, numbers) in untouched}
    while True:
        written = {value.name for value in parameters if value.name not in kept}
        clash = [name for name, value in kept.items() if written & {info.name for info in read_tensors([value])}]
        if not clash:
            return frozenset(kept)
        for name in clash:
            del kept[name]


def packing(graph: Graph, original: Graph, kept: Collection[str] = ()) -> Packing:
    """Return what writing a graph costs over leaving its checkpoint quantised.

    Args:
        graph: The graph that is written.
        original: The graph of the checkpoint as it is.
        kept: The parameters that stay quantised.
    """
    quantized = [value for value in graph.parameters() if unpacked_by(value)]
    plain = [value for value in quantized if value.name not in kept]
    tensors, size = _stored(original.parameters())
    kept_tensors, kept_size = _stored(value for value in quantized if value.name in kept)
    return Packing(
        tensors,
        size,
        kept_tensors,
        kept_size,
        tuple(TensorInfo(value.name, value.tensor.dtype, value.tensor.sizes) for value in plain),
        _stored(plain)[1],
    )


def read_tensors(values: Iterable[Value]) -> list[TensorInfo]:
    """Return the tensors of the checkpoint that weights are computed from, each once, in order."""
    found = {
        info.name: info for op in _ancestors(values) if isinstance(op, Load | LoadEach) for info in op.tensor_infos
    }
    return list(found.values())


def _stored(values: Iterable[Value]) -> tuple[int, int]:
    """Return how many quantised tensors weights are computed from, and the bytes of these and their scales."""
    unpacking = [op for op in _ancestors(values) if isinstance(op, Unpack)]
    count = len(read_tensors(op.packed for op in unpacking))
    return count, sum(info.nbytes for info in read_tensors(value for op in unpacking for value in op.operands))


def _ancestors(values: Iterable[Value]) -> list[Op]:
    """Return the weight-time ops that values come from, each once, operands first."""
    found: dict[Op, None] = {}

    def visit(op: Op) -> None:
        if op in found:
            return
        for operand in op.operands:
            if operand.op is not None and operand.op.weight_time:
                visit(operand.op)
        found[op] = None

    for value in values:
        if value.op is not None:
            visit(value.op)
    return list(found)


def _meaning(value: Value, numbers: dict[object, int]) -> object:
    """Return what two weights share just where they are computed alike from the same tensors.

    Args:
        value: The weight.
        numbers: Those of ops that were met before.
    """
    own: dict[Op, int] = {}

    def result(each: Value) -> object:
        return (own[each.op], each.op.results.index(each)) if each.op in own else each.name

    for op in _ancestors([value]):
        operands = tuple((slot, *map(result, values)) for slot, values in op.slots.items())
        facts = op.key() if isinstance(op, Load) else (type(op), tuple(op.attributes.items()))
        own[op] = numbers.setdefault((facts, operands), len(numbers))
    return result(value)
