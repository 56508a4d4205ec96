"""`compress-seq` in numbers: the original while nothing is pooled, exact on equal tokens, the same in any calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.codegen.package import emit
from regraft.ir.cost import cache_bytes
from regraft.ir.errors.recipe import DonorError, OptionRangeError, ShortWindowsError, StructureError
from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter
from regraft.passes.fitting.measure import Measurements
from regraft.passes.pipeline import run_pipeline
from regraft.passes.recipe import parse_pipeline
from regraft.programs import load_program

LENGTH, ROW = 24, 2 * (4 + 4) * 8  # tokens of the small decoders' text, bytes of a row of their memories
FORMS = [
    "",
    ", keys=middle",
    ", gates=true",
    ", gates=true, overlap=true, keys=middle",
    ", overlap=true",
    ", sinks=4",
    ", chosen=2",
    ", chosen=2, index=light, index_heads=2, index_width=6",
    ", chosen=1, index=light, overlap=true, gates=true, sinks=4",
]


def rewritten(model: Any, options: str, measure: Measurements | None = None) -> Graph:
    return run_pipeline(model.graph, parse_pipeline(f"compress-seq{{{options}}}"), measure).graph


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("fields", [{}, {"qk_norm": True, "gate": True, "bias": True}])
def test_nothing_changes_while_nothing_is_pooled_and_something_does_then(
    decoder: Any, form: str, fields: dict[str, Any]
) -> None:
    model = decoder(**fields)
    original, found = (
        model.logits(each) for each in (model.graph, rewritten(model, f"rate=4, window=9, refit=false{form}"))
    )
    assert distance(found[:, :12], original[:, :12]) < 1e-12
    assert 0.01 < distance(found, original) < 1


@pytest.mark.parametrize("form", ["", ", gates=true", ", gates=true, overlap=true", ", sinks=4", ", chosen=5"])
def test_blocks_of_equal_rows_are_exact_with_the_mass_of_their_tokens(decoder: Any, form: str) -> None:
    model = decoder(layers=1)
    model.tokens = model.tokens[:, ::4].repeat_interleave(4, 1)
    for name in ("q_rope", "k_rope"):  # keys that do not turn are equal in a block of equal tokens
        model.graph[f"layers.0.attn.{name}"].op.attributes.update(scaling="linear", factor=1e300)
    original = model.logits(model.graph)
    errors = [
        distance(model.logits(rewritten(model, f"rate=4, window=5, refit=false, mass={mass}{form}")), original)
        for mass in ("true", "false")
    ]
    assert errors[0] < 1e-12
    assert errors[1] > 0.01


def test_an_index_that_chooses_all_rows_changes_nothing(decoder: Any) -> None:
    model = decoder()
    plain = model.logits(rewritten(model, "rate=4, window=5, refit=false"))
    for index in ("keys", "light"):
        form = f"rate=4, window=5, refit=false, chosen=5, index={index}"
        assert distance(model.logits(rewritten(model, form)), plain) < 1e-12
        assert distance(model.logits(rewritten(model, form.replace("=5, i", "=1, i"))), plain) > 0.001


def test_pooled_keys_are_as_the_formula_says(decoder: Any) -> None:
    model = decoder(layers=1)
    rotated, middle = (
        rewritten(model, f"rate=4, window=5, refit=false, keys={keys}") for keys in ("rotated", "middle")
    )
    k, turned = (
        model.run(model.graph, ["layers.0.attn.k", "layers.0.attn.k_rope"])[f"layers.0.attn.{n}"]
        for n in ("k", "k_rope")
    )
    assert k.shape == turned.shape
    blocks = turned.unflatten(1, (-1, 4)).mean(2)
    found = model.run(rotated, ["layers.0.attn.entries_k"])["layers.0.attn.entries_k"]
    assert torch.allclose(found, blocks, rtol=0, atol=1e-12)
    mean = k.unflatten(1, (-1, 4)).mean(2)
    angle = (torch.arange(6)[:, None].double() * 4 + 1.5) * 100.0 ** (-torch.arange(2).float() / 2).double()
    pairs = torch.complex(mean[..., :2], mean[..., 2:]) * torch.polar(torch.ones_like(angle), angle)[None, :, None]
    found = model.run(middle, ["layers.0.attn.entries_k_rope"])["layers.0.attn.entries_k_rope"]
    assert torch.allclose(found, torch.cat((pairs.real, pairs.imag), -1), rtol=0, atol=1e-6)


def test_the_refit_makes_up_for_a_part(decoder: Any) -> None:
    model = decoder()
    original = model.logits(model.graph)
    raw, fitted = (model.logits(rewritten(model, f"rate=4, window=5, refit={refit}")) for refit in ("false", "true"))
    assert 0.01 < distance(fitted, original) < 0.97 * distance(raw, original)


@pytest.mark.parametrize("form", FORMS)
def test_programs_hold_what_was_predicted_and_agree_in_any_calls(decoder: Any, form: str, tmp_path: Path) -> None:
    model = decoder(layers=2, qk_norm=True)
    graph = rewritten(model, f"rate=4, window=6, refit=false{form}")
    expected = Interpreter(graph, model.source, "f64")(model.tokens)
    program = load_program(emit(graph, model.source, tmp_path / "program"), dtype="float64")
    assert distance(program(model.tokens).detach(), expected) < 1e-12
    for sizes in ((LENGTH,), (1,) * LENGTH, (1, 7, 16), (5, 4, 4, 11)):
        cache, state = program.new_cache(6, LENGTH), Interpreter(graph, model.source, "f64")
        kept = state.new_cache(6)
        parts = model.tokens.split(sizes, 1)
        assert distance(torch.cat([program(part, cache) for part in parts], 1), expected) < 1e-12
        assert distance(torch.cat([state(part, kept) for part in parts], 1), expected) < 1e-12
    assert all(program.new_cache(2, n).nbytes == cache_bytes(graph, n, 2) for n in (1, 3, 9, 40))


def test_the_cache_holds_a_window_rows_and_the_tokens_of_the_next_row(decoder: Any) -> None:
    model = decoder(layers=2)
    assert cache_bytes(model.graph, 100) == 2 * 100 * ROW
    pooled = cache_bytes(rewritten(model, "rate=8, window=16, layers=1, refit=false"), 100)
    assert pooled == (100 + 23 + 100 // 8 + 7) * ROW
    gated = cache_bytes(rewritten(model, "rate=8, window=16, layers=1, refit=false, gates=true, overlap=true"), 100)
    assert gated == (100 + 23 + 100 // 8 + 2 * 2 * 7 + 2 * 8) * ROW


def test_gradients_reach_what_is_to_be_learned(decoder: Any, tmp_path: Path) -> None:
    model = decoder(layers=2)
    form = "gates=true, chosen=2, overlap=true, shut=-2, refit=false"
    graph = rewritten(model, f"rate=4, window=6, {form}")
    program = load_program(emit(graph, model.source, tmp_path / "program"), dtype="float64")
    program(model.tokens).pow(2).mean().backward()
    silent = [name for name, p in program.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in silent} == {"weights_proj"}  # an index only orders


def test_layers_are_chosen_by_what_each_costs_alone(decoder: Any) -> None:
    model = decoder(layers=3)
    model.weight(1, "o_proj").mul_(0.01)  # this layer matters least
    measure = Measurements(model.graph, model.source, model.tokens)
    pipeline = parse_pipeline("compress-seq{rate=4, window=5, choose=1, refit=false}")
    result = run_pipeline(model.graph, pipeline, measure)
    assert "layers=1," in str(result.recipe.passes[0])
    again = run_pipeline(model.graph, parse_pipeline(result.recipe.to_pipeline(expanded=True)))
    assert again.graph.equals(result.graph)
    assert not run_pipeline(model.graph, pipeline, assume=True).decided


@pytest.mark.parametrize(
    ("options", "legal"),
    [
        ("rate=4, window=8, sinks=2", "multiples of 4, the rate"),
        ("rate=4, window=8, choose=4", "from 1 to 3"),
    ],
)
def test_numbers_that_do_not_fit_name_those_that_do(decoder: Any, options: str, legal: str) -> None:
    with pytest.raises(OptionRangeError, match=legal):
        rewritten(decoder(), options)


def test_layers_that_cannot_are_left_out_and_refused_where_they_are_named(decoder: Any) -> None:
    model = decoder(layers=4, windows={0: 6}, reads={3: 2})
    result = run_pipeline(model.graph, parse_pipeline("compress-seq{rate=4, window=5, refit=false}"))
    assert [note.layer for note in result.steps[0].report.applied] == [1]
    for layer, reason in ((0, "it looks back 6 tokens"), (2, "is read by layers 2..3 together"), (3, "together")):
        with pytest.raises(StructureError, match=reason):
            rewritten(model, f"rate=4, window=5, refit=false, layers={layer}")
    with pytest.raises(StructureError, match="it attends to pooled rows beside a window"):
        run_pipeline(
            model.graph, parse_pipeline("compress-seq{rate=4, window=5, refit=false},window{window=4, layers=1}")
        )


COMPRESS = "compress-seq{rate=4, window=6, gates=true, refit=false}"


@pytest.mark.parametrize(
    "pipeline",
    [
        f"budget-heads{{keep={{0: [0, 3], 1: [0, 1, 2]}}, refit=false}},{COMPRESS}",
        f"{COMPRESS},budget-heads{{keep={{0: [0, 3], 1: [0, 1, 2]}}, refit=false}}",
        f"merge-kv-heads{{heads=1, layers=1, method=mean, refit=false}},{COMPRESS}",
        f"window{{window=6, local={{0: [1]}}, refit=false}},{COMPRESS.replace('gates=true, ', '')}",
        f"share-kv{{layers=2, donor=1, level=raw, refit=false}},{COMPRESS}",
    ],
)
def test_other_passes_stand_before_and_after(decoder: Any, pipeline: str, tmp_path: Path) -> None:
    model = decoder()
    result = run_pipeline(model.graph, parse_pipeline(pipeline))
    expected = Interpreter(result.graph, model.source, "f64")(model.tokens)
    without = ",".join(str(each) for each in result.recipe.passes if each.name != "compress-seq")
    original = model.logits(run_pipeline(model.graph, parse_pipeline(without)).graph)
    assert distance(expected[:, :9], original[:, :9]) < 1e-12 < distance(expected, original)
    program = load_program(emit(result.graph, model.source, tmp_path / "program"), dtype="float64")
    cache = program.new_cache(6, LENGTH)
    found = torch.cat([program(part, cache) for part in model.tokens.split((1, 7, 1, 15), 1)], 1)
    assert distance(found, expected) < 1e-12
    assert cache.nbytes == cache_bytes(result.graph, LENGTH, 6)


def test_a_layer_with_pooled_rows_reads_no_other_window(decoder: Any) -> None:
    with pytest.raises(DonorError) as caught:
        pipeline = "compress-seq{rate=4, window=5, refit=false},share-kv{layers=2, donor=1, refit=false}"
        run_pipeline(decoder().graph, parse_pipeline(pipeline))
    assert "the reader attends to pooled rows too" in str(caught.value)


def test_text_as_short_as_the_window_shows_nothing() -> None:
    recipe = parse_pipeline("compress-seq{rate=4, window=1024},calibration{text=builtin:sample}")
    with pytest.raises(ShortWindowsError, match="512 tokens show nothing of what changes from 1028 tokens on"):
        recipe.check_calibration()
