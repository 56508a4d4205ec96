"""Kernels as modules, run by Triton's interpreter."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from regraft.codegen.kernels.alone import kernel_file
from regraft.codegen.kernels.kernel import Kernel


def module(folder: Path, *kernels: Kernel) -> Any:
    """Return the emitted file of kernels, imported. Set its ``INTERPRETED`` to False to run the plain functions."""
    text = kernel_file(kernels)
    name = f"kernels_{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    path = folder / f"{name}.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded
