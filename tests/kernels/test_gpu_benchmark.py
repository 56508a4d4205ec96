"""What of the GPU's benchmark can be tested without one: its arguments, its errors, its file, its refusal."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu, gpu_kernels
from benchmarks.gpu_kernels import Program, checked, contexts, errors, load, measured
from benchmarks.gpu_results import Results, write_table
from benchmarks.kernel_inputs import Call, inputs
from benchmarks.kernel_rivals import rivals
from regraft.codegen.kernels.alone import shelf
from regraft.codegen.kernels.attend import AttendStep
from regraft.codegen.kernels.flash import Flash
from regraft.codegen.kernels.grouped import Grouped
from regraft.codegen.kernels.kernel import Kernel
from regraft.codegen.kernels.route import Route


def shapes(found: Any) -> list[tuple[tuple[int, ...], torch.dtype]]:
    tensors = [found] if isinstance(found, torch.Tensor) else list(found or ())
    return [(tuple(tensor.shape), tensor.dtype) for tensor in tensors]


@pytest.mark.parametrize("kernels", shelf().values(), ids=list(shelf()))
def test_every_kernel_gets_arguments_of_its_real_sizes(kernels: list[Kernel], tmp_path: Path) -> None:
    seen: set[tuple[str, ...]] = set()
    for kernel in kernels:
        program = load(kernel, tmp_path)
        if tuple(program.arguments) in seen:
            continue
        seen.add(tuple(program.arguments))
        call = Call(1, contexts(kernel)[0], torch.bfloat16, "meta")
        given = inputs(kernel, program.arguments, call)
        made = program.op(**given)
        if not isinstance(kernel, Grouped):  # its plain form looks which experts were chosen
            assert shapes(program.plain(**given)) == shapes(made)


def test_checks_are_of_weights_that_fit_in_float64() -> None:
    for kernels in shelf().values():
        for kernel in map(checked, kernels):
            program_bytes = kernel.moved(8, 1, contexts(kernel)[0]).least
            assert program_bytes < 40 << 30


def test_errors_are_of_results_and_of_what_is_written() -> None:
    def plain(x: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        memory += x
        return x / 3, x.argsort()

    def op(x: torch.Tensor, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        memory += x + 0.5
        return x / 3, x.argsort() + 1

    program = Program(op, plain, {"x": False, "memory": True})
    found = errors(program, {"x": torch.ones(4), "memory": torch.ones(4)})
    assert found["error"] == pytest.approx(0.25)
    assert (found["plain_error"], found["different"], found["plain_different"]) == (0, 4, 0)


def test_a_kernel_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def seconds(of: list[Any]) -> float:
        calls.append(len(of))
        assert all(call() is not None for call in of)
        return 1e-5

    def beside(kernel: Kernel, plain: Any, call: Call) -> dict[str, Any]:
        def cannot(**given: Any) -> None:
            raise ValueError("no such mask")

        return {"the same": plain, "other": cannot}

    for name, stub in (("seconds", seconds), ("rivals", beside), ("cache_bytes", lambda: 1_000)):
        monkeypatch.setattr(gpu_kernels, name, stub)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    rates = {"copy_bytes_per_s": 1e12, "matmul_flops": 1e15}
    kernel = Route("route", 32, 8, 2)
    moved = kernel.moved(2, 1, 4096)
    found = measured(kernel, 4096, rates, tmp_path, "none", "cpu")
    copies = -(-4 * 1_000 // moved.total)
    assert calls == [copies, copies, copies]
    assert found["us"] == pytest.approx(10)
    assert found["beside"] == {"the same": pytest.approx(10), "other": "ValueError: no such mask"}
    assert found["of"] == "bandwidth"
    assert found["tile"] == kernel.tiles()[0].launch()
    assert found["share"] == pytest.approx(moved.least / 1e12 / 1e-5)


SEEN = AttendStep("seen", 4, 2, 16, 16, 32, 0.25, writes=False)
BESIDE = {
    "attention": SEEN,
    "latents": replace(SEEN, kv_heads=1, width=48, value_width=32, rows="shared", q_apart=True),
    "many tokens": Flash("flash", 4, 2, 16, 16, 0.25),
    "experts": Grouped("grouped", 32, 16, 8, 3),
    "a window and a softcap": Flash("flash", 4, 4, 16, 16, 0.25, window=7, first=2, softcap=3.0),
}


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("case", BESIDE)
def test_what_stands_beside_computes_the_same(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def as_it_is(form: Any, **options: Any) -> Any:
        return form

    monkeypatch.setattr(torch, "compile", as_it_is)
    kernel = BESIDE[case]
    program, call = load(kernel, tmp_path), Call(2, 20, torch.float32, "cpu")
    given = inputs(kernel, program.arguments, call)
    wanted = program.plain(**given)
    wanted = wanted if isinstance(wanted, torch.Tensor) else wanted[0]
    others = rivals(kernel, program.plain, call)
    assert len(others) >= 2
    for other in others.values():
        made = other(**given)
        made = made if isinstance(made, torch.Tensor) else made[0]
        made = made if made.shape == wanted.shape else made.transpose(1, 2)
        torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)


def entry(**more: Any) -> dict[str, Any]:
    return {"kernel": "rows", "status": "measured", "digest": "1", "versions": "v", **more}


def test_what_is_measured_is_kept_by_device_and_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    one, other = Results(path, "one"), Results(path, "other")
    one.put("kernels/rows/0@4096", entry())
    other.put("limits", entry())
    assert one.known("kernels/rows/0@4096", {"digest": "1", "versions": "v"})
    assert not one.known("kernels/rows/0@4096", {"digest": "2", "versions": "v"})
    assert not other.known("kernels/rows/0@4096", {})
    one.put("kernels/rows/1@4096", entry(status="running"))
    assert not one.known("kernels/rows/1@4096", {"digest": "1"})
    assert one.interrupted("it crashed") == ["kernels/rows/1@4096"]
    assert one.entries()["kernels/rows/1@4096"]["reason"] == "it crashed"
    one.put("kernels/rows/2@4096", entry(status="running"))
    assert one.interrupted(None) == ["kernels/rows/2@4096"]
    one.drop("kernels/rows/1")
    assert list(one.entries()) == ["kernels/rows/0@4096"]
    assert list(json.loads(path.read_bytes())["devices"]) == ["one", "other"]


def test_parts_go_on_after_a_kernel_that_ends_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = Results(tmp_path / "gpu.json", "H200")
    ends = [1, gpu.MORE, None, 0]

    def part(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command[2:4] == ["benchmarks.gpu_kernels", "rows"]
        code = ends.pop(0)
        if code in (1, None):
            results.put(f"kernels/rows/{len(ends)}@4096", entry(status="running"))
        if code is None:
            raise subprocess.TimeoutExpired(command, gpu.PART)
        return subprocess.CompletedProcess(command, code, stderr="an illegal memory access")

    monkeypatch.setattr(subprocess, "run", part)
    assert gpu.measure(["benchmarks.gpu_kernels", "rows"], results, time.monotonic() + 3600)
    reasons = [each["reason"] for each in results.entries().values()]
    assert reasons == ["took more than 235 s", "an illegal memory access"]
    assert not gpu.measure(["benchmarks.gpu_kernels", "rows"], results, time.monotonic() + 100), (
        "a part may take longer than that"
    )
    assert ends == []


def test_the_table_stands_in_its_place(tmp_path: Path) -> None:
    path, document = tmp_path / "gpu.json", tmp_path / "performance.md"
    write_table(path, document)
    assert "No GPU has been measured yet" in document.read_text()
    document.write_text(document.read_text() + "\n## After\n")
    results = Results(path, "H200")
    rates = {"copy_bytes_per_s": 4.3e12, "matmul_flops": 7.9e14, "date": "2026-01-01"}
    results.put("limits", entry(**rates))
    numbers = {"us": 10.0, "share": 0.9, "of": "bandwidth", "error": 1e-3, "plain_error": 2e-3}
    results.put("kernels/rows/0@4096", entry(**numbers, beside={"cuBLAS": 12.5, "SDPA": "no such mask"}))
    results.put("kernels/rows/1@4096", entry(status="failed", reason="took more than 235 s"))
    for _ in range(2):
        write_table(path, document)
    lines = document.read_text().splitlines()
    assert "| rows/0 `rows` | 4096 | 10.0 | 90 % of bandwidth | 1.0e-03 | 2.0e-03 | cuBLAS 12.5, SDPA – |" in lines
    assert "| rows/1 `rows` | 4096 | failed: took more than 235 s | | | | |" in lines
    assert lines.count("## H200") == 1
    assert lines[0] == "# Performance"
    assert lines[-1] == "## After"


def test_without_a_gpu_it_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        return
    assert gpu.main(["kernels"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(SystemExit):
        gpu.main(["kernels.nothing"])
    assert "there is no part kernels.nothing" in capsys.readouterr().err
