"""All kernels at the sizes of real models."""

from __future__ import annotations

import importlib
import pkgutil

import regraft.codegen.kernels
from regraft.codegen.kernels.kernel import Kernel


def shelf() -> dict[str, list[Kernel]]:
    """Return what ``examples()`` of each module of ``codegen/kernels`` returns, by module."""
    found: dict[str, list[Kernel]] = {}
    for module in pkgutil.iter_modules(regraft.codegen.kernels.__path__):
        examples = getattr(importlib.import_module(f"regraft.codegen.kernels.{module.name}"), "examples", None)
        if examples is not None:
            found[module.name] = list(examples())
    return found
