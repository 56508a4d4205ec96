"""Target ``triton``: what a step begins with, and convolutions before attention, those of ZAYA1 and shorter ones."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from regraft.codegen.package import emit
from regraft.codegen.torch.forms import Forms
from regraft.frontends.family import read_config
from regraft.frontends.folder import open_model
from regraft.frontends.lift import lift_config
from regraft.frontends.tensors import Declared
from regraft.frontends.twin import random_tensors, twin_config
from regraft.ir.forms.embed import embed_form
from regraft.ir.forms.short_conv import short_conv_form
from regraft.ir.graph import Graph, layer_of
from regraft.ir.interpret import Interpreter
from regraft.ir.ops.core import Slice
from regraft.ir.ops.kernels import ConvolvedStep, EmbedStep, Kernel, ShortConvStep
from regraft.ir.parse import parse_graph
from regraft.ir.source import TensorSource
from regraft.ir.text import print_graph
from regraft.passes.fitting.fold import folded
from regraft.passes.fusion import fuse_decode
from regraft.passes.pipeline import run_pipeline
from regraft.passes.recipe import parse_pipeline
from regraft.programs import load_program
from tests.codegen.programs import tokens_of
from tests.codegen.test_triton import stepped
from tests.kernels.touched import touched

AROUND = {  # launches around the layers, in order
    "Qwen3-8B": ["embed_token", "head"],
    "gemma-4-E2B": ["embed_token", "per_layer_model_projection", "rows_by_layer", "head"],
    "ZAYA1-8B": ["embed_token", "head"],
}


@cache
def graph_of(name: str) -> Graph:
    """Return a small model of a family."""
    return lift_config(read_config(twin_config(open_model(f"builtin:{name}").config)), Declared("f32"))


def program(graph: Graph, fused: Graph, folder: Path) -> tuple[Any, Interpreter]:
    """Return a graph's program, with random weights, and its interpreter."""
    source = TensorSource({name: torch.from_numpy(array) for name, array in random_tensors(graph, 0).items()})
    emit(Forms(graph, fused=fused), source, folder, target="triton")
    return load_program(folder, dtype="float32"), Interpreter(graph, source)


@pytest.mark.parametrize("family", AROUND)
def test_a_step_launches_kernels_alone(family: str, tmp_path: Path) -> None:
    graph = graph_of(family)
    fused = fuse_decode(graph)
    assert parse_graph(print_graph(fused)).equals(fused)
    assert all(isinstance(op, Kernel | Slice) for op in fused.run_time())  # slices are views
    model, interpreter = program(graph, fused, tmp_path / "package")
    tokens, one = tokens_of(1, 9), torch.ones(1, dtype=torch.int64)
    wanted = interpreter(tokens)
    bound = 1e-5 * max(1.0, float(wanted.abs().max()) / 4)
    assert (stepped(model, tokens, 3, interpreted=False) - wanted).abs().max() < bound
    held = model.new_cache(1, 12)
    model(tokens[:, :8], held)
    type(model).run.__globals__["INTERPRETED"] = True
    with torch.no_grad(), touched() as run:
        logits = model.run_step(tokens[:, 8:].contiguous(), held.lengths, one, held.layers, 12)
    assert (logits - wanted[:, 8:]).abs().max() < bound
    counters = len(type(model).run.__globals__["COUNTERS"])
    assert run.operations == ["aten::zeros"] * counters  # where programs meet: made once, by the first step
    launched = [launch.name.removesuffix("_kernel").removesuffix("_logits") for launch in run.launches]
    assert [name for name in launched if name in AROUND[family]] == AROUND[family]


@pytest.mark.parametrize("passes", ["", "fuse-convs"])
def test_what_attends_in_a_latent_reads_what_its_kernel_kept(passes: str, tmp_path: Path) -> None:
    graph = graph_of("ZAYA1-8B")
    graph = run_pipeline(graph, parse_pipeline(passes)).graph if passes else graph
    model, interpreter = program(graph, fuse_decode(graph), tmp_path / "package")
    tokens = tokens_of(2, 4)
    wanted, bound = interpreter(tokens), 2e-5
    held = model.new_cache(2, 9)
    type(model).run.__globals__["INTERPRETED"] = False
    first = model(tokens[:, :1], held)  # a step at the start of sequences
    model(tokens[:, 1:2], held, lengths=torch.tensor([1, 0]))
    second = model(torch.stack((tokens[0, 2:3], tokens[1, 1:2])), held)
    assert (first - wanted[:, :1]).abs().max() < bound
    assert (second[0] - wanted[0, 2]).abs().max() < bound
    assert (second[1] - wanted[1, 1]).abs().max() < bound
    type(model).run.__globals__["INTERPRETED"] = True
    assert (model(tokens[:1, :1], model.new_cache(1, 9)) - wanted[:1, :1]).abs().max() < bound


@pytest.mark.parametrize("passes", ["gqa-to-latent", "compress-seq{rate=2, window=4, refit=false}"])
def test_convolved_heads_that_others_read_are_made_in_parts(passes: str, tmp_path: Path) -> None:
    graph = run_pipeline(graph_of("ZAYA1-8B"), parse_pipeline(passes)).graph
    fused = fuse_decode(graph)
    assert not [op for op in fused.ops if isinstance(op, ConvolvedStep)]
    model, interpreter = program(graph, fused, tmp_path / "package")
    tokens = tokens_of(1, 8)
    wanted = interpreter(tokens)
    for interpreted, prompt in ((False, 3), (True, 7)):
        assert (stepped(model, tokens, prompt, interpreted=interpreted) - wanted).abs().max() < 2e-5


def test_streams_that_a_layer_multiplies_at_its_end_are_written_so(tmp_path: Path) -> None:
    graph = run_pipeline(graph_of("gemma-4-E2B"), parse_pipeline("add-hyper-connections")).graph
    fused = fuse_decode(graph)
    left = [op.opname for op in fused.run_time() if not isinstance(op, Kernel | Slice)]
    assert left == ["core.repeat"]  # the embedding, for each stream: no layer begins by writing it
    model, interpreter = program(graph, fused, tmp_path / "package")
    tokens = tokens_of(1, 8)
    wanted = interpreter(tokens)
    bound = 1e-5 * max(1.0, float(wanted.abs().max()) / 4)
    for interpreted, prompt in ((False, 3), (True, 7)):
        assert (stepped(model, tokens, prompt, interpreted=interpreted) - wanted).abs().max() < bound


def convolved() -> Graph:
    """Return a small model of which `to-cca` has made another: convolutions channel by channel, and nothing else."""
    pipeline = "to-cca{width=4, kept={0: [0, 2], 1: [0, 2]}, refit=false}"
    return folded(run_pipeline(graph_of("Llama-3.1-8B"), parse_pipeline(pipeline)).graph)


def test_a_model_that_was_made_to_convolve_stays_right(tmp_path: Path) -> None:
    graph = convolved()
    fused = fuse_decode(graph)
    left = {op.opname for op in fused.run_time() if not isinstance(op, Kernel)}
    assert left == {"core.unflatten"}  # a view
    (convs,) = [op for op in fused.ops if isinstance(op, ShortConvStep) and layer_of(op.results[0].name) == 0]
    forms = short_conv_form(convs.stands_for)
    assert forms is not None
    assert [form.conv.out.name for form in forms] == ["layers.0.attn.q_conv", "layers.0.attn.k_conv"]
    model, interpreter = program(graph, fused, tmp_path / "package")
    tokens = tokens_of(2, 7)
    wanted = interpreter(tokens)
    bound = 1e-5 * max(1.0, float(wanted.abs().max()) / 4)
    assert (stepped(model, tokens, 3, interpreted=False) - wanted).abs().max() < bound
    assert (stepped(model, tokens[:, :4], 3, interpreted=True) - wanted[:, :4]).abs().max() < bound


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("ZAYA1-8B", ("factor = 0.5", "factor = 0.25")),
        ("ZAYA1-8B", ("clamp = true", "clamp = false")),
    ],
)
def test_another_form_stays_as_it_is(name: str, change: tuple[str, str]) -> None:
    text = print_graph(graph_of(name))
    fused = fuse_decode(parse_graph(text.replace(*change)))
    assert any(isinstance(op, ConvolvedStep) for op in fuse_decode(parse_graph(text)).ops)
    assert not any(isinstance(op, ConvolvedStep) for op in fused.ops)


def test_a_row_that_others_read_too_leaves_as_it_is() -> None:
    graph = parse_graph(
        """
        graph @two (%tokens: i64[B, T]) {
          %t = weight.load : f32[8, 4]
          %w = weight.load : f32[8, 4]
          %rows = core.embed %tokens, %t
          %scaled = core.scale %rows {factor = 2.0}
          %both = core.add %rows, %scaled
          %logits = core.linear %both, %w
          return %logits
        }
        """
    )
    (embed,) = [op for op in fuse_decode(graph).ops if isinstance(op, EmbedStep)]
    form = embed_form(embed.stands_for)
    assert form is not None
    assert (form.x.scale, form.own, len(embed.stands_for)) == (1.0, None, 1)
