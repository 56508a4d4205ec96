from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, cast

import pytest

from regraft.cli.main import main
from tests.views.test_facts import shared

ROOT = Path(__file__).resolve().parents[2]
TINY = str(ROOT / "examples" / "tiny-qwen3" / "config.json")

GOLDEN = {
    "schema": "regraft.inspect/1",
    "family": "qwen3",
    "layers": 8,
    "block_kinds": 1,
    "parameters": {
        "total": 2_099_840,
        "active": 2_099_840,
        "active_without_embedding": 1_968_768,
        "embedding": 131_072,
        "per_layer_embedding": 0,
        "buffers": 0,
    },
    "cache": {
        "dtype": "bf16",
        "batch": 1,
        "fixed_bytes": 0,
        "at": {
            "512": {
                "bytes": 2_097_152,  # 8 layers, keys and values of 4 heads of 32, bf16, 512 tokens
                "bytes_without_windows": 2_097_152,
                "bytes_without_sharing": 2_097_152,
            }
        },
    },
    "decode": {
        "at": {
            "512": {
                "flops": 8_388_608,
                "attention_flops": 4_194_304,
                "bytes_read": 6_297_088,
            }
        }
    },
    "device": {"name": "rtx-4090", "at": {"512": {"tokens_per_s_limit": 1.008e12 / 6_297_088}}},
}


def test_the_json_is_the_documented_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", TINY, "--context", "512", "--device", "rtx-4090", "--json"]) == 0
    captured = capsys.readouterr()
    assert shared(json.loads(captured.out), GOLDEN) == GOLDEN
    assert captured.err == ""


def agrees(shown: Any, found: Any) -> bool:
    """Whether what a page shows is in what a command prints; it may leave out texts, objects and digits."""
    match shown:
        case dict():
            pairs = cast("dict[str, Any]", shown).items()
            return all(key in found and agrees(each, found[key]) for key, each in pairs)
        case list():
            items = cast("list[Any]", shown)
            return len(items) == len(found) and all(agrees(*pair) for pair in zip(items, found, strict=True))
        case float():
            return math.isclose(shown, found, rel_tol=1e-3)
        case _:
            return shown in ("...", found)


def test_the_documentation_shows_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    shown = json.loads(page.split("### `inspect`")[1].split("```json")[1].split("```")[0])
    assert main(["inspect", TINY, "--context", "512", "--device", "rtx-4090", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert agrees(shown, found)
    assert list(shown) == list(found)


def test_contexts_are_spelled_in_binary_steps(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", TINY, "--context", "4k,128k,1M,4096", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found["cache"]["at"]) == ["4096", "131072", "1048576"]


def test_the_card_is_plain_when_it_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", TINY]) == 0
    out = capsys.readouterr().out
    assert "8 query heads of 32 over 4 KV heads, all tokens, q/k norm" in out
    assert "2,099,840" in out
    assert "\x1b" not in out


def test_the_card_as_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", TINY, "--md", "--device", "none"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("# ")
    assert "| tokens in context | 4k | 128k |" in out
    assert "tokens/s" not in out


def test_an_unknown_key_is_a_warning_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads(Path(TINY).read_text(encoding="utf-8"))
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**config, "attention_twist": 3}), encoding="utf-8")
    assert main(["inspect", str(file), "--json"]) == 0
    captured = capsys.readouterr()
    assert "attention_twist" in captured.err
    assert captured.err.startswith("warning: ")
    assert json.loads(captured.out)["layers"] == 8
    assert main(["-q", "inspect", str(file), "--json"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["inspect", str(file), "--json", "--allow-key", "attention_twist"]) == 0
    assert capsys.readouterr().err == ""


def test_an_unknown_device_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", TINY, "--device", "h201-sxm"]) == 2
    assert "did you mean h200-sxm" in capsys.readouterr().err


def test_a_device_of_ones_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "bench.json"
    own.write_text('{"name": "Bench", "memory_bytes": 8e9, "bandwidth_bytes_per_s": 6297088}', encoding="utf-8")
    assert main(["inspect", TINY, "--context", "512", "--device", str(own), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["device"]
    assert (found["name"], found["full_name"]) == ("bench", "Bench")
    assert found["at"]["512"]["tokens_per_s_limit"] == 1.0
    assert found["at"]["512"]["time_to_first_token_s"] is None
    own.write_text('{"name": "Bench", "memory_bytes": 8e9, "speed": 3}', encoding="utf-8")
    assert main(["inspect", TINY, "--device", str(own)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error[RG607]: a device's bandwidth_bytes_per_s is missing\n")
    assert str(own) in captured.err


def test_a_family_that_nobody_reads_is_exit_code_3(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nobodys"}', encoding="utf-8")
    assert main(["inspect", str(tmp_path)]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error[RG201]")
