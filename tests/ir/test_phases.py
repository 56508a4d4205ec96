"""What the ops that take rotation off keys compute, in complex numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.ir.dims import B, T
from regraft.ir.graph import Graph
from regraft.ir.interpret import Rows, Run
from regraft.ir.ops.phases import AttentionPhases
from regraft.ir.types import Field, MemoryType, TensorType
from tests.ir.test_latents import RUN, compute, random

LAYOUTS = ["halves", "interleaved"]


def pairs_of(x: Tensor, channels: int, layout: str) -> Tensor:
    """The complex numbers in the first channels of the last axis."""
    turning = x[..., :channels]
    parts = (
        turning.unflatten(-1, (2, -1)).unbind(-2) if layout == "halves" else turning.unflatten(-1, (-1, 2)).unbind(-1)
    )
    return torch.complex(*parts)


def test_mean_turns() -> None:
    graph = Graph("g")
    q = graph.add_input("q", TensorType("f64", (B, T, 2, 4)))
    graph.add_input("m", MemoryType("f64", (Field("k", (1, 4)), Field("v", (1, 4)))))
    angles = (1.3, 0.2)
    op = AttentionPhases({"q": (q,)}, {"source": "m", "groups": (0, 0), "kv_heads": 1, "angles": angles, "scale": 0.5})
    graph.add(op, ["p"])
    queries, keys = random(2, 5, 2, 4), random(2, 5, 1, 4, seed=1)
    pos = torch.arange(3, 8).expand(2, 5)
    run = Run(pos, pos >= 0, None, RUN.load)
    found = op.batch_sum(run, queries, Rows({"k": keys, "v": keys}, pos, pos >= 0))
    expected = torch.zeros(2, 2, dtype=torch.complex128)
    for batch, head, at in ((b, h, t) for b in range(2) for h in range(2) for t in range(5)):
        shares = torch.softmax(keys[batch, : at + 1, 0] @ queries[batch, at, head] * 0.5, 0)
        for s, share in enumerate(shares):
            expected[head] += share * torch.exp(1j * (s - at) * torch.tensor(angles, dtype=torch.float64))
    torch.testing.assert_close(torch.view_as_complex(found), expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_phase_maps_multiply_pairs(layout: str) -> None:
    phases, x = random(3, 2, 2), random(3, 5, seed=1)
    maps = compute("weight.phase_maps", {"phases": phases}, width=5, channels=4, layout=layout)
    found = torch.einsum("hij,hj->hi", maps, x)
    expected = pairs_of(x, 4, layout) * torch.view_as_complex(phases)
    torch.testing.assert_close(pairs_of(found, 4, layout), expected)
    torch.testing.assert_close(found[:, 4], x[:, 4])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_shared_key_is_the_best_of_its_frequencies(layout: str) -> None:
    keys, queries = random(60, 2, 5), random(4, 30, 5, seed=1)
    phases = 0.5 * torch.view_as_real(torch.polar(torch.rand(4, 2).double(), torch.rand(4, 2).double()))
    slots = {
        "keys": keys.flatten(1).T @ keys.flatten(1) / 60,
        "queries": queries.mT @ queries / 30,
        "phases": phases,
    }
    groups: Any = (1, 0, 0, 1)
    down, back = compute("weight.shared_keys", slots, groups=groups, kept=(1,), channels=4, layout=layout)
    shared = torch.complex(*(keys.flatten(1) @ down.T).unbind(-1))
    rebuilt = pairs_of((keys.flatten(1) @ down.T @ back).view(60, 2, 5), 4, layout)
    given = pairs_of(keys, 4, layout)
    assert float(rebuilt[..., 0].abs().max()) == 0.0
    costs = torch.zeros(2, dtype=torch.float64)
    for head, group in enumerate(groups):
        lost = 1 - torch.view_as_complex(phases)[head, 1].abs() ** 2
        costs[group] += pairs_of(queries[head], 4, layout)[:, 1].abs().square().mean() * lost
    weighed = given[..., 1] * costs.sqrt()
    error = ((given - rebuilt)[..., 1] * costs.sqrt()).abs().square().sum()
    torch.testing.assert_close(error, torch.linalg.svdvals(weighed)[1].square())
    factors = rebuilt[..., 1] / shared[:, None]
    torch.testing.assert_close(factors, factors[:1].expand(60, 2))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_with_all_kept_the_keys_come_back(layout: str) -> None:
    keys = random(60, 2 * 5)
    slots = {"keys": keys.T @ keys, "queries": torch.eye(5).double().repeat(2, 1, 1), "phases": random(2, 2, 2) / 4}
    kept = (0, 0, 1, 1)
    down, back = compute("weight.shared_keys", slots, groups=(0, 1), kept=kept, channels=4, layout=layout)
    found = (keys @ down.T @ back).view(60, 2, 5)
    torch.testing.assert_close(found[..., :4], keys.view(60, 2, 5)[..., :4])
    assert float(found[..., 4].abs().max()) == 0.0
