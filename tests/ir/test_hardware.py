"""Devices: those of the table, and those of a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from regraft.ir.errors.base import RegraftError
from regraft.ir.hardware import Device, device, devices

OWN: dict[str, Any] = {"name": "Bench", "memory_bytes": 16e9, "bandwidth_bytes_per_s": 2e11}


def written(folder: Path, row: object) -> str:
    file = folder / "bench.json"
    file.write_text(json.dumps(row), encoding="utf-8")
    return str(file)


def test_the_table_has_speeds_or_none() -> None:
    assert device("h200-sxm").bf16_dense_flops == 989_400_000_000_000
    assert device("apple-m4-max").bf16_dense_flops is None
    assert all(each.memory_bytes > 0 < each.bandwidth_bytes_per_s for each in devices().values())


def test_a_device_of_a_file(tmp_path: Path) -> None:
    found = device(written(tmp_path, OWN))
    assert found == Device("bench", "Bench", 16_000_000_000, 200_000_000_000)
    more = {**OWN, "key": "mine", "bf16_dense_flops": None, "l2_bytes": 1, "usable_bandwidth_fraction": 0.5}
    assert device(written(tmp_path, more)).key == "mine"


def test_a_row_of_the_table_is_a_file(tmp_path: Path) -> None:
    table = json.loads((Path(__file__).parents[2] / "ir" / "hardware.json").read_text(encoding="utf-8"))
    for row in table["devices"]:
        assert device(written(tmp_path, row)) == devices()[row["key"]]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"memory_bytes": None}, "a device's memory_bytes is null, and must be a number"),
        ({"memory_bytes": "16 GB"}, 'memory_bytes is "16 GB", and must be a number of at least 1'),
        ({"memory_bytes": 0}, "memory_bytes is 0, and must be a number of at least 1"),
        ({"bandwidth_bytes_per_s": True}, "bandwidth_bytes_per_s is true, and must be a number"),
        ({"memory_byte": 1}, "memory_byte is unknown; did you mean memory_bytes"),
        ({"name": "  "}, 'name is "  ", and must be a text'),
        ({"usable_bandwidth_fraction": 1.5}, "usable_bandwidth_fraction is 1.5, and must be a number above 0"),
        ({"measured": 3}, "measured is 3, and must be an object"),
    ],
)
def test_a_value_that_no_device_has(tmp_path: Path, changed: dict[str, object], said: str) -> None:
    with pytest.raises(RegraftError) as caught:
        device(written(tmp_path, {**OWN, **changed}))
    assert caught.value.code == "RG607"
    assert said in str(caught.value)
    assert "bench.json" in caught.value.where


@pytest.mark.parametrize("missing", ["name", "memory_bytes", "bandwidth_bytes_per_s"])
def test_a_missing_key(tmp_path: Path, missing: str) -> None:
    row = {key: value for key, value in OWN.items() if key != missing}
    with pytest.raises(RegraftError, match=f"a device's {missing} is missing"):
        device(written(tmp_path, row))


@pytest.mark.parametrize(("text", "code"), [("[1]", "RG"), ("{", "RG"), (None, "RG402")])
def test_a_file_that_is_no_object(tmp_path: Path, text: str | None, code: str) -> None:
    file = tmp_path / "bench.json"
    if text is not None:
        file.write_text(text, encoding="utf-8")
    with pytest.raises(RegraftError) as caught:
        device(str(file))
    assert caught.value.code.startswith(code)
