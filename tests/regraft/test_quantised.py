"""Quantised models through the commands: what `plan`, `apply` and `build` do with what is packed, and say of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import regraft
from regraft.cli.main import main
from regraft.frontends.checkpoint import Checkpoint
from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter
from regraft.ir.ops.algebra import ScaleWeight
from regraft.ir.ops.core import Linear, Norm
from regraft.ir.ops.quantized import Dequantize, Unpack
from regraft.passes.base import Note, Pass, Preserves, Report
from regraft.passes.matching.rewrite import Editor
from regraft.passes.pipeline import run_pipeline
from regraft.passes.recipe import Recipe
from regraft.verifying import verify

TOKENS = torch.randint(0, 128, (1, 24), generator=torch.Generator().manual_seed(0))
WEIGHT = "model.layers.1.self_attn.o_proj.weight"


@dataclass(frozen=True)
class Rescale(Pass):
    """Scale one quantised weight by a norm's."""

    name: ClassVar[str] = "rescale"
    preserves: ClassVar[Preserves] = "structural"

    def rewrite(self, graph: Graph) -> Report:
        reader = next(op for op in graph.ops if isinstance(op, Linear) and op.weight.name == WEIGHT)
        norm = next(op.weight for op in graph.ops if isinstance(op, Norm) and op.out.name == "layers.1.attn.norm")
        assert norm is not None
        editor = Editor(graph)
        editor.replace_weight(
            reader, "weight", lambda old, name: editor.add(ScaleWeight, name, old, norm, before=reader)
        )
        return Report((Note("layer 1", True, "scaled"),))


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the packed twin of a bundled model."""
    made: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in made:
            made[name] = regraft.twin(f"builtin:{name}", tmp_path_factory.mktemp("twin") / name, packed=True)
        return made[name]

    return of


Twins = Callable[[str], Path]


def packed_tensors(folder: Path) -> dict[str, bytes]:
    """Return the tensors of a folder that are codes or scales."""
    source, read = Checkpoint(folder), dict[str, bytes]()
    for name in source.names():
        if source.info(name).dtype not in ("f32", "i64") or name.endswith("_scale_inv"):
            read[name] = bytes(source.raw(name))
    return read


def printed(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    code = main([*map(str, arguments)])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out


@pytest.mark.parametrize("name", ["DeepSeek-V3.2", "DeepSeek-V4-Flash", "gpt-oss-20b"])
def test_untouched_tensors_are_copied_with_their_scales(name: str, twins: Twins, tmp_path: Path) -> None:
    twin, out = twins(name), tmp_path / "out"
    report = regraft.apply(twin, "dce", out)
    before = packed_tensors(twin)
    assert before
    assert packed_tensors(out) == before
    assert report.quantized.kept_bytes == sum(map(len, before.values()))
    assert report.quantized.dequantized == ()
    assert "dequantized" not in json.loads((out / "regraft.lock.json").read_text(encoding="utf-8"))
    assert report.predicted["weight_bytes"] == report.measured["weight_bytes"]
    models = [regraft.lift(twin), regraft.lift(out)]
    assert any(isinstance(op, Unpack) for op in models[1].graph.ops)
    first, second = (Interpreter(model.graph, model.require_source())(TOKENS) for model in models)
    assert torch.equal(first, second)
    again = regraft.apply(out, "dce", tmp_path / "again")
    assert again.quantized.kept_bytes == report.quantized.kept_bytes


def test_a_folder_that_is_still_as_published_is_one_for_transformers(twins: Twins, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert regraft.apply(twins("DeepSeek-V3"), "dce", out).stock == "DeepseekV3ForCausalLM"
    assert verify(out, against="transformers", tokens=16).passed


def test_touched_tensors_are_dequantised_and_recorded(twins: Twins, tmp_path: Path) -> None:
    twin, out = twins("DeepSeek-V3"), tmp_path / "out"
    recipe = Recipe((Rescale(),))
    plan = regraft.lift(twin).plan(recipe)
    report = regraft.apply(twin, recipe, out)
    assert [str(info) for info in report.quantized.dequantized] == ["f32[64, 80]"]
    assert plan.quantized == report.quantized
    lock = json.loads((out / "regraft.lock.json").read_text(encoding="utf-8"))
    assert lock["dequantized"] == {WEIGHT: "f32"}
    before, after = packed_tensors(twin), packed_tensors(out)
    assert before.keys() - after.keys() == {WEIGHT, f"{WEIGHT}_scale_inv"}
    assert all(before[name] == data for name, data in after.items())
    assert Checkpoint(out).info(WEIGHT).dtype == "f32"
    assert report.quantized.added_bytes == 4 * 64 * 80 - 64 * 80 - 4 * 4 * 4  # 4 by 4 blocks of 16 by 24
    assert report.predicted["weight_bytes"] == report.measured["weight_bytes"]
    assert report.stock == ""  # a mixture that no stock class reads
    model, source = regraft.lift(out), regraft.lift(twin)
    expected = Interpreter(run_pipeline(source.graph, recipe).graph, source.require_source())(TOKENS)
    found = Interpreter(model.graph, model.require_source())(TOKENS)
    assert torch.equal(found, expected)
    assert verify(out).passed


def test_commands_say_what_dequantising_costs(twins: Twins, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twin, package = twins("gpt-oss-20b"), tmp_path / "package"
    line = "quantised: 8 tensors of 306 KiB with their scales; 8 copied as they are"
    assert line in printed(capsys, "plan", twin, "-r", "dce")
    found: dict[str, Any] = json.loads(printed(capsys, "plan", twin, "-r", "dce", "--json"))
    assert found["quantized"]["kept_tensors"] == 8
    assert found["quantized"]["added_bytes"] == 0
    built = json.loads(printed(capsys, "build", twin, "-o", package, "--json"))
    assert (built["schema"], built["out"]) == ("regraft.build/1", str(package))
    assert built["quantized"]["added_bytes"] == 4 * 589_824 - 313_344
    assert main(["build", str(twin), "-o", str(tmp_path / "other")]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path / 'other'}\n"
    assert "parameters dequantised: 8, 306 KiB become 2.25 MiB (1.95 MiB more on disk)" in captured.err
    assert verify(package, against=twin).passed


@pytest.mark.parametrize(
    ("name", "tensors", "codes"),
    [
        ("DeepSeek-V4-Flash", 365 + 43 * 256 * 3, 365),  # specs/deepseek_v4.md, section 15, without the mtp module's
        ("gpt-oss-20b", 48, 0),
    ],
)
def test_a_config_alone_says_what_is_published_quantised(name: str, tensors: int, codes: int) -> None:
    found = regraft.plan(f"builtin:{name}", "dce")
    graph = found.result.graph
    assert found.quantized.tensors == found.quantized.kept_tensors == tensors
    assert sum(isinstance(op, Dequantize) for op in graph.ops) == codes
    assert found.disk_bytes < found.before.weight_bytes / 1.9


def test_packing_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "twin"
    assert main(["twin", "builtin:Qwen3-0.6B", "-o", str(out), "--packed"]) == 2
    assert "error[RG210]: builtin:Qwen3-0.6B does not say" in capsys.readouterr().err
    assert not out.exists()
    assert printed(capsys, "twin", "builtin:DeepSeek-V3", "-o", out, "--packed") == f"{out}\n"
    assert {Checkpoint(out).info(name).dtype for name in Checkpoint(out).names()} == {"f32", "f8e4m3"}
