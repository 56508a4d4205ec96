"""Emitted packages, loaded to be run. A package is a program: loading one runs its ``model.py``."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from regraft.ir.errors.program import NotAPackageError
from regraft.ir.json_files import read_object

SCHEMA = "regraft.package/1"


def is_package(path: str | Path) -> bool:
    """Whether a path is a folder that ``regraft build`` wrote. Runs nothing."""
    folder = Path(path)
    config = folder / "config.json"
    return (folder / "model.py").is_file() and config.is_file() and read_object(config).get("schema") == SCHEMA


def load_module(folder: str | Path) -> ModuleType:
    """Import a package's ``model.py`` under a name of its own.

    Raises:
        NotAPackageError: The folder is no package of ours; a model folder's code is never run.
    """
    path = Path(folder)
    if not is_package(path):
        raise NotAPackageError(folder=path)
    spec = importlib.util.spec_from_file_location(f"regraft_package_{abs(hash(path.resolve()))}", path / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_program(folder: str | Path, device: str = "cpu", dtype: str | None = None) -> Any:
    """Load a package's model; see the package's README for its face.

    Raises:
        NotAPackageError: The folder is no package of ours.
    """
    import torch

    module = load_module(folder)
    return module.load(str(folder), device=device, dtype=None if dtype is None else getattr(torch, dtype))
