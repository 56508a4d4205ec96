"""Maps of a token beside rows pooled of several: each the same as alone, in every phase, in one launch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.codegen.kernels.compress import Compress
from regraft.codegen.kernels.kernel import Tile
from regraft.codegen.kernels.rows import RowsKernel, RowsWriter
from regraft.codegen.kernels.rows_and_pool import RowsAndPool
from regraft.ir.forms.rows import rows_form
from regraft.ir.parse import parse_graph
from tests.kernels.harness import module
from tests.kernels.test_compress import Given
from tests.kernels.touched import touched

MAPS = {
    "normed": (
        "%n = core.norm %x, weight=%g {eps = 1e-05}\n %y = core.linear %n, %w\n return %y",
        ["n = F.rms_norm(x, (24,), g, 1e-5)", "return F.linear(n, w)"],
    ),
    "two, and a norm behind": (
        "%a = core.linear %x, %w\n %b = core.linear %x, %u\n %n = core.norm %b {eps = 1e-05}\n return %a, %n",
        ["return F.linear(x, w), F.rms_norm(F.linear(x, u), (12,), None, 1e-5)"],
    ),
}
APART = Compress("", (20,), 4, overlap=False, turning=8)
CASES = {
    "one memory": ("normed", APART),
    "two memories": ("two, and a norm behind", replace(APART, widths=(40, 12), rate=2, overlap=True)),
    "none turn": ("two, and a norm behind", replace(APART, rate=3, turning=0)),
}


def mapped(name: str) -> RowsKernel:
    """Return a kernel of maps of 24 numbers."""
    text, plain = MAPS[name]
    weights = "\n".join(
        f'%{weight} = weight.load {{dtype = "f32", shape = {shape}}}'
        for weight, shape in (("w", [40, 24]), ("u", [12, 24]), ("g", [24]))
    )
    graph = parse_graph(f'graph @maps {{family = "test"}} (%x: f32[B, T, 24]) {{\n{weights}\n{text}\n}}')
    ops = list(graph.run_time())
    form = rows_form(ops)
    assert form is not None
    read = dict.fromkeys(value for op in ops for value in op.operands if value.op is None or value.is_weight)
    names = {value: value.name for value in read} | {value: f"{value.name}_out" for value in graph.outputs}
    return RowsWriter(form, graph.outputs, names).kernel("", "x", plain)


def made(folder: Path, k: RowsAndPool) -> Any:
    """Return the kernel's module, with tiles so small that each kind of program is there several times."""
    found = module(folder, k)
    found.BOTH_TILES["default"] = Tile({"BN": 16, "BK": 16, "BLOCK": 16}).launch()
    return found


class Case:
    """What both kinds of programs are given, for some sequences."""

    def __init__(self, name: str, dtype: torch.dtype, batch: int) -> None:
        maps, pool = CASES[name]
        self.k = RowsAndPool("both", mapped(maps), pool)
        self.pooled = Given(pool, dtype, batch, 2 * pool.rate + 1)
        g = torch.Generator().manual_seed(1)
        self.x = torch.randn(self.pooled.tokens, batch, 1, 24, generator=g, dtype=torch.float64).to(dtype)
        shapes = {"w": (40, 24), "u": (12, 24), "g": (24,)}
        weights = {name: torch.randn(*shape, generator=g, dtype=torch.float64) / 5 for name, shape in shapes.items()}
        self.weights = [weights[name].to(dtype) for name in self.k.mapped.weights]

    def step(self, of: Any, memories: list[list[Tensor]], start: Tensor, count: Tensor, token: int) -> list[Tensor]:
        """Return what the maps give, and take the token at each sequence's start into memories."""
        found: list[Tensor] = []

        def both(*pooled: Tensor) -> None:
            given = of(self.x[token], *(weight.to(self.x.dtype) for weight in self.weights), *pooled)
            found.extend([given] if isinstance(given, Tensor) else given)

        self.pooled.step(both, memories, start, count)
        return found


def exact(case: Case, token: int) -> list[Tensor]:
    """Return what the maps give in float64."""
    scope: dict[str, Any] = {"F": torch.nn.functional, "x": case.x[token].double()}
    scope |= {name: weight.double() for name, weight in zip(case.k.mapped.weights, case.weights, strict=True)}
    *lines, last = case.k.mapped.plain
    exec("\n".join([*lines, last.replace("return", "given =")]), scope)
    return [scope["given"]] if isinstance(scope["given"], Tensor) else list(scope["given"])


@pytest.mark.parametrize("name", CASES)
def test_each_is_what_it_is_alone(name: str, tmp_path: Path) -> None:
    """Every phase of two windows: maps and pooled rows by their definitions in float64, tails as the plain form's."""
    for dtype, batch in ((torch.float32, 1), (torch.float16, 3)):
        case = Case(name, dtype, batch)
        of, given = made(tmp_path, case.k), case.pooled
        fused, plain = given.memories(), given.memories()
        least = 2e-6 if dtype == torch.float32 else 2**-9
        for token in range(given.tokens):
            start, count = torch.full((batch,), token), torch.ones(batch, dtype=torch.int64)
            found = case.step(of.both, fused, start, count, token)
            rounded = case.step(of.both_plain, plain, start, count, token)
            for x, y, z in zip(found, rounded, exact(case, token), strict=True):
                assert (x.shape, x.dtype) == (y.shape, y.dtype)
                assert (x - z).abs().max() <= max(2 * float((y - z).abs().max()), least)
        for i, (memory, other) in enumerate(zip(fused, plain, strict=True)):
            wanted = given.rows(i)
            assert (memory[0] - wanted).abs().max() <= max(2 * float((other[0] - wanted).abs().max()), least)
            assert all(torch.equal(x, y) for x, y in zip(memory[1:], other[1:], strict=True))


def test_sequences_stand_where_they_are_and_idle_ones_keep_what_they_have(tmp_path: Path) -> None:
    case = Case("two memories", torch.float32, 3)
    of, given = made(tmp_path, case.k), case.pooled
    fused, stands = given.memories(), torch.zeros(3, dtype=torch.int64)
    for token in range(5):
        count = torch.tensor([1, token % 2, 0]) * (stands < given.tokens)
        before = [[x.clone() for x in memory] for memory in fused]
        found = case.step(of.both, fused, stands, count, token)
        assert all((x - y).abs().max() < 2e-6 for x, y in zip(found, exact(case, token), strict=True))
        for memory, old in zip(fused, before, strict=True):
            assert all(torch.equal(x[count == 0], y[count == 0]) for x, y in zip(memory, old, strict=True))
        stands = stands + count
    assert stands.tolist() == [5, 2, 0]
    for i, memory in enumerate(fused):
        for row, rows in enumerate((stands // 2).tolist()):
            assert (memory[0][row, :rows] - given.rows(i)[row, :rows]).abs().sum() < 2e-5
            assert not memory[0][row, rows:].any()


@pytest.mark.parametrize("name", CASES)
def test_it_moves_what_it_says(name: str, tmp_path: Path) -> None:
    case = Case(name, torch.float32, 2)
    of, rate = made(tmp_path, case.k), case.pooled.k.rate
    memories, count = case.pooled.memories(), torch.ones(2, dtype=torch.int64)
    for token in range(2 * rate + 1):
        with touched() as run, torch.no_grad():
            case.step(of.both, memories, torch.full((2,), token), count, token)
        launched = [launch for launch in run.launches if launch.name == "both_kernel"]
        told = case.k.moved(4, 2, token + 1)
        assert (len(launched), told.launches) == (1, 1)
        if token >= rate:  # windows have one before them, and counters are there
            read, written = (sum(getattr(launch, what) for launch in launched) for what in ("read", "written"))
            weights = sum(size for name, size in case.k.mapped.inputs if name in case.k.mapped.weights) * 4
            assert (read, written) == (told.read - weights, told.written)  # weights are counted for each sequence


def test_the_op_says_what_it_changes(tmp_path: Path) -> None:
    case = Case("two memories", torch.float32, 1)
    of, given = made(tmp_path, case.k), list[tuple[Tensor, ...]]()
    case.pooled.step(lambda *rest: given.append(rest), case.pooled.memories(), torch.tensor([3]), torch.tensor([1]))
    arguments = (case.x[3], *case.weights, *given[0])
    torch.library.opcheck(of.both, arguments, test_utils=("test_schema", "test_faketensor"))
