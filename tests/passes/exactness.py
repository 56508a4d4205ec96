"""What tests of exact passes share: twins of families, compared block by block and in their logits."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regraft.codegen.package import emit
from regraft.frontends.family import read_config
from regraft.frontends.lift import lift_config
from regraft.frontends.tensors import Declared
from regraft.frontends.twin import random_tensors, twin_config
from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter
from regraft.ir.ops.core import Add
from regraft.ir.parse import parse_graph
from regraft.ir.source import TensorSource
from regraft.ir.text import print_graph
from regraft.passes.pipeline import PipelineResult, run_pipeline
from regraft.passes.recipe import parse_pipeline
from regraft.programs import load_program
from tests.frontends.cases import CASES

TOKENS = torch.arange(2 * 40).view(2, 40) * 37 % 128
BLOCK, LOGITS = 1e-12, 1e-5  # relative in float64; in float32, at logits of about 4


@cache
def twin(name: str, dtype: str = "f32") -> tuple[Graph, TensorSource]:
    """Return the twin of a case, its tensors in ``dtype``: float64 ones are float32 numbers."""
    torch.set_num_threads(1)
    small = read_config(twin_config(CASES[name]))
    graph = lift_config(small, Declared(dtype))
    wide = torch.float64 if dtype == "f64" else torch.float32
    arrays = random_tensors(lift_config(small, Declared("f32")), 0, small.twin_gain)
    return graph, TensorSource({
        n: t.to(wide) if t.is_floating_point() else t for n, t in ((n, torch.from_numpy(a)) for n, a in arrays.items())
    })  # fmt: skip


def run(graph: Graph, pipeline: str, measure: Any = None) -> PipelineResult:
    """Return what a pipeline makes of a graph, whose text must read back."""
    result = run_pipeline(graph, parse_pipeline(pipeline), measure)
    assert parse_graph(print_graph(result.graph)).equals(result.graph)
    return result


def distance(found: Tensor, wanted: Tensor) -> float:
    """Return the relative distance of two tensors."""
    return float((found - wanted).norm() / wanted.norm())


def sums(graph: Graph) -> list[str]:
    """Return the values in layers that are sums: the residual stream after each block, and what is added up within."""
    return [op.out.name for op in graph.ops if isinstance(op, Add) and "layers." in op.out.name]


def check_blocks(
    name: str,
    pipeline: str,
    edges: Callable[[Graph], Sequence[str]] = sums,
    tensors: Callable[[Graph, TensorSource], TensorSource] | None = None,
    measure: Callable[[Graph, TensorSource], Any] | None = None,
) -> None:
    """Check a twin in float64, block by block and in its logits.

    Args:
        name: The case.
        pipeline: The passes.
        edges: Which values to compare.
        tensors: Changes the tensors first.
        measure: Gives decisions the weights.
    """
    graph, source = twin(name, "f64")
    source = tensors(graph, source) if tensors else source
    done = run(graph, pipeline, measure(graph, source) if measure else None).graph
    wanted = [*edges(graph), graph.outputs[0].name]
    there = [edge for edge in wanted if edge in done and done[edge].type == graph[edge].type]
    assert len(there) > 1 or edges(graph) == []
    before, after = (Interpreter(g, source, "f64").run(TOKENS, edges=there) for g in (graph, done))
    worst = {edge: distance(after[edge], before[edge]) for edge in there}
    assert max(worst.values()) < BLOCK, {edge: error for edge, error in worst.items() if error >= BLOCK}


def close(found: Tensor, expected: Tensor) -> None:
    """Check logits in float32."""
    limit = LOGITS * max(1.0, float(expected.abs().max()) / 4)
    torch.testing.assert_close(found, expected, rtol=0, atol=limit)


def check_program(graph: Graph, source: TensorSource, expected: Tensor, folder: Path) -> Any:
    """Check the emitted program against logits: at once, in chunks and token by token; return it."""
    emit(graph, source, folder)
    model = load_program(folder, dtype="float32")
    with torch.no_grad():
        close(model(TOKENS), expected)
        for sizes in ((30, *(1,) * 10), (7,) * 5 + (5,)):
            cache = model.new_cache(2, 40)
            parts = [model(part, cache) for part in TOKENS.split(sizes, 1)]
            close(torch.cat(parts, 1), expected)
    return model


def check_gradients(model: Any, new: str, later: str = "$^") -> None:
    """Check that every parameter whose name matches ``new`` gets a gradient from the first step on.

    Those that match ``later`` too get none in the first step, and one in the second.
    """
    parameters = {name: p for name, p in model.named_parameters() if re.search(new, name)}
    assert parameters, sorted(dict(model.named_parameters()))

    def step() -> dict[str, bool]:
        model.zero_grad()
        logits = model(TOKENS)
        torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten()).backward()
        return {name: p.grad is not None and bool(p.grad.any()) for name, p in parameters.items()}

    model.requires_grad_(True)
    waiting = {name for name in parameters if re.search(later, name)}
    assert {name for name, moved in step().items() if not moved} == waiting
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.sub_(0.1 * parameter.grad / (parameter.grad.norm() + 1e-12))
    assert all(step().values())
