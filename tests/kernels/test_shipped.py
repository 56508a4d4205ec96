"""The tiles that packages ship, for the kernels of known models: as data, and compiled for every target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import regraft
from benchmarks.tiles import kernels_of
from regraft.codegen.kernels import tables
from regraft.codegen.kernels.ahead import Failed, Job, compile_ahead
from regraft.codegen.kernels.alone import kernel_file
from regraft.codegen.kernels.head import Head
from regraft.codegen.kernels.kernel import TARGETS, Kernel, Tile
from regraft.codegen.kernels.search import misfit
from regraft.codegen.kernels.tables import Shipped, Tiles, best, key, read, shipped, written

MODELS = ["gemma-4-E2B", "Qwen3-8B", "Llama-3.1-8B", "ZAYA1-8B", "laguna-XS.2", "DeepSeek-V4-Flash"]
HEAD = Head("head", width=64, vocab=256, eps=1e-6)
OTHER = Tile({**HEAD.tiles()[0].sizes, "PROGRAMS": 17}, 2, 1)


def test_an_entry_is_named_by_what_is_compiled_and_not_by_the_kernels_name() -> None:
    assert key(HEAD) == key(HEAD.called("another"))
    assert key(HEAD) != key(replace(HEAD, eps=1e-5))
    assert key(HEAD) != key(HEAD, "fp32")


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    entries = {"abc": Shipped("model head", True, {"sm_90": OTHER, "gfx942": HEAD.tiles()[0]})}
    file = tmp_path / "tiles.json"
    file.write_text(written({"3.9.0": entries, "4.0.0": {}}), encoding="utf-8")
    assert read(file) == {"3.9.0": entries, "4.0.0": {}}
    assert read(tmp_path / "none.json") == {}


def test_a_program_takes_and_counts_with_what_is_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = Shipped("model head", False, {"sm_90": OTHER})
    monkeypatch.setattr(tables, "shipped", lambda: {key(HEAD): entry})
    found = Tiles("bf16").of(HEAD.called("lm_head"))
    assert found == {"sm_90": OTHER}
    assert '"sm_90": {' in HEAD.text(found) or "'sm_90': {" in HEAD.text(found)
    assert "17" in HEAD.text(found)
    counted = replace(HEAD, counted=found["sm_90"])
    assert counted == HEAD
    assert counted.moved(2, 1, 1).written == 8 * 17 + 8 + 4
    assert Tiles("f16").of(HEAD) == found
    assert Tiles("f32").of(HEAD) == {}
    assert Tiles("bf16").of(replace(HEAD, vocab=512)) == {}


def test_what_was_not_searched_is_searched_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    first = Shipped("model head", False, {"sm_90": OTHER})
    asked: list[tuple[Kernel, str]] = []

    def best(kernel: Kernel, dtype: str) -> Mapping[str, Tile]:
        asked.append((kernel, dtype))
        return {"sm_90": HEAD.tiles()[0]}

    monkeypatch.setattr(tables, "shipped", lambda: {key(HEAD): first})
    monkeypatch.setattr(tables, "best", best)
    tiles = Tiles("f32", search=True)
    assert tiles.of(HEAD) == tiles.of(HEAD.called("lm_head")) == {"sm_90": HEAD.tiles()[0]}
    assert asked == [(HEAD.called("kernel"), "fp32")]
    assert Tiles("bf16", search=True).of(HEAD) == {"sm_90": HEAD.tiles()[0]}
    monkeypatch.setattr(tables, "shipped", lambda: {key(HEAD): replace(first, searched=True)})
    assert Tiles("bf16", search=True).of(HEAD) == {"sm_90": OTHER}


def assert_fit(found: Sequence[tuple[Kernel, Mapping[str, Tile]]]) -> None:
    """Check what kernels compile to with the tile of each target: nothing spills, all fits, loads are of 16 bytes."""
    jobs: list[Job] = []
    owners: list[Kernel] = []
    for kernel, tiles in found:
        assert set(tiles) == set(TARGETS), kernel.name
        bare = kernel.called("kernel")
        text = kernel_file([bare])
        for target, tile in tiles.items():
            jobs += [Job(text, function, tile, target) for function in bare.entries("bf16")]
        owners += [kernel] * (len(jobs) - len(owners))
    wide: dict[tuple[str, str], int] = {}
    for kernel, job, outcome in zip(owners, jobs, compile_ahead(jobs), strict=True):
        where = f"{kernel.name}, {job.target}, {job.tile.launch()}"
        assert not isinstance(outcome, Failed), where
        assert not (problem := misfit(outcome, job.tile, job.target)), f"{where}: {problem}"
        at = (kernel.name, job.target)
        wide[at] = wide.get(at, 0) + outcome.wide_loads
    assert not [at for at, count in wide.items() if not count], "loads of 16 bytes"


def test_the_first_tile_that_fits_is_found_for_every_target() -> None:
    kernels = {kernel.name: kernel for kernel in kernels_of(regraft.lift("builtin:Qwen3-0.6B").graph)}
    assert_fit([(kernels[name], best(kernels[name].called("kernel"), search=False)) for name in ("o", "embed_token")])


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_kernel_of_a_model_fits_every_target(model: str) -> None:
    known, found = shipped(), list[tuple[Kernel, Mapping[str, Tile]]]()
    for kernel in kernels_of(regraft.lift(f"builtin:{model}").graph):
        entry = known.get(key(kernel))
        assert entry is not None, f"{kernel.name} has no tiles: python -m benchmarks.tiles"
        found.append((kernel, entry.tiles))
    assert_fit(found)
