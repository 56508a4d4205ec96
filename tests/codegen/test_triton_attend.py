"""Steps of models whose attention a pass has changed: by plain functions and in the interpreter, against the graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from regraft.codegen.kernels.rows import RowsKernel
from regraft.codegen.package import emit
from regraft.codegen.torch.forms import Forms
from regraft.codegen.triton.target import StepTarget, TritonTarget
from regraft.ir.builder import Builder
from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter
from regraft.ir.op import Op, Value
from regraft.ir.ops.attn import KV, Attend
from regraft.ir.ops.core import Activation, Add, Concat, Embed, Flatten, Linear, Mul, Norm, Repeat, Slice, Unflatten
from regraft.ir.ops.kernels import Kernel
from regraft.ir.ops.memory import ReadRows, StateRows, ViewRows
from regraft.ir.ops.pos import Rope
from regraft.ir.ops.weight import Load
from regraft.passes.fitting.measure import Measurements
from regraft.passes.fusion import fuse_decode
from regraft.passes.latent_forms import decoding_form
from regraft.passes.pipeline import run_pipeline
from regraft.passes.recipe import parse_pipeline
from regraft.programs import load_program
from tests.codegen.programs import source_of, tokens_of
from tests.codegen.test_triton import stepped
from tests.ir.models import FULL, decoder
from tests.kernels.harness import module
from tests.kernels.touched import touched

WIDTH, HEAD, HEADS, RANK, TURNED = 12, 4, 4, 6, 2


class Parts(Builder):
    """Adds maps and norms with weights of their own."""

    def mapped(self, name: str, x: Value, out: int) -> Value:
        width = x.tensor.shape[-1]
        assert isinstance(width, int)
        return self(Linear, name, x, self.weight(f"model.{self.path(name)}.weight", out, width))

    def heads(self, name: str, x: Value, count: int, width: int = HEAD) -> Value:
        return self(Unflatten, name, self.mapped(f"{name}_proj", x, count * width), parts=count)

    def normed(self, name: str, x: Value, *, weighted: bool = True) -> Value:
        width = x.tensor.shape[-1]
        assert isinstance(width, int)
        weight = self.weight(f"model.{self.path(name)}.weight", width) if weighted else None
        return self(Norm, name, x, weight=weight, eps=1e-6)

    def turned(self, name: str, x: Value, channels: int, pairs: int | None = None) -> Value:
        return self(Rope, name, x, self.graph["pos"], base=100.0, channels=channels, pairs=pairs)


def plain(b: Parts, x: Value, *, norms: bool = False, values: bool = False, gated: bool = False) -> Value:
    """Attention of four heads to two."""
    q, k, v = b.heads("q", x, HEADS), b.heads("k", x, 2), b.heads("v", x, 2)
    if norms:
        q, k = b.normed("q_norm", q), b.normed("k_norm", k)
    if values:
        v = b.normed("v_norm", v, weighted=False)
    q = b.turned("q_rope", q, HEAD)
    memory = b(KV, "memory", b.turned("k_rope", k, HEAD), v)
    merged = b(Flatten, "merged", b(Attend, "ctx", q, memory, scale=0.5))
    if gated:
        merged = b(Mul, "gated", merged, b(Activation, "opening", b.mapped("gate", x, HEADS * HEAD), kind="sigmoid"))
    return merged


def latent(b: Parts, x: Value, *, head: int = HEAD, rank: int = RANK, compressed: bool = True) -> Value:
    """Multi-head latent attention, expanded; queries come from a latent of their own or not."""
    of = b.normed("q_latent", b.mapped("q_a", x, RANK)) if compressed else x
    q = b.heads("q", of, HEADS, head + TURNED)
    q_plain = b(Slice, "q_plain", q, start=0, stop=head)
    q_turned = b.turned("q_rope", b(Slice, "q_turning", q, start=head, stop=head + TURNED), TURNED)
    made = b.mapped("kv_a", x, rank + TURNED)
    key = b(Unflatten, "key", b(Slice, "key_part", made, start=rank, stop=rank + TURNED), parts=1)
    kept = b.normed("kv_latent", b(Slice, "latent_part", made, start=0, stop=rank))
    row = b(Concat, "row", [kept, b(Flatten, "key_row", b.turned("k_rope", key, TURNED))])
    memory = b(StateRows, "memory", row)
    rows = b(ReadRows, "rows", memory)
    latents = b(Slice, "row_latent", rows, start=0, stop=rank)
    shared = b(Repeat, "k_shared_rows", b(Slice, "row_key", rows, start=rank, stop=rank + TURNED), parts=HEADS)
    k = b(Concat, "k", [b.heads("k_b", latents, HEADS, head), shared])
    view = b(ViewRows, "view", memory, k, v=b.heads("v_b", latents, HEADS))
    ctx = b(Attend, "ctx", b(Concat, "q_whole", [q_plain, q_turned]), view, scale=0.4)
    return b(Flatten, "merged", ctx)


def alike(b: Parts, x: Value, *, pairs: int = 1) -> Value:
    """Keys and values of one map, as in Gemma 4's larger models."""
    q, k = b.normed("q_norm", b.heads("q", x, HEADS)), b.heads("k", x, 2)
    keys = b.turned("k_rope", b.normed("k_norm", k), HEAD, pairs)
    memory = b(KV, "memory", keys, b.normed("v_norm", k, weighted=False))
    return b(Flatten, "merged", b(Attend, "ctx", b.turned("q_rope", q, HEAD, pairs), memory, scale=0.5))


def model(kind: Any, **fields: Any) -> Graph:
    """Return a decoder of two layers of attention."""
    graph = Graph("tiny")
    b = Parts(graph, "f32")
    tokens, _ = b.tokens()
    x = b(Embed, "embed", tokens, b.weight("model.embed.weight", 40, WIDTH))
    for layer in range(2):
        with b.scope(f"layers.{layer}.attn"):
            x = b(Add, "residual", x, b.mapped("o", kind(b, b.normed("norm", x), **fields), WIDTH))
    graph.set_outputs([b(Linear, "logits", x, b.weight("model.embed.weight", 40, WIDTH))])
    graph.verify()
    return graph


def changed(graph: Graph, pipeline: str) -> Graph:
    """Return a graph after passes, each parameter that they fit loaded in its place."""
    measured = Measurements(graph, source_of(graph), tokens_of(4, 24))
    work = run_pipeline(graph, parse_pipeline(pipeline), measured).graph.copy()
    for value in [v for v in work.parameters() if not isinstance(v.op, Load)]:
        name, maker = value.name, value.op
        work.rename(value, work.fresh(f"{name}.fitted"))
        load = Load({}, {"dtype": value.tensor.dtype, "shape": value.tensor.sizes})
        work.replace_uses(value, work.add(load, [name], before=maker)[0], run_time)
    work.drop_dead()
    work.verify()
    return work


def run_time(op: Op) -> bool:
    return not op.weight_time


UNEVEN = "budget-heads{keep={0: [0, 1, 2], 1: [1, 3]}, refit=false}"
POOLED = "rate=2, window=2, refit=false"
CASES: dict[str, tuple[Graph, str, int]] = {
    "latent": (model(latent), "", 5),
    "wide latent": (model(latent, head=72, rank=140), "", 5),
    "latent of plain queries": (model(latent, compressed=False), "", 4),
    "latent shared": (model(plain), "to-latent{rank=6, rope=2, refit=false}", 4),
    "latent of normed heads": (model(plain, norms=True, gated=True), "to-latent{rank=6, rope=2, refit=false}", 5),
    "latent without rotation": (model(plain), "to-latent{rank=6, rope=0, refit=false}", 4),
    "keys from values": (model(alike), "key-from-value", 3),
    "another's memory": (model(plain, gated=True), "share-kv{donor={1: 0}, refit=false}", 3),
    "first rows beside a window": (model(plain, norms=True), "window{layers=[0], window=4, sinks=2}", 3),
    "uneven heads": (model(plain, norms=True), UNEVEN, 3),
    "windows of heads": (model(plain, norms=True), "window{window=4, local={0: [0], 1: [1]}, refit=false}", 4),
    "gates of heads": (model(plain, norms=True), "add-head-gates", 3),
    "keys that turn when they are read": (model(plain, norms=True), "gqa-to-latent, window{window=4, sinks=2}", 3),
    "keys of values that turn when they are read": (model(alike), "key-from-value{rotated=read}", 3),
    "keys and values of a latent": (model(plain, norms=True, values=True), "to-latent{rank=6, refit=false}", 3),
    "keys and values of a latent, uneven": (model(plain, norms=True), f"to-latent{{rank=6, refit=false}}, {UNEVEN}", 3),
    "another's rows, mapped": (model(plain, gated=True), "share-kv{donor={1: 0}, level=map, refit=false}", 3),
    "another's heads at once": (model(plain), "share-kv{donor={1: 0}, level=cross, refit=false}", 3),
    "another's latent": (model(plain), "share-kv{donor={1: 0}, level=latent, rank=6, refit=false}", 3),
    "factors of heads": (model(plain, norms=True), "merge-kv-heads{heads=1, norm=carry, refit=false}", 3),
    "pooled rows before a window": (model(plain, norms=True), f"compress-seq{{{POOLED}}}", 4),
    "pooled rows that turn": (model(plain), f"compress-seq{{{POOLED}, sinks=2, keys=middle, gates=true}}", 4),
    "pooled rows of overlapping windows": (model(plain), f"compress-seq{{{POOLED}, gates=true, overlap=true}}", 4),
    "pooled rows chosen by heads": (model(plain, norms=True), f"compress-seq{{{POOLED}, chosen=1}}", 5),
    "chosen pooled rows": (model(plain), f"compress-seq{{{POOLED}, chosen=1, index=light, index_width=4}}", 6),
    "one key/value head": (model(plain), "merge-kv-heads{heads=1, refit=false}", 3),
}


@pytest.mark.parametrize("name", CASES)
def test_attention_that_a_pass_made_is_fused(name: str, tmp_path: Path) -> None:
    graph, pipeline, launches = CASES[name]
    graph = changed(graph, pipeline) if pipeline else graph
    fused = fuse_decode(decoding_form(graph) or graph)
    step = [op for op in fused.run_time() if op.results[0].name.startswith("layers.0.")]
    assert all(isinstance(op, Kernel) for op in step)
    assert len(step) == launches
    agrees(graph, fused, tmp_path)


SHARED = "share-kv{donor={1: 0}, refit=false}"
ANEW = {  # of models with a layer that reads what another one's rows are made into: what kernels make once more
    "rows that turn": (decoder([FULL] * 4), "gqa-to-latent, share-kv{groups=2, refit=false}"),
    "rows of maps": (decoder([FULL] * 4), "to-latent{rank=6, refit=false}, share-kv{groups=2, refit=false}"),
    "rows of values": (model(alike), f"key-from-value, {SHARED}"),
    "rows of values that turn": (model(alike), f"key-from-value{{rotated=read}}, {SHARED}"),
    "latents": (model(latent), SHARED),
}


@pytest.mark.parametrize("name", ANEW)
def test_each_layer_makes_anew_what_it_attends_to_of_rows_that_another_keeps(name: str, tmp_path: Path) -> None:
    graph, pipeline = ANEW[name]
    graph = changed(graph, pipeline)
    fused = fuse_decode(decoding_form(graph) or graph)
    step = [op for op in fused.run_time() if op.results[0].name.startswith("layers.")]
    assert all(isinstance(op, Kernel) for op in step)
    agrees(graph, fused, tmp_path)


def test_rows_made_anew_that_no_kernel_makes_are_given_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regraft.passes.fusion.rebuild_apart", lambda graph: graph)
    graph = changed(model(latent), SHARED)
    agrees(graph, fuse_decode(decoding_form(graph) or graph), tmp_path)


def agrees(graph: Graph, fused: Graph, folder: Path) -> None:
    """Compare the logits of steps, by plain functions and by kernels, with the graph's."""
    source, tokens = source_of(graph), tokens_of(2, 9)
    emit(Forms(graph, decoding_form(graph), fused), source, folder / "package", target="triton")
    program = load_program(folder / "package", dtype="float32")
    wanted = Interpreter(graph, source)(tokens)
    bound = 1e-5 * max(1.0, float(wanted.abs().max()) / 4)
    assert (stepped(program, tokens, 3, interpreted=False) - wanted).abs().max() < bound
    assert (stepped(program, tokens[:1], 8, interpreted=True) - wanted[:1]).abs().max() < bound


@pytest.mark.parametrize("name", ["latent of plain queries", "latent of normed heads"])
def test_maps_of_heads_move_what_they_say(name: str, tmp_path: Path) -> None:
    graph, pipeline, _ = CASES[name]
    graph = changed(graph, pipeline) if pipeline else graph
    target = TritonTarget(graph, [], "", fuse_decode(decoding_form(graph) or graph))
    StepTarget(target.fused, target).steps()
    kernels = [kernel.called(name) for kernel, name in target.shared.kernels.items()]
    found = [kernel for kernel in kernels if isinstance(kernel, RowsKernel) and (kernel.ended or kernel.head_rows)]
    assert len(found) == 2
    for kernel in found:
        program = module(tmp_path, kernel)
        sizes = [(size,) if each in kernel.weights else (1, 1, size) for each, size in kernel.inputs]
        with touched() as run:
            getattr(program, kernel.name)(*(torch.randn(size) for size in sizes))
        moved = kernel.moved(4, 1, 1)
        assert (run.read, run.written, len(run.launches)) == (moved.read, moved.written, 1)
