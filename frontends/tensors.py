"""What a frontend asks of a checkpoint while it builds: which tensors there are, and their element types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Protocol

from regraft.ir.graph import layer_of, relative
from regraft.ir.source import Source
from regraft.ir.types import FLOATS


class Tensors(Protocol):
    """The tensors that a model is built over."""

    def has(self, name: str) -> bool | None:
        """Return whether there is a tensor of that name; None where nobody knows."""
        ...

    def dtype(self, name: str) -> str:
        """Return the element type of a tensor, or the one to expect."""
        ...

    def stored(self, name: str) -> str | None:
        """Return the element type of a tensor, be it of codes or of numbers; None where nobody knows."""
        ...

    def layer(self, number: int) -> Hashable:
        """Return what makes a layer's tensors differ from another's in more than their numbers."""
        ...


class Declared:
    """The tensors that a config alone calls for, all of one element type.

    Args:
        dtype: The element type.
        published: Whether to declare them as checkpoints are published, rather than as the graph wants them.
        quantized: Says of a name whether it is one that a checkpoint has because it is published quantised.
    """

    def __init__(self, dtype: str, *, published: bool = False, quantized: Callable[[str], bool] | None = None) -> None:
        self._dtype, self._published, self._quantized = dtype, published, quantized

    def has(self, name: str) -> bool | None:
        """Return False for what only a converted checkpoint has, True for what only a quantised one, otherwise None."""
        if self._quantized is not None and self._quantized(name):
            return True
        return False if self._published else None

    def dtype(self, name: str) -> str:
        """Return the one element type."""
        return self._dtype

    def stored(self, name: str) -> None:
        """Return that nobody knows."""

    def layer(self, number: int) -> Hashable:
        """Return the same for every layer."""
        return None


class Stored:
    """The tensors of a checkpoint, known from its headers.

    Args:
        source: The checkpoint.
        dtype: The element type to expect of a tensor that is not there.
    """

    def __init__(self, source: Source, dtype: str) -> None:
        self._dtypes = {name: source.info(name).dtype for name in source.names()}
        plain = (found for name, found in self._dtypes.items() if found in FLOATS and not name.endswith("_scale_inv"))
        common = Counter(plain).most_common(1)
        self._dtype = common[0][0] if common else dtype
        self._odd: dict[int, set[tuple[str, str]]] = {}
        for name, found in self._dtypes.items():
            number = layer_of(name)
            if found != self._dtype and number is not None:
                self._odd.setdefault(number, set()).add((relative(name), found))

    def has(self, name: str) -> bool | None:
        """Return whether the checkpoint has the tensor."""
        return name in self._dtypes

    def dtype(self, name: str) -> str:
        """Return the tensor's element type, the most common one for a tensor that is not there or holds no numbers."""
        found = self._dtypes.get(name, self._dtype)
        return found if found in FLOATS else self._dtype

    def stored(self, name: str) -> str | None:
        """Return the element type of a tensor that is there."""
        return self._dtypes.get(name)

    def layer(self, number: int) -> Hashable:
        """Return the layer's tensors of another element type than most."""
        return frozenset(self._odd.get(number, ()))
