"""Where numbers come from and where they go: protocols for tensors that are read and written one at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from regraft.ir.errors.base import nearest
from regraft.ir.errors.checkpoint import MissingTensorError
from regraft.ir.types import ITEM_BITS

if TYPE_CHECKING:
    import torch

Bytes = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What is known of a tensor before its numbers are read: name, element type (``bf16``, ...) and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def itemsize(self) -> int:
        """Bytes of one element."""
        return ITEM_BITS[self.dtype] // 8

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor, packed."""
        return math.prod(self.shape) * self.itemsize

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


class Source(Protocol):
    """Named tensors that can be read in any order and from several threads.

    Every method that takes a name raises MissingTensorError where the source does not have it; reading may raise
    NotFiniteError where the numbers are not finite.
    """

    def names(self) -> Sequence[str]:
        """Return every tensor's name, in the order in which reading is fastest."""
        ...

    def info(self, name: str) -> TensorInfo:
        """Return a tensor's element type and shape, without reading its numbers."""
        ...

    def where(self, name: str) -> str:
        """Return the place of a tensor, for messages."""
        ...

    def blocks(self, name: str) -> Iterator[memoryview]:
        """Yield a tensor's bytes in pieces, row-major and little-endian; each is valid until the next is asked for."""
        ...

    def digest(self, name: str) -> bytes:
        """Return the BLAKE3 digest of a tensor's bytes; it is at hand once the tensor has been read whole."""
        ...

    def raw(self, name: str) -> bytearray:
        """Return a copy of a tensor's bytes, row-major and little-endian."""
        ...

    def read(self, name: str) -> torch.Tensor:
        """Return a copy of a tensor."""
        ...


class Sink(Protocol):
    """Takes the tensors of a list that was agreed beforehand, in any order and from several threads."""

    def pending(self) -> Sequence[str]:
        """Return the names still to be delivered, in the order in which writing is fastest."""
        ...

    def write(self, name: str, data: Bytes) -> None:
        """Deliver a tensor's bytes, row-major and little-endian."""
        ...

    def copy(self, name: str, source: Source, original: str) -> None:
        """Deliver the bytes of the tensor ``original`` of ``source``, block by block."""
        ...


_TORCH_NAMES = {
    "f64": "float64",
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "f8e4m3": "float8_e4m3fn",
    "f8e5m2": "float8_e5m2",
    "f8e8m0": "float8_e8m0fnu",
    "i64": "int64",
    "i32": "int32",
    "i16": "int16",
    "i8": "int8",
    "u8": "uint8",
    "bool": "bool",
}


def torch_dtype(dtype: str) -> torch.dtype:
    """Return torch's object for an element type such as ``bf16``."""
    import torch

    return getattr(torch, _TORCH_NAMES[dtype])


def dtype_name(dtype: torch.dtype) -> str:
    """Return our name of one of torch's element types."""
    plain = str(dtype).removeprefix("torch.")
    return next(name for name, torch_name in _TORCH_NAMES.items() if torch_name == plain)


def to_bytes(tensor: torch.Tensor) -> Bytes:
    """Return a tensor's bytes, row-major and little-endian; no copy where it is contiguous and on the CPU."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""


def from_bytes(data: bytearray, info: TensorInfo) -> torch.Tensor:
    """Return the tensor that ``data`` holds; the tensor keeps and shares ``data``."""
    import torch

    dtype = torch_dtype(info.dtype)
    if not data:
        return torch.empty(info.shape, dtype=dtype)
    return torch.frombuffer(data, dtype=torch.uint8).view(dtype).reshape(info.shape)


class TensorSource:
    """A source over tensors that are in memory already."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], place: str = "memory") -> None:
        self._tensors = tensors
        self._place = place

    def names(self) -> Sequence[str]:
        """Return the names, in the mapping's order."""
        return list(self._tensors)

    def info(self, name: str) -> TensorInfo:
        """Return a tensor's element type and shape."""
        tensor = self._tensor(name)
        return TensorInfo(name, dtype_name(tensor.dtype), tuple(tensor.shape))

    def where(self, name: str) -> str:
        """Return the place that was given and the name."""
        return f"{self._place}: {name}"

    def blocks(self, name: str) -> Iterator[memoryview]:
        """Yield a tensor's bytes in one piece."""
        yield memoryview(to_bytes(self._tensor(name)))

    def digest(self, name: str) -> bytes:
        """Return the BLAKE3 digest of a tensor's bytes."""
        from blake3 import blake3

        return blake3(to_bytes(self._tensor(name))).digest()

    def raw(self, name: str) -> bytearray:
        """Return a copy of a tensor's bytes."""
        return bytearray(to_bytes(self._tensor(name)))

    def read(self, name: str) -> torch.Tensor:
        """Return a copy of a tensor."""
        return self._tensor(name).detach().clone()

    def _tensor(self, name: str) -> torch.Tensor:
        if name not in self._tensors:
            raise MissingTensorError(tensor=name, near=nearest(name, list(self._tensors)), where=self._place)
        return self._tensors[name]
