"""The output head with choice: tokens, logits and draws, against the plain form in float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.codegen.kernels.head import Head
from tests.kernels.harness import module
from tests.kernels.touched import touched

PLAIN = Head("head", width=40, vocab=153, eps=1e-5)
CASES = {
    "plain": PLAIN,
    "capped, scaled, weights from zero": replace(PLAIN, width=64, vocab=64, cap=3.0, scale=0.5, offset=1.0),
    "several chunks": replace(PLAIN, width=600, vocab=37),
    "one block of rows": replace(PLAIN, width=24, vocab=5, cap=2.0),
}


def inputs(k: Head, dtype: torch.dtype, batch: int) -> list[Tensor]:
    """Return streams, the norm's weight and the map."""
    g = torch.Generator().manual_seed(0)
    shapes = ((batch, 1, k.width), (k.width,), (k.vocab, k.width))
    return [torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype) for shape in shapes]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Head, Any]:
    """Return a head and its file, imported."""
    k = CASES[request.param]
    return k, module(tmp_path_factory.mktemp("head"), k)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_logits_and_the_likeliest_token(case: tuple[Head, Any], dtype: torch.dtype, batch: int) -> None:
    k, made = case
    given = inputs(k, dtype, batch)
    exact, plain = made.head_logits_plain(*(x.double() for x in given)), made.head_logits_plain(*given)
    error = (made.head_logits(*given) - exact).abs().max()
    least = 2**-20 if dtype == torch.float32 else 2**-11
    assert error <= max(2 * float((plain - exact).abs().max()), least * float(exact.abs().max()))
    assert torch.equal(made.head(*given), exact[:, 0].argmax(-1))


def test_more_streams_than_go_through_a_matrix_unit_at_once(tmp_path: Path) -> None:
    made = module(tmp_path, PLAIN)
    given = inputs(PLAIN, torch.float32, 19)
    assert torch.equal(made.head(*given), made.head_plain(*given))
    assert torch.allclose(made.head_logits(*given), made.head_logits_plain(*given), atol=1e-4)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_stream_may_be_wider_than_the_map(batch: int, tmp_path: Path) -> None:
    made = module(tmp_path, PLAIN)
    x, gain, weight = inputs(PLAIN, torch.float16, batch)
    logits, wanted = made.head_logits(x.float(), gain, weight), made.head_logits_plain(x.float(), gain, weight)
    assert logits.dtype == wanted.dtype == torch.float16
    assert torch.allclose(logits, wanted, rtol=2**-8, atol=2**-8 * float(wanted.abs().max()))
    assert torch.equal(made.head(x.float(), gain, weight), wanted[:, 0].argmax(-1))


@pytest.mark.parametrize("batch", [1, 3])
def test_the_lowest_of_equal_tokens_is_the_likeliest(batch: int, tmp_path: Path) -> None:
    k = replace(PLAIN, width=16)
    made = module(tmp_path, k)
    x, gain, weight = inputs(k, torch.float32, batch)
    assert made.head(x, gain, torch.zeros_like(weight)).tolist() == [0] * batch
    weight[[9, 70, 71, 152]] = 3 * (x * gain)[0, 0]  # the same rows in other programs, in one program, in the last
    assert made.head(x, gain, weight)[0] == 9
    signs = torch.zeros_like(weight)
    signs[4:, 0] = -torch.zeros(1)  # -0 is no less than 0
    signs[:4] = -(x * gain)[0, 0]
    assert made.head(x[:1], gain, signs).tolist() == [4]


@pytest.mark.parametrize(("top_k", "top_p"), [(1, 1.0), (3, 0.7), (20, 1.0), (64, 0.9), (6, 1e-9)])
def test_draws_are_those_of_the_plain_form(case: tuple[Head, Any], top_k: int, top_p: float) -> None:
    k, made = case
    given = inputs(k, torch.float32, 1)
    options = (torch.tensor([0.61]), 0.8, top_k, top_p)
    wanted = made.head_sample_plain(*(x.double() for x in given), *options)
    assert torch.equal(made.head_sample(*given, *options), wanted)


def test_rows_draw_by_their_own_noise(tmp_path: Path) -> None:
    k = replace(PLAIN, vocab=90)
    made = module(tmp_path, k)
    given = inputs(k, torch.float32, 3)
    options = (torch.tensor([0.0, 0.5, 1 - 2**-24]), 1.3, 6, 0.9)
    wanted = made.head_sample_plain(*(x.double() for x in given), *options)
    assert torch.equal(made.head_sample(*given, *options), wanted)


@pytest.mark.parametrize("top_k", [0, 65])
def test_more_tokens_than_a_launch_chooses_among_may_be_drawn(top_k: int, tmp_path: Path) -> None:
    made = module(tmp_path, PLAIN)
    given = inputs(PLAIN, torch.float32, 2)
    options = (torch.tensor([0.4, 0.8]), 0.9, top_k, 0.95)
    wanted = made.head_sample_plain(*(x.double() for x in given), *options)
    assert torch.equal(made.head_sample(*given, *options), wanted)


def test_draws_have_the_shares_that_generation_gives_them(tmp_path: Path) -> None:
    made = module(tmp_path, PLAIN)
    logits = torch.tensor([[0.5, 2.0, 1.0, 2.0, -1.0]], dtype=torch.float64)
    drawn = made.drawn(logits.expand(1000, -1), (torch.arange(1000) + 0.5) / 1000, 0.5, 3, 0.95)
    shares = torch.softmax(torch.tensor([2.0, 2.0, 1.0], dtype=torch.float64) / 0.5, 0)  # the third begins below 0.95
    counts = torch.bincount(drawn, minlength=5) / 1000
    assert torch.allclose(counts[[1, 3, 2]].double(), shares, atol=2e-3)
    assert made.drawn(logits, torch.tensor([0.99]), 0.5, 3, 0.4).tolist() == [1]


@pytest.mark.parametrize("batch", [1, 3])
def test_it_moves_what_it_says(case: tuple[Head, Any], batch: int) -> None:
    k, made = case
    given = inputs(k, torch.float32, batch)
    with touched() as run, torch.no_grad():
        made.head(*given)
    moved = k.moved(4, batch, 1)
    assert (run.read, run.written, len(run.launches)) == (moved.read, moved.written, moved.launches)
    with touched() as run, torch.no_grad():
        made.head_logits(*given)
    assert (run.read, run.written) == ((moved := k.moved_logits(4, batch)).read, moved.written)


def test_ops_are_sound(tmp_path: Path) -> None:
    made = module(tmp_path, PLAIN)
    given = tuple(inputs(PLAIN, torch.float32, 1))
    for op, options in ((made.head, ()), (made.head_logits, ()), (made.head_sample, (torch.zeros(1), 0.5, 2, 1.0))):
        torch.library.opcheck(op, (*given, *options), test_utils=("test_schema", "test_faketensor"))
