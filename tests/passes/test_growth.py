"""What grows, together: one recipe, the same function, one program, and all of it learns."""

from __future__ import annotations

from pathlib import Path

import pytest

from regraft.ir.cost import cache_bytes, parameters
from regraft.ir.interpret import Interpreter
from tests.passes.exactness import TOKENS, check_gradients, check_program, run, twin

GROWN = "add-head-gates,add-short-convs,add-per-layer-embeddings{width=8},add-hyper-connections"
NEW = r"g_proj|[qkv]_conv|per_layer|(^|\.|hc_)(fn|base|scale)$"
LATER = r"(^|\.|hc_)scale$|per_layer(?!_input_norm)|embed_tokens_per_layer"


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "Qwen3-0.6B", "Mistral-7B-v0.3", "laguna-XS.2"])
def test_all_of_it_learns(name: str, tmp_path: Path) -> None:
    graph, source = twin(name)
    result = run(graph, f"fold-norms,{GROWN},fuse-projections{{maps=mlp}}")
    sizes = [step.after for step in result.steps]
    assert sizes[-1].parameters == parameters(result.graph).total
    assert sizes[-1].cache_bytes == cache_bytes(result.graph, 4096)
    model = check_program(result.graph, source, Interpreter(graph, source)(TOKENS), tmp_path / "package")
    check_gradients(model, NEW, LATER)


def test_gemma_has_some_of_it_already(tmp_path: Path) -> None:
    graph, source = twin("gemma-4-E2B")
    done = run(graph, f"fold-norms,{GROWN},fuse-projections{{maps=mlp}}").graph
    check_program(done, source, Interpreter(graph, source)(TOKENS), tmp_path / "package")
