"""Ops along the sequence: what they compute by formulas written another way, and that every split of a text agrees."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from regraft.ir.builder import Builder
from regraft.ir.cost import cache_bytes, cost
from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter
from regraft.ir.op import Value
from regraft.ir.ops.core import Activation, Embed, Flatten, Linear, Slice, Unflatten
from regraft.ir.ops.seq import Conv, Decay, Delta, Shift, Tail
from regraft.ir.source import TensorSource

LENGTH, CHANNELS = 21, 12


def embedded(b: Builder) -> Value:
    tokens, _ = b.tokens()
    return b(Embed, "x", tokens, b.weight("table", 30, CHANNELS))


def convolutions() -> Graph:
    """Two convolutions, the second of which sees the first's bias before the start, and the row before."""
    graph = Graph("convolutions")
    b = Builder(graph, "f32")
    x = embedded(b)
    bias = b.weight("bias", CHANNELS)
    first = b(Conv, "first", b(Tail, "m1", x, rows=3), b.weight("w1", CHANNELS, 1, 4), bias=bias, groups=CHANNELS)
    tail = b(Tail, "m2", first, initial=bias, rows=2)
    second = b(Conv, "second", tail, b.weight("w2", CHANNELS, 4, 3), groups=3)
    graph.set_outputs([second, b(Shift, "shifted", tail)])
    graph.verify()
    return graph


def delta() -> Graph:
    """The gated delta rule with two value heads a key head."""
    graph = Graph("delta")
    b = Builder(graph, "f32")
    x = embedded(b)

    def heads(name: str, count: int, width: int) -> Value:
        y = b(Linear, f"{name}_proj", x, b.weight(f"w_{name}", count * width, CHANNELS))
        return b(Unflatten, name, y, parts=count)

    q, k, v = heads("q", 2, 3), heads("k", 2, 3), heads("v", 4, 5)
    rates = b(Linear, "rates", x, b.weight("w_rates", 8, CHANNELS))
    a, beta = b(Slice, "a", rates, start=0, stop=4), b(Slice, "b", rates, start=4, stop=8)
    g = b(Decay, "g", a, b.weight("a_log", 4), b.weight("dt_bias", 4))
    out, _ = b.many(Delta, ["o", "m"], q, k, v, g, b(Activation, "beta", beta, kind="sigmoid"))
    graph.set_outputs([b(Flatten, "out", out)])
    graph.verify()
    return graph


def weights(graph: Graph) -> TensorSource:
    generator = torch.Generator().manual_seed(0)
    return TensorSource(
        {v.name: torch.randn(v.tensor.sizes, generator=generator, dtype=torch.float64) / 2 for v in graph.parameters()}
    )


TOKENS = torch.randint(0, 30, (2, LENGTH), generator=torch.Generator().manual_seed(1))


def run(graph: Graph, sizes: Sequence[int]) -> list[Tensor]:
    interpreter = Interpreter(graph, weights(graph), "f64")
    cache = interpreter.new_cache(2)
    names = [value.name for value in graph.outputs]
    parts = [interpreter.run(part, cache, None, names) for part in TOKENS.split(list(sizes), 1)]
    return [torch.cat([part[name] for part in parts], 1) for name in names]


def test_convolutions_are_those_of_torch_over_a_padded_row() -> None:
    graph = convolutions()
    w = Interpreter(graph, weights(graph), "f64").weights
    x = w["table"][TOKENS].transpose(1, 2)
    # four rows before the start, so that two of the first convolution's are there for the second
    padded = torch.nn.functional.pad(x, (5, 0))
    first = torch.nn.functional.conv1d(padded, w["w1"], w["bias"], groups=CHANNELS)
    second = torch.nn.functional.conv1d(first, w["w2"], groups=3)
    found = run(graph, [LENGTH])
    torch.testing.assert_close(found[0], second.transpose(1, 2), rtol=0, atol=1e-12)
    torch.testing.assert_close(found[1], first.transpose(1, 2)[:, 1:-1], rtol=0, atol=1e-12)
    assert (first[..., :2] - w["bias"][:, None]).abs().max() < 1e-12


def test_the_delta_rule_is_its_chunked_form() -> None:
    """Within one chunk: (I + A) U = diag(beta) V, O = ((Q Kᵀ) * decay) U (specs/relatives.md, section 5)."""
    graph = delta()
    interpreter = Interpreter(graph, weights(graph), "f64")
    named = interpreter.run(TOKENS, edges=["q", "k", "v", "g", "beta", "out"])
    q, k, v, g, beta = (named[name].transpose(1, 2) for name in ("q", "k", "v", "g", "beta"))
    q, k = (each.repeat_interleave(2, 1) for each in (q, k))
    total = g.cumsum(-1)
    decay = (total[..., :, None] - total[..., None, :]).tril().exp().tril()
    a = (beta[..., None] * (k @ k.mT) * decay).tril(-1)
    u = torch.linalg.solve_triangular(a + torch.eye(LENGTH).double(), beta[..., None] * v, upper=False)
    expected = ((q @ k.mT) * decay) @ u
    torch.testing.assert_close(named["out"], expected.transpose(1, 2).flatten(-2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [convolutions, delta])
@pytest.mark.parametrize("sizes", [(1,) * LENGTH, (2, 7, 12), (20, 1)], ids=str)
def test_any_split_agrees(make: Callable[[], Graph], sizes: tuple[int, ...]) -> None:
    graph = make()
    for found, expected in zip(run(graph, sizes), run(graph, [LENGTH]), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("make", [convolutions, delta])
def test_padding_does_not_touch_the_state(make: Callable[[], Graph]) -> None:
    graph = make()
    interpreter = Interpreter(graph, weights(graph), "f64")
    (expected,) = run(graph, [LENGTH])[:1]
    cache, name = interpreter.new_cache(2), graph.outputs[0].name
    done = torch.zeros(2, dtype=torch.int64)
    for lengths in (torch.tensor([0, 3]), torch.tensor([2, 0]), torch.tensor([9, 5])):
        rows = [TOKENS[row, done[row] :][:9] for row in range(2)]
        found = interpreter.run(torch.stack(rows), cache, lengths, [name])[name]
        for row in range(2):
            count = int(lengths[row])
            want = expected[row, done[row] : done[row] + count]
            torch.testing.assert_close(found[row, :count], want, rtol=0, atol=1e-12)
        done += lengths


def test_what_they_hold_and_do() -> None:
    graph = convolutions()
    assert cache_bytes(graph, 1) == cache_bytes(graph, 4096) == 4 * CHANNELS * (3 + 2)
    step = cost(graph, tokens=2, context=9).by_family["seq"]
    assert step.flops == 2 * 2 * (CHANNELS * 4 + CHANNELS * 4 * 3)
    assert step.cache_read == 4 * CHANNELS * (3 + 2 + 1)
    matrices = 4 * 4 * 3 * 5
    report = cost(delta(), tokens=2, context=9).by_family["state"]
    assert (report.cache, report.cache_read, report.cache_written) == (matrices, matrices, matrices)
    assert report.flops == 2 * 6 * 4 * 3 * 5
