"""`add-hyper-connections`: streams that differ and still compute what one did, with maps that learn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from regraft.codegen.package import emit
from regraft.ir.cost import cache_bytes, parameters
from regraft.ir.errors.recipe import OptionRangeError, StructureError
from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter
from regraft.ir.ops.core import Linear
from regraft.ir.ops.hyper import Read
from regraft.programs import load_program
from tests.passes.exactness import TOKENS, check_blocks, check_gradients, check_program, close, run, twin

TWINS = [
    *("Llama-3.1-8B", "Qwen3-0.6B", "Mistral-7B-v0.3", "gemma-4-E2B", "laguna-XS.2", "gpt-oss-20b", "gemma2"),
    *("granite", "ZAYA1-8B", "DeepSeek-V3", "Qwen3-Next-80B-A3B"),
]

NEW = r"(^|\.|hc_)(fn|base|scale)$"


def branches(graph: Graph) -> list[str]:
    """Return what the maps of every layer give: none of it has the streams in it."""
    return [op.out.name for op in graph.ops if isinstance(op, Linear) and "layers." in op.out.name]


@pytest.mark.parametrize("name", TWINS)
def test_every_family_stays_what_it_is(name: str) -> None:
    graph, source = twin(name)
    done = run(graph, "add-hyper-connections").graph
    close(Interpreter(done, source)(TOKENS), Interpreter(graph, source)(TOKENS))
    sites = sum(isinstance(op, Read) for op in done.ops)
    assert sites >= 2 * graph.layer_count()
    # specs/deepseek_v4.md, section 4: fn [24, 4 M], base [24], scale [3] a site; [4, 4 M], [4], [1] at the end
    added = sites * (24 * 4 * 64 + 24 + 3) + 4 * 4 * 64 + 4 + 1
    assert parameters(done).total - parameters(graph).total == added
    assert cache_bytes(done, 1000) == cache_bytes(graph, 1000)


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "Qwen3-0.6B", "gemma-4-E2B", "laguna-XS.2", "ZAYA1-8B", "gemma2"])
@pytest.mark.parametrize("options", ["", "{streams=3, iterations=1}", "{streams=2}"])
def test_each_block_in_float64(name: str, options: str) -> None:
    check_blocks(name, f"add-hyper-connections{options}", branches)


def test_streams_differ_and_are_read_as_one() -> None:
    graph, source = twin("Llama-3.1-8B", "f64")
    done = run(graph, "add-hyper-connections").graph
    names = ["layers.1.attn.residual", "collapsed"]
    values = Interpreter(done, source, "f64").run(TOKENS, edges=names)
    streams = values["layers.1.attn.residual"]
    one = Interpreter(graph, source, "f64").run(TOKENS, edges=["layers.1.attn.residual"])["layers.1.attn.residual"]
    torch.testing.assert_close(streams.mean(-2), one, rtol=0, atol=1e-13)
    assert float((streams[:, :, 0] - streams[:, :, 1]).norm() / one.norm()) > 0.1


def test_on_some_layers_beside_other_passes() -> None:
    for name in ("Qwen3-0.6B", "gemma-4-E2B", "ZAYA1-8B"):
        graph, source = twin(name)
        recipe = "fold-norms,add-hyper-connections{layers=1},cse,dce"
        done = run(graph, recipe).graph
        assert {op.out.name.split(".")[1] for op in done.ops if isinstance(op, Read)} == {"1"}
        close(Interpreter(done, source)(TOKENS), Interpreter(graph, source)(TOKENS))
    gated = run(twin("Qwen3-0.6B")[0], "add-hyper-connections,add-head-gates,add-short-convs").graph
    graph, source = twin("Qwen3-0.6B")
    close(Interpreter(gated, source)(TOKENS), Interpreter(graph, source)(TOKENS))


def test_refusals() -> None:
    with pytest.raises(OptionRangeError, match="streams is 1"):
        run(twin("Qwen3-0.6B")[0], "add-hyper-connections{streams=1}")
    for recipe in ("add-hyper-connections,add-hyper-connections", "add-hyper-connections"):
        with pytest.raises(StructureError, match="it has residual streams side by side"):
            run(twin("DeepSeek-V4-Flash" if "," not in recipe else "Qwen3-0.6B")[0], recipe)


@pytest.mark.parametrize("name", ["Llama-3.1-8B", "gemma-4-E2B", "laguna-XS.2", "ZAYA1-8B"])
def test_the_program_learns(name: str, tmp_path: Path) -> None:
    graph, source = twin(name)
    done = run(graph, "add-hyper-connections").graph
    model = check_program(done, source, Interpreter(graph, source)(TOKENS), tmp_path / "package")
    check_gradients(model, NEW, later="scale$")


@pytest.mark.parametrize("streams", [2, 3, 4, 7])
def test_maps_between_streams_learn_from_the_first_step_on(streams: int, tmp_path: Path) -> None:
    graph, source = twin("Llama-3.1-8B")
    emit(run(graph, f"add-hyper-connections{{streams={streams}}}").graph, source, tmp_path / "package")
    model = load_program(tmp_path / "package", dtype="float64")
    model.requires_grad_(True)
    model(TOKENS).square().sum().backward()
    moved = {name: p.grad for name, p in model.named_parameters() if name.endswith("fn") and "layers" in name}
    between = {name: float(grad[2 * streams :].norm() / grad.norm()) for name, grad in moved.items()}
    assert len(between) == 2 * graph.layer_count()
    assert between.pop("layers.0.fn") < 1e-12  # streams are all alike before the first block
    if streams == 2:  # two that differ are read alike: what is left is how far 20 turns are from the end
        assert 0 < max(between.values()) < 1e-4
    else:
        assert min(between.values()) > 2e-4
    check_gradients(model, NEW, later="scale$")
