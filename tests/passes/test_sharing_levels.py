"""The levels of `share-kv` that rebuild keys and values: from the donor's rows, and from its input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.ir.cost import cache_bytes, parameters
from regraft.ir.errors.recipe import DonorError, MissingKeyError, OptionConflictError, RankError, StructureError
from regraft.ir.graph import Graph
from regraft.passes.fitting.fold import folded
from regraft.passes.fitting.measure import Measurements
from regraft.passes.matching.memories import key_values
from regraft.passes.matching.sites import Refusal, attentions
from regraft.passes.pipeline import run_pipeline
from regraft.passes.recipe import parse_pipeline
from tests.codegen.programs import emitted


def rewritten(model: Any, pipeline: str) -> Graph:
    measure = Measurements(model.graph, model.source, model.tokens)
    return run_pipeline(model.graph, parse_pipeline(pipeline), measure).graph


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def error(model: Any, pipeline: str) -> float:
    return distance(model.logits(rewritten(model, pipeline)), model.logits(model.graph))


def see_the_same_stream(model: Any) -> None:
    """Let layers 0 and 1 read the same stream through the same norm."""
    model.weight(0, "o_proj").zero_()
    model.tensors["model.layers.1.norm.weight"].copy_(model.tensors["model.layers.0.norm.weight"])


@pytest.mark.parametrize("fields", [{}, {"gate": True}, {"windows": {0: 8, 1: 5}}])
def test_any_keys_and_values_of_what_the_rows_span_are_met_exactly(decoder: Any, fields: dict[str, Any]) -> None:
    # 16 numbers a row span the 12 of the input: keys and values of any projections are linear maps of them
    model = decoder(**fields)
    see_the_same_stream(model)
    level = "share-kv{donor={1: 0}, ridge=1e-14, refit=false, level=%s}"
    assert error(model, level % "gauge") > 0.05
    assert error(model, level % "map") < 1e-6
    assert error(model, level % "input") < 1e-6


def test_projections_of_another_input_are_the_same_up_to_a_norm(decoder: Any) -> None:
    # a key norm is no linear map: rows keep normed keys, the input level keeps the reader's norm
    model = decoder(qk_norm=True)
    see_the_same_stream(model)
    level = "share-kv{donor={1: 0}, ridge=1e-14, refit=false, level=%s}"
    assert error(model, level % "input") < 1e-6
    assert 1e-3 < error(model, level % "map") < 0.9 * error(model, level % "gauge")


def test_the_donor_computes_the_same_from_rows(decoder: Any) -> None:
    model = decoder()
    graph = rewritten(model, "share-kv{donor={2: 1}, level=map}")
    edges = ["layers.0.attn.residual", "layers.1.attn.residual"]
    found, wanted = model.run(graph, edges), model.run(model.graph, edges)
    assert all(distance(found[edge], wanted[edge]) < 1e-12 for edge in edges)


@pytest.mark.parametrize("fields", [{}, {"bias": True}, {"qk_norm": True}, {"windows": {0: 8, 1: 5}}, {"gate": True}])
def test_heads_that_are_mixes_of_all_the_donors_are_met_across(decoder: Any, fields: dict[str, Any]) -> None:
    # S5: any complex mix of heads for each frequency passes the rotation; values are mixed in any way
    model = decoder(**fields)
    make_mixes(model)
    level = "share-kv{donor={1: 0}, ridge=1e-14, refit=false, level=%s}"
    assert error(model, level % "gauge") > 0.01
    if fields.get("qk_norm"):  # normed anew, a mix of normed keys is none
        assert 1e-3 < error(model, level % "cross") < 0.9 * error(model, level % "gauge")
    else:
        assert error(model, level % "cross") < 1e-6
        assert error(model, "share-kv{donor={1: 0}, ridge=1e-14, level=cross}") < 1e-6


def make_mixes(model: Any) -> None:
    """Let layer 1 see the stream of layer 0, and make keys and values that are mixes of all of its heads."""
    see_the_same_stream(model)
    mixes = torch.randn(2, 2, 2, 2, dtype=torch.float64)
    values = torch.randn(8, 8, dtype=torch.float64)
    for name, tensor in model.tensors.items():
        donor = model.tensors[name.replace("layers.1", "layers.0")]
        if "layers.1.k_proj" in name:
            pairs = torch.complex(*donor.reshape(2, 2, 2, -1).unbind(1))  # by head and frequency
            mixed = torch.einsum("fhg,gfi->hfi", torch.view_as_complex(mixes), pairs)
            tensor.copy_(torch.stack((mixed.real, mixed.imag), 1).reshape(tensor.shape))
        elif "layers.1.v_proj" in name:
            tensor.copy_(values @ donor)
        elif "layers.1" in name and "k_norm" in name:
            tensor.copy_(donor)


@pytest.mark.parametrize("refit", ["true", "false"])
def test_what_is_nearer_costs_less(decoder: Any, refit: str) -> None:
    model = decoder(layers=4)
    form = f"share-kv{{donor={{2: 1}}, ridge=0, refit={refit}, level=%s}}"
    levels = ("raw", "gauge", "cross", "map", "input")
    raw, gauge, crossed, mapped, made = (error(model, form % level) for level in levels)
    assert 1e-3 < mapped < 0.98 * crossed < 0.98 * raw
    assert mapped < 0.95 * gauge
    assert gauge < raw
    assert 1e-3 < made < gauge


def test_sizes_are_as_predicted(decoder: Any) -> None:
    model = decoder()
    mapped = rewritten(model, "share-kv{donor={2: 1}, level=map}")
    assert cache_bytes(model.graph, 24) - cache_bytes(mapped, 24) == 24 * 2 * 2 * 4 * 8
    assert parameters(mapped).total - parameters(model.graph).total == 16 * 16 - 2 * 8 * 12
    crossed = rewritten(model, "share-kv{donor={2: 1}, level=cross}")
    assert cache_bytes(crossed, 24) == cache_bytes(mapped, 24)
    heads = len(attentions(crossed)[2].attend.groups)
    assert parameters(crossed).total - parameters(model.graph).total == 2 * heads * 4 * 8 - 2 * 8 * 12
    made = rewritten(model, "share-kv{donor={2: 1}, level=input}")
    assert cache_bytes(made, 24) == cache_bytes(model.graph, 24)
    assert parameters(made).total == parameters(model.graph).total


@pytest.mark.parametrize(
    ("fields", "pipeline"),
    [
        ({"windows": {0: 8, 1: 8}}, "share-kv{donor={1: 0}, level=map}"),
        ({"qk_norm": True, "reads": {2: 1}}, "share-kv{donor={1: 0}, level=map}"),
        ({"windows": {0: 8, 1: 8, 2: 5}}, "share-kv{donor={1: 0, 2: 0}, level=cross}"),
        ({"qk_norm": True, "reads": {2: 1}}, "share-kv{donor={1: 0}, level=cross, refit=false}"),
        ({}, "share-kv{donor={1: 0, 2: 0}, level=map},budget-heads{heads=2}"),
        ({"qk_norm": True}, "share-kv{donor={2: 0}, level=input}"),
        ({"reads": {3: 1}, "layers": 4}, "share-kv{donor={2: 1}, level=latent, rank=7}"),
    ],
)
def test_the_program_computes_the_same(decoder: Any, fields: dict[str, Any], pipeline: str, tmp_path: Path) -> None:
    model = decoder(**fields)
    graph = folded(rewritten(model, pipeline))
    program = emitted(graph, tmp_path / "program", "f64")
    expected = program.interpreter(model.tokens)
    bound = 1e-12 * float(expected.abs().max())
    with torch.no_grad():
        assert (program.model(model.tokens) - expected).abs().max() < bound
        cache = program.model.new_cache(6, 24)
        parts = [program.model(model.tokens[:, i : i + 5], cache) for i in range(0, 24, 5)]
        assert (torch.cat(parts, 1) - expected).abs().max() < bound
    assert cache.nbytes == 6 * cache_bytes(graph, 24)


def test_other_heads_can_be_mapped_to_but_not_read(decoder: Any) -> None:
    model = decoder(layers=4)
    merged = "merge-kv-heads{layers=0, heads=1, refit=false, method=mean},"
    with pytest.raises(DonorError):
        rewritten(model, f"{merged}share-kv{{donor={{1: 0}}}}")
    assert 1e-3 < error(model, f"{merged}share-kv{{donor={{1: 0}}, level=map}}") < 1


def test_who_reads_mapped_rows_is_left_alone(decoder: Any) -> None:
    model = decoder()
    mapped = "share-kv{donor={2: 1}, level=map}"
    graph = rewritten(model, mapped)
    found = key_values(attentions(graph)[1].attend, graph)
    assert isinstance(found, Refusal)
    assert "maps to keys and values of its own" in found.reason
    again = rewritten(model, f"{mapped},share-kv{{donor={{1: 0}}, refit=false}}")
    assert [op.name for op in again.memories()] == ["layers.0.attn.memory"]


def test_what_heads_read_across_stays_as_it_is(decoder: Any) -> None:
    model = decoder()
    crossed = "share-kv{donor={2: 1}, level=cross}"
    graph = rewritten(model, crossed)
    found = key_values(attentions(graph)[1].attend, graph)
    assert isinstance(found, Refusal)
    assert "reads all at once" in found.reason
    with pytest.raises(StructureError, match="keeps no keys and values as they are attended to"):
        rewritten(model, "gqa-to-latent{layers=1},share-kv{donor={2: 1}, level=cross}")
    with pytest.raises(StructureError, match="reads all at once"):
        rewritten(model, f"{crossed},to-latent{{layers=1, rank=8}}")
    with pytest.raises(DonorError):
        rewritten(model, f"{crossed},share-kv{{donor={{1: 0}}}}")


def test_biases_and_shared_memories_are_not_made_of_another_input(decoder: Any) -> None:
    with pytest.raises(StructureError, match="biases"):
        rewritten(decoder(bias=True), "share-kv{donor={1: 0}, level=input}")
    with pytest.raises(StructureError, match="other readers"):
        rewritten(decoder(reads={2: 1}), "share-kv{donor={1: 0}, level=input}")


# -- a joint latent


def test_a_latent_of_the_whole_input_is_what_the_input_says(decoder: Any) -> None:
    model = decoder()
    see_the_same_stream(model)
    level = "share-kv{donor={1: 0}, ridge=1e-14, refit=false, level=latent, rank=%d}"
    assert error(model, level % 12) < 1e-6
    errors = [error(model, level % rank) for rank in (10, 6, 3)]
    assert 1e-3 < errors[0] < errors[1] < errors[2]


def test_a_latent_is_kept_once_for_all_its_readers(decoder: Any) -> None:
    model = decoder(layers=4)
    graph = rewritten(model, "share-kv{donor={1: 0, 2: 0}, level=latent, rank=9}")
    assert [(op.name, str(op.memory)) for op in graph.memories() if op.op and op.op.is_state] == [
        ("layers.0.attn.memory", "memory<f64; x [9]>"),
        ("layers.3.attn.memory", "memory<f64; k [2, 4], v [2, 4]>"),
    ]
    assert cache_bytes(graph, 24) == 24 * (9 + 16) * 8
    share = rewritten(model, "share-kv{donor={1: 0, 2: 0}, level=latent, rank=0.5}")
    assert cache_bytes(share, 24) == 24 * (8 + 16) * 8
    assert 1e-3 < distance(model.logits(graph), model.logits(model.graph)) < 1


@pytest.mark.parametrize(
    ("options", "expected"),
    [("level=latent", MissingKeyError), ("level=latent, rank=13", RankError), ("rank=4", OptionConflictError)],
)
def test_ranks_that_cannot_be(decoder: Any, options: str, expected: type[Exception]) -> None:
    with pytest.raises(expected):
        rewritten(decoder(), f"share-kv{{donor={{1: 0}}, {options}}}")
