"""What of the GPU's benchmark of whole models can be tested without one: small twins, measured on the CPU."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_compiled, gpu_kernels, gpu_models
from benchmarks.cold_start import first_token
from benchmarks.gpu_maps import maps
from benchmarks.gpu_models import Part, Running, Sizes, cold_part, pass_part, program_part, samples, transformers_part
from benchmarks.gpu_results import DOCUMENT, Results, write_table
from benchmarks.gpu_subjects import MODELS, Subject, random_weights, sliced, subject, write_program
from benchmarks.gpu_tables import NEVER, model_lines, scheduled
from benchmarks.model_rivals import COMPILED, GROWING, STATIC, logits, stepper, stock
from regraft.frontends.folder import builtin_names, open_model
from regraft.frontends.twin import twin_config
from regraft.ir.graph import Graph
from regraft.ir.hardware import device

TINY = Sizes(decode=(24,), prefill=(12,), steps=4, repeats=1, prompt=8)
RATES = {"copy_bytes_per_s": 1e12, "matmul_flops": 1e15}
EVERYDAY = ("ZAYA1-8B",)


def small(name: str, dtype: str = "f32") -> Subject:
    return subject(name, twin_config(open_model(f"builtin:{name}").config), dtype)


def part(path: Path, **more: Any) -> Part:
    return Part(Results(path, "here"), time.monotonic() + 3600, "cpu", TINY, {"versions": "v", **more})


def check_same(name: str, folder: Path) -> None:
    of = small(name)
    running = Running(of.graph, folder, "cpu")
    other = stock(of.config, random_weights(of.graph, "cpu"), "cpu")
    tokens = running.tokens(TINY.prompt)
    torch.testing.assert_close(running.logits(TINY.prompt), logits(other, tokens), rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", EVERYDAY)
def test_transformers_computes_the_same_of_the_same_tensors(name: str, tmp_path: Path) -> None:
    check_same(name, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MODELS if name not in EVERYDAY])
def test_transformers_computes_the_same_of_the_others(name: str, tmp_path: Path) -> None:
    check_same(name, tmp_path)


@pytest.mark.parametrize("name", EVERYDAY)
def test_kernels_take_half_precision_beside_what_is_wide(name: str, tmp_path: Path) -> None:
    assert 0 < Running(small(name, "f16").graph, tmp_path, "cpu").checked < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in builtin_names() if name not in EVERYDAY])
def test_kernels_of_the_others_take_half_precision(name: str, tmp_path: Path) -> None:
    assert 0 < Running(small(name, "f16").graph, tmp_path, "cpu").checked < 0.05  # a choice of rows may differ


def test_tensors_are_made_once_and_shared_with_transformers() -> None:
    of = small("Qwen3-8B")
    weights = random_weights(of.graph, "cpu")
    places = {tensor.data_ptr() for tensor in weights.values()}
    assert {parameter.data_ptr() for parameter in stock(of.config, weights, "cpu").parameters()} == places
    for name, tensor in random_weights(of.graph, "cpu").items():
        assert torch.equal(tensor, weights[name])
    norm = weights["model.norm.weight"]
    assert 0.6 < float(norm.min()) < float(norm.max()) < 1.4


def test_transformers_decodes_alike_with_both_caches() -> None:
    of = small("gemma-4-E2B")
    other = stock(of.config, random_weights(of.graph, "cpu"), "cpu")
    prompt = torch.arange(8)[None]
    for mode in (STATIC, GROWING):
        step = stepper(other, mode, prompt, 20, 4)
        for _ in range(4):
            step()


def test_a_model_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of, path = small("Llama-3.1-8B"), tmp_path / "gpu.json"
    asked = part(path, digest="1")
    late = replace(asked, until=0.0)
    assert not program_part(of, late, RATES)
    assert program_part(of, asked, RATES)
    found = Results(path, "here").entries()
    assert set(found) == {f"models/{of.name}/{each}" for each in ("logits", "decode@24", "prefill@12")}
    decoded = found[f"models/{of.name}/decode@24"]
    assert decoded["least"] <= decoded["bytes"]
    assert decoded["of_copy"] == pytest.approx(decoded["least"] / 1e12 / (decoded["ms"] / 1e3))
    assert decoded["of_sheet"] is None, "nothing is known of this device"

    def never(*_: Any) -> Running:
        raise AssertionError("it is known")

    monkeypatch.setattr(gpu_models, "Running", never)
    assert program_part(of, late, RATES)
    with pytest.raises(AssertionError, match="it is known"):
        program_part(of, part(path, digest="2"), RATES)
    assert Results(path, "here").entries()[f"models/{of.name}/logits"]["status"] == "running"


def test_transformers_is_measured_in_the_fastest_mode_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, path = small("Qwen3-8B"), tmp_path / "gpu.json"

    def refused(*_: Any, **options: Any) -> Any:
        raise RuntimeError("no graph")

    monkeypatch.setattr(torch, "compile", refused)
    assert program_part(of, part(path), RATES)
    with pytest.raises(RuntimeError, match="no graph"):
        transformers_part(of, part(path))
    Results(path, "here").interrupted("no graph")
    assert not transformers_part(of, part(path)), "what was decoded ends a process"
    assert transformers_part(of, part(path))
    found = Results(path, "here").entries()
    key = f"models/{of.name}/transformers"
    assert found[f"{key}/logits"]["apart"] < 1e-4
    assert found[f"{key}/decode@24/{COMPILED}"]["status"] == "failed"
    assert found[f"{key}/decode@24/{STATIC}"]["status"] == "measured"
    assert f"{key}/decode@24/{GROWING}" not in found
    assert found[f"{key}/prefill@12"]["tokens_per_s"] > 0


def test_the_first_token_is_timed_without_the_weights(tmp_path: Path) -> None:
    write_program(small("Llama-3.1-8B").graph, tmp_path)
    found = first_token(tmp_path, time.time() - 100, "cpu")
    assert found["seconds"] >= found["import_s"] + found["first_s"] >= 100


@pytest.mark.slow
def test_a_cold_start_is_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_models, "COLD", ("kernels compiled at first use",))
    asked = part(tmp_path / "gpu.json")
    assert cold_part(small("Llama-3.1-8B"), asked)
    (entry,) = asked.results.entries().values()
    assert entry["seconds"] >= entry["import_s"] + entry["first_s"] > 0


def test_kernels_that_were_compiled_before_are_put_beside_a_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_compiled, "STORE", tmp_path / "store")
    monkeypatch.setattr(gpu_compiled, "shipped_kernels", lambda *_: {"kernels/3/sm_90/name/o.cubin": b"code"})
    of = small("Llama-3.1-8B")
    program = write_program(of.graph, tmp_path / "written")
    assert gpu_compiled.compile_for(program, tmp_path / "written", "sm_90", [1024]) == 4
    shutil.copytree(tmp_path / "written" / "kernels", gpu_compiled.place(program))
    Running(of.graph, tmp_path / "program", "cpu")
    assert (tmp_path / "program" / "kernels/3/sm_90/name/o.cubin").read_bytes() == b"code"
    Running(small("Qwen3-8B").graph, tmp_path / "other", "cpu")
    assert not (tmp_path / "other" / "kernels").exists()


def test_a_pass_is_predicted_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pair(_: tuple[str, str]) -> tuple[Graph, Graph]:
        return small("Llama-3.1-8B").graph, small("Llama-3.1-8B").graph

    times = iter([0.004, 0.002])

    def running(*_: Any) -> Any:
        return SimpleNamespace(decoded=lambda *_: next(times))

    monkeypatch.setattr(gpu_models, "before_and_after", pair)
    monkeypatch.setattr(gpu_models, "Running", running)
    asked = part(tmp_path / "gpu.json")
    assert pass_part("head budget", asked, context=24)
    (entry,) = asked.results.entries().values()
    assert entry["predicted"] == 1
    assert entry["measured"] == pytest.approx(2)
    assert entry["ms"] == pytest.approx([4, 2])


def test_only_the_first_layers_of_a_model_that_is_too_large_are_measured() -> None:
    config = {"num_hidden_layers": 3, "num_nextn_predict_layers": 1, "ratios": [0, 4, 128, 0], "eos": [1, 2]}
    cut = {"num_hidden_layers": 2, "num_nextn_predict_layers": 0, "ratios": [0, 4], "eos": [1, 2]}
    assert sliced(config, 2) == cut
    assert subject("DeepSeek-V4-Flash").graph.layer_count() == 4


def test_the_sheet_of_a_device_is_found_by_the_drivers_name() -> None:
    assert gpu_models.sheet_bandwidth("NVIDIA H200") == device("h200-sxm").bandwidth_bytes_per_s
    assert gpu_models.sheet_bandwidth("another") is None


def test_parts_are_asked_for_by_model() -> None:
    assert gpu.parts(["Qwen3-8B"]) == {
        "models/Qwen3-8B/": [["benchmarks.gpu_models", part, "Qwen3-8B"] for part in gpu.MODEL_PARTS]
    }
    assert list(gpu.parts(["passes"])) == [f"passes/{name}@" for name in gpu.PASSES]
    assert len(gpu.parts([])) == len(gpu.parts(["kernels"])) + len(MODELS) + len(gpu.PASSES)


def entry(**more: Any) -> dict[str, Any]:
    return {"status": "measured", **more}


def test_the_maps_of_a_step_are_measured_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(calls: list[Any]) -> float:
        return 1e-5 if all(call() is not None for call in calls) else 0.0

    def plain(form: Any, **_: Any) -> Any:
        return form

    monkeypatch.setattr(gpu_kernels, "seconds", seconds)
    monkeypatch.setattr(gpu_kernels, "cache_bytes", lambda: 1)
    monkeypatch.setattr(torch, "compile", plain)
    running = Running(small("Qwen3-8B").graph, tmp_path, "cpu")
    found = maps(running.graph, running.module, lambda: running.logits(4), 1e12, "cpu")
    assert list(found) == ["q_k_v", "o", "gate_up", "down"]
    for each in found.values():
        assert each["error"] <= 1e-5
        assert each["us"] == each["beside"]["cuBLAS"] == 10
        assert each["share"] == pytest.approx(each["least"] / 1e12 / 1e-5)
    lines = list(model_lines({"models/Qwen3-8B/maps": {"status": "measured", "maps": found}}))
    assert any(line.startswith("| Qwen3-8B | gate_up | 10.0 |") for line in lines)


def test_rows_say_what_was_measured_and_what_never_was(tmp_path: Path) -> None:
    lines = list(model_lines({}))
    assert f"| Qwen3-8B | 4096 | {NEVER} | | | | | {NEVER} | |".replace("| |", "|  |").replace("| |", "|  |") in lines
    numbers = {"ms": 4.0, "tokens_per_s": 250.0, "least": 16000000000, "of_sheet": 0.83, "of_copy": 0.93}
    found = {
        "models/Qwen3-8B/decode@4096": entry(**numbers),
        f"models/Qwen3-8B/transformers/decode@4096/{COMPILED}": entry(status="failed", reason="no | graph"),
        f"models/Qwen3-8B/transformers/decode@4096/{STATIC}": entry(ms=10.0, tokens_per_s=100.0),
        "models/Qwen3-8B/prefill@4096": entry(ms=200.0, tokens_per_s=20480.0),
        "models/Qwen3-8B/prefill@32768": entry(status="failed", reason="out | of\nmemory"),
        "passes/latent@131072": entry(predicted=2.0, measured=1.9),
    }
    lines = list(model_lines(found))
    wanted = "| Qwen3-8B | 4096 | 4.000 | 250.0 | 16,000,000,000 | 83% | 93% | 100.0 (static cache) | 2.50× |"
    assert wanted in lines
    assert f"| Qwen3-8B | 4096 | 0.20 | 20480 | {NEVER} |" in lines
    assert f"| Qwen3-8B | 32768 | failed: out / of memory |  | {NEVER} |" in lines
    assert "| latent | Llama-3.1-8B | 131072 | 2.00× | 1.90× | 5% |" in lines
    document = tmp_path / "performance.md"
    write_table(tmp_path / "none.json", document)
    assert "No GPU has been measured yet" in document.read_text()


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "Qwen3-8B"])
def test_the_schedule_in_the_document_is_fresh(name: str) -> None:
    assert scheduled(name) in DOCUMENT.read_text(encoding="utf-8").splitlines(), "python -m benchmarks.gpu schedule"


def test_samples_are_spread_over_the_vocabulary() -> None:
    assert samples(torch.arange(1000.0)[None], 3) == [0, 499, 999]
