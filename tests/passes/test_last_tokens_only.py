"""`last-tokens-only` in numbers: the logits that are asked for stay, what nobody asks for is not computed."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from regraft.codegen.package import emit
from regraft.frontends.folder import open_model
from regraft.frontends.lift import lift
from regraft.ir.cost import cache_bytes, cost, parameters
from regraft.ir.errors.recipe import StructureError
from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter
from regraft.ir.kinds import block_kinds
from regraft.ir.parse import parse_graph
from regraft.ir.source import TensorSource
from regraft.ir.text import print_graph
from regraft.passes.pipeline import run_pipeline
from regraft.passes.plan import make_plan
from regraft.passes.recipe import parse_pipeline
from regraft.programs import load_program
from regraft.views.facts import facts
from tests.frontends.agreement import twin_graph
from tests.frontends.cases import CASES

MODELS = ["gemma-4-E2B", "gemma-4-E4B"]
TOKENS = torch.arange(2 * 40).view(2, 40) * 37 % 128
RAGGED = torch.tensor([40, 3])


@cache
def twin(name: str) -> tuple[Graph, TensorSource]:
    graph, tensors = twin_graph(CASES[name])
    return graph, TensorSource(tensors)


def rewritten(graph: Graph, pipeline: str = "last-tokens-only") -> Graph:
    result = run_pipeline(graph, parse_pipeline(pipeline))
    assert parse_graph(print_graph(result.graph)).equals(result.graph)
    return result.graph


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("last", [None, 1, 5, 40])
def test_the_logits_asked_for_are_the_same(name: str, last: int | None) -> None:
    graph, source = twin(name)
    whole, cut = (Interpreter(each, source, "f64") for each in (graph, rewritten(graph)))
    assert distance(cut(TOKENS, last=last), whole(TOKENS, last=last)) < 1e-12
    assert distance(cut(TOKENS, lengths=RAGGED, last=last), whole(TOKENS, lengths=RAGGED, last=last)) < 1e-12
    caches = [each.new_cache(2) for each in (whole, cut)]
    for part in TOKENS.split((25, 1, 14), 1):
        expected, found = (each(part, kept, last=last) for each, kept in zip((whole, cut), caches, strict=True))
        assert distance(found, expected) < 1e-12
    for memory, rows in caches[0].rows.items():  # the memories are extended by all tokens
        for field, tensor in rows.fields.items():
            assert torch.equal(caches[1].rows[memory].fields[field], tensor)


@pytest.mark.parametrize("name", MODELS)
def test_the_program(name: str, tmp_path: Path) -> None:
    graph, source = twin(name)
    expected = Interpreter(graph, source)(TOKENS)
    limit = 1e-5 * max(1.0, float(expected.abs().max()) / 4)
    emit(rewritten(graph), source, tmp_path / "package")
    model = load_program(tmp_path / "package", dtype="float32")
    with torch.no_grad():
        assert float((model(TOKENS) - expected).abs().max()) < limit
        for last in (None, 1, 6):
            kept, seen = model.new_cache(2, 40), 0
            for part in TOKENS.split((12, 16, 1, 1, 10), 1):
                seen += part.shape[1]
                found = model(part, kept, last=last if last is None else min(last, part.shape[1]))
                assert float((found - expected[:, seen - found.shape[1] : seen]).abs().max()) < limit
        kept = model.new_cache(2, 41)
        found = model(TOKENS, kept, RAGGED, last=2)
        assert float((found[1] - expected[1, 1:3]).abs().max()) < limit
        assert float((model(TOKENS[:, 3:4], kept)[1] - expected[1, 3:4]).abs().max()) < limit


def test_later_layers_of_the_program_see_one_token(tmp_path: Path) -> None:
    graph, source = twin("gemma-4-E2B")
    emit(rewritten(graph), source, tmp_path / "package")
    model = load_program(tmp_path / "package", dtype="float32")
    seen: list[int] = []
    for layer in model.layers:
        layer.register_forward_hook(lambda _, given, __: seen.append(given[0].shape[1]))
    with torch.no_grad():
        model(TOKENS, last=1)
    assert seen == [40] * 4 + [1] * 4


def test_a_prompt_costs_what_its_last_token_needs() -> None:
    # specs/gemma4.md, section 5: E2B's last 20 of 35 layers, with MLPs twice as wide, see the last token alone
    graph = lift(open_model("builtin:gemma-4-E2B"), strict=False).graph
    cut = rewritten(graph)
    before, after = (facts(each, (4096,)) for each in (graph, cut))
    narrow, wide = 2 * 3 * 1536 * 6144, 2 * 3 * 1536 * 12288
    assert before.prefill[4096].by_part["mlp"].flops == 4096 * (15 * narrow + 20 * wide)
    assert after.prefill[4096].by_part["mlp"].flops == 4096 * 15 * narrow + 20 * wide
    assert after.prefill[4096].flops < 0.4 * before.prefill[4096].flops
    assert after.decode == before.decode
    plan = make_plan(graph, parse_pipeline("last-tokens-only"))
    assert plan.before.prefill_flops == before.prefill[4096].flops
    assert plan.after.prefill_flops == after.prefill[4096].flops
    assert plan.after.decode_flops == plan.before.decode_flops
    every, some = (cost(cut, tokens=64, context=64, last=last).total for last in (None, 1))
    whole = cost(graph, tokens=64, context=64).total
    assert (every.flops, every.bytes_read) == (whole.flops, whole.bytes_read)
    assert some.flops < 0.5 * whole.flops
    assert (parameters(cut), cache_bytes(cut, 4096)) == (parameters(graph), cache_bytes(graph, 4096))
    assert len(block_kinds(cut)) == len(block_kinds(graph))


@pytest.mark.parametrize("name", ["gemma-4-31B", "qwen2", "ZAYA1-8B"])
def test_models_whose_last_layer_makes_a_memory_are_refused(name: str) -> None:
    with pytest.raises(StructureError, match="so all tokens have to reach it"):
        run_pipeline(twin(name)[0], parse_pipeline("last-tokens-only"))


@pytest.mark.parametrize("step", ["to-latent{rank=0.75}", "window{window=8}", "add-short-convs{layers=4}"])
def test_passes_that_need_all_tokens_come_before(step: str) -> None:
    with pytest.raises(StructureError, match="let last-tokens-only come after"):
        run_pipeline(twin("gemma-4-E2B")[0], parse_pipeline(f"last-tokens-only,{step}"), assume=True)


def test_after_share_kv() -> None:
    graph, source = twin("qwen2")
    shared = "share-kv{donor={1: 0}, refit=false}"
    whole, cut = (Interpreter(rewritten(graph, each), source) for each in (shared, f"{shared},last-tokens-only"))
    assert float((cut(TOKENS, last=3) - whole(TOKENS, last=3)).abs().max()) < 1e-5
