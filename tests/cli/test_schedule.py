"""``inspect --schedule``: the kernels of a step, of a model and of a package."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from regraft.cli.main import main

EXAMPLE = str(Path(__file__).resolve().parents[2] / "examples" / "tiny-qwen3")


def test_a_model_and_its_package_have_the_same_schedule(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = tmp_path / "package"
    assert main(["build", EXAMPLE, "-o", str(package), "--target", "triton"]) == 0
    capsys.readouterr()
    found: list[object] = []
    for model in (EXAMPLE, str(package)):
        assert main(["inspect", model, "--schedule", "--context", "300,4k", "--json"]) == 0
        found.append(json.loads(capsys.readouterr().out)["schedules"])
    assert found[0] == found[1]
    (first, _) = json.loads(json.dumps(found[0]))
    assert [len(part["layers"]) for part in first["parts"]] == [8, 0]
    assert [kernel["name"] for kernel in first["parts"][0]["kernels"]] == ["q_k_v", "attention", "o", "gate_up", "down"]
    assert first["total"]["bytes_least"] <= first["total"]["bytes_read"] + first["total"]["bytes_written"]
    config = json.loads((package / "config.json").read_text(encoding="utf-8"))
    assert config["step"]["kernels"] == first["total"]["kernels"]


def test_a_schedule_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", EXAMPLE, "--schedule", "--context", "4k"]) == 0
    shown = capsys.readouterr().out
    assert "FullBlock: q_k_v, attention, o, gate_up, down" in shown
    assert "over it" in shown


def test_a_device_that_nobody_knows_is_refused_beside_a_schedule_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", EXAMPLE, "--schedule", "--device", "foo"]) != 0
    assert capsys.readouterr().err.startswith("error[RG602]: no device is called foo")
