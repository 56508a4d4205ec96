"""Running the ``generate.py`` of a package, as it would run alone."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from regraft.ir.errors.program import NotAPackageError
from regraft.passes.fitting.text import load_tokenizer
from regraft.programs import check_weights, is_package, told

SCRIPT = "generate.py"


def run_generate(package: str | Path, arguments: Sequence[str]) -> int:
    """Run a package's ``generate.py`` in this process and return its exit code.

    Args:
        package: A folder that ``build`` wrote.
        arguments: What its command line takes: prompts and options.

    Raises:
        NotAPackageError: The folder is no package; a model folder's code is never run.
        TokenizerError: The package has no tokenizer that can be read.
        CheckpointError: Its weights are missing or damaged.
        ProgramFailedError: The program raised an error.
    """
    folder = Path(package).resolve()
    if not is_package(folder):
        raise NotAPackageError(folder=package)
    load_tokenizer(folder)
    check_weights(folder)
    try:
        with _alone(folder, arguments), told(Path(package) / SCRIPT):
            runpy.run_path(str(folder / SCRIPT), run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


@contextmanager
def _alone(folder: Path, arguments: Sequence[str]) -> Generator[None]:
    """Make this process look to a script of ``folder`` as if it had been started alone, and leave no trace."""
    argv, path, no_bytecode = sys.argv, list(sys.path), sys.dont_write_bytecode
    sys.argv, sys.dont_write_bytecode = [str(folder / SCRIPT), *arguments], True
    sys.path.insert(0, str(folder))
    hidden = sys.modules.pop("model", None)
    try:
        yield
    finally:
        sys.argv, sys.path[:], sys.dont_write_bytecode = argv, path, no_bytecode
        sys.modules.pop("model", None)
        if hidden is not None:
            sys.modules["model"] = hidden
