"""``regraft draw``: what it writes, in which format, and what it refuses."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from regraft.cli.main import main

CONFIG = "builtin:Qwen3-0.6B"


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("a.html", b"<!doctype html>"),
        ("a.svg", b"<svg "),
        ("a.PNG", b"\x89PNG\r\n"),
        ("a.dot", b"digraph "),
        ("a.mmd", b"---\ntitle: "),
        ("a.json", b'{"label":'),
    ],
)
def test_the_name_gives_the_format(name: str, start: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / name
    assert main(["draw", CONFIG, "-o", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert path.read_bytes().startswith(start)
    assert [each.name for each in tmp_path.iterdir()] == [name]


def test_json_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.svg"
    assert main(["draw", CONFIG, "-o", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema": "regraft.draw/1", "out": str(path)}


def test_operations_are_drawn_when_asked_for(tmp_path: Path) -> None:
    plain, whole = tmp_path / "a.svg", tmp_path / "b.svg"
    assert main(["draw", CONFIG, "-o", str(plain)]) == 0
    assert main(["draw", CONFIG, "-o", str(whole), "--operations"]) == 0
    texts = [{each.text for each in ElementTree.parse(path).iter()} for path in (plain, whole)]
    assert "q_proj" in texts[1] - texts[0]


@pytest.mark.parametrize(
    ("model", "asked", "shown"),
    [
        ("builtin:OpenELM-270M", [], "cache at 2k tokens"),
        (CONFIG, [], "cache at 40k tokens"),
        (CONFIG, ["--context", "1M,512"], "cache at 1M tokens"),
    ],
)
def test_figures_are_for_the_context_asked_for_or_trained_on(
    model: str, asked: list[str], shown: str, tmp_path: Path
) -> None:
    path = tmp_path / "a.svg"
    assert main(["draw", model, "-o", str(path), *asked]) == 0
    assert shown in path.read_text("utf-8")


def test_a_recipe_gives_a_step_for_each_pass(tmp_path: Path) -> None:
    path = tmp_path / "a.html"
    assert main(["draw", CONFIG, "-r", "budget-heads{heads=12},share-kv{layers='4..5', donor=3}", "-o", str(path)]) == 0
    text = path.read_text("utf-8")
    assert text.count("data-step=") == 4  # as lifted, two passes, and both together
    assert "Its choices need calibration text" in text
    assert "gone: attn.k_proj" in text


def test_a_recipe_in_svg_shows_the_result(tmp_path: Path) -> None:
    path = tmp_path / "a.svg"
    assert main(["draw", CONFIG, "-r", "share-kv{layers='4..5', donor=3}", "-o", str(path)]) == 0
    assert "KV memory of layer 3, read by 4..5" in path.read_text("utf-8")


def test_other_formats_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.jpg", "picture"):
        assert main(["draw", CONFIG, "-o", str(tmp_path / name)]) == 2
        said = capsys.readouterr()
        assert "error[RG608]" in said.err
        assert ".html, .svg, .png, .dot, .mmd, .json" in said.err
        assert said.out == ""
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.svg"
    path.write_text("mine", encoding="utf-8")
    assert main(["draw", CONFIG, "-o", str(path)]) == 2
    assert "error[RG401]" in capsys.readouterr().err
    assert path.read_text("utf-8") == "mine"


def test_a_recipe_that_does_not_fit_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["draw", CONFIG, "-r", "share-kv{layers='90..91', donor=3}", "-o", str(tmp_path / "a.html")]) != 0
    assert "error[RG" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_png_without_its_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    assert main(["draw", CONFIG, "-o", str(tmp_path / "a.png")]) == 6
    assert "pip install 'regraft[png]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_called_as_markup_stays_text(model: Path, tmp_path: Path) -> None:
    evil = model.rename(tmp_path / "<script>alert(1)<script>")
    for name in ("a.html", "a.svg"):
        path = tmp_path / name
        assert main(["draw", str(evil), "-o", str(path)]) == 0
        assert "<script>alert" not in path.read_text("utf-8")
    assert "&lt;script&gt;alert(1)" in (tmp_path / "a.html").read_text("utf-8")
