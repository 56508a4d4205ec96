"""Small twins: every kind of layer and no value that hides a term, so that a mistake anywhere would show."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor

from regraft.frontends.family import read_config
from regraft.frontends.lift import lift_config
from regraft.frontends.tensors import Declared
from regraft.frontends.twin import twin_config
from regraft.ir.cost import parameters
from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter
from regraft.ir.kinds import block_kinds
from regraft.ir.source import TensorSource
from tests.frontends.agreement import check_text, twin_graph
from tests.frontends.cases import CASES, builtin

ALL = {**CASES, **{name: builtin(name) for name in ("OpenELM-270M", "OpenELM-3B")}}
TOKENS = torch.randint(0, 128, (1, 24), generator=torch.Generator().manual_seed(0))


def kinds_of(graph: Graph) -> list[str]:
    """Return the names of a graph's kinds of layers, whatever the rates at which rows are pooled."""
    return sorted(re.sub(r"every_\d+", "every_few", kind.name) for kind in block_kinds(graph))


@pytest.mark.parametrize("name", CASES)
def test_twins_are_small_have_every_kind_and_are_their_own_twins(name: str) -> None:
    small = twin_config(CASES[name])
    whole = lift_config(read_config(CASES[name]), Declared("bf16"))
    graph = lift_config(read_config(small), Declared("f32", published=True))
    assert parameters(graph).total < 800_000
    assert kinds_of(graph) == kinds_of(whole)
    assert twin_config(small) == small
    check_text(graph)


def forgotten(tensor: Tensor) -> Tensor:
    """Return what stands for a tensor that was not loaded: ones where it lies around one, zeros elsewhere."""
    return torch.full_like(tensor, int(tensor.double().mean() > 0.4))


@pytest.mark.parametrize("name", ALL)
def test_every_tensor_counts(name: str) -> None:
    """No tensor is at a value that hides it, and forgetting any one in all layers shows."""
    graph, weights = twin_graph(ALL[name])
    right = Interpreter(graph, TensorSource(weights))(TOKENS)
    places: dict[str, list[str]] = {}
    for tensor in weights:
        places.setdefault(re.sub(r"\.\d+\.", ".N.", tensor), []).append(tensor)
    for place, tensors in places.items():
        changed = {each: forgotten(weights[each]) for each in tensors}
        shift = (Interpreter(graph, TensorSource({**weights, **changed}))(TOKENS) - right).abs().max()
        assert shift > 1e-3, place
        for each in tensors:
            values = weights[each].flatten()
            assert not values.is_floating_point() or not ((values == 0) | (values == 1)).any(), each
