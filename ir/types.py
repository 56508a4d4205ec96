"""Types of values: tensors and memories, and how they are spelled.

- ``bf16[B, T, 8, 16]`` is a tensor; its sequence axis is ``T`` or ``S@memory``.
- ``memory<bf16; k [4, 16], v [4, 16]; window 512>`` is what a decoder keeps between tokens, one or more tensors a row;
  ``memory<bf16; x [1280]; fixed 3>`` holds three rows at any length, ``memory<bf16; x [512]; every 4>`` one for every
  four tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from regraft.ir.dims import Dim, Sizes, Sym, evaluate, rows_of

ITEM_BITS: dict[str, int] = {
    "f64": 64,
    "f32": 32,
    "f16": 16,
    "bf16": 16,
    "f8e4m3": 8,
    "f8e5m2": 8,
    "f8e8m0": 8,
    "i64": 64,
    "i32": 32,
    "i16": 16,
    "i8": 8,
    "u8": 8,
    "bool": 8,
}
FLOATS = ("f64", "f32", "f16", "bf16")


@dataclass(frozen=True, slots=True)
class TensorType:
    """A tensor: element type and shape."""

    dtype: str
    shape: tuple[Dim, ...]

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"

    @property
    def static(self) -> bool:
        """Whether every dimension is an integer, as it is for parameters."""
        return all(isinstance(dim, int) for dim in self.shape)

    @property
    def sequence(self) -> Sym | None:
        """The sequence axis: ``T``, the rows of a memory, or none."""
        for dim in self.shape:
            if isinstance(dim, Sym) and dim.is_sequence:
                return dim
        return None

    @property
    def sizes(self) -> tuple[int, ...]:
        """The shape of a static tensor."""
        return tuple(evaluate(dim, {}) for dim in self.shape)

    def elements(self, sizes: Sizes) -> int:
        """Return the number of elements at ``sizes``."""
        return math.prod(evaluate(dim, sizes) for dim in self.shape)

    def nbytes(self, sizes: Sizes) -> int:
        """Return the bytes at ``sizes``."""
        return self.elements(sizes) * ITEM_BITS[self.dtype] // 8

    def with_shape(self, *shape: Dim) -> TensorType:
        """Return the same element type in another shape."""
        return TensorType(self.dtype, shape)


@dataclass(frozen=True, slots=True)
class Field:
    """One tensor of a memory's row."""

    name: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} [{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, slots=True)
class MemoryType:
    """A memory: rows of one or more fields, one row a token.

    ``window`` is how many rows back, its own included, the furthest reader may look; None is all of them. Beside a
    window the ``first`` rows of the sequence stay, for readers that see them from anywhere. ``fixed`` is
    the number of rows of a memory that holds as many at any length: a convolution's tail, a recurrent matrix. ``rate``
    is how many tokens make a row, which is there once all of them are, and stands at the first. A memory's identity,
    which names its cache across programs, is the name of the value that has this type.
    """

    dtype: str
    fields: tuple[Field, ...]
    window: int | None = None
    fixed: int | None = None
    rate: int | None = None
    first: int = 0

    def __str__(self) -> str:
        parts = [self.dtype, ", ".join(map(str, self.fields))]
        if self.window is not None:
            parts.append(f"window {self.window}" + (f", first {self.first}" if self.first else ""))
        if self.fixed is not None:
            parts.append(f"fixed {self.fixed}")
        if self.rate is not None:
            parts.append(f"every {self.rate}")
        return f"memory<{'; '.join(parts)}>"

    @property
    def row_elements(self) -> int:
        """Elements in one row of one sequence."""
        return sum(math.prod(field.shape) for field in self.fields)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of one sequence."""
        return self.row_elements * ITEM_BITS[self.dtype] // 8

    def rows(self, context: int) -> int:
        """Rows that a sequence of ``context`` tokens holds."""
        if self.fixed is not None:
            return self.fixed
        if self.rate is not None:
            return context // self.rate
        return context if self.window is None else min(context, self.window + self.first)

    def shown(self, tokens: int, context: int) -> int:
        """Rows that a call of ``tokens`` sees which ends a sequence of ``context`` tokens: kept ones and its own."""
        if self.fixed is not None or self.window is None:
            return self.rows(context)
        return min(context, self.window + self.first + tokens - 1)

    def with_window(self, window: int | None, first: int = 0) -> MemoryType:
        """Return the same rows, kept for ``window`` tokens, and beside them the ``first`` ones."""
        return replace(self, window=window, first=first)

    def field(self, name: str) -> Field:
        """Return the field called ``name``."""
        return next(field for field in self.fields if field.name == name)


Type = TensorType | MemoryType


def with_rows_of(type: Type, named: Callable[[str], str]) -> Type:
    """Return ``type`` along the rows of other memories: ``named`` gives the name in place of each."""
    if not isinstance(type, TensorType):
        return type
    memories = [dim.memory if isinstance(dim, Sym) else None for dim in type.shape]
    if not any(memories):
        return type
    shape = (rows_of(named(m)) if m else dim for m, dim in zip(memories, type.shape, strict=True))
    return TensorType(type.dtype, tuple(shape))
