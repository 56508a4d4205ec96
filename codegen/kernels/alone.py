"""A file of kernels without a model, for tests, tile search and benchmarks."""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
from collections.abc import Mapping, Sequence

import regraft.codegen.kernels
from regraft.codegen.kernels.kernel import Kernel, Tile
from regraft.codegen.render import render


def kernel_file(kernels: Sequence[Kernel], tiles: Mapping[str, Mapping[str, Tile]] | None = None) -> str:
    """Return the text of a Python file that holds kernels, each once, and what they share.

    Its custom ops stand in a namespace of the text's own, so that files with other constants can be loaded beside it.

    Args:
        kernels: The kernels.
        tiles: For each kernel's name, the tiles of targets that have one of their own, as `search.search` returns them.
    """
    tables = tiles or {}
    texts = list(dict.fromkeys(kernel.text(tables.get(kernel.name)) for kernel in kernels))
    digest = hashlib.sha256("".join(texts).encode()).hexdigest()[:16]
    return render("kernels/file.py.j2", space=f"regraft_{digest}", kernels=texts)


def shelf() -> dict[str, list[Kernel]]:
    """Return kernels at the sizes of real models: the ``examples()`` of each module of this folder, by module."""
    found: dict[str, list[Kernel]] = {}
    for module in pkgutil.iter_modules(regraft.codegen.kernels.__path__):
        examples = getattr(importlib.import_module(f"regraft.codegen.kernels.{module.name}"), "examples", None)
        if examples is not None:
            found[module.name] = list(examples())
    return found
