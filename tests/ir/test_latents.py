"""What the ops that fit latents compute, against sums written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.ir.dims import B, T
from regraft.ir.graph import Graph
from regraft.ir.interpret import Rows, Run
from regraft.ir.op import op_class
from regraft.ir.ops.latents import AttentionSpread, HeadMoment, Recover
from regraft.ir.ops.weight import Load
from regraft.ir.types import Field, MemoryType, TensorType

TOKENS = torch.arange(5).expand(2, 5)
RUN = Run(TOKENS, TOKENS >= 0, None, lambda _: TOKENS)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def compute(opname: str, slots: dict[str, Tensor], **attributes: Any) -> Tensor:
    graph, cls = Graph("g"), op_class(opname)
    values = {
        name: graph.add(Load({}, {"dtype": "f64", "shape": tuple(tensor.shape)}), [name])
        for name, tensor in slots.items()
    }
    op = cls(values, attributes)
    graph.add(op, ["out"])
    found = op.reference(RUN, *(slots.get(slot.name) for slot in cls.spec.slots))
    assert tuple(found.shape) == op.results[0].tensor.sizes
    return found


def test_moments_of_heads() -> None:
    x = random(2, 5, 3, 4)
    graph = Graph("g")
    op = HeadMoment({"x": (graph.add_input("x", TensorType("f64", (B, T, 3, 4))),)}, {"heads": 3, "width": 4})
    graph.add(op, ["c"])
    expected = sum(torch.einsum("hd,he->hde", token, token) for token in x.flatten(0, 1))
    torch.testing.assert_close(op.batch_sum(RUN, x), expected)


@pytest.mark.parametrize("options", [{}, {"window": 2}, {"window": 2, "first": 1}, {"softcap": 0.5}])
def test_the_spread_is_what_small_errors_move(options: dict[str, Any]) -> None:
    graph = Graph("g")
    q = graph.add_input("q", TensorType("f64", (B, T, 2, 3)))
    memory = MemoryType("f64", (Field("k", (2, 3)), Field("v", (2, 4))))
    graph.add_input("m", memory)
    facts = {"source": "m", "groups": (1, 0), "kv_heads": 2, "width": 4, "scale": 0.7, **options}
    op = AttentionSpread({"q": (q,)}, facts)
    graph.add(op, ["c"])
    assert op.edges(graph) == [q, graph["m"]]
    assert op.misfit(graph) == ""
    queries, k, v = random(2, 5, 2, 3), random(2, 5, 2, 3, seed=1), random(2, 5, 2, 4, seed=2)
    rows = Rows({"k": k, "v": v}, TOKENS, TOKENS >= 0)
    expected = torch.zeros(2, 5, 5, dtype=torch.float64)
    for batch, head, at in ((b, h, t) for b in range(2) for h in range(2) for t in range(5)):
        group, window, first = (1, 0)[head], options.get("window", 5), options.get("first", 0)
        seen = [s for s in range(at + 1) if at - s < window or s < first]
        scores = torch.stack([queries[batch, at, head] @ k[batch, s, group] * 0.7 for s in seen])
        if "softcap" in options:
            scores = 0.5 * torch.tanh(scores / 0.5)
        shares = torch.softmax(scores, 0)
        got = sum(share * v[batch, s, group] for share, s in zip(shares, seen, strict=True))
        for share, s in zip(shares, seen, strict=True):
            d = torch.cat((v[batch, s, group] - got, torch.ones(1, dtype=torch.float64)))
            expected[head] += share**2 * torch.outer(d, d)
    torch.testing.assert_close(op.batch_sum(RUN, queries, rows), expected)


def test_a_memory_that_is_another_is_told() -> None:
    graph = Graph("g")
    q = graph.add_input("q", TensorType("f64", (B, T, 2, 3)))
    facts: dict[str, Any] = {"groups": (1, 0), "kv_heads": 2, "width": 4, "scale": 0.7}

    def misfit(source: str) -> str:
        return AttentionSpread({"q": (q,)}, {"source": source, **facts}).misfit(graph)

    graph.add_input("m", MemoryType("f64", (Field("k", (2, 3)), Field("v", (2, 5)))))
    graph.add_input("r", MemoryType("f64", (Field("x", (6,)),)))
    assert misfit("n") == "does not exist"
    assert misfit("r") == "is no memory of keys and values"
    assert misfit("q") == "is no memory of keys and values"
    assert misfit("m") == "has values of 5 channels"
    facts["kv_heads"] = 4
    assert misfit("m") == "has 2 KV heads of 3 channels"


def test_costs_of_heads_are_what_their_errors_move() -> None:
    d, output = random(3, 7, 4), random(5, 3 * 4, seed=1)
    ones = torch.cat((d, torch.ones(3, 7, 1, dtype=torch.float64)), -1)
    found = compute("weight.head_costs", {"spread": ones.mT @ ones, "output": output})
    moved = torch.stack([(d[head] @ output[:, 4 * head : 4 * head + 4].T).square().sum() for head in range(3)])
    torch.testing.assert_close(found, moved)


@pytest.mark.parametrize("layout", ["halves", "interleaved"])
def test_the_metric_is_what_errors_cost(layout: str) -> None:
    queries, output, spread = random(3, 5, 6), random(7, 3 * 2, seed=1), random(3, 3, 3, seed=2)
    groups, gains = (1, 0, 1), random(2, seed=3).square() + 1
    facts: dict[str, Any] = {"groups": groups, "scale": 0.5, "kv_heads": 2, "channels": 4, "layout": layout}
    moments = torch.einsum("hde,hfe->hdf", queries, queries)
    spread = spread @ spread.transpose(1, 2)
    slots = {"queries": moments, "output": output, "key_gains": torch.diag(gains), "spread": spread}
    found = compute("weight.latent_metric", slots, **facts)
    error_k, error_v = random(2, 5, seed=4), random(2, 2, seed=5)
    cost = 0.0
    for head, group in enumerate(groups):
        back = output[:, 2 * head : 2 * head + 2]
        pairs = ((0, 2), (1, 3)) if layout == "halves" else ((0, 1), (2, 3))
        score = moments[head, 4, 4] * error_k[group, 4] ** 2
        for a, b in pairs:
            score += (moments[head, a, a] + moments[head, b, b]) / 2 * error_k[group, [a, b]].square().sum()
        cost += score * 0.25 * (back @ spread[head, :2, :2] @ back.T).trace() * gains[group]
        cost += spread[head, 2, 2] * (back @ error_v[group]).square().sum()
    error = torch.cat((error_k.flatten(), error_v.flatten()))
    torch.testing.assert_close(error @ found @ error, torch.as_tensor(cost))


def test_latent_and_back_are_the_best_of_their_rank() -> None:
    w, z, root = random(6, 8), random(40, 8, seed=1), random(6, 6, seed=2)
    moments = {"gram": z.T @ z / 40, "metric": root @ root.T}
    down = compute("weight.latent", {"targets": w, **moments}, rank=3, keys=2, balance=1.0)
    up = compute("weight.recover", {"targets": w, "down": down, "gram": moments["gram"]})
    lost = ((z @ (w - up @ down).T) @ root).square().sum() / 40
    best = torch.linalg.svdvals(z @ w.T @ root)[3:].square().sum() / 40
    torch.testing.assert_close(lost, best, rtol=1e-6, atol=0)
    assert abs(float((z @ down.T).square().mean()) - 1) < 1e-6


def test_what_was_never_seen_is_mapped_back_by_the_weights() -> None:
    w = random(6, 8)
    gram = torch.diag(torch.tensor([1.0] * 4 + [0.0] * 4, dtype=torch.float64))
    down = random(6, 8, seed=1)
    up = compute("weight.recover", {"targets": w, "down": down, "gram": gram})
    assert bool(torch.isfinite(up).all())
    exact = compute("weight.recover", {"targets": w @ down.T @ down, "down": down, "gram": gram + torch.eye(8)})
    torch.testing.assert_close(exact @ down, w @ down.T @ down)
    assert isinstance(op_class("weight.recover"), type(Recover))
