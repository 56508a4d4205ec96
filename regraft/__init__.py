"""A compiler for language-model architectures. The functions of `regraft.api` stand here too, imported on demand."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from regraft.api import (
        apply,
        build,
        compare,
        draw,
        evaluate,
        inspect,
        lift,
        opt,
        plan,
        plot_cache,
        plot_quality,
        twin,
        verify,
    )

__all__ = [
    "__version__",
    "apply",
    "build",
    "compare",
    "draw",
    "evaluate",
    "inspect",
    "lift",
    "opt",
    "plan",
    "plot_cache",
    "plot_quality",
    "twin",
    "verify",
]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(importlib.import_module("regraft.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
