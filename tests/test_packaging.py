"""The package list, the links, who may import whom, what start-up may load, and the error catalogue."""

from __future__ import annotations

import ast
import json
import re
import string
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from regraft.ir.errors import RegraftError, catalogue

ROOT = Path(__file__).resolve().parent.parent
LINKED = ("cli", "codegen", "frontends", "ir", "passes", "views")
MIDDLE = ("codegen", "frontends", "passes", "views")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Return every regraft module that a file imports, at its top or inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == "regraft"}


def test_every_folder_with_code_is_a_listed_package_and_no_other() -> None:
    folders = {path.parent for folder in LINKED for path in modules(folder)}
    found = {"regraft"} | {".".join(("regraft", *path.relative_to(ROOT).parts)) for path in folders}
    assert found == set(PROJECT["tool"]["setuptools"]["packages"])
    assert all((folder / "__init__.py").is_file() for folder in folders)


def test_data_files_are_listed_too() -> None:
    patterns: dict[str, list[str]] = PROJECT["tool"]["setuptools"]["package-data"]
    for folder in LINKED:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                owner = path.parent if (path.parent / "__init__.py").exists() else path.parent.parent
                package = ".".join(("regraft", *owner.relative_to(ROOT).parts))
                name = path.relative_to(owner).as_posix()
                assert any(fnmatch(name, pattern) for pattern in patterns.get(package, [])), f"{path} is not packaged"


@pytest.mark.parametrize("folder", LINKED)
def test_folders_are_linked_and_mapped(folder: str) -> None:
    link = ROOT / "regraft" / folder
    assert link.is_symlink()
    assert link.readlink() == Path("..") / folder
    assert PROJECT["tool"]["setuptools"]["package-dir"][f"regraft.{folder}"] == folder
    assert f"regraft/{folder}" in PROJECT["tool"]["pyright"]["include"]
    assert folder in PROJECT["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]


@pytest.mark.parametrize("folder", ["ir", *MIDDLE])
def test_layers_import_only_downwards(folder: str) -> None:
    allowed = {"ir", folder}
    for path in modules(folder):
        strangers = {n for n in imported(path) if n.split(".")[1] not in allowed} - {"regraft.__version__"}
        assert not strangers, f"{path.relative_to(ROOT)} imports {strangers}"


def test_import_linter_agrees() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 kept, 0 broken" in done.stdout


@pytest.mark.parametrize("module", PROJECT["tool"]["setuptools"]["packages"])
def test_packages_import_without_torch_transformers_or_jinja(module: str) -> None:
    heavy = ("torch", "transformers", "jinja2", "huggingface_hub", "numpy")
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Anything:
    """Formats under any specification, so that a template is judged by its syntax alone."""

    def __format__(self, spec: str) -> str:
        return f"<{spec}>"


@pytest.mark.parametrize("error", catalogue().values(), ids=lambda error: error.code)
def test_error_templates_format(error: type[RegraftError]) -> None:
    fields = {
        name.partition(".")[0].partition("[")[0]
        for template in (error.message, error.hint)
        for _, name, _, _ in string.Formatter().parse(template)
        if name is not None
    }
    assert all(name.isidentifier() for name in fields), "templates name their fields"
    values: dict[str, Any] = dict.fromkeys(fields, Anything())
    text = str(error(where="here", **values))
    assert text.startswith(f"error[{error.code}]: ")
    assert error.exit_code in {1, 2, 3, 4, 5, 6, 7, 70, 130}
    assert error.__doc__, "an error says in its docstring what went wrong"


def every_error(base: type[RegraftError] = RegraftError) -> list[type[RegraftError]]:
    return [base, *(error for sub in base.__subclasses__() for error in every_error(sub))]


def test_every_code_has_one_class_with_a_message_of_its_own() -> None:
    codes = catalogue()
    classes = [error for error in every_error() if error.__module__.startswith("regraft.ir.errors.")]
    coded = [error.code for error in classes if "code" in error.__dict__ and error is not RegraftError]
    assert len(coded) == len(set(coded)), "a code is used twice"
    for error in (error for error in classes if "code" in error.__dict__):
        assert re.fullmatch(r"RG\d{3}", error.code)
        assert "message" in error.__dict__
    assert set(coded) <= set(codes)


def test_builtin_configs_and_hardware_are_json() -> None:
    files = [*(ROOT / "frontends" / "configs").iterdir(), ROOT / "ir" / "hardware.json"]
    assert len(files) >= 24
    for file in files:
        assert isinstance(json.loads(file.read_text(encoding="utf-8")), dict)
