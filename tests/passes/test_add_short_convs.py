"""`add-short-convs`: deltas at the start, a few rows kept, taps that learn."""

from __future__ import annotations

from pathlib import Path

import pytest

from regraft.ir.cost import cache_bytes, parameters
from regraft.ir.errors.recipe import StructureError
from regraft.ir.interpret import Interpreter
from regraft.ir.ops.seq import Conv
from tests.passes.exactness import TOKENS, check_blocks, check_gradients, check_program, close, run, twin

TWINS = [
    *("Llama-3.1-8B", "Qwen3-0.6B", "Mistral-7B-v0.3", "gemma-4-E2B", "gemma-4-26B-A4B", "laguna-XS.2"),
    *("gpt-oss-20b", "qwen2", "phi3", "olmo2"),
]


@pytest.mark.parametrize("name", TWINS)
def test_every_family_stays_what_it_is(name: str) -> None:
    graph, source = twin(name)
    done = run(graph, "add-short-convs{taps=4}").graph
    close(Interpreter(done, source)(TOKENS), Interpreter(graph, source)(TOKENS))
    channels = sum(op.weight.tensor.sizes[0] for op in done.ops if isinstance(op, Conv))
    assert parameters(done).total - parameters(graph).total == 4 * channels > 0
    for context in (1, 1000):
        assert cache_bytes(done, context) - cache_bytes(graph, context) == 4 * 3 * channels
    check_blocks(name, "add-short-convs{taps=4}")


def test_what_is_convolved_can_be_chosen() -> None:
    graph, source = twin("Qwen3-0.6B")
    done = run(graph, "add-short-convs{of=kv, layers=1}")
    names = [v.name for v in done.graph.parameters() if "conv" in v.name]
    assert names == ["model.layers.1.self_attn.k_conv.weight", "model.layers.1.self_attn.v_conv.weight"]
    again = run(done.graph, "fold-norms,add-short-convs{of=q},cse").graph
    close(Interpreter(again, source)(TOKENS), Interpreter(graph, source)(TOKENS))


def test_keys_that_are_values_have_one() -> None:
    graph, _ = twin("gemma-4-26B-A4B")
    done = run(graph, "add-short-convs{of=kv}").graph
    names = [v.name for v in done.parameters() if "conv" in v.name]
    full = next(op for op in graph.ops if op.opname == "attn.attend" and op.attributes["window"] is None)
    layer = full.results[0].name.split(".")[1]
    assert [name for name in names if f"layers.{layer}." in name] == [f"model.layers.{layer}.self_attn.k_conv.weight"]


def test_readers_of_other_memories_and_latents() -> None:
    graph, _ = twin("gemma-4-E2B")
    result = run(graph, "add-short-convs{of=kv}").steps[0].report
    with pytest.raises(StructureError, match="its keys and values are another layer's"):
        run(graph, f"add-short-convs{{of=kv, layers={result.refused[0].layer}}}")
    with pytest.raises(StructureError, match="layer 0: "):
        run(twin("DeepSeek-V3")[0], "add-short-convs{of=kv}")


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "laguna-XS.2", "gemma-4-26B-A4B"])
def test_the_program_learns(name: str, tmp_path: Path) -> None:
    graph, source = twin(name)
    done = run(graph, "add-short-convs").graph
    model = check_program(done, source, Interpreter(graph, source)(TOKENS), tmp_path / "package")
    check_gradients(model, "[qkv]_conv")
