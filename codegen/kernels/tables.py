"""The tiles that packages ship: found without a GPU for the kernels of known models, and kept as data (tiles.json).

An entry is named by a hash of all that a kernel is compiled from, its name left out, so that equal kernels of different
models share it, and one whose template changes has none until ``python -m benchmarks.tiles`` is run again. Entries
stand under the version of Triton that compiled them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any, cast

from regraft.codegen.kernels.ahead import device_source
from regraft.codegen.kernels.alone import kernel_file
from regraft.codegen.kernels.kernel import TARGETS, Kernel, Tile
from regraft.codegen.kernels.search import Candidate, compared, found_fitting
from regraft.ir.errors.kernels import NoTileError

FILE = Path(__file__).with_name("tiles.json")
SCHEMA = "regraft.tiles/1"
KNOWN = {"bf16": "bf16", "f16": "bf16"}  # dtypes of models that have entries; both are of 16 bits and cut alike
SEARCHED = {**KNOWN, "f16": "fp16", "f32": "fp32"}  # Triton's names of those that can be searched
COUNTED = "sm_90"  # the target whose tile a schedule counts with


@dataclass(frozen=True)
class Shipped:
    """A kernel's tiles.

    Attributes:
        of: Model and kernel that it was found for first.
        searched: Whether all tiles were compared; else each target has the first one that fits.
        tiles: The tile of each target that one fits.
    """

    of: str
    searched: bool
    tiles: Mapping[str, Tile]


@lru_cache(maxsize=4096)
def key(kernel: Kernel, dtype: str = "bf16") -> str:
    """Return what a kernel's entry is named by, for tensors of a Triton dtype."""
    bare = kernel.called("kernel")
    text = kernel_file([bare])
    functions = [
        [device_source(text, entry.function), dict(entry.arguments), dict(entry.constants)]
        for entry in bare.entries(dtype)
    ]
    return hashlib.sha256(json.dumps(functions).encode()).hexdigest()[:20]


@cache
def shipped() -> Mapping[str, Shipped]:
    """Return the entries for the version of Triton that is installed, or else the last one."""
    versions = read()
    try:
        found = versions.get(metadata.version("triton"))
    except metadata.PackageNotFoundError:
        found = None
    return found or (list(versions.values())[-1] if versions else {})


def read(file: Path = FILE) -> dict[str, dict[str, Shipped]]:
    """Return a file's entries by version of Triton and key."""
    if not file.is_file():
        return {}
    versions = cast("dict[str, dict[str, dict[str, Any]]]", json.loads(file.read_bytes())["triton"])
    return {
        version: {
            name: Shipped(each["of"], each["searched"], {t: tile_of(sizes) for t, sizes in each["tiles"].items()})
            for name, each in entries.items()
        }
        for version, entries in versions.items()
    }


def written(versions: Mapping[str, Mapping[str, Shipped]]) -> str:
    """Return the text of a file, an entry a line."""
    parts: list[str] = []
    for version, entries in versions.items():
        lines = [
            f"  {json.dumps(name)}: " + json.dumps(_plain(each))
            for name, each in sorted(entries.items(), key=lambda item: (item[1].of, item[0]))
        ]
        parts.append(f" {json.dumps(version)}: {{\n" + ",\n".join(lines) + "\n }")
    return f'{{"schema": {json.dumps(SCHEMA)}, "dtype": "bf16", "triton": {{\n' + ",\n".join(parts) + "\n}}\n"


def _plain(entry: Shipped) -> dict[str, Any]:
    tiles = {target: tile.launch() for target, tile in entry.tiles.items()}
    return {"of": entry.of, "searched": entry.searched, "tiles": tiles}


def tile_of(launch: Mapping[str, int]) -> Tile:
    """Return the tile whose ``launch`` is given."""
    sizes = {name: size for name, size in launch.items() if name not in ("num_warps", "num_stages")}
    return Tile(sizes, launch["num_warps"], launch["num_stages"])


class Tiles:
    """Where the tiles of one program come from: what is shipped, and what is searched while it is built.

    Args:
        dtype: The model's dtype.
        search: Whether kernels that are not known are searched, which takes Triton and minutes; results are kept in the
            user's cache. Else they take their first tile.
    """

    def __init__(self, dtype: str = "bf16", *, search: bool = False) -> None:
        self.dtype, self.search = dtype, search
        self._found: dict[Kernel, Mapping[str, Tile]] = {}

    def of(self, kernel: Kernel) -> Mapping[str, Tile]:
        """Return the tile of each target that a kernel has one for.

        Raises:
            NoTileError: No tile fits any target.
            TritonMissingError: It is to be searched, and Triton is not installed.
        """
        bare = kernel.called("kernel")
        if bare not in self._found:
            self._found[bare] = self._looked_up(bare)
        return self._found[bare]

    def _looked_up(self, kernel: Kernel) -> Mapping[str, Tile]:
        entries = shipped() if self.dtype in KNOWN else {}
        entry = entries.get(key(kernel)) if entries else None
        if entry is not None and (entry.searched or not self.search):
            return entry.tiles
        return best(kernel, SEARCHED[self.dtype]) if self.search and self.dtype in SEARCHED else {}


def best(kernel: Kernel, dtype: str = "bf16", *, search: bool = True) -> dict[str, Tile]:
    """Return the best tile of each target that one fits, all compared, or the first one that fits.

    Raises:
        NoTileError: None fits any target.
        TritonMissingError: Triton is not installed.
    """
    found: Mapping[str, Candidate]
    found = compared(kernel, TARGETS, dtype) if search else found_fitting(kernel, TARGETS, dtype)
    tiles = {target: candidate.tile for target, candidate in found.items() if not candidate.problem}
    if not tiles:
        notes = [f"{target}: {candidate.problem}" for target, candidate in found.items()]
        raise NoTileError(kernel=kernel.name, count=len(kernel.tiles()), target=" or ".join(TARGETS), notes=notes)
    return tiles
