"""What kernels launch and touch while Triton's interpreter runs them, counted address by address.

Operations of PyTorch are counted beside them, so that what a decode step launches in total is counted and not claimed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

_FREE = {  # operations that launch nothing and are no views by their schema
    "aten::empty",
    "aten::empty_like",
    "aten::empty_strided",
    "aten::new_empty",
    "aten::new_empty_strided",
    "aten::_unsafe_view",
    "aten::_reshape_alias",
    "aten::lift_fresh",
    "aten::promote_types",
    "aten::set_",
    "aten::resize_",
}


_ALIGNMENT = 16

_Method = Callable[..., Any]


class OutsideError(AssertionError):
    """A kernel touched memory that belongs to none of its arguments."""


@dataclass(frozen=True)
class Touch:
    """Distinct bytes of a tensor that a launch read and wrote."""

    read: int
    written: int


@dataclass(frozen=True)
class Launch:
    """A launch: the Triton function's name, its grid, and what it did to each tensor, by argument."""

    name: str
    grid: tuple[int, ...]
    tensors: Mapping[str, Touch]
    read: int  # of all tensors, an address that two arguments share counted once
    written: int


@dataclass
class Run:
    """What ran: Triton's launches, and the names of all launches, PyTorch's operations among them, in order."""

    launches: list[Launch] = field(default_factory=list[Launch])
    names: list[str] = field(default_factory=list[str])

    @property
    def read(self) -> int:
        """Bytes that Triton's launches read, an address once in each launch."""
        return sum(launch.read for launch in self.launches)

    @property
    def written(self) -> int:
        """Bytes that Triton's launches wrote."""
        return sum(launch.written for launch in self.launches)

    @property
    def operations(self) -> list[str]:
        """The operations of PyTorch that launch something: all that do work, views and allocations left out."""
        return [name for name in self.names if "::" in name]


@contextmanager
def touched() -> Generator[Run]:
    """Count what runs inside, under the interpreter."""
    interpreter = importlib.import_module("triton.runtime.interpreter")
    executor, builder = interpreter.GridExecutor, interpreter.InterpreterBuilder
    run = Run()
    operations = _Operations(run)
    recorder = _Recorder(run, operations)
    patches = [
        (executor, "__call__", recorder.execute),
        (builder, "create_masked_load", recorder.load),  # the other loads and stores go through these two
        (builder, "create_masked_store", recorder.store),
        (builder, "create_atomic_rmw", recorder.atomic),
        (builder, "create_atomic_cas", recorder.exchange),
    ]
    originals = [getattr(owner, name) for owner, name, _ in patches]
    try:
        for (owner, name, wrap), original in zip(patches, originals, strict=True):
            setattr(owner, name, wrap(original))
        with operations:
            yield run
    finally:
        for (owner, name, _), original in zip(patches, originals, strict=True):
            setattr(owner, name, original)


class _Recorder:
    """Wraps methods of the interpreter so that what they are called with is recorded."""

    def __init__(self, run: Run, operations: _Operations) -> None:
        self.run = run
        self.operations = operations
        self.memory = _Memory({})

    def execute(self, call: _Method) -> _Method:
        """Wrap the one that runs a grid."""

        def counted(executor: Any, *args: Any, **kwargs: Any) -> None:
            self.memory = _Memory(_tensors(executor.arg_names, args, kwargs))
            with self.operations.paused():  # those of the interpreter's own
                call(executor, *args, **kwargs)
            grid: Any = executor.grid(kwargs) if callable(executor.grid) else executor.grid
            self.run.launches.append(self.memory.launch(executor.fn.__name__, tuple(grid)))
            self.run.names.append(executor.fn.__name__)

        return counted

    def load(self, call: _Method) -> _Method:
        """Wrap a masked load."""

        def counted(builder: Any, pointers: Any, mask: Any, *rest: Any, **named: Any) -> Any:
            self.memory.touch(pointers, mask, reads=True)
            return call(builder, pointers, mask, *rest, **named)

        return counted

    def store(self, call: _Method) -> _Method:
        """Wrap a masked store."""

        def counted(builder: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
            self.memory.touch(pointers, mask, writes=True)
            return call(builder, pointers, value, mask, *rest)

        return counted

    def atomic(self, call: _Method) -> _Method:
        """Wrap an atomic operation with a mask."""

        def counted(builder: Any, operation: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
            self.memory.touch(pointers, mask, reads=True, writes=True)
            return call(builder, operation, pointers, value, mask, *rest)

        return counted

    def exchange(self, call: _Method) -> _Method:
        """Wrap a compare-and-swap."""

        def counted(builder: Any, pointers: Any, *rest: Any) -> Any:
            self.memory.touch(pointers, None, reads=True, writes=True)
            return call(builder, pointers, *rest)

        return counted


class _Memory:
    """Bytes of the tensors of a launch, each marked when it is read or written."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.spans = {name: _span(tensor) for name, tensor in tensors.items()}
        merged: list[list[int]] = []
        for start, end in sorted(span for span in self.spans.values() if span[0] < span[1]):
            if merged and start < merged[-1][1]:
                merged[-1][1] = max(end, merged[-1][1])
            else:
                merged.append([start, end])
        self.starts = np.array([start for start, _ in merged], dtype=np.uint64)
        self.ends = np.array([end for _, end in merged], dtype=np.uint64)
        self.bases = self.starts // _ALIGNMENT * _ALIGNMENT  # so that values of 2, 4, 8 bytes are marked as such
        sizes = [
            -(-int(end - base) // _ALIGNMENT) * _ALIGNMENT for base, end in zip(self.bases, self.ends, strict=True)
        ]
        self.read = [np.zeros(size, dtype=np.uint8) for size in sizes]
        self.written = [np.zeros(size, dtype=np.uint8) for size in sizes]

    def touch(self, pointers: Any, mask: Any, *, reads: bool = False, writes: bool = False) -> None:
        """Mark what an access goes to."""
        width = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        addresses = np.atleast_1d(pointers.data)
        if mask is not None:
            addresses = addresses[np.broadcast_to(np.atleast_1d(mask.data).astype(bool), addresses.shape)]
        if not addresses.size:
            return
        first, last = np.searchsorted(self.starts, [addresses.min(), addresses.max()], side="right") - 1
        owners = np.array([first])
        if first != last:  # seldom: an access goes to one tensor
            owners = np.searchsorted(self.starts, addresses, side="right") - 1
        if owners.min() < 0 or (addresses + np.uint64(width) > self.ends[owners]).any():
            raise OutsideError("a kernel touches memory that is none of its arguments'")
        for owner in np.unique(owners):
            places = (addresses[owners == owner] if owners.size == addresses.size else addresses) - self.bases[owner]
            for marks in (*([self.read] if reads else []), *([self.written] if writes else [])):
                marks[owner].view(f"u{width}")[places // np.uint64(width)] = int.from_bytes(b"\1" * width)

    def launch(self, name: str, grid: tuple[int, ...]) -> Launch:
        """Return what was marked."""
        tensors = {argument: self._within(*span) for argument, span in self.spans.items()}
        read, written = (sum(_count(part) for part in parts) for parts in (self.read, self.written))
        return Launch(name, grid, tensors, read, written)

    def _within(self, start: int, end: int) -> Touch:
        if start >= end:
            return Touch(0, 0)
        owner = int(np.searchsorted(self.starts, np.uint64(start), side="right")) - 1
        part = slice(start - int(self.bases[owner]), end - int(self.bases[owner]))
        return Touch(_count(self.read[owner][part]), _count(self.written[owner][part]))


def _count(marks: np.ndarray[Any, Any]) -> int:
    return int(np.count_nonzero(marks))


def _tensors(names: list[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return {name: value for name, value in given.items() if isinstance(value, torch.Tensor)}


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the first address of a tensor and the one after its last."""
    if not tensor.numel():
        return tensor.data_ptr(), tensor.data_ptr()
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


class _Operations(TorchDispatchMode):
    """Counts the operations of PyTorch that do work, those inside custom operations too."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        self.counts = True

    @contextmanager
    def paused(self) -> Generator[None]:
        """Count nothing meanwhile."""
        self.counts = False
        try:
            yield
        finally:
            self.counts = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given: dict[str, Any] = kwargs or {}
        if not self.counts:
            return func(*args, **given)
        name = func._schema.name
        custom = importlib.import_module("torch._library.custom_ops").OPDEFS.get(name)
        if custom is not None:
            with self:  # what it is made of counts, not its name
                return custom._init_fn(*args, **given)
        if not func.is_view and name not in _FREE:
            self.run.names.append(name)
        return func(*args, **given)
