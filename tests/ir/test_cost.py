"""The cost model against counting by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regraft.ir.builder import Builder
from regraft.ir.cost import cache_bytes, cost, parameters
from regraft.ir.dims import B, T, evaluate, parse_dim
from regraft.ir.graph import Graph
from regraft.ir.op import Cost
from regraft.ir.ops.attn import KV, Attend
from regraft.ir.ops.core import Embed, Linear
from regraft.ir.ops.moe import Experts
from regraft.ir.types import TensorType
from tests.ir.models import CHOSEN, EXPERTS, FULL, HEAD, HIDDEN, VOCABULARY, WIDTH, LayerSpec, decoder

SLIDING = LayerSpec(window=3)
CALLS = st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(0, 12)).map(lambda n: (n[0], n[1], n[1] + n[2]))


def attend(window: int | None, first: int = 0, heads: int = 4, kv_heads: int = 2) -> Attend:
    graph, width, value_width = Graph("g"), 8, 6
    b = Builder(graph, "bf16")
    q, k, v = (
        graph.add_input(name, TensorType("bf16", (B, T, count, size)))
        for name, count, size in (("q", heads, width), ("k", kv_heads, width), ("v", kv_heads, value_width))
    )
    sight = {"window": window, "first": first}
    op = b(Attend, "c", q, b(KV, "m", k, v, **sight), scale=1.0, **sight).op
    assert isinstance(op, Attend)
    return op


@settings(max_examples=300, deadline=None)
@given(CALLS, st.none() | st.integers(1, 15), st.integers(0, 4))
def test_visible_pairs_and_rows_read(call: tuple[int, int, int], window: int | None, first: int) -> None:
    batch, tokens, context = call
    first = 0 if window is None else first
    queries = range(context - tokens, context)
    pairs = [(q, s) for q in queries for s in range(q + 1) if window is None or q - s < window or s < first]
    op, at = attend(window, first), {"B": batch, "T": tokens, "S": context}
    assert op.visible(at) == len(pairs)
    found = op.cost(at)
    assert found.flops == batch * 4 * 2 * (8 + 6) * len(pairs)
    assert found.cache_read == batch * len({s for _, s in pairs}) * 2 * (8 + 6) * 2
    assert found.activations == batch * tokens * 4 * (8 + 6) * 2
    assert found.weights == found.cache_written == found.cache == 0


@settings(max_examples=100, deadline=None)
@given(CALLS, st.none() | st.integers(1, 15), st.integers(0, 4))
def test_a_memory_holds_its_window(call: tuple[int, int, int], window: int | None, first: int) -> None:
    batch, tokens, context = call
    first = 0 if window is None else first
    memory = attend(window, first).memory.op
    assert isinstance(memory, KV)
    row = 2 * (8 + 6) * 2
    kept = context if window is None else min(window + first, context)
    new = tokens if window is None else min(window + first, tokens)
    expected = Cost(cache_written=batch * new * row, cache=batch * kept * row)
    assert memory.cost({"B": batch, "T": tokens, "S": context}) == expected


MIXES = [
    [FULL] * 3,
    [SLIDING, FULL] * 3,
    [LayerSpec(moe=True)] * 2 + [FULL],
    [
        FULL,
        replace(SLIDING, donor=0),
        LayerSpec(tied=True),
        LayerSpec(tied=True),
        replace(FULL, heads=1, head_map=(1,)),
    ],
]


@pytest.mark.parametrize("layers", MIXES)
@settings(max_examples=10, deadline=None)
@given(call=CALLS)
def test_the_parts_sum_to_the_whole(layers: list[LayerSpec], call: tuple[int, int, int]) -> None:
    batch, tokens, context = call
    graph = decoder(layers, "bf16")
    report = cost(graph, batch, tokens, context)
    at = {"B": batch, "T": tokens, "S": context}
    whole = sum((op.cost(at) for op in graph.run_time()), Cost())
    assert report.total == whole
    assert sum(report.by_layer.values(), Cost()) == whole
    assert sum(report.by_family.values(), Cost()) == whole
    assert list(report.by_layer) == [None, *range(len(layers))]
    assert set(report.by_family) == {op.opname.partition(".")[0] for op in graph.run_time()}
    assert whole.bytes_read == whole.weights + whole.cache_read


@pytest.mark.parametrize(("batch", "tokens", "context"), [(1, 1, 1), (1, 1, 9), (2, 5, 9), (3, 9, 9)])
def test_a_decoder_by_hand(batch: int, tokens: int, context: int) -> None:
    layers, heads, kv_heads = 4, FULL.heads, FULL.kv_heads
    report = cost(decoder([FULL] * layers, "bf16"), batch, tokens, context)
    attention = WIDTH * HEAD * (2 * heads + 2 * kv_heads)
    matrices = layers * (attention + 3 * WIDTH * HIDDEN) + VOCABULARY * WIDTH
    pairs = sum(q + 1 for q in range(context - tokens, context))
    core = layers * 4 * heads * HEAD * pairs
    assert report.total.flops == batch * (2 * tokens * matrices + core)
    norms = (2 * layers + 1) * WIDTH
    assert report.total.weights == 2 * (matrices + norms) + 2 * batch * tokens * WIDTH
    assert report.total.cache == batch * context * layers * 2 * kv_heads * HEAD * 2
    assert report.total.cache_written == batch * tokens * layers * 2 * kv_heads * HEAD * 2
    assert report.total.cache_read == batch * context * layers * 2 * kv_heads * HEAD * 2
    assert report.by_family["attn"].flops == batch * core


def test_windows_and_sharing_shrink_the_cache() -> None:
    row = 2 * FULL.kv_heads * HEAD * 2
    full = decoder([FULL] * 4, "bf16")
    assert cache_bytes(full, 100) == 4 * 100 * row
    assert cache_bytes(decoder([FULL, *[replace(FULL, donor=0)] * 3], "bf16"), 100, batch=3) == 3 * 100 * row
    assert cache_bytes(decoder([SLIDING, FULL] * 2, "bf16"), 100) == 2 * (100 + 3) * row
    assert cache_bytes(decoder([SLIDING, FULL] * 2, "bf16"), 2) == 2 * (2 + 2) * row
    for graph in (full, decoder([SLIDING, FULL] * 2, "bf16")):
        assert cache_bytes(graph, 100, 2) == cost(graph, 2, 7, 100).total.cache
    # a full reader of a sliding layer's memory makes that memory full
    assert cache_bytes(decoder([SLIDING, replace(FULL, donor=0)], "bf16"), 100) == 100 * row


def test_experts_count_the_chosen_ones() -> None:
    graph = decoder([LayerSpec(moe=True)] * 2, "bf16")
    one = 3 * WIDTH * HIDDEN
    op = next(op for op in graph.ops if isinstance(op, Experts))
    for batch, tokens in ((1, 1), (2, 3), (1, 50)):
        found = op.cost({"B": batch, "T": tokens, "S": 64})
        n = batch * tokens
        assert found.flops == 2 * n * CHOSEN * one
        expected = EXPERTS * one * 2 * (1 - (1 - CHOSEN / EXPERTS) ** n)
        assert abs(found.weights - expected) <= 1
    assert op.idle_parameters() == (EXPERTS - CHOSEN) * one
    counts = parameters(graph)
    assert counts.total - counts.active == 2 * (EXPERTS - CHOSEN) * one


def test_parameters_count_tied_tables_once() -> None:
    layers = 2
    block = WIDTH * HEAD * 2 * (FULL.heads + FULL.kv_heads) + 3 * WIDTH * HIDDEN + 2 * WIDTH
    table = VOCABULARY * WIDTH
    untied = decoder([FULL] * layers)
    counts = parameters(untied)
    assert counts.total == counts.active == layers * block + WIDTH + 2 * table
    assert (counts.embedding, counts.active_without_embedding) == (table, counts.total - table)
    tied = untied.copy()
    tied.replace_uses(tied["lm_head.weight"], tied["model.embed_tokens.weight"])
    tied.drop_dead()
    counts = parameters(tied)
    assert counts.total == layers * block + WIDTH + table
    assert counts.active_without_embedding == counts.total - table
    head = tied["logits"].op
    assert isinstance(head, Linear)
    assert head.cost({"B": 1, "T": 1, "S": 1}).weights == table * 4  # a tied table is still read by the head
    embed = tied["embed"].op
    assert isinstance(embed, Embed)
    assert embed.cost({"B": 1, "T": 1, "S": 1}).weights == WIDTH * 4


@pytest.mark.parametrize(("batch", "tokens", "context"), [(0, 1, 1), (1, 0, 1), (1, 2, 1), (-1, 1, 1)])
def test_calls_that_cannot_be(batch: int, tokens: int, context: int) -> None:
    with pytest.raises(ValueError, match="context"):
        cost(decoder([FULL]), batch, tokens, context)


@settings(max_examples=100, deadline=None)
@given(CALLS, st.integers(1, 8))
def test_dimensions_count_completed_rows(call: tuple[int, int, int], rate: int) -> None:
    _, tokens, context = call
    at = {"B": 1, "T": tokens, "S": context}
    before = (context - tokens) // rate
    assert evaluate(parse_dim(f"S // {rate} - (S-T)//{rate}"), at) == context // rate - before
    assert evaluate(parse_dim("S@m"), at | {"S@m": 5}) == 5
    assert evaluate(parse_dim("S@m"), at) == context
