"""The tiles that packages ship, found without a GPU: codegen/kernels/tiles.json.

    python -m benchmarks.tiles [MODEL ...] [--only PART ...] [--search] [--minutes M]

Takes the kernels of the packages of builtin configs, in bf16: all of them by default. Each target gets the first tile
that fits it; with ``--search`` all tiles are compiled and ranked, which takes minutes for a model. An entry is written
as soon as it is known, and kept until its kernel's source changes, so a run that is cut short is taken up again. A run
over all models and kernels drops the entries that none of them needs.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import regraft
from regraft.codegen.kernels.ahead import triton_version
from regraft.codegen.kernels.kernel import Kernel
from regraft.codegen.kernels.tables import FILE, Shipped, Tiles, best, key, read, written
from regraft.codegen.triton.target import TritonTarget
from regraft.frontends.folder import builtin_names
from regraft.ir.errors.kernels import NoTileError
from regraft.ir.files import write_atomic
from regraft.ir.graph import Graph
from regraft.passes.fusion import fuse_decode
from regraft.passes.fusion.prefill import fuse_prefill
from regraft.passes.latent_forms import decoding_form


def kernels_of(graph: Graph) -> Iterator[Kernel]:
    """Yield the kernels of a graph's package, by the names that they have in it."""
    target = TritonTarget(graph, [], "", fuse_decode(decoding_form(graph) or graph), fuse_prefill(graph), Tiles("none"))
    target.program()
    for kernel, name in target.shared.kernels.items():
        yield kernel.called(name)


def add(
    models: Sequence[str],
    entries: dict[str, Shipped],
    *,
    only: Sequence[str] = (),
    search: bool,
    until: float,
    file: Path,
) -> set[str]:
    """Find what is not known of the kernels of some models, and write it down at once; return the keys met in time."""
    version, met = triton_version(), set[str]()
    others = {name: each for name, each in read(file).items() if name != version}
    for model in models:
        for kernel in kernels_of(regraft.lift(f"builtin:{model}").graph):
            if only and not any(part in kernel.name for part in only):
                continue
            name = key(kernel)
            met.add(name)
            known = entries.get(name)
            if known is not None and (known.searched or not search):
                continue
            if time.monotonic() > until:
                return set()
            try:
                tiles = best(kernel.called("kernel"), search=search)
            except NoTileError as error:
                print(f"{model} {kernel.name}: {error.text}", *error.notes, sep="\n  ", file=sys.stderr)
                continue
            entries[name] = Shipped(f"{model} {kernel.name}", search, tiles)
            write_atomic(file, written({**others, version: entries}))
            print(model, kernel.name, {target: tile.launch() for target, tile in tiles.items()}, flush=True)
    return met


def main(arguments: Sequence[str] | None = None) -> int:
    """Find the tiles that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="builtin configs; all by default")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="kernels whose name has one of these")
    parser.add_argument("--search", action="store_true", help="compare all tiles")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no kernel after so long")
    asked = parser.parse_args(arguments)
    entries = dict(read().get(triton_version(), {}))
    until = time.monotonic() + 60 * asked.minutes
    models = asked.models or builtin_names()
    met = add(models, entries, only=asked.only, search=asked.search, until=until, file=FILE)
    if met and not asked.models and not asked.only and met < entries.keys():
        others = {name: each for name, each in read().items() if name != triton_version()}
        kept = {name: each for name, each in entries.items() if name in met}
        write_atomic(FILE, written({**others, triton_version(): kept}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
