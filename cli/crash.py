"""What is left of an internal error: a file with all that is needed to see it again."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import sys
import tempfile
import traceback
from collections.abc import Sequence


def reproducer(error: BaseException, arguments: Sequence[str]) -> str:
    """Return command, versions and traceback."""
    from regraft import __version__
    from regraft.machine import PACKAGES

    return "\n".join(
        (
            f"command: {shlex.join(['regraft', *arguments])}",
            f"folder: {os.getcwd()}",
            f"regraft: {__version__}",
            f"python: {sys.version.split()[0]} on {platform.platform()}",
            *(f"{name}: {package_version(name) or 'not installed'}" for name in PACKAGES),
            "",
            "".join(traceback.format_exception(error)),
        )
    )


def write_reproducer(text: str) -> str | None:
    """Write a reproducer into a new file in the temporary folder and return its path, or None where that fails."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="regraft-crash-", suffix=".txt", delete=False, encoding="utf-8"
        ) as file:
            file.write(text)
    except OSError:
        return None
    return file.name


def package_version(name: str) -> str | None:
    """Return the version of an installed package without importing it, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
