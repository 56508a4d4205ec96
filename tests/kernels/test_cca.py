"""The front end of CCA: against its plain form, and token by token and in chunks against a twin of ZAYA1."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.codegen.kernels.cca import CCA, CCARows, Latent
from regraft.frontends.folder import open_model
from regraft.ir.interpret import Interpreter
from regraft.ir.ops.core import Norm
from regraft.ir.ops.pos import Rope
from regraft.ir.source import TensorSource
from tests.frontends.agreement import twin_graph
from tests.kernels.harness import module
from tests.kernels.touched import touched

PLAIN = CCA("cca", heads=4, kv_heads=2, width=12, taps=(2, 2), channels=8, eps=1e-6)
CASES = {
    "two taps each": PLAIN,
    "more taps, all channels turn": replace(PLAIN, taps=(3, 4), channels=12, width=12),
    "a window, one head": replace(PLAIN, heads=2, kv_heads=1, window=True),
    "first rows beside a window": replace(PLAIN, heads=2, taps=(2, 3), window=True, first=2),
    "a row of its own before the start": replace(PLAIN, heads=3, kv_heads=3, width=10, initial=True),
    "one convolution": replace(PLAIN, taps=(0, 3)),
    "one convolution, a row of its own before the start": replace(PLAIN, taps=(0, 2), initial=True),
    "lengths below the least one": replace(PLAIN, heads=2, eps=50.0),
}


def inputs(k: CCA, dtype: torch.dtype, starts: list[int], counts: list[int], rows: int = 7) -> list[Tensor]:
    """Return what the op takes, in order."""
    g, batch = torch.Generator().manual_seed(0), len(starts)

    def of(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    angle = 6 * of(batch, 1, 1, k.channels // 2)
    cos, sin = torch.cat((angle.cos(), angle.cos()), -1), torch.cat((-angle.sin(), angle.sin()), -1)
    tails = [of(batch, taps - 1, k.packed) for taps in k.taps if taps]
    memory = [of(batch, rows, k.kv_heads, k.width) for _ in range(2)]
    first = [of(k.packed, 1, k.taps[0]), of(k.packed)] if k.taps[0] else []
    weights = [*first, of(k.packed, k.width, k.taps[1]) * k.width**-0.5, of(k.packed)]
    initial = [of(k.half)] if k.initial else []
    x = [of(batch, 1, width) for width in (k.heads * k.width, k.kv_heads * k.width, k.half, k.half)]
    late = of(batch, 1, k.half)
    call = [cos, sin, torch.tensor(starts), torch.tensor(counts)]
    return [*x, *memory, *tails, late, *initial, *call, *weights, of(k.kv_heads)]


def widened(tensors: list[Tensor]) -> list[Tensor]:
    """Return copies in float64."""
    return [x.double() if x.is_floating_point() else x.clone() for x in tensors]


@pytest.mark.parametrize("case", CASES)
def test_it_computes_what_the_plain_form_does(case: str, tmp_path: Path) -> None:
    k = CASES[case]
    made = module(tmp_path, k)
    for starts, counts in (([4], [1]), ([0, 9 if k.window else 6, 5], [1, 1, 0])):
        for dtype in (torch.float32, torch.float16):
            fused = inputs(k, dtype, starts, counts)
            exact, plain = widened(fused), [x.clone() for x in fused]
            kept = slice(4, 9 if k.taps[0] else 8)
            got = [made.cca(*fused), *fused[kept]]
            wanted = [made.cca_plain(*exact), *exact[kept]]
            rounded = [made.cca_plain(*plain), *plain[kept]]
            for x, y, z in zip(got, wanted, rounded, strict=True):
                least = 2e-6 if dtype == torch.float32 else float(y.abs().max()) * 2**-11
                assert (x - y).abs().max() <= max(2 * float((z - y).abs().max()), least)


def test_an_idle_row_keeps_what_it_has(tmp_path: Path) -> None:
    made = module(tmp_path, PLAIN)
    given = inputs(PLAIN, torch.float32, [3, 7], [0, 0])
    before = [x.clone() for x in given]
    made.cca(*given)
    assert all(torch.equal(x, y) for x, y in zip(given, before, strict=True))


@pytest.mark.parametrize("case", CASES)
def test_it_moves_what_it_says(case: str, tmp_path: Path) -> None:
    k = CASES[case]
    made = module(tmp_path, k)
    with touched() as run, torch.no_grad():
        made.cca(*inputs(k, torch.float32, [3, 5], [1, 1]))
    moved = k.moved(4, 2, 7)
    assert (run.read, run.written, len(run.launches)) == (moved.read, moved.written, moved.launches)


def test_the_op_says_what_it_changes(tmp_path: Path) -> None:
    made = module(tmp_path, PLAIN)
    for starts, counts in (([3], [1]), ([3, 0], [1, 1])):
        torch.library.opcheck(made.cca, tuple(inputs(PLAIN, torch.float32, starts, counts)))


class Twin:
    """An attention layer of ZAYA1's twin: what it computes of some tokens, and its constants."""

    def __init__(self) -> None:
        graph, tensors = twin_graph(dict(open_model("builtin:ZAYA1-8B").config))
        module = "model.layers.1.self_attn.qkv_proj"
        values = ("q_proj", "k_proj", "v_now", "v_later", "q_rope", "memory", "tail_0", "tail_1", "v_tail")
        edges = [f"layers.1.attn.{value}" for value in values]
        self.tokens = torch.arange(12)[None] * 17 % 128
        run = Interpreter(graph, TensorSource(tensors)).run(self.tokens, edges=edges)
        self.q, self.memory = run[edges[4]], run[edges[5]].fields
        self.parts = [run[edge] for edge in edges[:4]]
        self.x = torch.cat(self.parts, -1)
        norm, rope = graph["layers.1.attn.q_norm"].op, graph["layers.1.attn.q_rope"].op
        assert isinstance(norm, Norm)
        assert isinstance(rope, Rope)
        heads, kv_heads = self.q.shape[2], self.memory["k"].shape[2]
        width = self.q.shape[-1]
        self.k = CCA("cca", heads, kv_heads, width, (2, 2), rope.channels, norm.eps)
        angle = (torch.arange(12)[:, None] * rope.frequencies())[None, :, None]
        self.cos = torch.cat((angle.cos(), angle.cos()), -1)
        self.sin = torch.cat((-angle.sin(), angle.sin()), -1)
        names = ("conv_qk_depthwise.weight", "conv_qk_depthwise.bias", "conv_qk_grouped.weight", "conv_qk_grouped.bias")
        self.weights = [tensors[f"{module}.{name}"] for name in names]
        self.weights.append(tensors["model.layers.1.self_attn.qk_norm.temp"])

    def empty(self) -> list[Tensor]:
        """Return the memories before the first token."""
        k = self.k
        rows = [torch.zeros(1, 12, k.kv_heads, k.width) for _ in range(2)]
        return [*rows, torch.zeros(1, 1, k.packed), torch.zeros(1, 1, k.packed), torch.zeros(1, 1, k.half)]


@pytest.fixture(scope="module")
def twin() -> Twin:
    return Twin()


def test_token_by_token_it_is_a_twins_prefill(twin: Twin, tmp_path: Path) -> None:
    made: Any = module(tmp_path, twin.k)
    kept, one = twin.empty(), torch.tensor([1])
    for t in range(12):
        now = slice(t, t + 1)
        q = made.cca(
            *(part[:, now].contiguous() for part in twin.parts),
            *kept,
            twin.cos[:, now],
            twin.sin[:, now],
            torch.tensor([t]),
            one,
            *twin.weights,
        )
        assert torch.allclose(q, twin.q[:, now], atol=1e-5)
    assert torch.allclose(kept[0], twin.memory["k"], atol=1e-5)
    assert torch.allclose(kept[1], twin.memory["v"], atol=1e-5)


def rows_of(k: Latent) -> CCARows:
    """Return the form for all tokens of a call."""
    return CCARows("cca_rows", k.heads, k.kv_heads, k.width, k.taps, k.channels, k.eps, k.initial)


def row_inputs(k: Latent, dtype: torch.dtype, starts: list[int], counts: list[int], length: int) -> list[Tensor]:
    """Return what the op takes of so many tokens, in order."""
    step = CCA("cca", k.heads, k.kv_heads, k.width, k.taps, k.channels, k.eps, k.initial)
    one = inputs(step, dtype, starts, counts)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(len(starts), length, k.packed + 2 * k.half, generator=g, dtype=torch.float64).to(dtype)
    many = 10 if k.initial else 9
    angles = 0.3 * torch.arange(length, dtype=torch.float64)[None, :, None, None]
    cos, sin = (each.to(dtype) * torch.ones_like(one[many]) for each in (angles.cos(), angles.sin()))
    sign = torch.where(torch.arange(k.channels) < k.channels // 2, -1, 1).to(dtype)
    return [x, *one[6:many], cos.contiguous(), (sin * sign).contiguous(), *one[many + 2 :]]


@pytest.mark.parametrize("case", ["more taps, all channels turn", "a row of its own before the start"])
def test_all_tokens_of_a_call_are_what_the_plain_form_gives(case: str, tmp_path: Path) -> None:
    k = rows_of(CASES[case])
    made = module(tmp_path, k)
    for dtype, length in ((torch.float32, 37), (torch.float16, 5)):
        fused = row_inputs(k, dtype, [0, 9, 5], [min(3, length), length, 0], length)
        wanted, rounded = made.cca_rows_plain(*widened(fused)), made.cca_rows_plain(*fused)
        for x, y, z in zip(made.cca_rows(*fused), wanted, rounded, strict=True):
            least = 4e-6 if dtype == torch.float32 else float(y.abs().max()) * 2**-10
            assert (x - y).abs().max() <= max(2 * float((z - y).abs().max()), least)


def test_all_tokens_have_gradients(tmp_path: Path) -> None:
    k = rows_of(PLAIN)
    made = module(tmp_path, k)
    given = row_inputs(k, torch.float32, [0], [3], 3)
    fused, plain = ([x.clone().requires_grad_(x.is_floating_point()) for x in given] for _ in range(2))
    for leaves, op in ((fused, made.cca_rows), (plain, made.cca_rows_plain)):
        q, keys, v, *_ = op(*leaves)
        (q.pow(3).sum() + keys.pow(3).sum() + v.pow(3).sum()).backward()
    for x, y in zip(fused, plain, strict=True):
        assert (x.grad is None) == (y.grad is None)
        if x.grad is not None and y.grad is not None:
            assert torch.allclose(x.grad, y.grad, rtol=1e-4, atol=1e-4)
    torch.library.opcheck(made.cca_rows, tuple(given), test_utils=("test_schema", "test_faketensor"))


def test_all_tokens_move_what_they_say(tmp_path: Path) -> None:
    k = rows_of(PLAIN)
    made = module(tmp_path, k)
    with touched() as run, torch.no_grad():
        made.cca_rows(*row_inputs(k, torch.float32, [4, 4], [35, 35], 35))
    moved = k.moved(4, 2, 35)
    assert (run.read, run.written, len(run.launches)) == (moved.read, moved.written, moved.launches)


@pytest.mark.parametrize("first", [1, 2, 3])
def test_chunks_then_tokens_are_a_twins_prefill(twin: Twin, first: int, tmp_path: Path) -> None:
    made: Any = module(tmp_path, rows_of(twin.k), twin.k)
    kept = twin.empty()
    for start, stop in ((0, first), (first, 9)):
        now, call = slice(start, stop), (torch.tensor([start]), torch.tensor([stop - start]))
        x, turn = twin.x[:, now].contiguous(), (twin.cos[:, now].contiguous(), twin.sin[:, now].contiguous())
        q, k, v, *kept[2:] = made.cca_rows(x, *kept[2:], *turn, *call, *twin.weights)
        kept[0][:, now], kept[1][:, now] = k, v
        assert torch.allclose(q, twin.q[:, now], atol=1e-5)
    for t in range(9, 12):
        now, call = slice(t, t + 1), (torch.tensor([t]), torch.tensor([1]))
        parts = [part[:, now].contiguous() for part in twin.parts]
        q = made.cca(*parts, *kept, twin.cos[:, now], twin.sin[:, now], *call, *twin.weights)
        assert torch.allclose(q, twin.q[:, now], atol=1e-5)
    assert torch.allclose(kept[0], twin.memory["k"], atol=1e-5)
    assert torch.allclose(kept[1], twin.memory["v"], atol=1e-5)
