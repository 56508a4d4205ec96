"""`apply` on the shipped model: what it writes, that it can be resumed, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file

import regraft
from regraft.applying import apply
from regraft.evaluating import evaluate
from regraft.ir.errors.base import RegraftError
from regraft.ir.errors.checkpoint import NotFiniteError
from regraft.ir.errors.files import OutputExistsError
from regraft.ir.errors.recipe import NoCalibrationError
from regraft.model import lift
from regraft.passes.fitting.fold import folded
from regraft.passes.pipeline import run_pipeline
from regraft.passes.recipe import parse_pipeline
from regraft.quality import Probes
from regraft.stock import stock_form
from regraft.verifying import verify
from tests.regraft.conftest import ROOT

EVEN = ", ".join(f"{layer}: [0, 2, 4, 6]" for layer in range(8))
HALF = f"budget-heads{{keep={{{EVEN}}}, refit=false}}"  # the first of each pair of heads that share keys and values


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith("out")]


def test_a_recipe_that_touches_no_weight_copies_them_and_stays_a_stock_model(tiny: Path, tmp_path: Path) -> None:
    report = apply(tiny, "dce", tmp_path / "out")
    assert report.stock == "Qwen3ForCausalLM"
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads((tiny / "config.json").read_text())
    before, after = load_file(tiny / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert verify(tmp_path / "out", against="transformers").passed


def test_fewer_heads_in_every_layer_are_a_stock_model_that_transformers_loads(tiny: Path, tmp_path: Path) -> None:
    report = apply(tiny, HALF, tmp_path / "out")
    assert report.stock == "Qwen3ForCausalLM"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"], config["head_dim"]) == (4, 4, 32)
    assert report.predicted["weight_bytes"] == report.measured["weight_bytes"]
    assert verify(tmp_path / "out", against="transformers").passed


def test_heads_merged_under_norms_for_a_stock_class_have_its_config(tiny: Path) -> None:
    model = lift(tiny)
    pipeline = "merge-kv-heads{{heads=2, grouping=adjacent, norm={norm}}}"
    for norm, heads in (("stock", 2), ("gauge", None)):
        result = run_pipeline(model.graph, parse_pipeline(pipeline.format(norm=norm)))
        form = stock_form(folded(result.graph), model.folder)
        config = form.config if form else {}
        assert config.get("num_key_value_heads") == heads


@pytest.mark.parametrize(
    ("model", "options", "stock"),
    [("tiny-llama", "", "Llama"), pytest.param("tiny-qwen3", ", norm=stock", "Qwen3", marks=pytest.mark.slow)],
)
def test_merged_heads_are_a_stock_model_that_transformers_loads(
    model: str, options: str, stock: str, text: Path, tmp_path: Path
) -> None:
    section = f'calibration{{text="{text}", tokens=1024, context=128}}'
    source = ROOT / "examples" / model
    report = apply(source, f"merge-kv-heads{{heads=2, grouping=adjacent{options}}},{section}", tmp_path / "out")
    assert report.stock == f"{stock}ForCausalLM"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    before = json.loads((source / "config.json").read_text())
    assert config == {**before, "num_key_value_heads": 2}
    assert report.predicted["weight_bytes"] == report.measured["weight_bytes"]
    assert report.quality is not None
    assert report.quality.kl_mean is not None
    assert 0.05 < report.quality.kl_mean < 1.0
    assert verify(tmp_path / "out", against="transformers").passed


@pytest.mark.parametrize(
    ("options", "turning"),
    [("rope=16", "longrope"), pytest.param("rope=8, kept=EVERY", "default", marks=pytest.mark.slow)],
)
def test_a_latent_in_the_layout_of_deepseek_is_a_stock_model_that_transformers_loads(
    options: str, turning: str, text: Path, tmp_path: Path
) -> None:
    every = options.replace("EVERY", str({layer: [0, 2, 4, 6] for layer in range(6)}))
    section = f'calibration{{text="{text}", tokens=1024, context=128}}'
    recipe = f"to-latent{{rank=63, layout=deepseek, {every}}},{section}"
    report = apply(ROOT / "examples" / "tiny-llama", recipe, tmp_path / "out")
    assert report.stock == "DeepseekV3ForCausalLM"
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["kv_lora_rank"], config["rope_parameters"]["rope_type"]) == (64, turning)
    assert "model.layers.0.self_attn.kv_b_proj.weight" in load_file(tmp_path / "out" / "model.safetensors")
    assert report.predicted["weight_bytes"] == report.measured["weight_bytes"]
    assert report.quality is not None
    assert report.quality.kl_mean is not None
    assert 1e-3 < report.quality.kl_mean < 1.0
    assert verify(tmp_path / "out", against="transformers").passed


def test_a_model_of_deepseek_stays_one_under_other_passes(tmp_path: Path) -> None:
    twin = regraft.twin("builtin:DeepSeek-V2-Lite", tmp_path / "twin")
    assert apply(twin, "fold-norms{leave=ones}", tmp_path / "out").stock == "DeepseekV2ForCausalLM"
    before, after = (load_file(folder / "model.safetensors") for folder in (twin, tmp_path / "out"))
    joined = [name for name in before if "kv_b_proj" in name]
    assert len(joined) == 4
    assert all(torch.equal(before[name], after[name]) for name in joined)
    assert not any("k_b_proj" in name for name in after)
    assert verify(tmp_path / "out", against="transformers").passed


def test_shared_memories_are_no_stock_model_and_say_so(tiny: Path, tmp_path: Path) -> None:
    report = apply(tiny, 'share-kv{layers="4..7", donor=3, refit=false}', tmp_path / "out", dump_ir=tmp_path / "ir")
    assert report.stock == ""
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "regraft"
    assert config["base"] == json.loads((tiny / "config.json").read_text())
    assert report.predicted["cache_bytes_4096"] * 2 == 4096 * 8 * 2 * 4 * 32 * 2
    assert verify(tmp_path / "out").passed
    assert [path.name for path in sorted((tmp_path / "ir").iterdir())] == ["00-lifted.rg", "01-share-kv.rg"]
    names = load_file(tmp_path / "out" / "model.safetensors").keys()
    assert "model.layers.3.self_attn.k_proj.weight" in names
    assert not any(f"layers.{layer}.self_attn.k_proj" in name for layer in range(4, 8) for name in names)


def test_the_lock_is_a_recipe_that_gives_the_same_bytes(tiny: Path, tmp_path: Path, fitted: str) -> None:
    apply(tiny, fitted, tmp_path / "out")
    apply(tiny, tmp_path / "out" / "regraft.lock.json", tmp_path / "again")
    assert digests(tmp_path / "out") == digests(tmp_path / "again")


def test_decisions_that_were_measured_stand_in_the_lock(tiny: Path, tmp_path: Path, fitted: str) -> None:
    text = fitted.partition(",calibration")[2]
    report = apply(tiny, f'budget-heads{{layers="2..3", heads=6}},calibration{text}', tmp_path / "out")
    lock = json.loads((tmp_path / "out" / "regraft.lock.json").read_text())
    keep = lock["pipeline"][0]["budget-heads"]["keep"]
    assert {int(layer): len(heads) for layer, heads in keep.items()} == {2: 6, 3: 6}
    assert report.quality is not None
    assert report.quality.kl_mean is not None
    assert 0 < report.quality.kl_mean < 1


def test_applying_again_to_what_apply_wrote(tiny: Path, tmp_path: Path) -> None:
    apply(tiny, 'share-kv{layers="4..7", donor=3, refit=false}', tmp_path / "out")
    apply(tmp_path / "out", HALF, tmp_path / "twice")
    config = json.loads((tmp_path / "twice" / "config.json").read_text())
    assert config["base"]["model_type"] == "qwen3"
    assert lift(tmp_path / "twice").graph["layers.7.attn.q"].tensor.shape[2] == 4
    assert verify(tmp_path / "twice").passed


def test_exact_steps_say_whether_weights_are_rounded(tiny: Path, tmp_path: Path) -> None:
    assert apply(tiny, "dce", tmp_path / "same").note == "every step is exact"
    report = apply(tiny, "fold-norms", tmp_path / "out")
    assert report.note == "every step is exact, but for rounding of made weights to bf16"


def run_killed(model: Path, recipe: str, out: Path, after: float) -> None:
    """Apply in a process of its own, and kill it after some seconds."""
    code = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "from regraft.applying import apply\n"
        "print('ready', flush=True)\n"
        "apply(sys.argv[1], sys.argv[2], sys.argv[3], resume=True, shard_bytes=400_000)"
    )
    with subprocess.Popen([sys.executable, "-c", code, model, recipe, out], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(after)
        process.send_signal(signal.SIGKILL)
        process.wait()


def kill_and_resume(model: Path, recipe: str, folder: Path, kills: int) -> None:
    began = time.monotonic()
    apply(model, recipe, folder / "whole", shard_bytes=400_000)
    took = time.monotonic() - began
    rng, interrupted = random.Random(0), 0
    for number in range(kills):
        out = folder / f"out{number}"
        run_killed(model, recipe, out, rng.uniform(0, took) if number else 0.3 * took)
        if not out.exists():
            interrupted += 1
            apply(model, recipe, out, resume=True, shard_bytes=400_000)
        assert digests(out) == digests(folder / "whole")
        assert not (folder / f"out{number}.partial").exists()
        shutil.rmtree(out)
    assert interrupted


def test_killed_and_resumed_gives_the_same_bytes(tiny: Path, tmp_path: Path, fitted: str) -> None:
    kill_and_resume(tiny, fitted, tmp_path, kills=2)


@pytest.mark.slow
def test_killed_at_twenty_moments_and_resumed_gives_the_same_bytes(tiny: Path, tmp_path: Path, fitted: str) -> None:
    kill_and_resume(tiny, fitted, tmp_path, kills=20)


def damaged(tiny: Path, folder: Path, change: Any) -> Path:
    """Copy the shipped model and change its tensors."""
    copy = folder / "damaged"
    shutil.copytree(tiny, copy)
    tensors = load_file(copy / "model.safetensors")
    change(tensors)
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    return copy


def test_weights_that_are_not_numbers_are_named_and_nothing_is_left(tiny: Path, tmp_path: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        tensors["model.layers.2.mlp.up_proj.weight"][0, 0] = float("nan")

    with pytest.raises(NotFiniteError, match=r"layers\.2\.mlp\.up_proj.*1 of"):
        apply(damaged(tiny, tmp_path, change), "dce", tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_an_output_that_exists_is_left_alone(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(OutputExistsError):
        apply(tiny, "dce", tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "kept"


def test_a_fitted_pass_without_text_names_the_sample(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(NoCalibrationError, match="share-kv") as caught:
        apply(tiny, 'share-kv{layers="4..7", donor=3}', tmp_path / "out")
    assert "builtin:sample" in str(caught.value)
    assert leftovers(tmp_path) == []


def test_too_few_tokens_are_counted(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("x = 1\n" * 100)
    recipe = f'share-kv{{layers="4..7", donor=3}},calibration{{text="{tmp_path}/short.txt", tokens=65536, seed=0}}'
    with pytest.raises(RegraftError, match="65536 are asked for"):
        apply(tiny, recipe, tmp_path / "out")
    assert leftovers(tmp_path) == []


def test_the_same_text_and_seed_give_the_same_bytes(tiny: Path, tmp_path: Path, fitted: str) -> None:
    apply(tiny, fitted, tmp_path / "out")
    apply(tiny, fitted, tmp_path / "again")
    assert digests(tmp_path / "out") == digests(tmp_path / "again")


@pytest.mark.slow
def test_the_refit_of_half_the_layers_beats_raw_sharing(tiny: Path, heldout: Path, tmp_path: Path) -> None:
    raw = 'share-kv{layers="4..7", donor=3, refit=false}'
    text = heldout.parent / "calibration.txt"
    fit = f'share-kv{{layers="4..7", donor=3}},calibration{{text="{text}", tokens=65536, seed=0}}'
    kl: dict[str, float] = {}
    for name, recipe in (("raw", raw), ("fit", fit)):
        apply(tiny, recipe, tmp_path / name)
        report = evaluate(tmp_path / name, heldout, against=tiny, tokens=16384, probes=Probes(lengths=()))
        kl[name] = cast(float, report.kl_mean)
    assert 0.01 < kl["fit"] < 0.6 * kl["raw"]
