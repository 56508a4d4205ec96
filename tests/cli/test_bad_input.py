"""Bad input: one coded error, the documented exit code, and nothing left that looks like a result."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

Refused = Callable[..., str]
Recipe = Callable[[str], str]
SHARE = "share-kv: {layers: 1, donor: 0, refit: false}"


def edit(model: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors")


def configure(model: Path, **keys: object) -> None:
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | keys), encoding="utf-8")


def shard(model: Path, index: dict[str, str] | None = None) -> None:
    """Turn one file into two with an index, whose places ``index`` may change."""
    tensors = load_file(model / "model.safetensors")
    (model / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"model-1-of-2.safetensors": names[::2], "model-2-of-2.safetensors": names[1::2]}
    for file, some in halves.items():
        save_file({name: tensors[name] for name in some}, model / file)
    places = {name: file for file, some in halves.items() for name in some} | (index or {})
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}), encoding="utf-8")


Q = "model.layers.0.self_attn.q_proj.weight"


def missing_shard(model: Path) -> None:
    shard(model)
    (model / "model-2-of-2.safetensors").unlink()


def truncated_shard(model: Path) -> None:
    file = model / "model.safetensors"
    os.truncate(file, file.stat().st_size - 100)


def garbled_header(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"\xff" * 64)


def wrong_shape(model: Path) -> None:
    edit(model, lambda t: t.update({Q: t[Q][:32].clone()}))


def wrong_dtype(model: Path) -> None:
    edit(model, lambda t: t.update({Q: torch.zeros(64, 64, dtype=torch.int32)}))


def missing_tensor(model: Path) -> None:
    edit(model, lambda t: t.pop(Q))


def nan_weights(model: Path) -> None:
    edit(model, lambda t: t[Q].fill_(float("nan")))


def index_outside(model: Path) -> None:
    shard(model, {Q: "../elsewhere.safetensors"})


def pickles_only(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def unsound_json(model: Path) -> None:
    (model / "config.json").write_text("{", encoding="utf-8")


DAMAGES: dict[Callable[[Path], None], str] = {
    missing_shard: "RG301",
    truncated_shard: "RG302",
    garbled_header: "RG303",
    wrong_shape: "RG305",
    wrong_dtype: "RG305",
    missing_tensor: "RG306",
    nan_weights: "RG311",
    index_outside: "RG307",
    pickles_only: "RG308",
    no_weights: "RG313",
    unsound_json: "RG320",
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("command", ["apply", "build"])
def test_a_damaged_checkpoint_gives_nothing(
    damage: Callable[[Path], None], command: str, model: Path, recipe: Recipe, refused: Refused, tmp_path: Path
) -> None:
    damage(model)
    out = tmp_path / "out"
    options = ["-r", recipe(SHARE)] if command == "apply" else []
    assert refused(command, model, *options, "-o", out, exit_code=2) == DAMAGES[damage]
    assert not out.exists()
    assert not any((folder / "config.json").exists() for folder in tmp_path.iterdir() if folder not in (model, out))


@pytest.mark.parametrize(
    ("keys", "exit_code", "family"),
    [
        ({"model_type": "perceptron", "architectures": ["PerceptronForCausalLM"]}, 3, "RG2"),
        ({"num_hidden_layers": 4.5}, 2, "RG2"),
        ({"num_hidden_layers": "four"}, 2, "RG2"),
        ({"hidden_size": 10**12}, 2, "RG2"),
        ({"num_hidden_layers": -1}, 2, "RG2"),
        ({"head_dim": 0}, 2, "RG2"),
        ({"num_key_value_heads": 3}, 2, "RG2"),
        ({"attention_twist": 3}, 3, "RG202"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "apply"])
def test_a_config_that_makes_no_sense(
    keys: dict[str, object],
    exit_code: int,
    family: str,
    command: str,
    model: Path,
    recipe: Recipe,
    refused: Refused,
    tmp_path: Path,
) -> None:
    configure(model, **keys)
    out = ["-o", tmp_path / "out"] if command == "apply" else []
    assert refused(command, model, "-r", recipe(SHARE), *out, exit_code=exit_code).startswith(family)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("step", "exit_code", "code"),
    [
        ("shre-kv: {layers: 1}", 2, "RG103"),
        ("share-kv: {layer: 1}", 2, "RG102"),
        ("share-kv: {layers: 1, refit: maybe}", 2, "RG105"),
        ("share-kv: {layers: 9, donor: 0, refit: false}", 4, "RG111"),
        ("share-kv: {layers: 0, refit: false}", 4, "RG119"),
        ("share-kv: {layers: 1, donor: 2, refit: false}", 4, "RG1"),
        ("budget-heads: {heads: 7, score: weight-norm, refit: false}", 4, "RG115"),
        ("share-kv: {layers: 1, donor: 0}", 2, "RG113"),
        ("share-kv: {layers: [1", 2, "RG101"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "apply"])
def test_a_recipe_that_does_not_fit(
    step: str, exit_code: int, code: str, command: str, model: Path, recipe: Recipe, refused: Refused, tmp_path: Path
) -> None:
    out = ["-o", tmp_path / "out"] if command == "apply" else []
    assert refused(command, model, "-r", recipe(step), *out, exit_code=exit_code).startswith(code)
    assert not (tmp_path / "out").exists()


def test_a_recipe_error_names_line_and_column(
    model: Path, recipe: Recipe, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    from regraft.cli.main import main

    assert main(["plan", str(model), "-r", recipe("share-kv: {layer: 1}")]) == 2
    assert re.search(r"--> recipe\.yaml:3:\d+", capsys.readouterr().err)


def test_a_missing_recipe(model: Path, refused: Refused, tmp_path: Path) -> None:
    assert refused("plan", model, "-r", tmp_path / "none.yaml", exit_code=2) == "RG402"


@pytest.mark.parametrize("command", ["apply", "build", "twin"])
def test_an_output_that_exists_is_left_alone(
    command: str, model: Path, recipe: Recipe, refused: Refused, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine", encoding="utf-8")
    options = ["-r", recipe(SHARE)] if command == "apply" else []
    assert refused(command, model, *options, "-o", out, exit_code=2) == "RG401"
    assert [each.name for each in out.iterdir()] == ["mine"]


@pytest.mark.parametrize("command", ["apply", "build"])
def test_a_full_disk(
    command: str, model: Path, recipe: Recipe, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    monkeypatch.setattr(os, "pwrite", full)
    options = ["-r", recipe(SHARE)] if command == "apply" else []
    assert refused(command, model, *options, "-o", tmp_path / "out", exit_code=7) == "RG403"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["apply", "build"])
def test_files_that_may_not_grow(
    command: str, model: Path, recipe: Recipe, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def limited(*_: object) -> int:
        raise OSError(errno.EFBIG, "File too large")

    monkeypatch.setattr(os, "write", limited)
    monkeypatch.setattr(os, "pwrite", limited)
    options = ["-r", recipe(SHARE)] if command == "apply" else []
    assert refused(command, model, *options, "-o", tmp_path / "out", exit_code=7) == "RG403"


def test_texts_of_graphs_are_not_overwritten(model: Path, recipe: Recipe, refused: Refused, tmp_path: Path) -> None:
    kept = tmp_path / "kept.rg"
    kept.write_text("mine", encoding="utf-8")
    assert refused("opt", model, "--pipeline", "dce", "-o", kept, exit_code=2) == "RG401"
    out = tmp_path / "out"
    assert refused("apply", model, "-r", recipe(SHARE), "-o", out, "--dump-ir", tmp_path, exit_code=2) == "RG401"
    assert kept.read_text(encoding="utf-8") == "mine"
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["inspect", "nowhere/config.json"], "RG"),
        (["inspect", "builtin:Nothing"], "RG322"),
        (["bench", "nowhere"], "RG551"),
        (["opt", "nowhere.rg", "--pipeline", "dce"], "RG"),
    ],
)
def test_things_that_are_not_there(arguments: list[str], code: str, refused: Refused) -> None:
    assert refused(*arguments, exit_code=2).startswith(code)


def test_a_graph_that_does_not_parse(tmp_path: Path, refused: Refused) -> None:
    file = tmp_path / "x.rg"
    file.write_text("graph @x () {\n  %y = core.nothing : f32[2]\n  return %y\n}\n", encoding="utf-8")
    assert refused("opt", file, "--pipeline", "dce", exit_code=3) == "RG002"


def test_a_package_is_not_any_folder_with_a_model_py(model: Path, refused: Refused) -> None:
    (model / "model.py").write_text("raise SystemExit('ran')", encoding="utf-8")
    assert refused("bench", model, exit_code=2) == "RG551"


@pytest.mark.parametrize("command", ["apply", "build", "twin"])
@pytest.mark.parametrize("out", ["", ".", "/"])
def test_an_output_without_a_name(command: str, out: str, model: Path, recipe: Recipe, refused: Refused) -> None:
    options = ["-r", recipe(SHARE)] if command == "apply" else []
    assert refused(command, model, *options, "-o", out, exit_code=2) == "RG401"


@pytest.mark.parametrize("facts", ["vocab = 128", 'dtype = "bf16"', "bos = none"])
@pytest.mark.parametrize("command", ["verify", "build"])
def test_a_graph_that_is_not_what_it_says(
    facts: str, command: str, model: Path, recipe: Recipe, refused: Refused, tmp_path: Path
) -> None:
    from regraft.api import apply

    apply(model, Path(recipe(SHARE)), tmp_path / "out")
    file = tmp_path / "out" / "graph.rg"
    text = file.read_text(encoding="utf-8")
    assert facts in text
    file.write_text(text.replace(facts, f"{facts.partition(' ')[0]} = 129"), encoding="utf-8")
    out = ["-o", tmp_path / "pkg"] if command == "build" else []
    assert refused(command, tmp_path / "out", *out, exit_code=2) == "RG006"


def test_a_first_token_beyond_the_vocabulary(model: Path, recipe: Recipe, refused: Refused, tmp_path: Path) -> None:
    configure(model, bos_token_id=128)
    assert refused("apply", model, "-r", recipe(SHARE), "-o", tmp_path / "out", exit_code=2) == "RG006"
