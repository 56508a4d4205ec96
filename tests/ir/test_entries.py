"""Attention to a window and to pooled rows before it: each token counts once, and constant blocks are exact."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from regraft.ir.graph import Graph
from regraft.ir.interpret import Rows, Run
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.index import Index
from regraft.ir.parse import parse_graph

LENGTH, HEADS, KV_HEADS, WIDTH, SCALE = 23, 4, 2, 6, 0.4
SIGHTS = [(4, 5, 0), (4, 4, 4), (3, 8, 3), (1, 1, 0), (5, 9, 10), (2, 40, 2)]  # rate, window, first


def graph(rate: int, window: int, first: int, bias: float = 0.0, chosen: int = 0) -> Graph:
    sight = f"window = {window}, first = {first}"
    best = f"%best = seq.index %q, %w, %far {{scale = 1.0, chosen = {chosen}, {sight}}}" if chosen else ""
    return parse_graph(f"""
    graph @g (%q: f64[B, T, 4, 6], %k, %v: f64[B, T, 2, 6], %x: f64[B, T, 24], %w: f64[B, T, 4]) {{
      %near = state.kv %k, %v {{{sight}}}
      %place = weight.load : f64[{rate}, 24]
      %pooled = state.compressed %x, %place {{rate = {rate}}}
      %rows = mem.read %pooled
      %k_part = core.slice %rows {{start = 0, stop = 12}}
      %v_part = core.slice %rows {{start = 12, stop = 24}}
      %keys = core.unflatten %k_part {{parts = 2}}
      %values = core.unflatten %v_part {{parts = 2}}
      %far = mem.view %pooled, %keys, v=%values
      {best}
      %ctx = attn.attend %q, %near, {"chosen=%best, " if chosen else ""}entries=%far {{scale = {SCALE}, {sight},
        disjoint = true, entries_bias = {bias}}}
      return %ctx
    }}""")


def attend(rate: int, window: int, first: int, bias: float = 0.0, chosen: int = 0) -> Attend:
    op = graph(rate, window, first, bias, chosen)["ctx"].op
    assert isinstance(op, Attend)
    return op


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def run() -> Run:
    pos = torch.arange(LENGTH)[None]
    return Run(pos, pos >= 0, None, lambda load: torch.zeros(load.shape))


def entries(rate: int, *fields: Tensor) -> Rows:
    """The mean of every ``rate`` rows."""
    count = LENGTH // rate
    pooled = [x[:, : count * rate].unflatten(1, (count, rate)).mean(2) for x in fields]
    pos = torch.arange(count)[None] * rate
    return Rows(dict(zip("kv", pooled, strict=True)), pos, pos >= 0)


def tokens_seen(rate: int, window: int, first: int, at: int) -> tuple[list[int], list[int]]:
    """The tokens of which a query at a position sees the rows, and the pooled rows that it sees."""
    start = max(0, rate * math.ceil((at - window + 1) / rate))
    return [s for s in range(at + 1) if s >= start or s < first], list(range(first // rate, start // rate))


@pytest.mark.parametrize(("rate", "window", "first"), SIGHTS)
def test_each_token_counts_once(rate: int, window: int, first: int) -> None:
    op, now = attend(rate, window, first, bias=0.3), run()
    q, k, v = (random(1, LENGTH, n, WIDTH, seed=n + i) for i, n in enumerate((HEADS, KV_HEADS, KV_HEADS)))
    rows = entries(rate, k, v)
    found = op.reference(now, q, Rows({"k": k, "v": v}, now.pos, now.valid), entries=rows)
    count = 0
    for at in range(LENGTH):
        near, far = tokens_seen(rate, window, first, at)
        tokens = near + [e * rate + j for e in far for j in range(rate)]
        assert sorted(tokens) == list(range(at + 1))
        count += len(near) + len(far)
        for head in range(HEADS):
            keys, values = (
                torch.cat((x[0, near], rows.fields[name][0, far]))[:, head // 2] for name, x in (("k", k), ("v", v))
            )
            bias = torch.tensor([0.0] * len(near) + [0.3] * len(far), dtype=torch.float64)
            shares = torch.softmax(keys @ q[0, at, head] * SCALE + bias, 0)
            assert torch.allclose(found[0, at, head], shares @ values, rtol=0, atol=1e-12)
    assert op.visible({"B": 1, "T": LENGTH, "S": LENGTH}) == count


@pytest.mark.parametrize(("rate", "window", "first"), SIGHTS)
def test_pairs_are_counted_in_calls_of_any_length(rate: int, window: int, first: int) -> None:
    plain, some = attend(rate, window, first), attend(rate, window, first, chosen=2)
    for tokens, context in ((1, 1), (1, 20), (7, 19), (23, 23), (4, 11)):
        seen = [tokens_seen(rate, window, first, at) for at in range(context - tokens, context)]
        at = {"B": 1, "T": tokens, "S": context}
        assert plain.visible(at) == sum(len(near) + len(far) for near, far in seen)
        assert some.visible(at) == sum(len(near) + min(2, len(far)) for near, far in seen)
        assert some.chosen is not None
        assert isinstance(some.chosen.op, Index)
        assert some.chosen.op.cost(at).flops == 2 * HEADS * WIDTH * sum(len(far) for _, far in seen)


@pytest.mark.parametrize(("rate", "window", "first"), SIGHTS[:3])
def test_constant_blocks_are_exact_with_the_logarithm_of_the_rate_and_only_then(
    rate: int, window: int, first: int
) -> None:
    now = run()
    q = random(1, LENGTH, HEADS, WIDTH, seed=1)
    k, v = (random(1, -(-LENGTH // rate), KV_HEADS, WIDTH, seed=s).repeat_interleave(rate, 1) for s in (2, 3))
    k, v = k[:, :LENGTH], v[:, :LENGTH]
    memory = Rows({"k": k, "v": v}, now.pos, now.valid)
    keys, values = (x[:, :, [0, 0, 1, 1]].transpose(1, 2) for x in (k, v))
    whole = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), keys, values, is_causal=True, scale=SCALE
    ).transpose(1, 2)
    errors = [
        float(
            (attend(rate, window, first, bias).reference(now, q, memory, entries=entries(rate, k, v)) - whole).norm()
            / whole.norm()
        )
        for bias in (math.log(rate), 0.0)
    ]
    assert errors[0] < 1e-12
    assert 0.1 < errors[1] < 1


def test_an_index_over_heads_is_a_sum_of_what_is_positive() -> None:
    op, now = attend(3, 4, 0, chosen=2), run()
    assert op.chosen is not None
    index = op.chosen.op
    assert isinstance(index, Index)
    q, w, k = (random(1, LENGTH, *shape, seed=s) for s, shape in enumerate(((HEADS, WIDTH), (HEADS,), (2, WIDTH))))
    rows = entries(3, k, k)
    found = index.reference(now, q, w, rows)
    for at in range(LENGTH):
        far = tokens_seen(3, 4, 0, at)[1]
        keys = rows.fields["k"][0]
        scores = [
            sum(float(w[0, at, h]) * max(0.0, float(q[0, at, h] @ keys[e, h // 2])) for h in range(HEADS)) for e in far
        ]
        best = sorted(far, key=lambda e: -scores[e])[:2]
        assert found[0, at].tolist() == best + [-1] * (2 - len(best))
