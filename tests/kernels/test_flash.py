"""Attention of many tokens: against what each query sees of a history, in every mask, layout of rows and width."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.codegen.kernels.ahead import Job, built
from regraft.codegen.kernels.alone import kernel_file
from regraft.codegen.kernels.flash import Flash, examples
from regraft.codegen.kernels.kernel import TARGETS
from regraft.codegen.kernels.search import device_of
from tests.kernels.harness import module
from tests.kernels.touched import touched

PLAIN = Flash("flash", heads=4, kv_heads=2, width=16, value_width=16, scale=0.25)
CASES = {
    "causal": PLAIN,
    "a window": replace(PLAIN, window=5),
    "a window wider than a tile": replace(PLAIN, window=40),
    "first rows beside a window": replace(PLAIN, window=5, first=3, kept=3),
    "fewer first rows than are kept": replace(PLAIN, window=18, first=2, kept=4),
    "windows that start with a block": replace(PLAIN, window=6, rate=4),
    "blocks longer than a window": replace(PLAIN, window=3, rate=4),
    "a cap": replace(PLAIN, softcap=2.0),
    "a sink": replace(PLAIN, sink=True),
    "a cap and a sink": replace(PLAIN, softcap=2.0, sink=True),
    "a window and a cap": replace(PLAIN, window=5, softcap=2.0),
    "a window and a sink": replace(PLAIN, window=5, sink=True),
    "all at once": replace(PLAIN, window=5, first=2, kept=4, softcap=2.0, sink=True),
    "blocks, first rows and a sink": replace(PLAIN, window=3, rate=4, first=1, kept=1, sink=True),
    "one head each": replace(PLAIN, kv_heads=4),
    "three heads for each": replace(PLAIN, heads=6),
    "uneven groups": replace(PLAIN, heads=5, kv_heads=3, head_map=(0, 0, 0, 1, 2)),
    "heads in another order, with a sink": replace(PLAIN, head_map=(1, 0, 1, 0), sink=True),
    "narrow heads": replace(PLAIN, width=8, value_width=4),
    "a width in two products": replace(PLAIN, width=40),
    "a width in two products, the second padded": replace(PLAIN, width=36, value_width=20),
    "a padded width": replace(PLAIN, width=28, value_width=24),
    "keys are values": replace(PLAIN, shared=True),
    "a latent and a rotated key": replace(PLAIN, heads=3, kv_heads=1, width=40, value_width=32, shared=True),
    "values that two programs share": replace(PLAIN, width=16, value_width=300),
    "values narrower than the latent": replace(PLAIN, width=24, value_width=16, shared=True),
}
COVERED = (  # by cases with more than they have
    "a cap and a sink",
    "a window and a cap",
    "a window and a sink",
    "windows that start with a block",
    "fewer first rows than are kept",
    "three heads for each",
    "a width in two products",
    "values narrower than the latent",
)
TESTS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
TILES = {"BM": 16, "BN": 16, "num_warps": 4, "num_stages": 1}


class Call:
    """A call's tensors, and the tokens from the start of each sequence on: row `at` of `keys[b]` is token `at`'s.

    Empty slots of memories, and the rows of tokens that are not real, hold a number that no result may show.
    """

    def __init__(self, k: Flash, held: int, length: int, starts: list[int], counts: list[int]) -> None:
        g, batch, total = torch.Generator().manual_seed(length), len(starts), max(starts) + length
        self.k, self.held, self.start, self.count = k, held, torch.tensor(starts), torch.tensor(counts)
        self.keys = torch.randn(batch, total, k.kv_heads, k.width, generator=g)
        values = torch.randn(batch, total, k.kv_heads, k.value_width, generator=g)
        self.values = self.keys[..., : k.value_width] if k.shared else values
        self.q = torch.randn(batch, length, k.heads, k.width, generator=g)
        self.sinks = [torch.randn(k.heads, generator=g)] if k.sink else []

    def rows(self, tokens: Tensor) -> Tensor:
        """Return the rows [B, N + T, ...] that a memory shows which took one token after the other."""
        rows = torch.full((len(tokens), self.held + self.q.shape[1], *tokens.shape[2:]), 50.0)
        for b, (start, count) in enumerate(zip(self.start.tolist(), self.count.tolist(), strict=True)):
            for at in range(start if self.held else 0):
                kept = self.k.kept if self.k.window is not None else 0
                rows[b, at if at < kept else kept + (at - kept) % (self.held - kept)] = tokens[b, at]
            rows[b, self.held : self.held + count] = tokens[b, start : start + count]
        return rows

    def given(self, dtype: torch.dtype) -> list[Tensor]:
        """Return what the op takes, in order."""
        values = [] if self.k.shared else [self.rows(self.values)]
        floats = [self.q, self.rows(self.keys), *values, *self.sinks]
        return [*(x.to(dtype) for x in floats), self.start, self.count]

    def sees(self, b: int, at: int, other: int) -> bool:
        """Return whether the token at a position sees another."""
        if other > at or (self.held == 0 and other < self.start[b]):
            return False
        if self.k.window is None or other < self.k.first:
            return True
        block = -(-max(at - self.k.window + 1, 0) // self.k.rate) * self.k.rate
        return other >= block

    def expected(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the result for tensors that were rounded to a dtype, query by query, in float64."""
        q, keys, values = (x.to(dtype).double() for x in (self.q, self.keys, self.values))
        heads = self.k.head_map or [head // (self.k.heads // self.k.kv_heads) for head in range(self.k.heads)]
        mixed = torch.zeros(*q.shape[:3], self.k.value_width, dtype=torch.float64)
        lse = torch.full(q.shape[:3], -torch.inf, dtype=torch.float64)
        for b, (start, count) in enumerate(zip(self.start.tolist(), self.count.tolist(), strict=True)):
            for t in range(count):
                seen = [other for other in range(start + t + 1) if self.sees(b, start + t, other)]
                score = torch.einsum("hd,shd->hs", q[b, t], keys[b, seen][:, heads]) * self.k.scale
                if self.k.softcap is not None:
                    score = torch.tanh(score / self.k.softcap) * self.k.softcap
                sink = [x.to(dtype).double()[:, None] for x in self.sinks]
                lse[b, t] = torch.logsumexp(torch.cat((score, *sink), 1), 1)
                if seen:
                    mixed[b, t] = torch.einsum(
                        "hs,shd->hd", (score - lse[b, t, :, None]).exp(), values[b, seen][:, heads]
                    )
        return mixed, lse * self.k.log2e


def calls(k: Flash) -> list[Call]:
    """Return a call after earlier ones with rows of other lengths, idle and full, and one without a memory."""
    held = 40 if k.window is None else min(40, k.window + k.kept)
    return [Call(k, held, 21, [0, 9, 19], [21, 0, 10]), Call(k, 0, 19, [0], [19])]


def made_of(k: Flash, folder: Path) -> Any:
    """Return the kernel's module, with small tiles."""
    made = module(folder, k)
    made.FLASH_TILES["default"] = TILES
    return made


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the greatest difference; both must be -inf in the same places."""
    assert torch.equal(found == -torch.inf, expected == -torch.inf)
    return (found.double() - expected).nan_to_num(0.0).abs().max().item()


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow) if case in COVERED else case for case in CASES]
)
def test_each_query_mixes_what_it_sees(case: str, tmp_path: Path) -> None:
    k = CASES[case]
    made = made_of(k, tmp_path)
    for call in calls(k):
        mixed, lse = made.flash(*call.given(torch.float32))
        expected = call.expected(torch.float32)
        allowed = 32 * torch.finfo(torch.float32).eps * 4  # sums of 40 to 60 products round on; values are up to 4
        assert difference(mixed, expected[0]) <= allowed
        assert difference(lse, expected[1]) <= 2 * allowed  # of scores, in bits
        mixed, lse = made.flash_plain(*call.given(torch.float64))
        assert difference(mixed, expected[0]) <= 1e-13
        assert difference(lse, expected[1]) <= allowed


@pytest.mark.parametrize("case", ["causal", "all at once", "a width in two products", "a latent and a rotated key"])
def test_half_precision_is_as_exact_as_the_plain_form(case: str, tmp_path: Path) -> None:
    k = CASES[case]
    made = made_of(k, tmp_path)
    for call in calls(k):
        given, (mixed, _) = call.given(torch.float16), call.expected(torch.float16)
        found, plain = (difference(f(*given)[0], mixed) for f in (made.flash, made.flash_plain))
        assert found <= max(2 * plain, torch.finfo(torch.float16).eps * 2)  # half a unit of values up to 4


@pytest.mark.parametrize("held", [0, 48])
def test_tiles_of_any_size_give_the_same(held: int, tmp_path: Path) -> None:
    k = replace(PLAIN, heads=6, window=30, first=2)
    made = made_of(k, tmp_path)
    given = Call(k, held, 37, [11], [37]).given(torch.float32)
    results = []
    for rows, keys in ((16, 16), (64, 16), (16, 64), (128, 32)):
        made.FLASH_TILES["default"] = {**TILES, "BM": rows, "BN": keys}
        results.append(made.flash(*given)[0])
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", ["causal", "all at once", "uneven groups", "keys are values"])
def test_gradients_are_those_of_the_plain_form(case: str, tmp_path: Path) -> None:
    k = CASES[case]
    made = made_of(k, tmp_path)
    *floats, start, count = calls(k)[0].given(torch.float32)
    grads = []
    for f, dtype in ((made.flash, torch.float32), (made.flash_plain, torch.float64)):
        given = [x.to(dtype).requires_grad_() for x in floats]
        mixed, _ = f(*given, start, count)
        grads.append(torch.autograd.grad((mixed * torch.linspace(-1, 1, mixed.numel()).view_as(mixed)).sum(), given))
    for found, expected in zip(*grads, strict=True):
        assert (found - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


def test_gradients_of_the_plain_form_are_those_of_finite_differences(tmp_path: Path) -> None:
    k = replace(PLAIN, heads=2, kv_heads=1, width=4, value_width=2, window=3, first=1, kept=1, softcap=2.0, sink=True)
    made = made_of(k, tmp_path)
    made.INTERPRETED = False
    *floats, start, count = Call(k, 4, 3, [0, 5], [3, 2]).given(torch.float64)
    given = [x.clone().clamp(-4, 4).requires_grad_() for x in floats]
    assert torch.autograd.gradcheck(lambda *x: made.flash(*x, start, count)[0], given)


def test_the_op_is_one_that_graphs_can_hold(tmp_path: Path) -> None:
    made = made_of(PLAIN, tmp_path)
    *floats, start, count = Call(PLAIN, 8, 5, [3, 0], [5, 2]).given(torch.float32)
    torch.library.opcheck(made.flash, (*(x.requires_grad_() for x in floats), start, count), test_utils=TESTS)


def test_a_plain_causal_model_has_none_of_the_branches_of_others() -> None:
    plain = PLAIN.text()
    for word in ("window", "oldest", "sink", "tanh", "_rest", "ring", "anchors", "kv_head = tl.where"):
        assert word not in plain
    assert "sink_ptr" in replace(PLAIN, sink=True).text()
    assert "tanh_of" in replace(PLAIN, softcap=2.0).text()
    assert "flash_oldest" in replace(PLAIN, window=4).text()


def test_the_library_takes_what_it_has_kernels_for() -> None:
    assert "scaled_dot_product_attention" in PLAIN.text()
    others = [
        replace(PLAIN, window=4),
        replace(PLAIN, sink=True),
        replace(PLAIN, softcap=2.0),
        replace(PLAIN, shared=True),
        replace(PLAIN, width=512, value_width=512),
        replace(PLAIN, width=24),
        replace(PLAIN, head_map=(0, 0, 0, 1)),
    ]
    assert not [k for k in others if "scaled_dot_product_attention" in k.text()]


def test_a_window_reads_its_band_only(tmp_path: Path) -> None:
    k = replace(PLAIN, window=16, value_width=32)
    made = made_of(k, tmp_path)
    q, rows, values, start, count = Call(k, 0, 64, [0], [64]).given(torch.float32)
    poisoned = rows.clone()
    poisoned[:, :8] = torch.nan  # a block of queries from token 56 on must not touch these, whatever their weight
    expected, found = made.flash(q, rows, values, start, count)[0], made.flash(q, poisoned, values, start, count)[0]
    torch.testing.assert_close(found[:, 40:], expected[:, 40:], rtol=0, atol=0)


def test_bytes_moved_are_those_touched(tmp_path: Path) -> None:
    for k in (PLAIN, replace(PLAIN, window=5, sink=True), replace(PLAIN, width=40, value_width=32, shared=True)):
        made = made_of(k, tmp_path)
        given = Call(k, 0, 20, [0, 0], [20, 20]).given(torch.float32)
        moved = k.moved(width=4, batch=2, context=20)
        with touched() as run, torch.no_grad():
            made.flash(*given)
        assert (run.read, run.written, len(run.launches)) == (moved.read, moved.written, moved.launches)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(examples())))
def test_the_first_tile_fits_every_target(number: int) -> None:
    k = examples()[number]
    (entry,) = k.entries("bf16")
    results = built([Job(kernel_file([k]), entry, k.tiles()[0], target) for target in TARGETS])
    for target, each in zip(TARGETS, results, strict=True):
        assert each.stack == 0
        assert each.shared <= (device_of(target).max_shared_memory_per_block_bytes or 0)
        assert each.wide_loads
    units = dict(zip(TARGETS, (set(each.matrix) for each in results), strict=True))
    assert units["gfx942"] == {"mfma"}
    assert units["sm_90"] == {"wgmma" if k.tiles()[0].sizes["BM"] >= 64 else "mma.sync"}
