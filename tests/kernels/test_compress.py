"""Memories of pooled rows, token by token: against their definition, the plain form, and a twin of DeepSeek V4."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.codegen.kernels.compress import Compress, CompressPrefill, Pooled
from regraft.codegen.kernels.kernel import Tile
from regraft.codegen.package import emit
from regraft.frontends.family import read_config
from regraft.frontends.folder import open_model
from regraft.frontends.lift import lift_config
from regraft.frontends.tensors import Declared
from regraft.frontends.twin import random_tensors, twin_config
from regraft.ir.source import TensorSource
from regraft.programs import load_program
from tests.kernels.harness import module
from tests.kernels.touched import touched

PLAIN = Compress("pooled", (40,), 4, overlap=False, turning=8)
CASES = {
    "apart": PLAIN,
    "overlapping": replace(PLAIN, overlap=True),
    "two memories": replace(PLAIN, widths=(40, 12), overlap=True),
    "odd windows, all channels turn": replace(PLAIN, widths=(20, 8), rate=3, overlap=True, turning=8),
    "odd windows apart, none turn": replace(PLAIN, rate=5, turning=0, eps=0.5),
    "two tokens": replace(PLAIN, rate=2, overlap=True, turning=40),
}


def tiled(folder: Path, k: Pooled) -> Any:
    """Return the kernel's module, with tiles so small that several programs share a row and the last is ragged."""
    made = module(folder, k)
    made.POOLED_TILES["default"] = Tile({"BLOCK": 16}).launch()
    return made


class Given:
    """Tokens of a few sequences, and what is trained."""

    def __init__(self, k: Pooled, dtype: torch.dtype, batch: int, tokens: int) -> None:
        g = torch.Generator().manual_seed(k.rate)

        def of(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

        self.k, self.batch, self.tokens = k, batch, tokens
        lines = [k.halves * width for width in k.widths]
        self.values = [of(batch, tokens, line) for line in lines]
        self.gates = [2 * of(batch, tokens, line) for line in lines]
        self.biases = [of(k.rate, line) for line in lines]
        self.weights = [1 + of(width) / 4 for width in k.widths]
        angles = 6 * of(tokens, k.turning // 2)
        self.cos, self.sin = angles.cos(), angles.sin()

    def memories(self) -> list[list[Tensor]]:
        """Return empty memories, as the torch target makes them."""
        k, like = self.k, self.values[0]
        wide = torch.promote_types(like.dtype, torch.float32)
        tails = (k.rate - 1, 2 * k.rate - 1)[: k.halves]
        return [
            [like.new_zeros(self.batch, self.tokens // k.rate, 1, width)]
            + [like.new_zeros(self.batch, rows, 2 * width, dtype=wide) for rows in tails]
            for width in k.widths
        ]

    def step(self, of: Any, memories: list[list[Tensor]], start: Tensor, count: Tensor) -> None:
        """Take the token at each sequence's start into memories."""
        row, at = torch.arange(self.batch), start.clamp(max=self.tokens - 1)
        arguments: list[Tensor] = []
        for i, memory in enumerate(memories):
            new = [x[i][row, at][:, None].contiguous() for x in (self.values, self.gates)]
            arguments += [*memory, *new, self.biases[i], self.weights[i]]
        first = at // self.k.rate * self.k.rate
        turn = [x[first][:, None, None].contiguous() for x in (self.cos, self.sin)] if self.k.turning else []
        of(*arguments, *turn, start, count)

    def rows(self, i: int) -> Tensor:
        """Return the rows of a memory by their definition, in float64."""
        k, width = self.k, self.k.widths[i]
        values, gates, bias = (x.double() for x in (self.values[i], self.gates[i], self.biases[i]))
        made: list[Tensor] = []
        for end in range(k.rate, self.tokens + 1, k.rate):
            tokens = slice(end - k.rate, end)
            mine = [(values[:, tokens, -width:], gates[:, tokens, -width:] + bias[:, -width:])]
            if k.overlap and end > k.rate:
                tokens = slice(end - 2 * k.rate, end - k.rate)
                mine.append((values[:, tokens, :width], gates[:, tokens, :width] + bias[:, :width]))
            taken, shares = (torch.cat(x, 1) for x in zip(*mine, strict=True))
            row = (shares.softmax(1) * taken).sum(1)
            row = row / (row.square().mean(-1, keepdim=True) + k.eps).sqrt() * self.weights[i].double()
            if k.turning:
                turned = torch.complex(*(x[end - k.rate].double() for x in (self.cos, self.sin)))
                pairs = torch.view_as_complex(row[:, width - k.turning :].unflatten(-1, (-1, 2)).contiguous())
                row = torch.cat((row[:, : width - k.turning], torch.view_as_real(pairs * turned).flatten(1)), 1)
            made.append(row)
        return torch.stack(made, 1)[:, :, None]


@pytest.mark.parametrize("case", CASES)
def test_token_by_token_it_makes_the_rows_of_the_definition(case: str, tmp_path: Path) -> None:
    """Every phase of two windows, in float32 the same as all at once, in float16 no worse than the plain form."""
    k = CASES[case]
    made = tiled(tmp_path, k)
    for dtype, batch in ((torch.float32, 1), (torch.float16, 2)):
        given = Given(k, dtype, batch, 2 * k.rate + 1)
        fused, plain = given.memories(), given.memories()
        for t in range(given.tokens):
            start, count = torch.full((batch,), t), torch.ones(batch, dtype=torch.int64)
            given.step(made.pooled, fused, start, count)
            given.step(made.pooled_plain, plain, start, count)
        for i, (memory, other) in enumerate(zip(fused, plain, strict=True)):
            wanted = given.rows(i)
            least = 2e-6 if dtype == torch.float32 else float(wanted.abs().max()) * 2**-11
            assert (memory[0] - wanted).abs().max() <= max(2 * float((other[0] - wanted).abs().max()), least)
            assert all(torch.equal(x, y) for x, y in zip(memory[1:], other[1:], strict=True))


@pytest.mark.parametrize("case", ["apart", "two memories"])
def test_rows_stand_where_they_are_and_idle_ones_keep_what_they_have(case: str, tmp_path: Path) -> None:
    k = CASES[case]
    made, given = tiled(tmp_path, k), Given(k, torch.float32, 3, 12)
    fused, stands = given.memories(), torch.zeros(3, dtype=torch.int64)
    for step in range(17):
        count = torch.tensor([1, step % 2, int(step % 3 > 0)]) * (stands < 12)
        before = [[x.clone() for x in memory] for memory in fused]
        given.step(made.pooled, fused, stands, count)
        idle = count == 0
        for memory, old in zip(fused, before, strict=True):
            assert all(torch.equal(x[idle], y[idle]) for x, y in zip(memory, old, strict=True))
        stands = stands + count
    assert stands.tolist() == [12, 8, 11]
    for i, memory in enumerate(fused):
        wanted = given.rows(i)
        for row, stand in enumerate(stands.tolist()):
            torch.testing.assert_close(
                memory[0][row, : stand // 4].double(), wanted[row, : stand // 4], atol=2e-6, rtol=0
            )
            assert not memory[0][row, stand // 4 :].any()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The functions of the torch target's program of a twin of DeepSeek V4."""
    config = twin_config(open_model("builtin:DeepSeek-V4-Flash").config)
    graph = lift_config(read_config(config), Declared("f32"))
    source = TensorSource({name: torch.from_numpy(array) for name, array in random_tensors(graph, 0).items()})
    model: Any = load_program(emit(graph, source, tmp_path_factory.mktemp("program") / "package"))
    return SimpleNamespace(**type(model).run.__globals__)


@pytest.mark.parametrize("rate", [4, 8])
def test_what_the_torch_target_keeps_is_continued(rate: int, program: Any, tmp_path: Path) -> None:
    """The torch target's functions take some tokens at once, then kernels go on with what these kept."""
    k = replace(PLAIN, rate=rate, overlap=rate == 4)
    made, given, first = (
        tiled(tmp_path, k),
        Given(k, torch.float32, 2, 3 * rate),
        torch.tensor([rate + 2, 2 * rate - 1]),
    )
    memory = program.new_memories(((program.Every(rate, k.overlap), (1, 40)),), given.values[0], 2, given.tokens)[0]
    assert [x.shape for x in memory] == [x.shape for x in given.memories()[0]]
    start, pos = torch.zeros(2, dtype=torch.int64), torch.arange(2 * rate).expand(2, -1)
    pool = program.pool_overlapping if k.overlap else program.pool
    rows = pool(memory, *(x[0][:, : 2 * rate] for x in (given.values, given.gates)), given.biases[0], start, first)
    rows = program.rms_norm_wide(rows, given.weights[0], k.eps).unflatten(-1, (1, 40))
    turn = tuple(x[::rate][:2][None, :, None] for x in (given.cos, given.sin))
    keys = torch.cat((rows[..., :-8], program.rotate_pairs(rows[..., -8:], turn)), -1)
    view = program.pooled_view(pos, first, rate, memory[0].shape[1], True, torch.float32)
    program.keep_pooled(memory, (keys,), view)
    for _ in range(rate + 1):
        given.step(made.pooled, [list(memory)], first, torch.ones(2, dtype=torch.int64))
        first = first + 1
    for row, rows_there in enumerate((first // rate).tolist()):
        wanted = given.rows(0)[row, :rows_there]
        torch.testing.assert_close(memory[0][row, :rows_there].double(), wanted, atol=2e-6, rtol=0)


def many(k: Compress, kept: bool = True) -> CompressPrefill:
    """Return the kernel that takes many tokens."""
    return CompressPrefill(**asdict(k), kept=kept)


def call(of: Any, given: Given, tails: list[list[Tensor]], start: list[int], count: list[int]) -> list[Tensor]:
    """Take some tokens of each sequence at once; the calls are as long as the longest."""
    k, length = given.k, max(count)
    at = (torch.tensor(start)[:, None] + torch.arange(length)).clamp(max=given.tokens - 1)
    arguments: list[Tensor] = []
    for i in range(len(k.widths)):
        new = [torch.take_along_dim(x[i], at[..., None], 1) for x in (given.values, given.gates)]
        arguments += [*(tails[i] if tails else []), *new, given.biases[i], given.weights[i]]
    first = (torch.tensor(start)[:, None] // k.rate + torch.arange(-(-length // k.rate))) * k.rate
    first = first.clamp(max=given.tokens - 1)
    turn = [x[first][:, :, None].contiguous() for x in (given.cos, given.sin)] if k.turning else []
    made = of(*arguments, *turn, torch.tensor(start), torch.tensor(count))
    return [made] if isinstance(made, Tensor) else list(made)


@pytest.mark.parametrize("case", CASES)
def test_calls_of_any_length_make_the_same_rows(case: str, tmp_path: Path) -> None:
    """Sequences that stand at different places of their windows, idle ones among them; tails are exactly the same."""
    k, dtype = many(CASES[case]), torch.float32
    made, given = module(tmp_path, k), Given(k, dtype, 3, 3 * k.rate + 1)
    fused, plain = ([memory[1:] for memory in given.memories()] for _ in range(2))
    stands = [0, 0, 0]
    for counts in ([2, k.rate, k.rate + 1], [1, 0, 2 * k.rate - 1], [2 * k.rate - 1, 1, 1]):
        got = call(made.pooled, given, fused, stands, counts)
        other = call(made.pooled_plain, given, plain, stands, counts)
        for i, (rows, same) in enumerate(zip(got, other, strict=True)):
            assert all(torch.equal(x, y) for x, y in zip(fused[i], plain[i], strict=True))
            assert (rows - same).abs().max() <= 4e-6
            for row, (start, count) in enumerate(zip(stands, counts, strict=True)):
                first, last = start // k.rate, (start + count) // k.rate
                wanted = given.rows(i)[row, first:last]
                torch.testing.assert_close(rows[row, : last - first].double(), wanted, atol=4e-6, rtol=0)
                assert not rows[row, last - first :].any()
        stands = [start + count for start, count in zip(stands, counts, strict=True)]


@pytest.mark.parametrize("case", ["odd windows apart, none turn", "two memories"])
def test_whole_sequences_need_no_tails(case: str, tmp_path: Path) -> None:
    k = many(CASES[case], kept=False)
    made = module(tmp_path, k)
    for dtype in (torch.float32, torch.float16):
        given = Given(k, dtype, 2, 2 * k.rate + 1)
        got = call(made.pooled, given, [], [0, 0], [given.tokens, 2 * k.rate - 1])
        plain = call(made.pooled_plain, given, [], [0, 0], [given.tokens, 2 * k.rate - 1])
        for i, (rows, other) in enumerate(zip(got, plain, strict=True)):
            wanted = given.rows(i)
            least = 4e-6 if dtype == torch.float32 else float(wanted.abs().max()) * 2**-11
            assert (rows[0, :2] - wanted[0]).abs().max() <= max(
                2 * float((other[0, :2] - wanted[0]).abs().max()), least
            )
            assert not rows[:, 2:].any()
            assert not rows[1, 1:].any()


@pytest.mark.parametrize("case", ["apart", "two memories"])
def test_calls_of_many_tokens_move_the_bytes_that_they_say(case: str, tmp_path: Path) -> None:
    for kept in (True, False):
        k = many(CASES[case], kept)
        made = module(tmp_path, k)
        for tokens in (3, 10, 12):
            given = Given(k, torch.float16, 2, tokens)
            tails = [memory[1:] for memory in given.memories()] if kept else []
            with touched() as run:
                call(made.pooled, given, tails, [0, 0], [tokens, tokens])
            moved = k.moved(2, 2, tokens)
            assert (run.read, run.written, len(run.launches)) == (moved.read, moved.written, moved.launches), tokens


@pytest.mark.parametrize("case", ["apart", "two memories"])
def test_it_moves_the_bytes_that_it_says(case: str, tmp_path: Path) -> None:
    k = CASES[case]
    made, given = module(tmp_path, k), Given(k, torch.float16, 2, 8)
    for context in (6, 8):
        with touched() as run:
            given.step(made.pooled, given.memories(), torch.full((2,), context - 1), torch.ones(2, dtype=torch.int64))
        moved = k.moved(2, 2, context)
        assert (run.read, run.written, len(run.launches)) == (moved.read, moved.written, moved.launches)


def test_the_op_says_what_it_changes(tmp_path: Path) -> None:
    made, given = tiled(tmp_path, CASES["two memories"]), Given(CASES["two memories"], torch.float32, 2, 8)
    start, count = torch.tensor([7, 2]), torch.ones(2, dtype=torch.int64)

    def check(*arguments: Tensor) -> None:
        torch.library.opcheck(made.pooled, arguments, test_utils=("test_schema", "test_faketensor"))

    given.step(check, given.memories(), start, count)
