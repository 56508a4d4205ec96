"""Rows of a memory as values: latents that are expanded after they were kept, and rows chosen by an index."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from regraft.ir.builder import Builder
from regraft.ir.cost import cache_bytes, cost
from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter
from regraft.ir.kinds import block_kinds
from regraft.ir.op import Value
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.core import Add, Embed, Flatten, Linear, Unflatten
from regraft.ir.ops.index import Index
from regraft.ir.ops.memory import ReadRows, RowPositions, StateRows, ViewRows
from regraft.ir.ops.pos import Rope
from regraft.ir.ops.weight import Load
from regraft.ir.parse import parse_graph
from regraft.ir.source import TensorSource
from regraft.ir.text import print_graph

LAYERS, HEADS, WIDTH, LATENT, CHOSEN = 3, 2, 4, 6, 3


def model(*, chosen: int | None = CHOSEN) -> Graph:
    """A decoder that keeps a latent and an index key; keys turn by the positions of the rows that they come from."""
    graph = Graph("latent")
    b = Builder(graph, "f32")
    tokens, pos = b.tokens()
    x = b(Embed, "embed", tokens, b.weight("embed.weight", 32, 8))

    def body(b: Builder, layer: int, inputs: Sequence[Value]) -> Sequence[Value]:
        def linear(name: str, x: Value, out: int) -> Value:
            width = x.tensor.shape[-1]
            assert isinstance(width, int)
            return b(Linear, name, x, b.weight(f"model.layers.{layer}.{name}.weight", out, width))

        def heads(name: str, x: Value) -> Value:
            return b(Unflatten, name, linear(f"{name}_proj", x, HEADS * WIDTH), parts=HEADS)

        (x,) = inputs
        q = b(Rope, "q_rope", heads("q", x), pos, base=100.0, channels=WIDTH)
        memory = b(StateRows, "memory", linear("latent", x, LATENT))
        rows, at = b(ReadRows, "rows", memory), b(RowPositions, "rows_at", memory)
        k = b(Rope, "k_rope", heads("k", rows), at, base=100.0, channels=WIDTH)
        view = b(ViewRows, "view", memory, k, heads("v", rows))
        best = None
        if chosen:
            keys = b(StateRows, "keys", linear("key", x, WIDTH))
            best = b(Index, "best", heads("iq", x), linear("iw", x, HEADS), keys, scale=0.5, chosen=chosen)
        ctx = b(Attend, "ctx", q, view, chosen=best, scale=0.5)
        return [b(Add, "out", x, linear("o", b(Flatten, "merged", ctx), 8))]

    for layer in range(LAYERS):
        (x,) = b.layer(layer, chosen, [x], body)
    graph.set_outputs([b(Linear, "logits", x, graph["embed.weight"])])
    return graph


def weight(op: Load) -> Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(op.source.encode()))
    return torch.randn(op.shape, generator=generator, dtype=torch.float64) / op.shape[-1] ** 0.5


def interpreter(graph: Graph) -> Interpreter:
    loads = [op for op in graph.ops if isinstance(op, Load)]
    return Interpreter(graph, TensorSource({op.source: weight(op) for op in loads}), dtype="f64")


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 32, (2, 12), generator=torch.Generator().manual_seed(1))


def test_depth_is_folded_though_each_layer_has_rows_of_its_own() -> None:
    graph = model()
    graph.verify()
    assert graph["layers.2.rows"].type != graph["layers.1.rows"].type
    assert len(block_kinds(graph)) == 1
    text = print_graph(graph)
    assert text.count("mem.read") == 1
    assert "f32[B, S@layers.*.memory, 6]" in text
    again = parse_graph(text)
    assert again.equals(graph)
    assert print_graph(again) == text


def test_a_memory_that_is_renamed_takes_its_rows_along() -> None:
    graph = model()
    graph.rename(graph["layers.1.memory"], "layers.1.kept")
    assert str(graph["layers.1.k"].type) == "f32[B, S@layers.1.kept, 2, 4]"
    before = print_graph(graph)
    graph.verify()
    assert print_graph(graph) == before


@pytest.mark.parametrize("chosen", [None, CHOSEN])
@pytest.mark.parametrize("sizes", [(1,) * 12, (5, 1, 6), (2, 10)])
def test_any_split_gives_the_same(chosen: int | None, sizes: tuple[int, ...], tokens: Tensor) -> None:
    run = interpreter(model(chosen=chosen))
    whole, cache = run(tokens), run.new_cache(2)
    found = torch.cat([run(part, cache) for part in tokens.split(sizes, 1)], 1)
    assert (found - whole).abs().max() < 1e-10
    ragged, cache = tokens.clone(), run.new_cache(2)
    ragged[1, 7:] = 0
    first = run(ragged, cache, torch.tensor([12, 7]))
    assert (first[1, :7] - whole[1, :7]).abs().max() < 1e-10
    second = run(tokens[:, 7:], cache, torch.tensor([0, 5]))
    assert (second[1] - whole[1, 7:]).abs().max() < 1e-10


def test_an_index_chooses_the_best_rows_and_attention_sees_no_others(tokens: Tensor) -> None:
    run = interpreter(model())
    names = [f"layers.0.{name}" for name in ("best", "iq", "iw", "ctx", "q_rope", "k_rope", "v")]
    found = run.run(tokens, edges=[*names, "layers.0.key"])
    best, iq, iw, ctx, q, k, v = (found[name][0] for name in names)
    keys = found["layers.0.key"][0]
    for t in range(12):
        scores = [float((iw[t] * (0.5 * iq[t] @ keys[s]).relu()).sum()) for s in range(t + 1)]
        expected = sorted(range(t + 1), key=lambda s: (-scores[s], s))[:CHOSEN]
        assert best[t].tolist() == expected + [-1] * (CHOSEN - len(expected))
        for head in range(HEADS):
            shares = torch.softmax(0.5 * k[expected, head] @ q[t, head], 0)
            assert (ctx[t, head] - shares @ v[expected, head]).abs().max() < 1e-10


def test_more_rows_than_there_are_is_all_of_them(tokens: Tensor) -> None:
    assert (interpreter(model(chosen=64))(tokens) - interpreter(model(chosen=None))(tokens)).abs().max() < 1e-10


def test_cost() -> None:
    graph, plain = model(), model(chosen=None)
    assert cache_bytes(plain, 100, batch=2) == 2 * 100 * 4 * LATENT * LAYERS
    assert cache_bytes(graph, 100) == 100 * 4 * (LATENT + WIDTH) * LAYERS
    one, all_ = cost(graph, context=100), cost(plain, context=100)
    assert all_.by_family["attn"].flops == LAYERS * 2 * HEADS * 2 * WIDTH * 100
    assert one.by_family["attn"].flops == LAYERS * 2 * HEADS * 2 * WIDTH * CHOSEN
    assert one.by_family["seq"].flops == LAYERS * 2 * HEADS * WIDTH * 100
    assert all_.total.cache_read == 100 * 4 * LATENT * LAYERS  # the latent is read once, not its keys and values
    # what is expanded is expanded for all rows
    assert all_.by_family["core"].flops - cost(plain, context=1).by_family["core"].flops == (
        LAYERS * 2 * 99 * LATENT * 2 * HEADS * WIDTH
    )
