"""Tiles of a package timed one by one, here by a clock that looks at the tile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from regraft.cli.main import main
from regraft.codegen.package import emit
from regraft.codegen.torch.forms import Forms
from regraft.ir.errors.kernels import TuneDeviceError
from regraft.passes.fusion import fuse_decode
from regraft.passes.fusion.prefill import fuse_prefill
from regraft.programs import load_program
from regraft.tuning import Call, kernels_of, recorded, timed_tiles, tune, write
from tests.codegen.programs import DECODERS, source_of
from tests.ir.models import decoder

GRAPH = decoder(DECODERS["moe"])
TARGET = "sm_90"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    forms = Forms(GRAPH, fused=fuse_decode(GRAPH), prefill=fuse_prefill(GRAPH))
    return emit(forms, source_of(GRAPH), tmp_path / "package", target="triton")


def test_the_fastest_tile_is_what_the_package_takes(package: Path) -> None:
    model = load_program(package)
    inside: dict[str, Any] = type(model).run.__globals__
    kernels = kernels_of(GRAPH)
    calls = recorded(model, list(kernels), 6, "cpu")
    assert len(calls["q_k_v"]) == len(calls["attention"]) + len(calls["attention_5"]) == 3

    name, kernel = "q_k_v", kernels["q_k_v"]
    wanted = kernel.tiles()[-1].launch()
    refused = kernel.tiles()[1].launch()

    def clock(made: Sequence[Call]) -> float:
        for call in made:
            call()  # what is recorded can be made again
        here = inside["Q_K_V_TILES"][TARGET]
        if made is calls[name] and here == refused:
            raise RuntimeError("out of resources")
        return 1.0 if here == wanted else 2.0

    found = {each.kernel: each for each in timed_tiles(kernels, inside, TARGET, calls, clock)}
    assert found[name].tile == wanted
    assert (found[name].seconds, found[name].before) == (1.0, 2.0)
    assert found[name].tried == len(kernel.tiles())
    assert found["attention"].tile == kernels["attention"].tiles()[0].launch(), "where none is faster, all stays"

    write(package, TARGET, list(found.values()))
    fresh: dict[str, Any] = type(load_program(package)).run.__globals__
    assert fresh["Q_K_V_TILES"][TARGET] == wanted
    assert fresh["Q_K_V_TILES"]["default"] == kernel.tiles()[0].launch()


def test_without_a_gpu_it_is_refused(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TuneDeviceError, match="cpu runs none"):
        tune(package, device="cpu")
    assert main(["bench", str(package), "--tune"]) == TuneDeviceError.exit_code
    assert "RG574" in capsys.readouterr().err
    assert not (package / "tiles.json").exists()
