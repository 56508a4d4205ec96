"""K8 against its plain form: chosen and pooled rows beside a window, with a sink, in one launch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from regraft.codegen.kernels.kernel import Kernel
from regraft.codegen.kernels.sparse import Sparse, SparsePrefill
from tests.kernels.harness import module
from tests.kernels.touched import touched

CHOSEN = Sparse(
    "sparse",
    heads=5,
    width=32,
    value_width=32,
    scale=0.3,
    window=8,
    rate=4,
    chosen=40,
    sink=True,
    q_eps=1e-6,
    k_eps=1e-6,
    turned=8,
    back=True,
)
POOLED = replace(CHOSEN, heads=17, chosen=None, rate=3, window=20)
LATENT = Sparse(
    "sparse",
    heads=3,
    width=40,
    value_width=24,
    scale=0.3,
    chosen=50,
    q_apart=True,
    k_eps=1e-6,
    k_normed=24,
    turned=16,
)
CASES = {
    "chosen entries": CHOSEN,
    "all entries": POOLED,
    "a window alone": replace(POOLED, rate=None),
    "rows of one memory": LATENT,
    "halves turn, a wholly normed row": replace(LATENT, layout="halves", k_normed=None, q_eps=1e-5, q_apart=False),
    "neither norm nor turn": replace(CHOSEN, q_eps=None, k_eps=None, turned=0, back=False, sink=False),
    "a row that is there": replace(CHOSEN, writes=False),
    "a chosen row that is there": replace(LATENT, writes=False, turned=0),
    "a padded width": replace(CHOSEN, width=24, value_width=24),
}
Load = Callable[[Kernel], Any]


def inputs(k: Sparse, dtype: torch.dtype, starts: list[int], entries: int = 90, slots: int = 100) -> dict[str, Tensor]:
    """Return a step's tensors; slots that nothing was written to hold no number."""
    torch.manual_seed(0)
    batch, pos = len(starts), torch.tensor(starts)
    angle = torch.rand(batch, 1, 1, max(2, k.turned) // 2) * 6
    cos, sin = angle.cos(), angle.sin()
    if k.layout == "halves":
        cos, sin = torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)
    slots = min(k.window or slots, slots)
    keys, made = torch.randn(batch, slots, 1, k.width), torch.randn(batch, entries, 1, k.width)
    behind = torch.arange(slots) > pos[:, None] - (1 if k.writes else 0)
    whole = (pos + 1) // (k.rate or 1)
    values = {
        "q": torch.randn(batch, 1, k.heads, k.value_width if k.q_apart else k.width),
        "q_turned": torch.randn(batch, 1, k.heads, max(1, k.tail)),
        "k": torch.randn(batch, 1, 1, k.width),
        "cos": cos,
        "sin": sin,
        "k_norm": torch.randn(k.normed),
        "sink": torch.randn(k.heads),
        "keys": keys.masked_fill(behind[:, :, None, None], torch.nan),
        "entries": made.masked_fill((torch.arange(entries) >= whole[:, None])[:, :, None, None], torch.nan),
    }
    found = {name: x.to(dtype) for name, x in values.items()} | {"start": pos, "chosen": numbers(k, pos)}
    return {name: found[name] for name in k.arguments}


def numbers(k: Sparse, pos: Tensor) -> Tensor:
    """Return distinct numbers of rows that each query sees, -1 where there are fewer."""
    most = k.chosen or 1
    rows = (pos + 1) // (k.rate or 1)
    taken = [torch.randperm(int(each))[:most] for each in rows]
    return torch.stack([functional.pad(each, (0, most - len(each)), value=-1) for each in taken])[:, None]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    folder, loaded = tmp_path_factory.mktemp("kernels"), dict[Kernel, Any]()

    def of(k: Kernel) -> Any:
        if k not in loaded:
            loaded[k] = module(folder, k)
        return loaded[k]

    return of


def step(program: Any, given: dict[str, Tensor], dtype: torch.dtype, plain: bool = False) -> tuple[Tensor, Tensor]:
    """Return what a step mixes, and the memory after it."""
    taken = {name: x.to(dtype) if x.is_floating_point() else x.clone() for name, x in given.items()}
    taken["keys"] = taken["keys"].clone()
    call = program.sparse_plain if plain else program.sparse
    return call(*taken.values()), taken["keys"]


def close(found: Tensor, expected: Tensor, bound: float) -> None:
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=bound)


@pytest.mark.parametrize("name", CASES)
def test_steps_at_several_places(load: Load, name: str) -> None:
    """Scores sum 40 products: float32 errs by some 1e-6 of values of up to 4."""
    k = CASES[name]
    for starts in ([0, 2, 3], [7, 90, 60]) if k.window is None else ([0, 2, 3], [7, 250, 60]):
        given = inputs(k, torch.float32, starts)
        found, kept = step(load(k), given, torch.float32)
        expected, written = step(load(k), given, torch.float64, plain=True)
        close(found, expected, 1e-5)
        torch.testing.assert_close(kept.double(), written, rtol=0, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("name", ["chosen entries", "all entries", "rows of one memory"])
def test_half_precision(load: Load, name: str) -> None:
    k = CASES[name]
    given = inputs(k, torch.float16, [90])
    exact, _ = step(load(k), given, torch.float64, plain=True)
    plain, _ = step(load(k), given, torch.float16, plain=True)
    found, _ = step(load(k), given, torch.float16)
    close(found, exact, 2 * float((plain.double() - exact).abs().max()))


def test_all_entries_chosen_are_all_entries(load: Load) -> None:
    """In any order, with -1 between them."""
    k = replace(CHOSEN, chosen=70)
    given = inputs(k, torch.float32, [240, 101])
    every = torch.full((2, 1, 70), -1)
    every[0, 0, :60], every[1, 0, 3:28] = torch.randperm(60), torch.randperm(25)
    found, _ = step(load(k), {**given, "chosen": every}, torch.float32)
    dense = {name: x for name, x in given.items() if name != "chosen"}
    expected, _ = step(load(replace(k, chosen=None)), dense, torch.float64, plain=True)
    close(found, expected, 1e-5)


@pytest.mark.parametrize("name", ["chosen entries", "rows of one memory"])
def test_none_chosen_and_some_twice(load: Load, name: str) -> None:
    """What is not there yet is not seen, whoever chooses it; a number that stands twice counts twice."""
    k = CASES[name]
    given = inputs(k, torch.float32, [31, 16, 40])
    chosen = torch.full((3, 1, k.chosen or 0), -1)
    chosen[1, 0, :5] = torch.tensor([2, 2, -1, 3, 2])
    chosen[2, 0, :4] = torch.tensor([10, 40, 5, 41])
    given["chosen"] = chosen
    expected, _ = step(load(k), given, torch.float64, plain=True)
    found, _ = step(load(k), given, torch.float32)
    close(found, expected, 1e-5)
    if not k.window:
        assert not found[0].any(), "nothing is seen"


def test_the_tokens_own_row_chosen_in_several_splits(load: Load) -> None:
    k = replace(LATENT, chosen=300)
    given = inputs(k, torch.float32, [70], slots=80)
    chosen = torch.full((1, 1, 300), -1)
    chosen[0, 0, [4, 150, 151, 299]] = 70
    chosen[0, 0, 160:190] = torch.arange(30)
    expected, _ = step(load(k), {**given, "chosen": chosen}, torch.float64, plain=True)
    found, _ = step(load(k), {**given, "chosen": chosen}, torch.float32)
    close(found, expected, 1e-5)


def test_token_by_token_as_one_attention(load: Load) -> None:
    """Rows go round in the window: each query sees its last eight tokens and all entries."""
    k = replace(CASES["neither norm nor turn"], chosen=None)
    given = inputs(k, torch.float32, [0])
    torch.manual_seed(1)
    q, rows, entries = torch.randn(21, k.heads, 32), torch.randn(21, 32), torch.randn(5, 32)
    keys, program = torch.full_like(given["keys"], torch.nan), load(k)
    for pos in range(21):
        seen = torch.cat((rows[max(0, pos - 7) : pos + 1], entries[: (pos + 1) // 4])).double()
        expected = torch.softmax(q[pos].double() @ seen.T * k.scale, -1) @ seen
        one = (q[None, None, pos], rows[pos].view(1, 1, 1, 32), keys, entries.view(1, 5, 1, 32), torch.tensor([pos]))
        close(program.sparse(*one)[0, 0], expected, 1e-5)


@pytest.mark.parametrize(
    "name", ["chosen entries", "all entries", "a window alone", "rows of one memory", "a row that is there"]
)
@pytest.mark.parametrize("pos", [1, 255])
def test_bytes(load: Load, name: str, pos: int) -> None:
    k = CASES[name]
    given = inputs(k, torch.float32, [pos], slots=300)
    load(k).sparse(*given.values())  # makes the counters
    with touched() as run:
        load(k).sparse(*given.values())
    stated = k.moved(4, 1, pos + 1)
    assert not run.operations
    assert len(run.launches) == stated.launches
    assert (run.read, run.written) == (stated.read, stated.written)


def test_the_op_is_registered_as_torch_wants(load: Load) -> None:
    torch.library.opcheck(load(LATENT).sparse, tuple(inputs(LATENT, torch.float32, [20, 7]).values()))


MANY = {
    "chosen entries": SparsePrefill("many", 5, 32, 32, 0.3, window=8, rate=4, chosen=9, sink=True),
    "all entries": SparsePrefill("many", 17, 32, 32, 0.3, window=20, rate=3),
    "rows of one memory": SparsePrefill("many", 3, 40, 24, 0.3, chosen=11),
}


def call(k: SparsePrefill, starts: list[int], length: int, slots: int = 0) -> dict[str, Tensor]:
    """Return a call's tensors; what is not there yet holds no number."""
    torch.manual_seed(0)
    batch, pos = len(starts), torch.tensor(starts)
    slots, last = slots or k.window or max(starts), pos + length
    behind = torch.arange(slots) >= pos[:, None]
    if not k.window:  # the call's rows follow
        behind = torch.cat((behind, torch.zeros(batch, length, dtype=torch.bool)), 1)
    chosen = torch.full((batch, length, k.chosen or 1), -1)
    for b, start in enumerate(starts):
        for t in range(length):
            some = torch.randperm((start + t + 1) // k.rate)[: k.chosen or 1]
            new = (some >= start) & (k.window is None)
            chosen[b, t, : len(some)] = torch.where(new, some - start + slots, some)
    values = {
        "q": torch.randn(batch, length, k.heads, k.width),
        "k": torch.randn(batch, length, 1, k.width),
        "sink": torch.randn(k.heads),
        "chosen": chosen,
        "keys": torch.randn(*behind.shape, 1, k.width).masked_fill(behind[:, :, None, None], torch.nan),
        "entries": torch.randn(batch, 30, 1, k.width),
        "start": pos,
    }
    values["entries"][(torch.arange(30) >= (last // k.rate)[:, None])] = torch.nan
    return {name: values[name] for name in k.arguments}


@pytest.mark.parametrize("name", MANY)
def test_many_tokens(load: Load, name: str) -> None:
    k = MANY[name]
    for starts in ([0], [0, 5, 41]):
        given = call(k, starts, 7)
        found = load(k).many(*given.values())
        wide = [x.double() if x.is_floating_point() else x for x in given.values()]
        close(found, load(k).many_plain(*wide), 1e-5)


def test_many_tokens_as_steps(load: Load) -> None:
    """Steps over a ring that a call of many tokens left behind go on where it ended: both see the same rows."""
    k = MANY["chosen entries"]
    one = replace(CASES["neither norm nor turn"], chosen=k.chosen, sink=True)
    given = call(k, [9], 6)
    found, keys = load(k).many(*given.values()), given["keys"].clone()
    for t in range(6):
        now = {**given, "start": given["start"] + t, "keys": keys}
        now |= {name: given[name][:, t : t + 1] for name in ("q", "k", "chosen")}
        mixed = load(one).sparse(*(now[name] for name in one.arguments))
        close(found[:, t], mixed[:, 0].double(), 1e-5)


@pytest.mark.parametrize("name", MANY)
def test_gradients_are_those_of_the_plain_form(load: Load, name: str) -> None:
    k = MANY[name]
    given = call(k, [0, 0], 5)
    found: list[list[Tensor]] = []
    for form in (load(k).many, load(k).many_plain):
        taken = {n: x.clone().nan_to_num().requires_grad_() if x.is_floating_point() else x for n, x in given.items()}
        form(*taken.values()).pow(2).sum().backward()
        found.append([x.grad for x in taken.values() if x.grad is not None])
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", MANY)
def test_bytes_of_many_tokens(load: Load, name: str) -> None:
    """A call that starts a sequence, in which whatever is chosen is all there is."""
    k = MANY[name]
    given = call(k, [0], 11)
    with touched() as run:
        load(k).many(*given.values())
    stated = k.moved(4, 1, 11)
    assert (len(run.launches), run.read, run.written) == (stated.launches, stated.read, stated.written)
