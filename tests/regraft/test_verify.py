"""`verify`: equal things pass, changed ones fail, and no model folder's code is run."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from regraft.api import apply, build, lift, twin
from regraft.ir.errors.calibration import TextError
from regraft.ir.errors.config import RewrittenTwinError
from regraft.ir.errors.files import InputMissingError
from regraft.ir.errors.program import IncomparableError, NotAPackageError
from regraft.passes.merge_kv_heads import MergeKVHeads
from regraft.programs import is_package, load_program
from regraft.verifying import verify

WAYS = ("prefill", "decode")


@pytest.fixture
def package(tiny: Path, tmp_path: Path) -> Path:
    return build(tiny, tmp_path / "pkg")


@pytest.mark.parametrize("name", ["tiny-qwen3", "tiny-llama"])
def test_the_shipped_models_equal_transformers(tiny: Path, name: str) -> None:
    report = verify(tiny.parent / name, against="transformers")
    assert report.passed
    assert [check.name for check in report.checks[-2:]] == ["prefill = transformers", "decode = transformers"]


def test_a_package_equals_its_model(tiny: Path, package: Path) -> None:
    report = verify(package, against=tiny)
    assert report.passed
    assert len(report.checks) == 6


def test_a_package_whose_weights_changed_differs(tiny: Path, package: Path) -> None:
    weights = load_file(package / "model.safetensors")
    name = next(name for name in weights if "down_proj" in name)
    weights[name] *= 1.01
    save_file(weights, package / "model.safetensors")
    report = verify(package, against=tiny)
    assert not report.passed
    assert {check.name: check.passed for check in report.checks}["one token at a time = prefill"]


def test_what_a_window_forgets_is_seen(tiny: Path, tmp_path: Path) -> None:
    apply(tiny, "window{window=48, refit=false}", tmp_path / "out")
    report = verify(tmp_path / "out", against=tiny)
    assert [check.name for check in report.checks if not check.passed] == [f"{way} = {tiny.name}" for way in WAYS]
    assert verify(tmp_path / "out", against=tiny, tokens=48).passed


def test_an_exact_recipe_is_held_to_its_original_before_its_weights_are_rounded(tiny: Path, tmp_path: Path) -> None:
    folder = apply(tiny, "fold-norms", tmp_path / "out").out
    report = verify(folder, against=tiny)
    assert report.passed
    names = [check.name for check in report.checks[4:]]
    assert names == [
        f"{way} = {other}"
        for other in (f"its recipe on {tiny.name}, rounded", f"{tiny.name}, before rounding")
        for way in WAYS
    ]
    assert "stored as bf16, which moves logits by up to 0.01" in report.checks[-1].detail
    assert verify(build(folder, tmp_path / "pkg"), against=tiny).passed
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if "down_proj" in name)
    weights[name] *= 1.01
    save_file(weights, folder / "model.safetensors")
    failed = [check.name for check in verify(folder, against=tiny).checks if not check.passed]
    assert failed == [f"{way} = {tiny.name}" for way in WAYS]


def test_a_recipe_that_only_claims_to_be_exact_fails(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = tiny.parent / "tiny-llama"
    apply(tiny, "merge-kv-heads{heads=2, method=mean, grouping=adjacent, refit=false}", tmp_path / "out")
    monkeypatch.setattr(MergeKVHeads, "claim", property(lambda _: "exact"))
    failed = [check.name for check in verify(tmp_path / "out", against=tiny).checks if not check.passed]
    assert failed == [f"{way} = {tiny.name}, before rounding" for way in WAYS]


def test_rounding_is_told_from_differences(
    tiny: Path, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bar that float32 does not reach in any order stands for a model that fits made worse to round."""
    monkeypatch.setattr("regraft.verifying.TOLERANCE", 1e-9)
    report = verify(package, against=tiny)
    assert report.passed
    assert 1e-6 < report.checks[0].bound < 1e-3
    assert max(check.error for check in report.checks) > 1e-6
    apply(tiny, "share-kv{layers=7, donor=6, refit=false}", tmp_path / "out")
    assert not verify(tmp_path / "out", against=tiny).passed


def test_a_ragged_batch_that_gives_no_numbers_fails(tiny: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN is no larger than any limit, and must not pass for that."""
    program = load_program(package, dtype="float32")

    class Broken:
        vocab = program.vocab
        new_cache = staticmethod(program.new_cache)

        def __call__(self, rows: torch.Tensor, cache: Any = None, lengths: torch.Tensor | None = None) -> torch.Tensor:
            logits = program(rows, cache, lengths)
            return logits if lengths is None else logits * math.nan

    monkeypatch.setattr("regraft.verifying.load_program", lambda *_, **__: Broken())
    checks = {check.name: check.passed for check in verify(package).checks}
    assert [name for name, passed in checks.items() if not passed] == ["ragged batch = each row alone"]


def test_another_vocabulary_cannot_be_compared(tiny: Path, tmp_path: Path) -> None:
    twin("builtin:Llama-3.2-1B", tmp_path / "twin")
    with pytest.raises(IncomparableError, match="1024"):
        verify(tiny, against=tmp_path / "twin")


def test_what_no_class_of_transformers_holds_is_not_compared_with_one(package: Path) -> None:
    with pytest.raises(IncomparableError, match="none of its classes"):
        verify(package, against="transformers")


def test_code_in_a_model_folder_is_not_run(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny, folder)
    (folder / "model.py").write_text("raise SystemExit('this ran')\n")
    assert not is_package(folder)
    assert verify(folder).passed
    with pytest.raises(NotAPackageError):
        load_program(folder)


def test_a_model_does_what_the_functions_do(tiny: Path, tmp_path: Path) -> None:
    model = lift(tiny)
    recipe = 'share-kv{layers="4..7", donor=3, refit=false}'
    assert model.plan(recipe).after.cache_bytes * 2 == model.plan(recipe).before.cache_bytes
    changed = model.apply(recipe, tmp_path / "out")
    assert changed.verify().passed
    assert not changed.verify(against=model).passed
    assert (changed.build(tmp_path / "pkg") / "model.py").is_file()


def test_a_twin_of_a_rewritten_model_is_refused(tiny: Path, tmp_path: Path) -> None:
    lift(tiny).apply('share-kv{layers="4..7", donor=3, refit=false}', tmp_path / "out")
    with pytest.raises(RewrittenTwinError, match="base"):
        twin(tmp_path / "out", tmp_path / "twin")
    assert not (tmp_path / "twin").exists()


def test_a_plan_misses_a_text_that_is_not_there(tiny: Path) -> None:
    with pytest.raises(TextError, match="no such file"):
        lift(tiny).plan('share-kv{layers="4..7", donor=3},calibration{text="nowhere.txt", tokens=512, seed=0}')


def test_a_name_in_a_folder_that_exists_is_no_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(InputMissingError, match="models/mine"):
        lift("models/mine")
