"""Routers: norm, logits, choice and shares in one launch, against the ops that they stand for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from regraft.codegen.kernels.kernel import Tile
from regraft.codegen.kernels.route import Route
from regraft.ir.ops.moe import Route as RouteOp
from tests.kernels.harness import module
from tests.kernels.touched import touched

SHARED = ("chosen", "score", "normalize", "eps", "scale", "groups", "kept", "best")
GROUPED = Route("route", 70, 24, 5, score="sigmoid", groups=6, kept=3, best=2, bias=True)
LOGITS = Route("route", 64, 17, 4, given_logits=True)
CASES = {
    "softmax, all normed": Route(
        "route", 70, 37, 5, normalize=True, norm=1e-6, norm_weight=True, norm_offset=1.0, weight_bias=True
    ),
    "groups": replace(GROUPED, normalize=True, eps=1e-20, scale=2.5, norm=1e-6, norm_weight=True),
    "groups of three": replace(GROUPED, experts=18, chosen=7),
    "a table": Route("route", 64, 20, 3, score="sqrt_softplus", table=True, normalize=True, scale=1.5),
    "a gain and a factor": Route("route", 64, 17, 4, gain=True, norm=1e-5, norm_weight=True, factor=0.3),
    "no norm, roots": Route("route", 40, 9, 9, score="sqrt_softplus", bias=True, factor=2.0),
    "logits, one of a few": replace(LOGITS, chosen=1, bias=True),
}

STATES = Route(
    *("route", 70, 17, 2),
    bias=True,
    norm=1e-5,
    norm_weight=True,
    states=12,
    into_bias=True,
    carried=True,
    state_norm=1e-5,
    state_norm_weight=True,
    hidden=(True, False),
)


def routed(folder: Path, k: Route) -> Any:
    """Return the kernel's module, with tiles so small that several programs share a row and chunks are ragged."""
    made = module(folder, k)
    made.ROUTE_TILES["default"] = Tile(
        {} if k.given_logits else {"BLOCK_E": 8, "BLOCK_M": 32, **({"BLOCK_R": 8} if k.states else {})}
    ).launch()
    return made


def inputs(k: Route, dtype: torch.dtype = torch.float32, batch: int = 3) -> list[Tensor]:
    g = torch.Generator().manual_seed(k.width + k.experts)

    def of(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g)

    mapped = k.states or k.width
    given = {
        "norm_weight": of(k.width),
        "into": of(k.states, k.width) / k.width**0.5,
        "carried": of(batch, 1, k.states),
        **{name: of(k.states) for name in ("into_bias", "carried_gain", "state_norm", "hidden_1_bias")},
        **{name: of(k.states, k.states) for name in ("hidden_1", "hidden_2")},
        "weight": of(k.experts, mapped) / mapped**0.5,
        "weight_bias": of(k.experts),
        "bias": of(k.experts),
        "gain": of(k.experts),
        "tokens": torch.randint(50, (batch, 1), generator=g),
        "table": torch.rand(50, k.experts, generator=g).argsort(-1)[:, : k.chosen].contiguous(),
    }
    first = of(batch, 1, k.experts if k.given_logits else k.width)
    return [x.to(dtype) if x.is_floating_point() else x for x in (first, *(given[name] for name in k.arguments()))]


def wide(values: list[Tensor]) -> list[Tensor]:
    return [x.double() if x.is_floating_point() else x for x in values]


@pytest.mark.parametrize("k", CASES.values(), ids=CASES)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_row_is_routed_as_in_double(tmp_path: Path, k: Route, batch: int) -> None:
    made, given = routed(tmp_path, k), inputs(k, batch=batch)
    shares, experts = made.route(*given)
    expected, numbers = made.route_plain(*wide(given))
    assert torch.equal(experts, numbers), "the same experts in the same order"
    torch.testing.assert_close(shares.double(), expected, rtol=1e-5, atol=1e-7)
    made.route(*given)
    if not k.given_logits:
        assert int(made.arrivals("route", given[0].device, batch).abs().max()) == 0, "counters are set back"


@pytest.mark.parametrize("k", CASES.values(), ids=CASES)
def test_half_precision_rounds_the_shares_alone(tmp_path: Path, k: Route) -> None:
    made, given = routed(tmp_path, k), inputs(k, torch.float16)
    shares, experts = made.route(*given)
    expected, numbers = made.route_plain(*wide(given))
    assert torch.equal(experts, numbers)
    assert shares.dtype == torch.float16
    torch.testing.assert_close(shares.double(), expected, rtol=2**-10, atol=1e-6)


@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_state_is_handed_on_and_chooses(tmp_path: Path, dtype: torch.dtype, carried: bool) -> None:
    k = replace(STATES, carried=carried)
    made, given = routed(tmp_path, k), inputs(k, dtype)
    state, shares, experts = made.route(*given)
    expected = made.route_plain(*wide(given))[0]
    torch.testing.assert_close(state.double(), expected, rtol=2**-10 if dtype is torch.float16 else 1e-5, atol=1e-5)
    _, weighed, numbers = made.route_plain(*given)  # of the state as it is stored
    assert torch.equal(experts, numbers)
    torch.testing.assert_close(shares, weighed, rtol=2**-9 if dtype is torch.float16 else 1e-4, atol=1e-6)
    with touched() as run:
        made.route(*given)
    moved = k.moved(given[0].element_size(), 3, 1)
    assert (len(run.launches), run.read, run.written) == (1, moved.read, moved.written)
    for ours, fake in zip(made.route(*given), made.route_plain(*given), strict=True):
        assert (ours.shape, ours.dtype) == (fake.shape, fake.dtype)


@pytest.mark.parametrize(
    "k",
    [
        replace(GROUPED, given_logits=True, normalize=True, eps=0.1, scale=2.5, gain=True),
        replace(LOGITS, bias=True, normalize=True),
        replace(LOGITS, score="sqrt_softplus", table=True, normalize=True, scale=1.5),
    ],
    ids=["groups", "softmax", "a table"],
)
def test_the_plain_form_is_the_op(tmp_path: Path, k: Route) -> None:
    given = dict(zip(["logits", *k.arguments()], wide(inputs(k)), strict=True))
    op = cast(Any, SimpleNamespace(**{name: getattr(k, name) for name in SHARED}))
    op._kept_ranks = lambda ranks: RouteOp.__dict__["_kept_ranks"](op, ranks)
    op._check_given = lambda *_: None
    run = cast(Any, SimpleNamespace(wide=lambda x: x))
    chosen = given["table"][given["tokens"]] if k.table else None
    expected = RouteOp.reference(op, run, given["logits"], given.get("bias"), given.get("gain"), chosen)
    for ours, theirs in zip(routed(tmp_path, k).route_plain(*given.values()), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_of_equals_the_first_are_chosen(tmp_path: Path) -> None:
    made = routed(tmp_path, LOGITS)
    same = torch.zeros(2, 1, 17)
    shares, experts = made.route(same)
    assert experts.tolist() == [[[0, 1, 2, 3]]] * 2
    assert torch.equal(shares, torch.full((2, 1, 4), 1 / 17))
    same[1, 0, 11], same[1, 0, [4, 9]] = 2.0, 1.0
    for found in (made.route(same)[1], made.route_plain(same)[1]):
        assert found[1, 0].tolist() == [11, 4, 9, 0]


def test_equal_groups_and_experts_come_in_order(tmp_path: Path) -> None:
    k = replace(GROUPED, given_logits=True, bias=False)
    made, logits = routed(tmp_path, k), torch.zeros(1, 1, 24)
    assert made.route(logits)[1].tolist() == [[[0, 1, 2, 3, 4]]]
    logits[..., 22:] = 1.0  # the last group stays, and with it the first two
    for found in (made.route(logits)[1], made.route_plain(logits)[1]):
        assert found.tolist() == [[[22, 23, 0, 1, 2]]]
    logits[..., 9] = 1.5  # one high expert is worth less than two good ones, but more than none
    assert made.route(logits)[1].tolist() == [[[9, 22, 23, 0, 1]]]


def test_a_bias_chooses_and_does_not_weigh(tmp_path: Path) -> None:
    k = replace(LOGITS, bias=True, score="sigmoid", chosen=2)
    made, logits, bias = routed(tmp_path, k), torch.arange(17.0)[None, None] / 8, torch.zeros(17)
    bias[[3, 16]] = torch.tensor([10.0, -torch.inf])
    shares, experts = made.route(logits, bias)
    assert experts.tolist() == [[[3, 15]]]
    torch.testing.assert_close(shares, logits[..., [3, 15]].sigmoid())
    out = torch.full((17,), -torch.inf)
    assert made.route(logits, out)[1].tolist() == [[[0, 1]]], "no expert twice"
    assert int(made.route(logits * torch.nan, bias)[1].max()) < 17, "numbers stay inside, whatever comes"


@pytest.mark.parametrize("name", ["groups", "a table", "a gain and a factor", "logits, one of a few"])
def test_bytes_are_those_touched(tmp_path: Path, name: str) -> None:
    k = CASES[name]
    made, given = routed(tmp_path, k), inputs(k, batch=1)
    with touched() as run:
        made.route(*given)
    moved = k.moved(4, 1, 8)
    assert len(run.launches) == moved.launches == 1
    assert abs(run.read + run.written - moved.total) <= 0.02 * moved.total


def test_the_op_is_one_of_pytorchs(tmp_path: Path) -> None:
    for k in (CASES["groups"], CASES["logits, one of a few"]):
        made = routed(tmp_path, k)
        made.INTERPRETED = False
        torch.library.opcheck(made.route, tuple(inputs(k)))
