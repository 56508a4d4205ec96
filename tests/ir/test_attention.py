"""What attention computes with sinks and caps, against a loop over heads and rows."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from regraft.ir.dims import B, T
from regraft.ir.graph import Graph
from regraft.ir.interpret import Rows, Run
from regraft.ir.op import op_class
from regraft.ir.types import TensorType


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attended(sink: Tensor | None = None, softcap: float | None = None, steps: int = 5) -> tuple[Tensor, list[Tensor]]:
    """Attend 4 heads over 2, and return the result with ``q``, ``k`` and ``v``."""
    graph, q = Graph("g"), random(1, steps, 4, 8)
    k, v = random(1, steps, 2, 8, seed=1), random(1, steps, 2, 6, seed=2)
    names = {"q": q, "k": k, "v": v}
    values = {name: graph.add_input(name, TensorType("f64", (B, T, *x.shape[2:]))) for name, x in names.items()}
    kv = op_class("state.kv")({"k": [values["k"]], "v": [values["v"]]}, {})
    slots = {"q": [values["q"]], "memory": [*graph.add(kv, ["m"])]}
    if sink is not None:
        slots["sink"] = [graph.add(op_class("weight.load")({}, {"dtype": "f64", "shape": (4,)}), ["s"])[0]]
    op = op_class("attn.attend")(slots, {"scale": 0.3, "softcap": softcap})
    graph.add(op, ["y"])
    pos = torch.arange(steps)[None]
    now = Run(pos, pos >= 0, None, lambda load: torch.zeros(load.shape))
    return op.reference(now, q, Rows({"k": k, "v": v}, now.pos, now.valid), sink), [q, k, v]


@pytest.mark.parametrize("softcap", [None, 0.7])
@pytest.mark.parametrize("sunk", [False, True])
def test_attention_with_sinks_and_caps_against_a_loop(sunk: bool, softcap: float | None) -> None:
    sink = random(4, seed=3) if sunk else None
    found, (q, k, v) = attended(sink, softcap)
    for t in range(q.shape[1]):
        for head in range(4):
            raw = [float(q[0, t, head] @ k[0, s, head // 2]) * 0.3 for s in range(t + 1)]
            scores = [math.exp(softcap * math.tanh(x / softcap) if softcap else x) for x in raw]
            whole = sum(scores) + (math.exp(float(sink[head])) if sink is not None else 0.0)
            mixed = sum(share / whole * v[0, s, head // 2] for s, share in enumerate(scores))
            assert torch.allclose(found[0, t, head], torch.as_tensor(mixed), rtol=0, atol=1e-12)
