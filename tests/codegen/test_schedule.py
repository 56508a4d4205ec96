"""The schedule of a step: against what a run of it launches and touches, and against its budgets."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import regraft
from benchmarks.gpu_results import DOCUMENT
from regraft.codegen.package import emit
from regraft.codegen.schedule import Part, Schedule, schedule
from regraft.codegen.torch.forms import Forms
from regraft.frontends.folder import builtin_names
from regraft.ir.graph import Graph
from regraft.ir.op import Op
from regraft.passes.fusion import fuse_decode
from regraft.passes.latent_forms import decoding_form
from regraft.programs import load_program
from tests.codegen.programs import DECODERS, source_of, tokens_of
from tests.ir.models import decoder
from tests.kernels.touched import Run, touched

EXAMPLES = Path(__file__).parents[2] / "examples"
CONTEXT = 21
DECODERS_OWN = ["aten::add_", "aten::where"]


def step_of(model: Any, context: int) -> Run:
    """Return what the step launches and touches after which a sequence has so many tokens."""
    inside = type(model).run.__globals__
    running = inside["Decoder"](model, tokens_of(1, context - 1, model.vocab), context=context + 8)
    inside["INTERPRETED"] = True
    running.step()  # what is made once
    running.cache.lengths.sub_(1)
    running.cache.used -= 1
    with touched() as run:
        running.step()
    return run


def assert_told(told: Schedule, run: Run) -> None:
    """Check launches and bytes, in all and of each kernel."""
    assert len(run.names) == told.whole.launches
    assert run.operations == DECODERS_OWN
    for name in ("read", "written"):
        lines = [line for part in told.parts for _ in part.layers or (0,) for line in part.lines if line.fused]
        assert sum(getattr(line.moved, name) for line in lines) == pytest.approx(getattr(run, name), rel=0.02)
    kernels = {line.name: line.moved for part in told.parts for line in part.lines if line.fused}
    for launch in run.launches:
        moved = kernels.get(launch.name.removesuffix("_kernel"))
        if moved is not None and moved.launches == 1:
            assert launch.read == pytest.approx(moved.read, rel=0.02, abs=64), launch.name
            assert launch.written == pytest.approx(moved.written, rel=0.02, abs=64), launch.name


@pytest.mark.parametrize("name", ["llama-like", "moe", "windows and full"])
def test_a_step_runs_what_the_schedule_tells(name: str, tmp_path: Path) -> None:
    graph = decoder(DECODERS[name])
    fused = fuse_decode(graph)
    emit(Forms(graph, fused=fused), source_of(graph), tmp_path / "package", target="triton")
    model = load_program(tmp_path / "package", dtype="float32")
    assert_told(schedule(graph, fused, 1, CONTEXT), step_of(model, CONTEXT))


@pytest.mark.slow
def test_a_step_of_a_model_in_half_precision_does_too(tmp_path: Path) -> None:
    source = EXAMPLES / "tiny-qwen3"
    regraft.build(source, tmp_path / "package", target="triton")
    graph = regraft.lift(source).graph
    model = load_program(tmp_path / "package", dtype="float16")  # the interpreter has no bf16
    assert_told(schedule(graph, fuse_decode(graph), 1, CONTEXT), step_of(model, CONTEXT))


def told_of(graph: Graph, context: int) -> Schedule:
    """Return the schedule of a graph's step in the form that decodes."""
    return schedule(graph, fuse_decode(decoding_form(graph) or graph), 1, context)


def launches(told: Schedule) -> dict[str, int]:
    """Return the launches of each kind of layer; how many tokens an entry is of and how wide layers are is left out."""
    return {re.sub(r"\d+", "", part.name): part.each.launches for part in told.parts}


@pytest.mark.slow
@pytest.mark.parametrize("name", builtin_names())
def test_a_known_models_layers_launch_what_its_twin_runs(name: str, tmp_path: Path) -> None:
    twin = regraft.twin(f"builtin:{name}", tmp_path / "twin")
    regraft.build(twin, tmp_path / "package", target="triton")
    told = told_of(regraft.lift(twin).graph, CONTEXT)
    run = step_of(load_program(tmp_path / "package", dtype="float32"), CONTEXT)
    assert len(run.names) == told.whole.launches
    least = 0.9 if name == "ZAYA1-8B" else 0.98  # where a token skips its expert, fewer rows are read than may be
    for side in ("read", "written"):
        lines = [line for part in told.parts for _ in part.layers or (0,) for line in part.lines if line.fused]
        assert least <= getattr(run, side) / sum(getattr(line.moved, side) for line in lines) <= 1.02
    assert launches(told) == launches(told_of(regraft.lift(f"builtin:{name}").graph, 4096))


def budget(ops: list[Op]) -> int:
    """Return how many kernels a layer may launch: each of its parts adds to those of a plain one."""
    names = {op.opname for op in ops}
    weights = " ".join(value.name for op in ops for value in op.operands if value.is_weight)
    moe = "moe.experts" in names
    latent = "kv_a_proj_with_mqa" in weights
    boundaries = 2 * any(name.startswith("hyper.") for name in names)
    more = 2 * ("per_layer_input_gate" in weights) + 2 * latent + 4 * ("seq.index" in names)
    return (7 if moe else 5) + more + boundaries


def over(graph: Graph, part: Part) -> int:
    """Return how many kernels more than it may a layer of a part launches."""
    here = f"layers.{part.layers[0]}."
    ops = [op for op in graph.run_time() if op.results and op.results[0].name.startswith(here)]
    return max(0, part.each.launches - budget(ops))


@pytest.mark.parametrize("name", builtin_names())
def test_known_models_keep_within_their_budgets(name: str) -> None:
    graph = regraft.lift(f"builtin:{name}").graph
    told = told_of(graph, 4096)
    assert told.whole.least <= told.whole.total <= 1.05 * told.whole.least
    for part in told.parts:
        if part.layers:
            assert over(graph, part) == 0, part.lines
    torch_ops = [line.name for line in told.parts[-1].lines if not line.fused]
    assert set(torch_ops) <= {"aten.add_ lengths", "aten.where tokens"}
    written = next(line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith(f"| {name} |"))
    _, layer, token, own, least, over_it, *_ = written.strip("| ").split(" | ")
    layers = {part.each.launches for part in told.parts if part.layers}
    assert layer == " to ".join(map(str, sorted({min(layers), max(layers)}))), "python -m benchmarks.gpu schedule"
    moved = f"{told.whole.total / told.whole.least:.3f}"
    assert [token, own, least, over_it] == [
        str(told.whole.launches),
        str(len(torch_ops)),
        f"{told.whole.least:,}",
        moved,
    ]
