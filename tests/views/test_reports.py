"""Reports from payloads: what the tables say, and that nothing is lost where a value is missing."""

from __future__ import annotations

import copy
import math
from typing import Any

from regraft.views.reports import (
    apply_report,
    bench_report,
    doctor_report,
    eval_report,
    pass_report,
    passes_report,
    plan_report,
    quantized_line,
    verify_report,
)
from regraft.views.table import plain

SIZE = {
    "parameters": 2_000_000,
    "active_parameters": 2_000_000,
    "weight_bytes": 4_000_000,
    "cache_bytes": 1 << 20,
    "decode_flops": 8_000_000,
    "decode_bytes_read": 5_000_000,
    "prefill_flops": 20_000_000_000,
}
STEP: dict[str, Any] = {
    "name": "share-kv",
    "pass": "share-kv{layers=1}",
    "preserves": "refit",
    "decided": True,
    "layers": [
        {"where": "layer 0", "layer": 0, "applied": False, "text": "not among the readers"},
        {"where": "layer 1", "layer": 1, "applied": True, "text": "reads %layers.0.attn.memory"},
    ],
    "before": SIZE,
    "after": SIZE,
}
PLAIN = {
    "tensors": 0,
    "bytes": 0,
    "kept_tensors": 0,
    "kept_bytes": 0,
    "dequantized": 0,
    "dequantized_from_bytes": 0,
    "dequantized_bytes": 0,
    "added_bytes": 0,
}
EVAL: dict[str, Any] = {
    "schema": "regraft.eval/1",
    "tokens": 8192,
    "context": 512,
    "text": "heldout.txt",
    "perplexity": 12.5,
    "base_perplexity": 12.0,
    "kl": {"mean": 0.04, "p99": 0.9},
    "top1_agreement": 0.93,
    "needle": [{"length": 64, "depth": 0.5, "recall": 0.9}],
    "base_needle": [{"length": 64, "depth": 0.5, "recall": 1.0}],
    "layers": [{"layer": 0, "error_teacher_forced": math.nan, "error_free_running": 0.013}],
    "cache": {"predicted_bytes": 1 << 20, "measured_bytes": None},
}


def test_a_plan_shows_every_layer_and_every_change() -> None:
    found = {
        "model": "tiny",
        "steps": [STEP, {**STEP, "decided": False, "layers": []}],
        "decided": False,
        "before": SIZE,
        "after": {**SIZE, "cache_bytes": 1 << 19},
        "disk_bytes": 4_000_000,
        "memory_bytes": 300_000_000,
        "quantized": PLAIN,
    }
    text = plain(plan_report(found))
    assert "1. share-kv{layers=1} (refit)" in text
    assert "2. share-kv{layers=1} (refit, decided at apply)\n  nothing to do" in text
    assert "layer 0  left  not among the readers" in text
    assert "1.00 MiB     512 KiB  -50.0 %" in text
    assert "--measure" in text


def test_what_dequantising_costs_is_said_where_there_is_something_quantised() -> None:
    assert quantized_line(PLAIN) == ""
    kept = {**PLAIN, "tensors": 5, "bytes": 3 << 20, "kept_tensors": 4, "kept_bytes": 2 << 20}
    assert quantized_line(kept) == "quantised: 5 tensors of 3.00 MiB with their scales; 4 copied as they are"
    part = {"dequantized": 1, "dequantized_from_bytes": 1 << 20, "dequantized_bytes": 4 << 20, "added_bytes": 3 << 20}
    assert quantized_line({**kept, **part}) == (
        "quantised: 5 tensors of 3.00 MiB with their scales; 4 copied as they are; "
        "parameters dequantised: 1, 1.00 MiB become 4.00 MiB (3.00 MiB more on disk)"
    )


def test_an_apply_shows_predicted_beside_measured() -> None:
    found = {
        "out": "out",
        "stock": "Qwen3ForCausalLM",
        "steps": [STEP],
        "predicted": {"parameters": 1_968_640, "weight_bytes": 3 << 20},
        "measured": {"tensors": 78, "weight_bytes": 3 << 20},
        "quality": None,
        "note": "every step is exact",
        "quantized": PLAIN,
    }
    text = plain(apply_report(found))
    assert "parameters    1,968,640         -" in text
    assert "weight bytes   3.00 MiB  3.00 MiB" in text
    assert "transformers loads it as Qwen3ForCausalLM" in text
    assert "quality not measured: every step is exact" in text
    assert "heldout.txt" in plain(apply_report({**found, "stock": "", "quality": EVAL}))


def test_an_evaluation_against_a_base() -> None:
    text = plain(eval_report(EVAL))
    assert text.startswith("8,192 tokens of heldout.txt, windows of 512\n")
    assert "KL(base || model), mean, nats a token   0.04000" in text
    assert "top-1 agreement                          93.00%" in text
    assert "64              0.50     90%  100%" in text
    assert "0                        -         1.30%" in text
    assert "cache measured" not in text


def test_an_evaluation_alone() -> None:
    alone = copy.deepcopy(EVAL) | {"base_perplexity": None, "base_needle": [], "layers": []}
    text = plain(eval_report(alone))
    assert "KL" not in text
    assert "64              0.50     90%\n" in text


def test_a_verification_marks_what_failed() -> None:
    checks = [
        {"name": "chunks = prefill", "passed": True, "error": 1e-6, "bound": 1e-5, "detail": ""},
        {"name": "prefill = transformers", "passed": False, "error": 2.0, "bound": 1e-5, "detail": "4 buffers"},
    ]
    text = plain(verify_report({"subject": "tiny", "against": "transformers", "checks": checks}))
    assert text.startswith("tiny against transformers: ")
    assert "  ok      chunks = prefill" in text
    assert "  FAILED  prefill = transformers" in text
    assert text.endswith("\n  4 buffers\n")


def test_a_bench_without_a_graph_has_dashes() -> None:
    found: dict[str, Any] = {
        "package": "pkg",
        "device": "cpu",
        "dtype": "float32",
        "threads": 2,
        "batch": 1,
        "compiled": True,
        "machine": {"bytes_per_s": 2e10, "flops_per_s": 1e11},
        "prefill": {"tokens": 128, "measured": 5000.0, "at_most": None},
        "decode": {"tokens": 64, "measured": 500.0, "at_most": 2000.0},
        "cache_predicted": None,
        "cache_measured": 1 << 20,
        "weights": 4 << 20,
        "peak": None,
    }
    text = plain(bench_report(found))
    assert text.startswith("pkg on cpu, float32, 2 threads, batch 1, compiled\n")
    assert "prefill, 128 tokens   5,000.0        -" in text
    assert "decode, 64 tokens       500.0  2,000.0" in text
    assert "reads 20.0 GB/s" in text


def test_passes_and_one_of_them() -> None:
    option = {"name": "refit", "type": "true or false", "default": "true", "text": "fit the output projection"}
    one = {
        "name": "share-kv",
        "preserves": "refit",
        "summary": "Share.",
        "text": "More.",
        "source": "A paper",
        "options": [option],
    }
    assert "share-kv  refit      Share." in plain(passes_report([one]))
    text = plain(pass_report(one))
    assert text.startswith("share-kv: Share.\n  preserves: refit\n")
    assert "refit   true or false  true     fit the output projection" in text
    assert "Source\n  A paper" in text


def test_the_doctor_says_what_is_missing() -> None:
    found: dict[str, Any] = {
        "python": "3.11.7",
        "platform": "Linux",
        "cores": 2,
        "memory_bytes": 8 << 30,
        "memory_available_bytes": 4 << 30,
        "disk_free_bytes": 10 << 30,
        "temporary_free_bytes": 10 << 30,
        "packages": {"torch": "2.13.0", "transformers": None},
        "compiler": None,
        "gpus": [{"name": "H200", "memory_bytes": 140 << 30, "capability": "9.0"}],
        "features": [{"name": "verify --against transformers", "available": False, "missing": "transformers"}],
    }
    text = plain(doctor_report(found))
    assert "transformers  not installed" in text
    assert "H200, 140 GiB, sm 9.0" in text
    assert "no  verify --against transformers  needs transformers" in text
