"""K10 beside K1: a step of pooled memories in the launch of a map that does not wait for it, nor it for that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from regraft.codegen.kernels.compress import Compress
from regraft.codegen.kernels.kernel import Entry, Kernel, Moved, Tile
from regraft.codegen.kernels.rows import RowsKernel

LOCALS: tuple[str, ...] = ("BLOCK", "POOLING", "pooling")  # names in the text that neither kernel has alone


def beside(pooled: Compress) -> dict[str, str]:
    """Return what the arguments of a step of pooled memories are called where a map is computed beside it."""
    return {name: f"pool_{name}" for name in pooled.parameters}


@dataclass(frozen=True)
class RowsAndPool(Kernel):
    """The first programs of a launch pool, the others own rows; no program waits for one of the other kind.

    Attributes:
        name: The custom op's.
        mapped: The map; none of its tensors is called as those of the other are here.
        pooled: The step of pooled memories.
    """

    template: ClassVar[str] = "rows_and_pool.py.j2"
    name: str
    mapped: RowsKernel
    pooled: Compress

    @property
    def rows(self) -> RowsKernel:
        """The map, as its functions are called."""
        return self.mapped.called(f"{self.name}_rows")

    @property
    def pool(self) -> Compress:
        """The step of pooled memories, as its functions are called."""
        return self.pooled.called(f"{self.name}_pool")

    @property
    def pool_parameters(self) -> dict[str, str]:
        """What the programs that pool are given, in order, and what that is called here."""
        return beside(self.pooled)

    @property
    def pool_given(self) -> list[str]:
        """Names of what the op is given to pool, in order."""
        return [self.pool_parameters[name] for name in self.pooled.given]

    @property
    def given(self) -> list[str]:
        """Names of what the op is given, in order."""
        return [*(name for name, _ in self.mapped.inputs), *self.pool_given]

    @property
    def changed(self) -> list[str]:
        """Names of what it changes."""
        return [self.pool_parameters[name] for name in self.pooled.changed]

    def tiles(self) -> Sequence[Tile]:
        """Return the map's tiles, each with few channels of a program that pools; warps are the map's."""
        rows, blocks = self.mapped.tiles(), dict.fromkeys(tile.sizes["BLOCK"] for tile in self.pooled.tiles())
        first, *others = sorted(blocks)
        cuts = [*((tile, first) for tile in rows), *((rows[0], block) for block in others)]
        return [replace(tile, sizes={**tile.sizes, "BLOCK": block}) for tile, block in cuts]

    def entries(self, dtype: str) -> Sequence[Entry]:
        """Return the one function."""
        (rows,), (pool,) = self.mapped.entries(dtype), self.pooled.entries(dtype)
        pooling = {self.pool_parameters[name]: type for name, type in pool.arguments.items()}
        return [Entry(f"{self.name}_kernel", {**rows.arguments, **pooling})]

    def moved(self, width: int, batch: int, context: int) -> Moved:
        """Return what both move, in one launch."""
        both = self.mapped.moved(width, batch, context) + self.pooled.moved(width, batch, context)
        return replace(both, launches=1)
