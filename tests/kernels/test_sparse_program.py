"""K8 and K9 beside the ops that they stand for: layers of DeepSeek V4's and V3.2's twins, step by step and at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.codegen.kernels.index import Index
from regraft.codegen.kernels.sparse import Sparse, SparsePrefill
from regraft.frontends.folder import open_model
from regraft.ir.interpret import Interpreter
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.index import Index as IndexOp
from regraft.ir.ops.pos import Rope
from regraft.ir.source import TensorSource
from tests.frontends.agreement import twin_graph
from tests.kernels.harness import module

LENGTH = 42


class Layer:
    """An attention layer of a twin: what it computes of some tokens, by the value's name."""

    def __init__(self, model: str, number: int, values: tuple[str, ...], turning: str) -> None:
        self.graph, tensors = twin_graph(dict(open_model(f"builtin:{model}").config))
        self.weights = {name.split(".self_attn.")[-1]: x for name, x in tensors.items() if f"layers.{number}." in name}
        self.prefix = f"layers.{number}.attn."
        edges = [self.prefix + value for value in values]
        tokens = torch.arange(LENGTH)[None] * 17 % 128
        run = Interpreter(self.graph, TensorSource(tensors)).run(tokens, edges=edges)
        self.values: dict[str, Any] = {value: run[edge] for value, edge in zip(values, edges, strict=True)}
        rope = self.op(turning)
        assert isinstance(rope, Rope)
        self.rope = rope
        angle = (torch.arange(LENGTH)[:, None] * rope.frequencies())[None, :, None]
        self.cos, self.sin = angle.cos().float(), angle.sin().float()
        if rope.layout == "halves":
            self.cos, self.sin = torch.cat((self.cos, self.cos), -1), torch.cat((-self.sin, self.sin), -1)

    def op(self, value: str) -> Any:
        """Return the op that makes a value."""
        return self.graph[self.prefix + value].op


@pytest.fixture(scope="module", params=[2, 4], ids=["chosen entries", "all entries"])
def layer(request: pytest.FixtureRequest) -> Layer:
    values = ("q", "q_whole", "k_proj", "k_whole", "pool.view", "ctx", "ctx_whole")
    chosen = ("index.chosen",) if request.param == 2 else ()
    return Layer("DeepSeek-V4-Flash", request.param, values + chosen, "q_rope")


def of(layer: Layer) -> tuple[Sparse, dict[str, Tensor]]:
    """Return the constants of a layer of V4, and its weights and entries."""
    attend = layer.op("ctx")
    assert isinstance(attend, Attend)
    assert attend.entries is not None
    chosen = layer.values["index.chosen"].shape[-1] if "index.chosen" in layer.values else None
    k = Sparse(
        "sparse",
        heads=layer.values["q"].shape[2],
        width=layer.values["q"].shape[3],
        value_width=layer.values["q"].shape[3],
        scale=attend.scale,
        window=attend.window,
        rate=attend.entries.memory.rate or 1,
        chosen=chosen,
        sink=True,
        q_eps=1e-6,
        k_eps=1e-6,
        turned=layer.rope.channels,
        back=True,
    )
    fixed = {"k_norm": layer.weights["kv_norm.weight"], "sink": layer.weights["sinks"]}
    return k, {**fixed, "entries": layer.values["pool.view"].fields["k"]}


def test_steps_of_v4(layer: Layer, tmp_path: Path) -> None:
    k, given = of(layer)
    made, found = module(tmp_path, k), layer.values
    given["keys"] = torch.full((1, k.window or 0, 1, k.width), torch.nan)
    for t in range(LENGTH):
        step = made.sparse if t < 5 or t % 4 == 3 else made.sparse_plain  # rows of either are read by the other
        now = slice(t, t + 1)
        given |= {"q": found["q"][:, now], "k": found["k_proj"][:, now, None], "start": torch.tensor([t])}
        given |= {"cos": layer.cos[:, now], "sin": layer.sin[:, now]}
        given |= {"chosen": found["index.chosen"][:, now]} if k.chosen is not None else {}
        mixed = step(*(given[name] for name in k.arguments))
        torch.testing.assert_close(mixed, found["ctx_whole"][:, now], rtol=0, atol=1e-5)


def test_many_tokens_of_v4(layer: Layer, tmp_path: Path) -> None:
    step, given = of(layer)
    k = SparsePrefill(
        "many",
        step.heads,
        step.width,
        step.width,
        step.scale,
        window=step.window,
        rate=step.rate or 1,
        chosen=step.chosen,
        sink=True,
    )
    made, found, start = module(tmp_path, k), layer.values, 19
    ring, slots = torch.empty(1, 8, 1, k.width), torch.arange(start - 8, start)
    ring[:, slots % 8] = found["k_whole"][:, slots]
    now = slice(start, LENGTH)
    given |= {"q": found["q_whole"][:, now], "k": found["k_whole"][:, now], "keys": ring}
    given |= {"chosen": found["index.chosen"][:, now].contiguous()} if k.chosen is not None else {}
    given["start"] = torch.tensor([start])
    mixed = made.many(*(given[name].contiguous() for name in k.arguments))
    torch.testing.assert_close(mixed, found["ctx"][:, now], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("model", "keys"), [("DeepSeek-V4-Flash", "index.view"), ("DeepSeek-V3.2", "index.memory")])
def test_rows_chosen(model: str, keys: str, tmp_path: Path) -> None:
    layer = Layer(model, 2, ("index.q", "index.weights", keys, "index.chosen"), "index.q_rope")
    op, found = layer.op("index.chosen"), layer.values
    assert isinstance(op, IndexOp)
    heads, width = found["index.q"].shape[2:]
    k = Index("index", heads, width, op.chosen, op.scale, layout=layer.rope.layout)
    offset = width - layer.rope.channels if keys == "index.view" else 0
    k = replace(k, rate=op.memory.memory.rate or 1, turned=layer.rope.channels, offset=offset)
    made, rows = module(tmp_path, k), next(iter(found[keys].fields.values())).flatten(2)
    expected = found["index.chosen"].sort(-1).values
    whole = (found["index.q"], found["index.weights"], rows, layer.cos, layer.sin, torch.tensor([0]))
    assert torch.equal(made.index(*whole).sort(-1).values, expected)
    for t in (0, 3, 4, 20, LENGTH - 1):
        q, weights, _, cos, sin, _ = (x[:, t : t + 1].contiguous() for x in (*whole[:5], expected))
        chosen = made.index(q, weights, rows, cos, sin, torch.tensor([t]))
        assert torch.equal(chosen.sort(-1).values, expected[:, t : t + 1])
