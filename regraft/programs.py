"""Emitted packages, loaded to be run. A package is a program: loading one runs its ``model.py``."""

from __future__ import annotations

import importlib.util
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from regraft.frontends.checkpoint import Checkpoint
from regraft.ir.errors.base import RegraftError
from regraft.ir.errors.checkpoint import NoWeightsError
from regraft.ir.errors.program import NotAPackageError
from regraft.ir.errors.usage import ProgramFailedError, is_memory
from regraft.ir.json_files import read_object
from regraft.ir.sink import INDEX, SINGLE

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
        CheckpointError: Its weights are missing or damaged.
        ProgramFailedError: Its program raised an error, as one does that was edited.
    """
    import torch

    with told(Path(folder) / "model.py"):
        module = load_module(folder)
        check_weights(Path(folder))
        return module.load(str(folder), device=device, dtype=None if dtype is None else getattr(torch, dtype))


def check_weights(folder: Path) -> None:
    """Read the headers of a package's weights.

    Raises:
        CheckpointError: A file is missing, cut short or no safetensors file.
    """
    if not (folder / SINGLE).is_file() and not (folder / INDEX).is_file():
        raise NoWeightsError(place=folder)
    Checkpoint(folder).names()


@contextmanager
def told(program: Path) -> Generator[None]:
    """Turn what a package's program raises into one coded error; what says that memory is full stays what it is.

    Raises:
        ProgramFailedError: The program raised an error.
    """
    try:
        yield
    except (RegraftError, BrokenPipeError):
        raise
    except Exception as error:
        if is_memory(error):
            raise
        problem = str(error).partition("\n")[0][:200]
        raise ProgramFailedError(program=program, problem=f"{type(error).__name__}: {problem}") from error
