"""`add-per-layer-embeddings`: nothing is added at the start, and everything learns once the norms do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from regraft.ir.cost import cache_bytes, parameters
from regraft.ir.errors.recipe import LayerMissingError, StructureError
from regraft.ir.interpret import Interpreter
from tests.passes.exactness import TOKENS, check_blocks, check_gradients, check_program, run, twin

TWINS = [
    *("Llama-3.1-8B", "Qwen3-0.6B", "Mistral-7B-v0.3", "gemma-4-E2B", "laguna-XS.2", "gpt-oss-20b", "gemma2"),
    *("granite", "ZAYA1-8B", "DeepSeek-V3", "Qwen3-Next-80B-A3B"),
]
STEP = "add-per-layer-embeddings{width=8}"
NEW = r"per_layer_(input_gate|projection|model_projection|input_norm)|embed_tokens_per_layer"


@pytest.mark.parametrize("name", TWINS)
def test_every_family_stays_what_it_is(name: str) -> None:
    graph, source = twin(name)
    done = run(graph, STEP).graph
    assert torch.equal(Interpreter(done, source)(TOKENS), Interpreter(graph, source)(TOKENS))
    layers = graph.layer_count()
    # specs/gemma4.md, sections 3 and 4: a table, a projection and a norm; two maps and a norm a layer
    added = 128 * layers * 8 + layers * 8 * 64 + 8 + layers * (2 * 8 * 64 + 64)
    assert parameters(done).total - parameters(graph).total == added
    assert cache_bytes(done, 1000) == cache_bytes(graph, 1000)


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "gemma-4-E2B", "laguna-XS.2", "ZAYA1-8B"])
def test_each_block_in_float64(name: str) -> None:
    check_blocks(name, STEP)


def test_names_are_gemmas() -> None:
    graph, _ = twin("gemma-4-E2B")
    theirs = {v.name.partition(".layers.")[2].partition(".")[2] or v.name for v in graph.parameters()}
    ours = {v.name.partition(".layers.")[2].partition(".")[2] or v.name
            for v in run(twin("Llama-3.1-8B")[0], STEP).graph.parameters()}  # fmt: skip
    assert {name for name in theirs if "per_layer" in name} == {name for name in ours if "per_layer" in name}


def test_on_some_layers_beside_other_passes() -> None:
    graph, source = twin("Qwen3-0.6B")
    expected = Interpreter(graph, source)(TOKENS)
    alone = run(graph, "add-per-layer-embeddings{width=8, layers=1, seed=3}")
    table = next(v for v in alone.graph.parameters() if "embed_tokens_per_layer" in v.name)
    assert table.tensor.sizes == (128, 8)
    done = run(graph, f"fold-norms,{STEP},{STEP},add-hyper-connections,cse").graph
    torch.testing.assert_close(Interpreter(done, source)(TOKENS), expected, rtol=0, atol=1e-5)
    with pytest.raises(StructureError, match="it has residual streams side by side"):
        run(graph, f"add-hyper-connections,{STEP}")
    with pytest.raises(LayerMissingError, match="there is no layer 7"):
        run(graph, "add-per-layer-embeddings{layers=7}")


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "laguna-XS.2", "ZAYA1-8B"])
def test_the_program_learns(name: str, tmp_path: Path) -> None:
    graph, source = twin(name)
    done = run(graph, STEP).graph
    model = check_program(done, source, Interpreter(graph, source)(TOKENS), tmp_path / "package")
    check_gradients(model, NEW, later=r"^(?!.*post_per_layer_input_norm)")


def test_the_program_of_gemma_with_more_of_them(tmp_path: Path) -> None:
    graph, source = twin("gemma-4-E2B")
    done = run(graph, STEP).graph
    check_program(done, source, Interpreter(graph, source)(TOKENS), tmp_path / "package")
