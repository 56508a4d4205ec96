"""What a fused kernel is to the rest of the generator.

A kernel is a frozen dataclass of a model's constants. Its template renders, from them, a part of the emitted file: the
Triton function, a plain PyTorch function that computes the same, and the custom op that chooses between the two by
where its tensors are. Beside the text it states what ahead-of-time compilation needs and how many bytes a call moves.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self, cast

from regraft.codegen.render import render

Constant = int | float | bool | str | None

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


@dataclass(frozen=True)
class Tile:
    """How a kernel's work is cut: its tile sizes by name, and how a program runs.

    Attributes:
        sizes: Values of the function's ``tl.constexpr`` arguments that are tile sizes.
        warps: Warps of a program (waves on AMD).
        stages: Stages of the software pipeline.
    """

    sizes: Mapping[str, int] = field(default_factory=dict[str, int])
    warps: int = 4
    stages: int = 1

    def launch(self) -> dict[str, int]:
        """Return the keyword arguments of a launch."""
        return {**self.sizes, "num_warps": self.warps, "num_stages": self.stages}


@dataclass(frozen=True)
class Entry:
    """A ``@triton.jit`` function of a kernel, as ahead-of-time compilation needs it.

    Attributes:
        function: Its name in the text.
        arguments: Types of its run-time arguments in order: ``"*bf16"``, ``"i32"``, ``"fp32"``. Pointers count as
            aligned to 16 bytes; an integer that is a multiple of 16 is spelled ``"i32:16"``.
        constants: Values of its ``tl.constexpr`` arguments, those of the tile left out.
    """

    function: str
    arguments: Mapping[str, str]
    constants: Mapping[str, Constant] = field(default_factory=dict[str, Constant])


@dataclass(frozen=True)
class Moved:
    """Bytes that one call moves between a device's memory and its processors, and how often it launches.

    Attributes:
        read: Bytes read, each address of a launch once.
        written: Bytes written, each address of a launch once.
        least: Bytes that any program would have to read and write for the same: weights, the rows of memories that are
            seen and those that are added.
        launches: Kernels launched.
        flops: Operations of matrix products, two for a multiply-add.
    """

    read: int
    written: int
    least: int
    launches: int = 1
    flops: int = 0

    @property
    def total(self) -> int:
        """Bytes read and written."""
        return self.read + self.written

    def __add__(self, other: Moved) -> Moved:
        return Moved(
            self.read + other.read,
            self.written + other.written,
            self.least + other.least,
            self.launches + other.launches,
            self.flops + other.flops,
        )


@dataclass(frozen=True)
class Kernel(ABC):
    """A fused kernel. Subclasses are frozen dataclasses of constants.

    Attributes:
        name: The emitted custom op's; functions and classes beside it start with it.
        counted: The tile that `moved` counts with; the first if None.
    """

    template: ClassVar[str]  # a file of codegen/templates/kernels
    name: str
    counted: Tile | None = field(default=None, compare=False, repr=False, kw_only=True)

    @property
    def cut(self) -> Tile:
        """The tile that `moved` counts with."""
        return self.counted or self.tiles()[0]

    def text(self, tiles: Mapping[str, Tile] | None = None) -> str:
        """Return the kernel's part of an emitted file.

        Args:
            tiles: The tile for each of `TARGETS` that has one of its own; others take `tiles()`'s first.
        """
        table = {"default": self.tiles()[0], **(tiles or {})}
        return render(f"kernels/{self.template}", k=self, tiles={name: tile.launch() for name, tile in table.items()})

    def called(self, name: str) -> Self:
        """Return the same kernel under another name."""
        return replace(cast("Any", self), name=name)

    @abstractmethod
    def tiles(self) -> Sequence[Tile]:
        """Return the tiles worth trying, the best guess first; all fit every target or are rejected when compiled."""

    @abstractmethod
    def entries(self, dtype: str) -> Sequence[Entry]:
        """Return the functions to compile for tensors of a Triton dtype, such as ``bf16``."""

    @abstractmethod
    def moved(self, width: int, batch: int, context: int) -> Moved:
        """Return what one call moves.

        Args:
            width: Bytes of a stored value.
            batch: Sequences.
            context: Tokens of each after the call.
        """

    def programs(self, tile: Tile, batch: int) -> int | None:
        """Return how many programs a call of ``batch`` sequences launches with a tile; none if it does not matter.

        Tile search takes a kernel that does not say it to fill a device.
        """
        del tile, batch
        return None
