"""`merge-kv-heads` in numbers: exact where heads are gauge copies, better than the baselines where they are not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.ir.graph import Graph
from regraft.passes.pipeline import run_pipeline
from regraft.passes.recipe import parse_pipeline

D = 4
PCA = "merge-kv-heads{groups={0: [[0, 3], [1, 2]], 1: [[0, 3], [1, 2]], 2: [[0, 3], [1, 2]]}, refit=false}"


def rewritten(model: Any, pipeline: str) -> Graph:
    return run_pipeline(model.graph, parse_pipeline(pipeline)).graph


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_copies(model: Any, groups: tuple[tuple[int, ...], ...] = ((0, 3), (1, 2))) -> None:
    """Let the heads of a group be gauge copies: keys differ by a complex factor a frequency, values by a linear map."""
    for name, tensor in model.tensors.items():
        if ".k_proj." in name:
            pairs = torch.complex(*tensor.view(4, 2, D // 2, -1).unbind(1))
            for group in groups:
                for head in group[1:]:
                    pairs[head] = torch.view_as_complex(random(D // 2, 1, 2, seed=head)) * pairs[group[0]]
            tensor.copy_(torch.stack((pairs.real, pairs.imag), 1).view(tensor.shape))
        elif ".v_proj." in name:
            heads = tensor.view(4, D, -1)
            for group in groups:
                for head in group[1:]:
                    heads[head] = random(D, D, seed=head) @ heads[group[0]]


@pytest.mark.parametrize(
    "fields",
    [{}, {"bias": True}, {"gate": False, "heads": 8}, {"windows": {0: 6, 1: 6}}, {"reads": {1: 0}}],
    ids=str,
)
def test_gauge_copies_merge_exactly(decoder: Any, fields: dict[str, Any]) -> None:
    model = decoder(**{"heads": 4, "kv_heads": 4, **fields})
    make_copies(model)
    pipeline = PCA.replace("1: [[0, 3], [1, 2]], ", "") if "reads" in fields else PCA
    graph = rewritten(model, pipeline)
    assert distance(model.logits(graph), model.logits(model.graph)) < 1e-12
    assert (
        distance(
            model.logits(rewritten(model, pipeline.replace("refit", "method=mean, refit"))), model.logits(model.graph)
        )
        > 0.01
    )
