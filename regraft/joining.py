"""Tensors that a stock checkpoint holds joined head by head, and a rewritten graph apart."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from regraft.ir.graph import Graph
from regraft.ir.op import Value
from regraft.ir.ops.quantized import SliceEach
from regraft.ir.ops.weight import Load
from regraft.ir.source import Bytes, Sink, Source, TensorInfo


@dataclass(frozen=True)
class Join:
    """A tensor of which each of ``parts`` equal parts, such as heads, holds rows of several others, in order."""

    names: tuple[str, ...]
    parts: int


def joins_of(graph: Graph) -> dict[str, Join]:
    """Return the tensors that a graph takes apart by rows of equal parts, whole and without a gap, by name."""
    cuts: dict[Value, list[tuple[SliceEach, str]]] = {}
    for parameter in graph.parameters():
        op = parameter.op
        if isinstance(op, SliceEach) and isinstance(op.x.op, Load):
            cuts.setdefault(op.x, []).append((op, parameter.name))
    found: dict[str, Join] = {}
    for whole, some in cuts.items():
        some.sort(key=lambda cut: cut[0].start)
        ends = [0, *(op.stop for op, _ in some)]
        parts = {op.parts for op, _ in some}
        rows = whole.tensor.sizes[0]
        if len(parts) == 1 and [op.start for op, _ in some] == ends[:-1] and ends[-1] * min(parts) == rows:
            found[whole.name] = Join(tuple(name for _, name in some), min(parts))
    return found


def joined_tensors(infos: Sequence[TensorInfo], joins: Mapping[str, Join]) -> list[TensorInfo]:
    """Return what is written, given what a graph has: a joined tensor in the place of its first part."""
    by_name = {info.name: info for info in infos}
    first = {join.names[0]: name for name, join in joins.items()}
    others = {name for join in joins.values() for name in join.names[1:]}
    found: list[TensorInfo] = []
    for info in infos:
        if info.name in first:
            name = first[info.name]
            rows = sum(by_name[part].shape[0] for part in joins[name].names)
            found.append(TensorInfo(name, info.dtype, (rows, *info.shape[1:])))
        elif info.name not in others:
            found.append(info)
    return found


class JoiningSink:
    """Takes parts, and delivers what they make up to another sink when all of them are there."""

    def __init__(self, sink: Sink, joins: Mapping[str, Join]) -> None:
        self.sink, self.joins = sink, joins
        self._whole = {part: name for name, join in joins.items() for part in join.names}
        self._parts: dict[str, Bytes] = {}
        self._lock = threading.Lock()

    def pending(self) -> Sequence[str]:
        """Return the names still to be delivered, in the order in which writing is fastest."""
        return [
            part
            for name in self.sink.pending()
            for part in (self.joins[name].names if name in self.joins else (name,))
            if part not in self._parts
        ]

    def write(self, name: str, data: Bytes) -> None:
        """Deliver a tensor's bytes, row-major and little-endian."""
        whole = self._whole.get(name)
        if whole is None:
            self.sink.write(name, data)
            return
        join = self.joins[whole]
        with self._lock:
            self._parts[name] = data
            if any(part not in self._parts for part in join.names):
                return
            views = [memoryview(self._parts.pop(part)).cast("B") for part in join.names]
        sizes = [len(view) // join.parts for view in views]
        made = bytearray()
        for number in range(join.parts):
            for view, size in zip(views, sizes, strict=True):
                made += view[number * size : (number + 1) * size]
        self.sink.write(whole, made)

    def copy(self, name: str, source: Source, original: str) -> None:
        """Deliver the bytes of the tensor ``original`` of ``source``."""
        if name in self._whole:
            self.write(name, source.raw(original))
        else:
            self.sink.copy(name, source, original)
