from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from regraft.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "examples" / "tiny-qwen3" / "config.json")
LLAMA = str(ROOT / "examples" / "tiny-llama" / "config.json")
SHORT = ["--context", "64"]


@pytest.fixture
def rewritten(tmp_path: Path) -> str:
    """Return a graph in which a layer reads another's memory."""
    file = tmp_path / "rewritten.rg"
    pipeline = 'share-kv{layers="5", donor=4, refit=false}'
    assert main(["opt", TINY, "--pipeline", pipeline, "-o", str(file)]) == 0
    return str(file)


def test_two_models_differ_in_structure(rewritten: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", TINY, rewritten, *SHORT]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.startswith("tiny-qwen3 beside rewritten\n")
    assert "  ~ full → full_reader: layer 5\n" in captured.out
    assert "layer 5 reads layer 4's attn.memory, not its own" in captured.out
    assert "\x1b" not in captured.out


def test_the_exit_code_is_that_of_diff(rewritten: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", TINY, rewritten, *SHORT, "--exit-code"]) == 1
    assert main(["compare", TINY, TINY, *SHORT, "--exit-code"]) == 0
    assert main(["compare", TINY, TINY, TINY, *SHORT, "--exit-code"]) == 0
    assert main(["compare", TINY, TINY, LLAMA, *SHORT, "--exit-code"]) == 1
    assert "tiny-qwen3 (1)" in capsys.readouterr().out


def test_the_json_has_the_facts_and_the_difference(rewritten: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", TINY, rewritten, *SHORT, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert found["schema"] == "regraft.compare/1"
    assert found["different"] is True
    assert [model["schema"] for model in found["models"]] == ["regraft.inspect/1"] * 2
    assert [model["name"] for model in found["models"]] == ["tiny-qwen3", "rewritten"]
    assert found["diff"]["rewired"] == [{"name": "layers.*.attn.memory", "layers": [5], "before": None, "after": 4}]
    assert main(["compare", TINY, TINY, LLAMA, *SHORT, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["diff"] is None


def test_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", TINY, LLAMA, *SHORT, "--md"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("# tiny-qwen3 beside tiny-llama\n")
    assert "|  | tiny-qwen3 | tiny-llama | change |" in out


class Page(HTMLParser):
    """What a page holds: the tags that are open and never closed, its text, and what it would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "style")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_stands_alone_and_is_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "<script>alert(1)<script>&"
    folder.mkdir()
    (folder / "config.json").write_text(Path(TINY).read_text(encoding="utf-8"), encoding="utf-8")
    out = tmp_path / "page.html"
    assert main(["compare", str(folder), LLAMA, *SHORT, "--html", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert page.loads == []
    assert "script" not in page.tags
    assert "<script>alert(1)<script>& beside tiny-llama" in page.text
    assert not re.search(r"https?:|url\(|@import", text)
    assert '<html lang="en">' in text
    assert '<th scope="col"' in text
    assert "changed: " in page.text  # a sign is a word for those who hear the page
    assert len(text) < 100_000
    assert "beside tiny-llama" in capsys.readouterr().out


def test_bad_input_is_one_error(refused: Callable[..., str], tmp_path: Path) -> None:
    assert refused("compare", TINY, exit_code=2) == "RG612"
    assert refused("compare", TINY, tmp_path / "nothing", exit_code=2)
    taken = tmp_path / "taken.html"
    taken.write_text("mine", encoding="utf-8")
    assert refused("compare", TINY, LLAMA, "--html", taken, exit_code=2) == "RG401"
    assert taken.read_text(encoding="utf-8") == "mine"
    nowhere = tmp_path / "no" / "folder.html"
    assert refused("compare", TINY, LLAMA, "--html", nowhere, exit_code=2)
    assert not nowhere.parent.exists()
