"""`absorb-mla` and `expand-mla` in numbers: one function, one cache, the same weights, other costs."""

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
from regraft.ir.errors.recipe import ChoiceError, OptionConflictError, StructureError
from regraft.ir.errors.usage import UnknownDeviceError
from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter
from regraft.ir.ops.attn import Attend
from regraft.ir.source import TensorSource
from regraft.ir.text import print_graph
from regraft.passes.pipeline import run_pipeline
from regraft.passes.recipe import parse_pipeline
from regraft.programs import load_program
from tests.frontends.agreement import twin_graph
from tests.frontends.cases import CASES

TWINS = [
    "DeepSeek-V2-Lite",
    "DeepSeek-V3",
    "DeepSeek-V3.2",
    "deepseek v2, query latent, best groups",
    "deepseek v3, biases, another amplitude, weights as they are",
]
TOKENS = torch.arange(2 * 40).view(2, 40) * 37 % 128


@cache
def twin(name: str) -> tuple[Graph, TensorSource]:
    graph, tensors = twin_graph(CASES[name])
    return graph, TensorSource(tensors)


@cache
def whole(name: str) -> Graph:
    return lift(open_model(f"builtin:{name}"), strict=False).graph


def rewritten(graph: Graph, pipeline: str) -> Graph:
    return run_pipeline(graph, parse_pipeline(pipeline)).graph


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("name", TWINS)
def test_each_block_and_the_logits_are_the_same(name: str) -> None:
    graph, source = twin(name)
    absorbed = rewritten(graph, "absorb-mla")
    edges = [op.out.name for op in graph.ops if isinstance(op, Attend)]
    found, wanted = (Interpreter(g, source, "f64").run(TOKENS, edges=edges) for g in (absorbed, graph))
    assert max(distance(found[edge], wanted[edge]) for edge in edges) < 1e-12
    logits, expected = (Interpreter(g, source)(TOKENS) for g in (absorbed, graph))
    assert float((logits - expected).abs().max()) < 1e-5 * max(1.0, float(expected.abs().max()) / 4)


@pytest.mark.parametrize("name", TWINS)
def test_there_and_back_is_the_same_graph(name: str) -> None:
    graph, _ = twin(name)
    absorbed = rewritten(graph, "absorb-mla")
    back = rewritten(absorbed, "expand-mla")
    assert sorted(print_graph(back).splitlines()) == sorted(print_graph(graph).splitlines())
    again = rewritten(back, "absorb-mla")
    assert sorted(print_graph(again).splitlines()) == sorted(print_graph(absorbed).splitlines())


def test_parameters_and_cache_stay_and_work_is_as_the_spec_says() -> None:
    # specs/mla.md, sections 4 and 8: 2 H (2 r + dr) per pair, 278,528 for V3; of V3.2 a query sees 2,048 rows
    graph = whole("DeepSeek-V3.2")
    absorbed = rewritten(graph, "absorb-mla")
    assert parameters(absorbed) == parameters(graph)
    assert {v.name for v in absorbed.parameters()} == {v.name for v in graph.parameters()}
    assert cache_bytes(absorbed, 131072) == cache_bytes(graph, 131072)
    core = [op.flops({"B": 1, "T": 1, "S": 131072}) for op in absorbed.ops if isinstance(op, Attend)]
    assert core == [278_528 * 2048] * 61
    saved = [cost(g, context=131072).total.flops for g in (graph, absorbed)]
    expansion = 2 * 512 * 128 * (128 + 128)  # of each row; of each query there is as much to absorb
    assert saved[0] - saved[1] == 61 * (expansion * (131072 - 1) - (278_528 - 81_920) * 2048)


@pytest.mark.parametrize("name", ["DeepSeek-V2-Lite", "DeepSeek-V3.2"])
def test_the_program_of_the_absorbed_form(name: str, tmp_path: Path) -> None:
    graph, source = twin(name)
    expected = Interpreter(graph, source)(TOKENS)
    emit(rewritten(graph, "absorb-mla"), source, tmp_path / "package")
    model = load_program(tmp_path / "package", dtype="float32")
    limit = 1e-5 * max(1.0, float(expected.abs().max()) / 4)
    with torch.no_grad():
        assert float((model(TOKENS) - expected).abs().max()) < limit
        cache = model.new_cache(2, 40)
        parts = [model(part, cache) for part in TOKENS.split((30, *(1,) * 10), 1)]
    assert float((torch.cat(parts, 1) - expected).abs().max()) < limit


@pytest.mark.parametrize(("tokens", "absorbs"), [(1, True), (170, True), (171, False), (4096, False)])
def test_the_threshold_by_operations(tokens: int, absorbs: bool) -> None:
    # specs/mla.md, section 4: absorbed wins below r (dn + dv) / (2 r - dn - dv) = 170.7 queries over many rows
    step = f"absorb-mla{{when=faster, tokens={tokens}, context={1 << 20}}}"
    result = run_pipeline(whole("DeepSeek-V2-Lite"), parse_pipeline(step))
    assert len(result.steps[0].report.applied) == (27 if absorbs else 0)
    again = run_pipeline(result.original, result.recipe)
    assert again.graph.equals(result.graph)
    assert again.recipe == result.recipe


def test_the_faster_form_on_a_device() -> None:
    graph = whole("DeepSeek-V3.2")
    sizes = "device=h200-sxm, context=131072"
    decode = run_pipeline(graph, parse_pipeline(f"absorb-mla{{when=faster, {sizes}}}"))
    assert str(decode.steps[0].step) == 'absorb-mla{layers="0..60"}'
    prefill = run_pipeline(decode.graph, parse_pipeline(f"expand-mla{{when=faster, tokens=131072, {sizes}}}"))
    assert len(prefill.steps[0].report.applied) == 61
    stays = run_pipeline(graph, parse_pipeline(f"absorb-mla{{when=faster, tokens=131072, {sizes}}}"))
    assert stays.graph.equals(graph)
    assert {note.text for note in stays.steps[0].report.refused} == {
        "as it is, it is as fast or faster at 131072 of 131072 tokens"
    }


@pytest.mark.parametrize(
    ("step", "error"),
    [
        ("absorb-mla{when=faster, tokens=9, context=8}", OptionConflictError),
        ("absorb-mla{when=faster, device=h201}", UnknownDeviceError),
        ("absorb-mla{when=often}", ChoiceError),
        ("expand-mla", StructureError),
        ("absorb-mla{layers=1},absorb-mla{layers=1}", StructureError),
    ],
)
def test_refusals(step: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        run_pipeline(twin("DeepSeek-V3")[0], parse_pipeline(step))


def test_other_attention_is_refused() -> None:
    with pytest.raises(StructureError, match="layer 0: it reads no keys and values that are made of kept rows"):
        run_pipeline(twin("qwen2")[0], parse_pipeline("absorb-mla"))
