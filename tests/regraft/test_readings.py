"""What a model was fitted on is not what it is evaluated on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from regraft.api import build
from regraft.applying import apply, calibration_windows
from regraft.evaluating import evaluate
from regraft.ir.errors.calibration import TextError
from regraft.model import lift
from regraft.passes.fitting.text import Reading, Windows, load_tokenizer, read_windows, unseen
from regraft.passes.recipe import Calibration
from regraft.quality import Probes
from regraft.readings import readings

NONE = Probes(lengths=())


def _windows(tiny: Path, text: Path, context: int, seed: int) -> Windows:
    return read_windows(text, load_tokenizer(tiny), 1024, 0, context, None, seed)


def _read(windows: Windows, count: int | None = None) -> set[int]:
    """Return the places in the text of the tokens of the first windows."""
    return {start + i for start in windows.starts[:count] for i in range(windows.fresh)}


@pytest.mark.parametrize(("context", "seed"), [(128, 0), (128, 1), (96, 0), (512, 3)])
def test_windows_that_share_a_token_with_a_fit_are_left_out(tiny: Path, text: Path, context: int, seed: int) -> None:
    fit = _windows(tiny, text, 128, 0)
    reading = Reading(fit.sha256, 512, 0, 128)  # four windows
    every = _windows(tiny, text, context, seed)
    left = unseen(every, [reading])
    seen = _read(fit, 4)
    assert not _read(left) & seen
    gone = set(every.starts) - set(left.starts)
    assert all({*range(start, start + every.fresh)} & seen for start in gone)
    assert gone
    kept = unseen(every, [reading], 3)
    assert kept.starts[:3] == every.starts[:3]
    assert torch.equal(kept.tokens[:3], every.tokens[:3])
    assert unseen(every, [Reading("of another text", 512, 0, 128)]).starts == every.starts


def test_a_fitted_model_and_its_package_are_evaluated_on_the_rest(
    tiny: Path, text: Path, tmp_path: Path, fitted: str
) -> None:
    report = apply(tiny, fitted, tmp_path / "out")
    assert report.quality is not None
    build(tmp_path / "out", tmp_path / "package")
    for each in ("out", "package"):
        assert readings(tmp_path / each) == (Reading(report.quality.text_sha256, 2048, 0, 128),)
        found = evaluate(tmp_path / each, text, context=128, tokens=2048, probes=NONE)  # as apply did
        assert found.tokens == report.quality.tokens
        assert found.perplexity == pytest.approx(report.quality.perplexity, rel=1e-5)
        with pytest.raises(TextError, match="without what the model was fitted on"):
            evaluate(
                tmp_path / each, text, context=128, tokens=_windows(tiny, text, 128, 0).tokens.numel(), probes=NONE
            )


def test_a_second_recipe_measures_beside_what_the_first_was_fitted_on(
    tiny: Path, text: Path, tmp_path: Path, fitted: str
) -> None:
    apply(tiny, fitted, tmp_path / "out")
    calibration = Calibration(str(text), tokens=512, seed=1, context=128)
    windows = calibration_windows(lift(tmp_path / "out"), calibration)
    first = _read(_windows(tiny, text, 128, 0), 16)
    assert _read(windows, 4) & first  # it may be fitted on the same again
    assert not _read(windows) - _read(windows, 4) & first
    apply(tmp_path / "out", "fold-norms", tmp_path / "again")
    assert readings(tmp_path / "again") == readings(tmp_path / "out")


def test_a_lock_file_without_readings_names_none(tmp_path: Path) -> None:
    for inputs in ({}, {"readings": 1}, {"readings": [1, {"sha256": 1}]}, None):
        (tmp_path / "regraft.lock.json").write_text(json.dumps({"inputs": inputs}))
        assert readings(tmp_path) == ()
    assert readings(None) == ()
