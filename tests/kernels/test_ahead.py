from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from regraft.codegen.kernels import ahead
from regraft.codegen.kernels.ahead import Built, Failed, Job, built, compile_ahead, device_source
from regraft.codegen.kernels.alone import kernel_file, shelf
from regraft.codegen.kernels.flash import Flash
from regraft.codegen.kernels.grouped import Grouped
from regraft.codegen.kernels.kernel import TARGETS, Entry, Kernel, Tile
from regraft.codegen.kernels.listing import read_loop
from regraft.codegen.kernels.search import misfit
from regraft.ir.errors.kernels import KernelCompileError, TritonMissingError

UNITS = {"sm_80": {"mma.sync"}, "sm_90": {"mma.sync", "wgmma"}, "sm_100": {"mma.sync", "tcgen05.mma"}}
SHELF = [(f"{module}-{index}", kernel) for module, kernels in shelf().items() for index, kernel in enumerate(kernels)]
EVERYDAY = [(label, kernel) for label, kernel in SHELF if label in ("cca-0", "route-0", "streams-0")]  # quick ones

TEXT = """
import triton
import triton.language as tl

WIDTH = tl.constexpr(4)
OTHER = tl.constexpr(5)


@triton.jit
def twice(x):
    return x * 2.0


@triton.jit
def unused(x):
    return x


@triton.jit
def twice_kernel(x, y, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y + offs, twice(tl.load(x + offs, mask=offs < n)) + WIDTH, mask=offs < n)


@triton.jit
def product_kernel(a, b, c, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    at = i[:, None] * BLOCK + i[None, :]
    tl.store(c + at, tl.dot(tl.load(a + at), tl.load(b + at)).to(tl.bfloat16))


def plain(x):
    return 2 * x + 4
"""
TWICE = Entry("twice_kernel", {"x": "*bf16", "y": "*bf16", "n": "i32:16"})
PRODUCT = Entry("product_kernel", {"a": "*bf16", "b": "*bf16", "c": "*bf16"})


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("REGRAFT_CACHE", str(tmp_path))
    return tmp_path / "kernels"


def test_only_what_a_function_names_is_compiled() -> None:
    source = device_source(TEXT, "twice_kernel")
    assert "def twice(x)" in source
    assert "WIDTH" in source
    assert not any(name in source for name in ("unused", "OTHER", "plain", "product_kernel"))


def test_loads_and_matrix_units_of_every_target_are_found() -> None:
    jobs = [Job(TEXT, TWICE, Tile({"BLOCK": 4096}), target) for target in TARGETS]
    for each in built(jobs):
        assert (each.stack, each.shared, each.matrix) == (0, 0, {})
        assert each.wide_loads >= 1
        assert each.registers >= 8
        assert each.code >= 64
    jobs = [Job(TEXT, PRODUCT, Tile({"BLOCK": 64}), target) for target in TARGETS]
    units = [set(each.matrix) for each in built(jobs)]
    assert units == [{"mma.sync"}, {"wgmma"}, {"tcgen05.mma"}, {"mfma"}]
    (unaligned,) = built(
        [Job(TEXT, Entry("twice_kernel", {**TWICE.arguments, "n": "i32"}), Tile({"BLOCK": 64}), "sm_90")]
    )
    assert unaligned.wide_loads == 0


LOOP = """
    %a = tt.load %p : tensor<64x64x!tt.ptr<bf16>> loc(#loc1)
    %r:2 = scf.for %i = %c0 to %n step %c1 iter_args(%x = %y) -> (f32)  : i32 {
      %b = tt.load %q : tensor<32x64x!tt.ptr<f32>> loc(#loc1)
      %s = scf.for %j = %c0 to %n step %c1 iter_args(%x = %y) -> (f32)  : i32 {
        %k = tt.load %q, %m, %o {cache = 1} : tensor<32x128x!tt.ptr<bf16>> loc(#loc1)
        %d = tt.dot %a, %k, %c, inputPrecision = tf32 : tensor<64x128xbf16> * tensor<128x32xbf16> -> tensor<64x32xf32>
      } loc(#loc2)
      %e = tt.dot %a, %k, %c : tensor<16x16xbf16> * tensor<16x32xbf16> -> tensor<16x32xf32>
    }
"""


def test_the_loop_that_multiplies_most_is_found() -> None:
    assert read_loop(LOOP) == (32 * 128 * 2, 2 * 64 * 128 * 32)
    assert read_loop(LOOP.replace("tt.dot", "tt.add")) == (0, 0)


def test_results_are_kept_by_what_they_depend_on(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(TEXT, TWICE, Tile({"BLOCK": 256}), "sm_90")
    (first,) = built([job])
    (file,) = own_cache.iterdir()
    assert json.loads(file.read_bytes())["registers"] == first.registers
    monkeypatch.setattr(sys, "executable", "/nowhere")  # from here on nothing can be compiled
    assert built([Job(TEXT.replace("2 * x", "x + x"), TWICE, job.tile, "sm_90"), job]) == [first, first]
    with pytest.raises(FileNotFoundError):
        built([Job(TEXT.replace("x * 2.0", "x + x"), TWICE, job.tile, "sm_90")])
    file.write_text("{}")
    with pytest.raises(FileNotFoundError):
        built([job])


def test_a_job_that_fails_says_why_and_the_others_go_on(own_cache: Path) -> None:
    wrong = TEXT.replace("x * 2.0", "x.twice()")
    jobs = [Job(text, TWICE, Tile({"BLOCK": 256}), "gfx942") for text in (wrong, TEXT)]
    failed, fine = compile_ahead(jobs)
    assert isinstance(failed, Failed)
    assert isinstance(fine, Built)
    assert len(list(own_cache.iterdir())) == 1
    with pytest.raises(KernelCompileError, match="twice_kernel does not compile for gfx942") as caught:
        built(jobs[:1])
    assert "has no attribute 'twice'" in caught.value.text
    assert "x.twice()" in "".join(caught.value.excerpt)


def test_a_compiler_that_dies_loses_one_job_only(own_cache: Path) -> None:
    dies = TEXT.replace("import triton\n", "import os; os.abort()\nimport triton\n")
    jobs = [Job(dies, TWICE, Tile({"BLOCK": 256}), "sm_90"), Job(TEXT, TWICE, Tile({"BLOCK": 256}), "sm_90")]
    assert all(isinstance(outcome, Built) for outcome in compile_ahead(jobs)), "imports of the text are not run"
    dies = TEXT.replace("WIDTH = tl.constexpr(4)", "WIDTH = tl.constexpr(__import__('os').abort())")
    failed, fine = compile_ahead([Job(dies, TWICE, Tile({"BLOCK": 256}), "sm_90"), jobs[1]])
    assert isinstance(failed, Failed)
    assert "process ended" in failed.reason
    assert isinstance(fine, Built)


def test_a_missing_triton_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead.triton_version.cache_clear()
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(TritonMissingError, match="needs triton"):
        compile_ahead([])
    ahead.triton_version.cache_clear()


def fitting(kernel: Kernel, target: str, tiles: Sequence[Tile]) -> list[dict[str, int]]:
    """Return the matrix instructions of a kernel's functions, of the first tile that fits a target."""
    text, problems = kernel_file([kernel]), list[str]()
    for tile in tiles:
        found = built([Job(text, entry, tile, target) for entry in kernel.entries("bf16")])
        here = [why for each in found if (why := misfit(each, tile, target))]
        here += ["a function without loads of 16 bytes" for each in found if not each.wide_loads]
        if not here:
            return [dict(each.matrix) for each in found]
        problems.append(f"{tile.launch()}: {', '.join(here)}")
    pytest.fail(f"{kernel.name} on {target}: {'; '.join(problems)}")


@pytest.mark.parametrize("kernel", [kernel for _, kernel in EVERYDAY], ids=[label for label, _ in EVERYDAY])
def test_the_quick_ones_fit_an_h100(kernel: Kernel) -> None:
    fitting(kernel, "sm_90", kernel.tiles()[:1])


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [kernel for _, kernel in SHELF], ids=[label for label, _ in SHELF])
def test_every_kernel_fits_every_target(kernel: Kernel) -> None:
    """The first tile runs where no other was chosen; other targets than an H100 may have another one."""
    matrix = {"sm_90": fitting(kernel, "sm_90", kernel.tiles()[:1])}
    matrix |= {target: fitting(kernel, target, kernel.tiles()) for target in TARGETS if target != "sm_90"}
    for target, functions in matrix.items():
        assert [bool(each) for each in functions] == [bool(each) for each in matrix["sm_90"]], target
        assert all(set(each) <= UNITS.get(target, {"mfma"}) for each in functions)
    rows = "BM" if isinstance(kernel, Flash) else "BLOCK_T" if isinstance(kernel, Grouped) else ""
    if kernel.tiles()[0].sizes.get(rows, 0) >= 64:
        assert any("wgmma" in each for each in matrix["sm_90"]), "64 rows and more are for Hopper's own unit"
