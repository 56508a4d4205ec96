"""Residual streams between two sublayers: written, read and collapsed in one launch, against the ops they stand for."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from regraft.codegen.kernels.kernel import Tile
from regraft.codegen.kernels.streams import Streams, StreamsPrefill
from regraft.ir.parse import parse_graph
from tests.kernels.harness import module
from tests.kernels.touched import touched

PLAIN = Streams("hyper", streams=4, width=48)
CASES = {
    "between two sublayers": PLAIN,
    "a ragged width, five programs": replace(PLAIN, width=141),
    "the first one, of streams": replace(PLAIN, comes="whole"),
    "the first one, of an embedding": replace(PLAIN, comes="spread"),
    "after the last one": replace(PLAIN, gives="collapsed"),
    "streams that are there, collapsed": replace(PLAIN, comes="whole", gives="collapsed"),
    "written alone": replace(PLAIN, gives="none"),
    "three streams, no floor": replace(PLAIN, streams=3, floor=0.0, iterations=3),
    "three streams, of an embedding": replace(PLAIN, streams=3, comes="spread", width=37),
    "three streams, collapsed": replace(PLAIN, streams=3, gives="collapsed", width=37),
    "two streams, columns once": replace(PLAIN, streams=2, iterations=1, eps=0.5, floor=0.01),
    "one stream": replace(PLAIN, streams=1, width=33),
}


def tiled(folder: Path, k: Streams) -> Any:
    """Return the kernel's module, with tiles so small that a few programs share a token and chunks are ragged."""
    made, sizes = module(folder, k), {"BLOCK": 32, **({"CHUNK": 64} if k.maps else {})}
    made.HYPER_TILES["default"] = Tile(sizes).launch()
    return made


def many(k: Streams) -> StreamsPrefill:
    """Return the kernel that does the same for many tokens."""
    return StreamsPrefill(**asdict(k))


def inputs(k: Streams, dtype: torch.dtype, batch: int = 1, length: int = 1) -> list[Tensor]:
    """Return what the op takes, in order; maps' weights are in float32, and comb is far from symmetric."""
    g = torch.Generator().manual_seed(k.width + k.streams)

    def of(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    n, m, wide = k.streams, k.width, torch.promote_types(dtype, torch.float32)
    rows = (batch, length)
    given = [of(*rows, m) if k.comes == "spread" else of(*rows, n, m)]
    if k.comes == "written":
        given.append(of(*rows, m))
    given = [x.to(dtype) for x in given]
    if k.comes == "written":
        given += [x.to(wide) for x in (2 * torch.rand(*rows, n, generator=g), of(*rows, n, n).softmax(-2))]
    if k.maps:
        scale = 1 + 0.3 * of(3 if k.gives == "maps" else 1)
        given += [x.to(wide) for x in (of(k.maps, n * m) * 2 * m**-0.5, of(k.maps), scale)]
    return given


def results(of: Any, given: list[Tensor]) -> list[Tensor]:
    got = of(*given)
    return [got] if isinstance(got, Tensor) else list(got)


@pytest.mark.parametrize("case", CASES)
def test_it_computes_what_the_plain_form_does(case: str, tmp_path: Path) -> None:
    k = CASES[case]
    made = tiled(tmp_path, k)
    for dtype, batch, length in ((torch.float32, 2, 3), (torch.float16, 3, 1)):
        check(made, inputs(k, dtype, batch, length))


def check(made: Any, given: list[Tensor]) -> None:
    """Check a kernel against the plain form in float64; its error may be twice the plain form's own."""
    exact = results(made.hyper_plain, [x.double() for x in given])
    for x, y, z in zip(results(made.hyper, given), exact, results(made.hyper_plain, given), strict=True):
        assert (x.dtype, x.shape) == (z.dtype, z.shape)
        # float32: what rounding makes of a few hundred additions; float16: half a unit in the last place
        least = float(y.abs().max()) * (3e-6 if x.dtype == torch.float32 else 2**-11)
        assert (x - y).abs().max() <= max(2 * float((z - y).abs().max()), least)


@pytest.mark.parametrize("case", CASES)
def test_for_many_tokens_it_computes_the_same(case: str, tmp_path: Path) -> None:
    k, narrow = many(replace(CASES[case], weights="fp32")), many(CASES[case])
    for dtype, batch, length in ((torch.float32, 2, 11), (torch.float16, 1, 16)):
        made = module(tmp_path, k if dtype == torch.float16 else narrow)
        check(made, inputs(k, dtype, batch, length))


@pytest.mark.parametrize("case", CASES)
def test_the_plain_form_is_what_the_ops_say(case: str, tmp_path: Path) -> None:
    k, made = CASES[case], tiled(tmp_path, CASES[case])
    given = inputs(k, torch.float64, 2, 3)
    for x, y in zip(results(made.hyper_plain, given), meant(k, given), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-12)


def meant(k: Streams, given: list[Tensor]) -> list[Tensor]:
    """Return the results of the ops that a boundary stands for."""
    first, weights = given[: len(given) - 3 * bool(k.maps)], given[len(given) - 3 * bool(k.maps) :]
    shapes = [f"B, T{''.join(f', {size}' for size in x.shape[2:])}" for x in first]
    shapes += [", ".join(map(str, x.shape)) for x in weights]
    at = ", ".join(f"%i{i}: f64[{shape}]" for i, shape in enumerate(shapes))
    maps = f"%i{len(first)}, %i{len(first) + 1}, %i{len(first) + 2} {{eps = {k.eps}, floor = {k.floor}"
    comes = {
        "whole": "",
        "spread": f"%x = core.repeat %i0 {{parts = {k.streams}}}",
        "written": "%x = hyper.write %i0, %i1, %i2, %i3",
    }
    x = "%x" if comes[k.comes] else "%i0"
    gives = {
        "maps": f"%u, %post, %comb = hyper.read {x}, {maps}, iterations = {k.iterations}}}",
        "collapsed": f"%u = hyper.collapse {x}, {maps}}}",
        "none": "",
    }
    out = "%u" if gives[k.gives] else x
    text = f'graph @one {{family = "test"}} ({at}) {{\n  {comes[k.comes]}\n  {gives[k.gives]}\n  return {out}\n}}'
    graph, run = parse_graph(text), cast(Any, SimpleNamespace(wide=lambda x: x))
    values = dict(zip(graph.inputs, given, strict=True))
    made: list[Tensor] = []
    for op in graph.ops:
        found = cast(Any, op).reference(run, *[values[v] for v in op.operands])
        made += [found] if isinstance(found, Tensor) else list(found)
        values |= zip(op.results, made[-len(op.results) :], strict=True)
    return made


def test_streams_that_are_written_may_be_multiplied_too(tmp_path: Path) -> None:
    k = replace(CASES["written alone"], gain=True, width=64)
    made, gain = tiled(tmp_path, k), torch.tensor([-0.7], dtype=torch.float64)
    given = inputs(k, torch.float64, 2)
    torch.testing.assert_close(made.hyper_plain(*given, gain), gain * meant(k, given)[0], rtol=1e-12, atol=1e-12)
    for dtype in (torch.float32, torch.float16):
        check(made, [*inputs(k, dtype, 2), gain.to(dtype)])
    with touched() as run:
        made.hyper(*inputs(k, torch.float16, 3), gain.half())
    moved = k.moved(2, 3, 1)
    assert (run.read, run.written, len(run.launches)) == (moved.read, moved.written, moved.launches)
    with pytest.raises(ValueError, match="nothing is read"):
        replace(k, gives="maps")


def test_swapping_two_streams_swaps_what_is_written_and_no_more(tmp_path: Path) -> None:
    made, k = tiled(tmp_path, PLAIN), PLAIN
    x, added, post, comb, fn, base, scale = inputs(k, torch.float32, 2)
    swap = torch.tensor([2, 1, 0, 3])
    pairs = 8 + (4 * swap[:, None] + swap).flatten()
    rows = torch.cat((swap, 4 + swap, pairs))
    turned = fn[rows].unflatten(1, (4, -1))[:, swap].flatten(1)
    out, read, new_post, new_comb = made.hyper(x, added, post, comb, fn, base, scale)
    got = made.hyper(x[:, :, swap], added, post[..., swap], comb[:, :, swap][..., swap], turned, base[rows], scale)
    wanted = (out[:, :, swap], read, new_post[..., swap], new_comb[:, :, swap][..., swap])
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_maps_that_change_nothing_make_a_plain_residual_network(tmp_path: Path) -> None:
    """Streams that are equal stay equal, each is the residual stream, and so is what is read of them."""
    made, k = tiled(tmp_path, replace(PLAIN, floor=0.0)), PLAIN
    fn, scale = torch.zeros(k.maps, 4 * k.width), torch.zeros(3)
    base = torch.cat(
        (torch.full((4,), -torch.log(torch.tensor(3.0)).item()), torch.zeros(4), 40 * torch.eye(4).flatten())
    )
    rows, added = torch.randn(2, 1, 1, k.width)
    x, post, comb = rows[:, :, None].expand(1, 1, 4, -1).contiguous(), torch.ones(1, 1, 4), torch.eye(4)[None, None]
    out, read, new_post, new_comb = made.hyper(x, added[None], post, comb, fn, base, scale)
    for got, wanted in ((out, (x + added)), (read, out[:, :, 0]), (new_post, post), (new_comb, comb)):
        torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


def test_columns_end_normalised_and_rows_nearly(tmp_path: Path) -> None:
    made, given = tiled(tmp_path, PLAIN), inputs(PLAIN, torch.float32, 3, 5)
    *_, comb = made.hyper(*given[:4], given[4] / 4, *given[5:])
    assert (comb.sum(-2) - 1).abs().max() <= 1e-5
    assert (comb.sum(-1) - 1).abs().max() <= 1e-2
    assert (comb - comb.mT).abs().max() > 0.1


def test_streams_that_are_zero_are_read_as_zero(tmp_path: Path) -> None:
    given = [torch.zeros_like(x) if i < 2 else x for i, x in enumerate(inputs(PLAIN, torch.float32))]
    out, read, *maps = tiled(tmp_path, PLAIN).hyper(*given)
    assert not out.any()
    assert not read.any()
    assert all(bool(x.isfinite().all()) for x in maps)


@pytest.mark.parametrize("case", ["between two sublayers", "after the last one", "the first one, of an embedding"])
def test_it_moves_the_bytes_that_it_says(case: str, tmp_path: Path) -> None:
    k = replace(CASES[case], weights="fp32", width=64)
    for one, length in ((k, 1), (many(k), 5)):
        made = module(tmp_path, one)
        with touched() as run:
            made.hyper(*inputs(k, torch.float16, 3, length))
        moved = one.moved(2, 3, length)
        assert (run.read, run.written, len(run.launches)) == (moved.read, moved.written, moved.launches)


def test_compilers_of_graphs_see_the_op(tmp_path: Path) -> None:
    made = tiled(tmp_path, PLAIN)
    made.INTERPRETED = False
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(made.hyper, tuple(inputs(PLAIN, torch.float32, 2)), test_utils=checks)
