"""budget-heads where heads have sinks or gates: what stays is what it was, the others count nothing."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.frontends.family import read_config
from regraft.frontends.lift import lift_config
from regraft.frontends.tensors import Declared
from regraft.frontends.twin import random_tensors, twin_config
from regraft.ir.interpret import Interpreter
from regraft.ir.parse import parse_graph
from regraft.ir.source import TensorSource
from regraft.ir.text import print_graph
from regraft.passes.pipeline import run_pipeline
from regraft.passes.recipe import parse_pipeline

KEPT = {0: [0, 3], 1: [0, 1, 2]}
CASES: dict[str, dict[str, Any]] = {
    "sinks": {"model_type": "gpt_oss", "attention_bias": False},
    "gates by head": {"model_type": "laguna"},
    "gates by channel": {"model_type": "laguna", "gating": "per-element"},
}


@pytest.mark.parametrize("case", CASES)
def test_cut_heads_are_as_if_their_output_counted_nothing(case: str) -> None:
    torch.set_num_threads(1)
    graph = lift_config(read_config(twin_config(CASES[case])), Declared("f32"))
    weights = {name: torch.from_numpy(array) for name, array in random_tensors(graph, 0).items()}
    result = run_pipeline(graph, parse_pipeline("budget-heads{keep={0: [0, 3], 1: [0, 1, 2]}, refit=false}"))
    assert parse_graph(print_graph(result.graph)).equals(result.graph)
    silent = {name: _silenced(name, tensor) for name, tensor in weights.items()}
    tokens = torch.arange(24)[None] * 5 % 128
    found = Interpreter(result.graph, TensorSource(weights))(tokens)
    expected = Interpreter(graph, TensorSource(silent))(tokens)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1.0, float(expected.abs().max()) / 4))
    assert (found - Interpreter(graph, TensorSource(weights))(tokens)).abs().max() > 1e-2


def _silenced(name: str, tensor: Tensor) -> Tensor:
    """Return an output projection without the columns of the heads that are cut."""
    layer = re.fullmatch(r"model\.layers\.([01])\.self_attn\.o_proj\.weight", name)
    if layer is None:
        return tensor
    heads = tensor.unflatten(1, (4, -1)).clone()
    heads[:, [head for head in range(4) if head not in KEPT[int(layer[1])]]] = 0
    return heads.flatten(1)
