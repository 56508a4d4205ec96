"""Routers that ride in the boundary before them, against the same boundary and router one after the other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.codegen.kernels.kernel import Tile
from regraft.codegen.kernels.route import Route
from regraft.codegen.kernels.streams import Streams
from tests.kernels.harness import module
from tests.kernels.test_route import inputs as router_inputs
from tests.kernels.test_streams import inputs as boundary_inputs
from tests.kernels.test_streams import results
from tests.kernels.touched import touched

ROOTS = Route("route", 141, 21, 5, "sqrt_softplus", normalize=True, scale=1.5, bias=True, norm=1e-6, norm_weight=True)
GROUPED = replace(ROOTS, score="sigmoid", experts=24, groups=6, kept=3, best=2, weight_bias=True, norm_offset=1.0)
PLAIN = Streams("hyper", streams=4, width=141, route=ROOTS)
CASES = {
    "DeepSeek V4": PLAIN,
    "a table": replace(PLAIN, route=replace(ROOTS, bias=False, table=True)),
    "three streams that are there, groups": replace(PLAIN, streams=3, width=48, comes="whole", route=GROUPED),
    "of an embedding, softmax": replace(
        PLAIN, width=64, comes="spread", route=Route("route", 64, 17, 4, gain=True, norm=1e-5, factor=0.3)
    ),
    "no norm": replace(PLAIN, streams=2, route=Route("route", 141, 9, 9, normalize=True, factor=0.5)),
}


def tiled(folder: Path, k: Streams) -> Any:
    """Return the kernel's module beside the boundary and the router alone, with ragged tiles that are many."""
    router, bare = sized(k), replace(k, name="bare", route=None)
    whole = replace(k, name="whole", comes="whole", route=None)
    made = module(folder, replace(k, route=router), bare, whole, router)
    made.BARE_TILES["default"] = Tile({"BLOCK": 64, "CHUNK": 64}).launch()
    made.HYPER_TILES["default"] = Tile({"BLOCK": 64, "CHUNK": 64, "BLOCK_E": 8, "BLOCK_M": 64}).launch()
    return made


def sized(k: Streams) -> Route:
    """Return the router, for as many channels as a stream has."""
    assert k.route is not None
    return replace(k.route, width=k.width)


def inputs(k: Streams, dtype: torch.dtype, batch: int) -> list[Tensor]:
    """Return what the op takes, in order."""
    return [*boundary_inputs(k, dtype, batch), *router_inputs(sized(k), dtype, batch)[1:]]


def wide(values: list[Tensor]) -> list[Tensor]:
    return [x.double() if x.is_floating_point() else x for x in values]


def apart(made: Any, k: Streams, given: list[Tensor]) -> list[Tensor]:
    """Return what the boundary and then the router give by themselves."""
    count = len(boundary_inputs(k, torch.float32))
    found = results(made.bare_plain, given[:count])
    return [*found, *made.route_plain(found[-3], *given[count:])]


@pytest.mark.parametrize("case", CASES)
def test_the_plain_form_is_both_one_after_the_other(case: str, tmp_path: Path) -> None:
    k = CASES[case]
    made, given = tiled(tmp_path, k), wide(inputs(k, torch.float32, 3))
    for x, y in zip(made.hyper_plain(*given), apart(made, k, given), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("dtype", "batch"), [(torch.float32, 3), (torch.float16, 1)])
def test_a_token_is_routed_as_in_double(case: str, dtype: torch.dtype, batch: int, tmp_path: Path) -> None:
    k = CASES[case]
    made, given = tiled(tmp_path, k), inputs(k, dtype, batch)
    *found, shares, experts = made.hyper(*given)
    own = len(given) - len(k.of_route)
    for x, y in zip(found, results(made.bare, given[:own]), strict=True):
        assert torch.equal(x, y), "the boundary does not depend on the router"
    # its choice is that of the streams as they are stored, whatever these are
    streams = given[0] if k.comes == "whole" else found[0]
    read = made.whole_plain(streams.double(), *wide(given)[own - 3 : own])[0]
    expected, numbers = made.route_plain(read, *wide(given)[own:])
    assert torch.equal(experts, numbers), "the same experts in the same order"
    assert shares.dtype == dtype
    torch.testing.assert_close(shares.double(), expected, rtol=1e-5 if dtype == torch.float32 else 2**-10, atol=1e-6)
    assert int(made.arrivals("hyper", given[0].device, batch).abs().max()) == 0, "counters are set back"


def test_of_equals_the_first_are_chosen(tmp_path: Path) -> None:
    k = replace(PLAIN, route=replace(ROOTS, bias=False))
    made, given = tiled(tmp_path, k), inputs(k, torch.float32, 2)
    router = given[-1]
    router[:] = router[0]
    *_, shares, experts = made.hyper(*given)
    assert experts.tolist() == [[[0, 1, 2, 3, 4]]] * 2
    torch.testing.assert_close(shares, torch.full((2, 1, 5), 0.3))
    router[:] = torch.randn(3, k.width, generator=torch.Generator().manual_seed(0)).repeat(7, 1)
    found = made.hyper(*given)[-1]  # seven of each of three kinds
    assert torch.equal(found, found[..., :1] % 3 + torch.tensor([0, 3, 6, 9, 12]))


@pytest.mark.parametrize("case", ["DeepSeek V4", "a table", "three streams that are there, groups"])
def test_it_moves_the_bytes_that_it_says(case: str, tmp_path: Path) -> None:
    k = replace(CASES[case], weights="fp32", width=64)
    k = replace(k, route=sized(k))
    made, given = module(tmp_path, k), inputs(k, torch.float16, 2)
    if k.route is not None and k.route.table:
        given[-2][:] = torch.tensor([[7], [11]])  # tokens that share no row of the table
    with touched() as run:
        made.hyper(*given)
    moved = k.moved(2, 2, 9)
    assert (run.read, run.written, len(run.launches)) == (moved.read, moved.written, moved.launches)


def test_compilers_of_graphs_see_the_op(tmp_path: Path) -> None:
    made = tiled(tmp_path, PLAIN)
    made.INTERPRETED = False
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(made.hyper, tuple(inputs(PLAIN, torch.float32, 2)), test_utils=checks)


def test_a_router_rides_only_where_a_sublayer_is_read_for() -> None:
    for wrong in ({"gives": "collapsed"}, {"route": Route("", 64, 9, 2, given_logits=True)}):
        with pytest.raises(ValueError, match="a router that does not start"):
            replace(PLAIN, **wrong)
