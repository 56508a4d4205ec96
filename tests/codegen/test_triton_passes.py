"""Steps of models that passes made: what of them is left outside kernels, pass by pass and form by form."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

import regraft
from regraft.codegen.package import emit
from regraft.codegen.schedule import schedule
from regraft.codegen.torch.forms import Forms
from regraft.ir.graph import Graph
from regraft.ir.kinds import block_kinds
from regraft.ir.op import Op
from regraft.ir.ops.core import Flatten, Slice, Unflatten
from regraft.ir.ops.kernels import Kernel
from regraft.ir.ops.memory import ViewRows
from regraft.passes.fitting.measure import Measurements
from regraft.passes.fusion import fuse_decode
from regraft.passes.latent_forms import decoding_form
from regraft.passes.pipeline import run_pipeline
from regraft.passes.recipe import parse_pipeline
from regraft.programs import load_program
from tests.codegen.programs import source_of, tokens_of
from tests.codegen.test_schedule import CONTEXT, assert_told, step_of
from tests.codegen.test_triton_attend import changed
from tests.ir.models import FULL, decoder
from tests.passes.test_composition import STEPS, twin

LLAMA, QWEN, GEMMA = "examples/tiny-llama", "examples/tiny-qwen3", "builtin:gemma-4-31B"
KEPT = "layers=[0, 1], kept={0: [0, 1, 2, 3], 1: [0, 1, 2, 3]}"
POOLED = "rate=4, window=8, refit=false"
EACH = "{" + ", ".join(f"{layer}: [0, 1, 2, 3]" for layer in range(6)) + "}"
VIEWS = (Flatten, Slice, Unflatten, ViewRows)  # what launches nothing

WHOLE = {  # every op of a step is in a kernel: the launches of a changed layer
    (LLAMA, "share-kv{donor={1: 0}}"): 5,
    (QWEN, "share-kv{donor={1: 0}}"): 5,
    (LLAMA, "share-kv{donor={1: 0}, level=input}"): 6,
    (LLAMA, "share-kv{donor={1: 0}, level=cross}"): 6,
    (LLAMA, "budget-heads{keep={0: [0, 1, 2], 1: [1, 3]}}"): 5,
    (LLAMA, "budget-heads{keep={0: [0, 1, 2], 1: [1, 3]}, layout=padded}"): 5,
    (LLAMA, "merge-kv-heads{heads=1}"): 5,
    (QWEN, "merge-kv-heads{heads=1, norm=gauge}"): 6,
    (QWEN, "merge-kv-heads{heads=1, norm=stock}"): 5,
    (LLAMA, "window{window=8}"): 5,
    (QWEN, "window{window=8, sinks=0}"): 5,
    (LLAMA, "window{window=8, sink=fitted}"): 5,
    (LLAMA, "window{window=8, local={0: [0], 1: [1]}}"): 6,
    (LLAMA, "window{window=8, local={0: [0], 1: [1]}, sink=fitted}"): 6,
    (LLAMA, f"to-latent{{rank=0.5, rope=8, {KEPT}}}"): 6,
    (QWEN, f"to-latent{{rank=0.5, rope=8, {KEPT}}}"): 7,
    (LLAMA, f"to-latent{{rank=0.5, rope=8, form=absorbed, {KEPT}}}"): 6,
    (LLAMA, f"to-latent{{rank=0.5, rope=8, layout=deepseek, kept={EACH}}}"): 6,
    (LLAMA, f"to-cca{{width=8, {KEPT}}}"): 6,
    (LLAMA, f"to-cca{{width=8, taps=1, {KEPT}}}"): 5,
    (GEMMA, "key-from-value"): 5,
    (GEMMA, "key-from-value{rotated=read}"): 5,
    (LLAMA, "gqa-to-latent"): 5,
    (QWEN, "gqa-to-latent"): 5,
    (LLAMA, "to-latent{rank=0.5}"): 5,
    (QWEN, "to-latent{rank=0.5}"): 5,
    (QWEN, "to-latent{rank=0.5, normed=inside}"): 6,
    (LLAMA, "share-kv{donor={1: 0}, level=map}"): 5,
    (LLAMA, "share-kv{donor={1: 0}, level=latent, rank=0.5}"): 5,
    (QWEN, "merge-kv-heads{heads=1, norm=carry}"): 5,
    (LLAMA, "gqa-to-latent, share-kv{donor={1: 0}}"): 5,
    (QWEN, "to-latent{rank=0.5}, share-kv{groups=2}"): 5,
    (GEMMA, "key-from-value{rotated=read}, share-kv{groups=2}"): 5,
    (GEMMA, "key-from-value, share-kv{groups=2}"): 5,
    ("builtin:gemma-4-26B-A4B", "key-from-value, share-kv{groups=2}"): 5,
    ("builtin:DeepSeek-V2-Lite", "share-kv{groups=2}"): 6,
    ("builtin:ZAYA1-8B", "fuse-convs"): 6,
    (LLAMA, f"compress-seq{{{POOLED}}}"): 6,
    (QWEN, f"compress-seq{{{POOLED}, sinks=4, keys=middle}}"): 6,
    (LLAMA, f"compress-seq{{{POOLED}, gates=true, overlap=true}}"): 6,
    (LLAMA, f"compress-seq{{{POOLED}, chosen=4}}"): 7,
    (QWEN, f"compress-seq{{{POOLED}, chosen=4}}"): 7,
    (LLAMA, f"compress-seq{{{POOLED}, chosen=4, index=light}}"): 8,
    (LLAMA, "fold-norms"): 5,
    (LLAMA, "fuse-projections"): 5,
    (LLAMA, "fuse-projections, split-projections"): 5,
    (LLAMA, "permute-heads"): 5,
    (LLAMA, "merge-duplicate-heads{heads={0: [[0, 1]]}}"): 5,
    (LLAMA, "add-head-gates"): 5,
    (QWEN, "add-head-gates"): 5,
    (LLAMA, "add-short-convs"): 6,
    ("builtin:Qwen3.6-27B", "add-short-convs"): 6,
    (LLAMA, "add-hyper-connections"): 7,
    ("builtin:gemma-4-E2B", "add-hyper-connections"): 11,
    (LLAMA, "add-per-layer-embeddings"): 7,
}

OUTSIDE = {  # what else is left to PyTorch, and why
    ("builtin:gemma-4-E2B", "share-kv{groups=2, level=map}"): "a layer keeps for others what it does not read itself",
    ("builtin:ZAYA1-8B", "gqa-to-latent"): "convolved keys are kept in another form",
    ("builtin:ZAYA1-8B", "to-latent{rank=0.5}"): "convolved keys are kept in another form",
    ("builtin:ZAYA1-8B", "share-kv{groups=2}"): "queries are convolved without keys",
    ("builtin:ZAYA1-8B", f"compress-seq{{{POOLED}}}"): "convolved keys are pooled before they turn",
    ("builtin:ZAYA1-8B", "add-hyper-connections"): "streams are scaled and moved as they are written",
}

COMPOSED = {  # four fitted passes in one recipe, on twins: the launches of a layer, all of them kernels
    "Qwen3-0.6B": 5,
    "Llama-3.2-1B": 5,
    "Mistral-7B-v0.3": 5,
    "gemma-4-E2B": 7,
    "gemma-4-31B": 6,
    "laguna-XS.2": 5,
}


@cache
def lifted(model: str) -> Graph:
    """Return a model's graph."""
    return regraft.lift(model).graph


def stepped(model: str, passes: str) -> list[list[Op]]:
    """Return what a step of a model after passes launches, in a layer of each kind."""
    return launched(regraft.opt(lifted(model), passes).graph)


def launched(graph: Graph) -> list[list[Op]]:
    """Return what a step of a graph launches, in a layer of each kind."""
    fused = fuse_decode(decoding_form(graph) or graph)
    layers = [kind.layers[0].ops for kind in block_kinds(fused)]
    return [[op for op in ops if not op.weight_time and not isinstance(op, VIEWS)] for ops in layers]


def left(layers: list[list[Op]]) -> set[str]:
    """Return the ops that are in no kernel."""
    return {op.opname for ops in layers for op in ops if not isinstance(op, Kernel)}


@pytest.mark.parametrize(("model", "passes"), WHOLE)
def test_all_of_a_step_is_in_kernels(model: str, passes: str) -> None:
    layers = stepped(model, passes)
    assert not left(layers)
    assert max(map(len, layers)) == WHOLE[model, passes]


@pytest.mark.parametrize("name", COMPOSED)
def test_all_of_a_step_is_in_kernels_after_four_fitted_passes(name: str) -> None:
    graph, source = twin(name)
    measured = Measurements(graph, source, tokens_of(2, 8))
    layers = launched(run_pipeline(graph, parse_pipeline(",".join(STEPS)), measured).graph)
    assert not left(layers)
    assert max(map(len, layers)) == COMPOSED[name]


@pytest.mark.parametrize(("model", "passes"), OUTSIDE)
def test_what_has_no_kernel_is_told_with_its_reason(model: str, passes: str) -> None:
    assert left(stepped(model, passes))


@pytest.mark.parametrize(
    "passes",
    [
        "to-latent{rank=6, refit=false}",
        "to-latent{rank=6, refit=false}, share-kv{donor={1: 0}, refit=false}",
        "compress-seq{rate=4, window=8, refit=false}",
    ],
)
def test_steps_run_what_the_schedule_tells(passes: str, tmp_path: Path) -> None:
    graph = changed(decoder([FULL, FULL]), passes)
    fused = fuse_decode(graph)
    emit(Forms(graph, fused=fused), source_of(graph), tmp_path / "package", target="triton")
    model = load_program(tmp_path / "package", dtype="float32")
    assert_told(schedule(graph, fused, 1, CONTEXT), step_of(model, CONTEXT))
