"""K9 against its plain form: scores by light heads, and the exact choice of the best rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.codegen.kernels.index import Index
from tests.kernels.harness import module
from tests.kernels.touched import touched

PLAIN = Index("index", heads=16, width=32, chosen=40, scale=0.25)
TURNED = replace(PLAIN, heads=5, width=24, rate=4, turned=8, offset=16, layout="interleaved")
HALVES = replace(PLAIN, heads=3, width=20, chosen=7, turned=12)
OWN = replace(HALVES, chosen=40, writes=True)
HEADS = replace(TURNED, heads=6, width=20, turned=20, offset=0, layout="halves", key_heads=3, window=11)
FAR = replace(PLAIN, rate=4, window=11, first=8, chosen=6)


def inputs(k: Index, dtype: torch.dtype, batch: int, length: int, rows: int, whole: bool = False) -> tuple[Tensor, ...]:
    """Return queries, weights, a new key if one is taken, keys and angles.

    With ``whole`` they are small integers, of which scores are exact and tie.
    """
    torch.manual_seed(0)

    def made(*shape: int) -> Tensor:
        x = torch.randint(-1, 2, shape).float() if whole else torch.randn(shape)
        return x.to(dtype)

    q, w, keys = (
        made(batch, length, k.heads, k.width),
        made(batch, length, k.heads),
        made(batch, rows, k.key_heads * k.width),
    )
    given = (q, w, made(batch, 1, 1, k.width), keys) if k.writes else (q, w, keys)
    if not k.turned:
        return given
    angle = torch.rand(batch, length, 1, k.turned // 2) * 6
    cos, sin = angle.cos(), angle.sin()
    if k.layout == "halves":
        cos, sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    return *given, cos.to(dtype), sin.to(dtype)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Index], Any]:
    folder, loaded = tmp_path_factory.mktemp("kernels"), dict[Index, Any]()

    def of(k: Index) -> Any:
        return loaded.setdefault(k, module(folder, k)) if k not in loaded else loaded[k]

    return of


def both(program: Any, given: tuple[Tensor, ...], start: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the kernel chooses and what the plain form does, each query's numbers in order."""
    found = program.index(*given, start)
    assert bool((found[..., 1:][found[..., :-1] < 0] < 0).all()), "-1 stand last"
    return found.sort(-1).values, program.index_plain(*given, start).sort(-1).values


@pytest.mark.parametrize("k", [PLAIN, TURNED, HALVES, HEADS, FAR])
@pytest.mark.parametrize("length", [1, 5])
def test_the_best_rows(load: Callable[[Index], Any], k: Index, length: int) -> None:
    rows = 300
    given = inputs(k, torch.float32, 3, length, rows)
    start = torch.tensor([3, 37, rows * k.rate - length])
    found, expected = both(load(k), given, start)
    assert torch.equal(found, expected)


def test_the_own_key_is_kept_and_scored(load: Callable[[Index], Any]) -> None:
    """Where a row is idle in a full memory, its key goes to the last slot."""
    given = inputs(OWN, torch.float32, 4, 1, 100)
    start, kept = torch.tensor([0, 63, 99, 100]), [given[3].clone() for _ in range(2)]
    found = load(OWN).index(*given[:3], kept[0], *given[4:], start).sort(-1).values
    expected = load(OWN).index_plain(*given[:3], kept[1], *given[4:], start).sort(-1).values
    assert torch.equal(found, expected)
    assert torch.allclose(kept[0], kept[1], atol=1e-6)
    assert int((kept[0] != given[3]).any(-1).sum()) == 4


def test_half_precision(load: Callable[[Index], Any]) -> None:
    given = inputs(PLAIN, torch.float16, 1, 1, 200)
    found, expected = both(load(PLAIN), given, torch.tensor([199]))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("end", [1, 40, 41, 130])
def test_equal_scores_take_the_earlier_row(load: Callable[[Index], Any], length: int, end: int) -> None:
    given = inputs(PLAIN, torch.float32, 2, length, 130 + length, whole=True)
    found, expected = both(load(PLAIN), given, torch.tensor([end - 1, 129]))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("value", [0.0, -0.0, -1.0, 1.0])
def test_all_scores_are_equal(load: Callable[[Index], Any], value: float) -> None:
    q, w, keys = inputs(PLAIN, torch.float32, 1, 1, 100)
    given = (torch.ones_like(q) * abs(value), torch.full_like(w, value), torch.ones_like(keys))
    found, _ = both(load(PLAIN), given, torch.tensor([99]))
    assert torch.equal(found[0, 0], torch.arange(40))


def test_zeros_of_both_signs_are_equal(load: Callable[[Index], Any]) -> None:
    q, w, keys = inputs(PLAIN, torch.float32, 1, 1, 90)
    keys = torch.where(torch.arange(90)[None, :, None] % 3 == 0, keys.abs(), -keys.abs())
    given = (q.abs(), -w.abs() * 0, keys)
    found, _ = both(load(PLAIN), given, torch.tensor([89]))
    assert torch.equal(found[0, 0], torch.arange(40))


def test_several_chunks_and_what_is_left_behind(load: Callable[[Index], Any]) -> None:
    """Rows of which many share the highest bits, chosen from two chunks; the second step finds its scratch clean."""
    k = replace(PLAIN, chosen=300, heads=2, width=4)
    q, w, keys = inputs(k, torch.float32, 2, 1, 4800)
    keys = keys.abs() * 0.01 + 1
    keys[:, 100:4500:7] = keys[:, :1]
    program = load(k)
    for start in ([4799, 4100], [4095, 250]):
        found, expected = both(program, (q.abs(), w.abs(), keys), torch.tensor(start))
        assert torch.equal(found, expected)
    assert not program.arrivals("index", q.device, 2 * (k.bins + 1)).any()


def test_rows_that_are_not_there(load: Callable[[Index], Any]) -> None:
    given = inputs(TURNED, torch.float32, 2, 1, 3)
    assert bool((load(TURNED).index(*given, torch.tensor([2, 0])) == -1).all())
    given = inputs(TURNED, torch.float32, 1, 2, 0)
    assert bool((load(TURNED).index(*given, torch.tensor([1])) == -1).all())


@pytest.mark.parametrize(
    ("k", "pos"), [(PLAIN, 2990), (PLAIN, 30), (TURNED, 11000), (FAR, 1100), (FAR, 5), (HEADS, 150), (OWN, 2000)]
)
def test_bytes(load: Callable[[Index], Any], k: Index, pos: int) -> None:
    """What is touched is what is stated, but for the few bins and rows in question, which depend on the scores."""
    given = inputs(k, torch.float32, 1, 1, 3000)
    load(k).index(*given, torch.tensor([pos]))  # makes the counters
    with touched() as run:
        load(k).index(*given, torch.tensor([pos]))
    stated = k.moved(4, 1, pos + 1)
    assert not run.operations
    assert len(run.launches) == stated.launches
    found = run.read + run.written
    if k.rows(pos + 1) > k.chosen:
        assert abs(found - stated.total) <= 0.02 * stated.total
    else:
        assert (run.read, run.written) == (stated.read, stated.written)


def test_the_op_is_registered_as_torch_wants(load: Callable[[Index], Any]) -> None:
    given = inputs(HALVES, torch.float32, 2, 1, 50)
    torch.library.opcheck(load(HALVES).index, (*given, torch.tensor([20, 49])))
    given = inputs(OWN, torch.float32, 2, 1, 50)
    torch.library.opcheck(load(OWN).index, (*given, torch.tensor([20, 49])))
