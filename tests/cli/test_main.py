"""The frame of the command line: help, lazy imports, exit codes, streams, and what becomes of errors."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Never

import click
import pytest

from regraft import __version__
from regraft.cli import main as frame
from regraft.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]
PYTHON = [sys.executable, "-m", "regraft"]
HEAVY = ("torch", "transformers", "networkx", "jinja2", "numpy", "rich", "yaml", "huggingface_hub", "tokenizers")


def loaded(*arguments: str) -> tuple[int, list[str]]:
    """Run the command line in a new process and return its exit code and the heavy modules that it imported."""
    code = (
        "import sys; from regraft.cli.main import main; sys.stdout = open('/dev/null', 'w');"
        f"code = main({arguments!r}); print(code, *(m for m in {HEAVY} if m in sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    status, *modules = done.stderr.split()
    return int(status), modules


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("inspect", "--help")])
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    assert loaded(*arguments) == (0, [])


LOOKS = [
    ("inspect", "builtin:Qwen3-0.6B"),
    ("inspect", "examples/tiny-qwen3", "--json"),
    ("compare", "-q", "builtin:Qwen3-0.6B", "builtin:gemma-4-E2B"),
]


@pytest.mark.parametrize("arguments", LOOKS)
def test_looking_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    assert loaded(*arguments) == (0, [])


def test_help_lists_every_command_that_there_is_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    listed = re.findall(r"^  ([a-z]+)  ", capsys.readouterr().out, re.MULTILINE)
    assert [name for name in listed if name in COMMANDS] == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_of_its_own(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"Usage: regraft {name} ")
    assert "--quiet" in out


def test_version_and_module(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"regraft {__version__}\n"
    done = subprocess.run([*PYTHON, "--version"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"regraft {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["inspekt"], "did you mean inspect"),
        ([], "Usage: regraft"),
        (["inspect"], "Missing argument"),
        (["inspect", "builtin:Qwen3-8B", "--context", "4z"], "4k (4096)"),
        (["inspect", "builtin:Qwen3-8B", "--context", "0"], "no number of tokens"),
        (["inspect", "builtin:Qwen3-8B", "--batch", "0"], "--batch"),
        (["inspect", "builtin:Qwen3-8B", "--colour"], "--no-color"),
    ],
)
def test_usage_errors_are_exit_code_2_on_stderr(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err


def failing(error: BaseException) -> click.Command:
    def fail() -> Never:
        raise error

    return click.Command("inspect", callback=fail)


def run_failing(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    def get_command(*_: Any) -> click.Command:
        return failing(error)

    monkeypatch.setattr(frame.Commands, "get_command", get_command)
    return main(["-v", "inspect"])


def test_a_bug_leaves_a_reproducer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert run_failing(KeyError("gone"), monkeypatch) == 70
    said = capsys.readouterr().err
    (file,) = tmp_path.glob("regraft-crash-*.txt")
    assert "Traceback" not in said
    assert said.startswith("error[RG600]: internal error: KeyError: 'gone'")
    assert str(file) in said
    text = file.read_text(encoding="utf-8")
    assert "command: regraft -v inspect" in text
    assert f"regraft: {__version__}" in text
    assert "KeyError: 'gone'" in text
    assert "Traceback" in text


def test_a_bug_on_a_full_disk_is_told_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    assert run_failing(KeyError("gone"), monkeypatch) == 70
    assert "note: command: regraft -v inspect" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, "error[RG601]: interrupted"),
        (MemoryError(), 7, "error[RG604]: not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 7, "error[RG604]: not enough memory"),
        (OSError(errno.ENOSPC, "No space left on device", "out/model.safetensors"), 7, "error[RG403]"),
    ],
)
def test_the_machine_s_limits_and_the_user_s_are_coded(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_failing(error, monkeypatch) == code
    assert capsys.readouterr().err.startswith(said)


def test_a_reader_that_goes_away_is_no_error() -> None:
    """As in ``regraft inspect MODEL | head -1``: nothing on stderr, whatever was still to be written."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*PYTHON, "inspect", "builtin:Qwen3-0.6B"], cwd=ROOT, stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert done.stderr == b""
    assert done.returncode == 141


def test_completion_offers_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("_REGRAFT_COMPLETE", "bash_source")
    assert main([]) == 0
    assert "_REGRAFT_COMPLETE=bash_complete" in capsys.readouterr().out
    monkeypatch.setenv("_REGRAFT_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", "regraft ins")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert main([]) == 0
    assert capsys.readouterr().out.strip() == "plain,inspect"


def test_doctor_reports_in_both_forms(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.startswith("This machine\n")
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "regraft.doctor/1"
    assert found["packages"]["torch"]
    assert {"name", "available", "missing"} == set(found["features"][0])
