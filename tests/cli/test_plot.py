"""``regraft plot``: charts of several models, and of several evaluations."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from regraft.cli.main import main

MODELS = ("builtin:Llama-3.1-8B", "builtin:gemma-4-E2B", "builtin:gpt-oss-20b")


def _texts(path: Path) -> list[str]:
    return [each.text or "" for each in ElementTree.parse(path).iter()]


@pytest.fixture
def report(tmp_path: Path) -> Callable[..., str]:
    """Return a function that writes a report and returns its path."""

    def write(name: str, held: object, divergence: object, **other: object) -> str:
        path = tmp_path / f"{name}.json"
        document = {
            "schema": "regraft.eval/1",
            "context": 512,
            "text_sha256": "ab",
            "perplexity": 8.0,
            "kl": {"mean": divergence, "p99": divergence},
            "cache": {"predicted_bytes": held, "measured_bytes": held},
        }
        path.write_text(json.dumps(document | other), encoding="utf-8")
        return str(path)

    return write


def test_caches_of_several_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.svg"
    assert main(["plot", *MODELS, "-o", str(path)]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    said = _texts(path)
    assert {"Llama-3.1-8B", "gemma-4-E2B", "gpt-oss-20b", "128k"} <= set(said)
    assert any("Llama-3.1-8B 16.0 GiB" in text for text in said)  # in words too


def test_a_context_to_go_up_to_and_a_png(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.png"
    assert main(["plot", *MODELS, "--context", "1M", "-o", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema": "regraft.plot/1", "out": str(path)}
    assert path.read_bytes().startswith(b"\x89PNG")


def test_quality_against_cache(tmp_path: Path, report: Callable[..., str]) -> None:
    files = [report("share", 1 << 20, 0.2), report("window", 1 << 19, 0.5), report("both <b>", 1 << 20, 0.4)]
    path = tmp_path / "a.svg"
    assert main(["plot", *files, "-o", str(path)]) == 0
    said = _texts(path)
    assert {"share", "window", "both <b>", "KL to the base, nats a token against cache"} <= set(said)


def test_without_a_base_perplexity_is_drawn(tmp_path: Path, report: Callable[..., str]) -> None:
    path = tmp_path / "a.svg"
    assert main(["plot", report("a", 1 << 20, None), report("b", 1 << 21, None), "-o", str(path)]) == 0
    assert "Perplexity against cache" in _texts(path)


@pytest.mark.parametrize(
    ("other", "problem"),
    [
        ({"cache": {}}, "cache.predicted_bytes is None"),
        ({"cache": 3}, "cache.predicted_bytes is None"),
        ({"text_sha256": "cd"}, "another text or context"),
        ({"context": 1024}, "another text or context"),
        ({"schema": "regraft.eval/9"}, "its schema is 'regraft.eval/9'"),
    ],
)
def test_reports_that_cannot_be_compared_are_refused(
    other: dict[str, object],
    problem: str,
    tmp_path: Path,
    report: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "a.svg"
    assert main(["plot", report("a", 1 << 20, 0.1), report("b", 1 << 21, 0.1, **other), "-o", str(path)]) == 2
    said = capsys.readouterr().err
    assert "error[RG609]" in said
    assert problem in said
    assert "b.json" in said
    assert not path.exists()


def test_more_curves_than_can_be_told_apart_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", *(3 * MODELS), "-o", str(tmp_path / "a.svg")]) == 2
    assert "error[RG610]" in capsys.readouterr().err


def test_other_formats_and_files_that_exist_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plot", MODELS[0], "-o", str(tmp_path / "a.html")]) == 2
    assert "error[RG608]" in capsys.readouterr().err
    (tmp_path / "a.svg").touch()
    assert main(["plot", MODELS[0], "-o", str(tmp_path / "a.svg")]) == 2
    assert "error[RG401]" in capsys.readouterr().err


def test_a_png_without_its_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    assert main(["plot", MODELS[0], "-o", str(tmp_path / "a.png")]) == 6
    assert "pip install 'regraft[png]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
