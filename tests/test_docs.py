"""The documentation that is derived from the code is fresh, and what the rest of it shows is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.quality import BEGIN, DOCUMENT, END, RESULTS, table
from regraft.cli.main import COMMANDS, main

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")])


def test_generated_pages_are_fresh() -> None:
    done = subprocess.run(
        [sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_table_of_fits_has_what_was_measured() -> None:
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    made = list(table(RESULTS))
    assert lines[lines.index(BEGIN) + 1 : lines.index(END)] == made, "python -m benchmarks.quality --table"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_every_command_is_documented() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert [name for name in COMMANDS if f"regraft {name}" not in text] == []


def shown() -> list[tuple[str, str]]:
    """Return the commands of the README whose output stands there in full and is the same everywhere."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"((?:^    .*\n|^\n(?=    ))+)", text, re.MULTILINE)
    found: list[tuple[str, str]] = []
    for block in blocks:
        lines = "\n".join(line[4:] for line in block.splitlines())
        first, _, rest = lines.strip("\n").partition("\n")
        if first.startswith(("$ regraft inspect", "$ regraft plan", "$ regraft passes")):
            found.append((first.removeprefix("$ regraft "), rest.strip("\n")))
    return found


@pytest.mark.parametrize(("command", "output"), shown())
def test_the_readme_shows_what_commands_print(
    command: str, output: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(command.split()) == 0
    assert capsys.readouterr().out.strip("\n") == output


def test_the_readme_shows_several_outputs() -> None:
    assert len(shown()) >= 2
