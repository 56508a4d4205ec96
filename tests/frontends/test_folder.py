"""MODEL: every way to name a model, and every way to get it wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from regraft.frontends.folder import builtin_names, open_model
from regraft.ir.errors.checkpoint import (
    HubError,
    JsonSyntaxError,
    NoConfigError,
    NotAModelError,
    NoWeightsError,
    PickleRefusedError,
    UnknownBuiltinError,
)
from regraft.ir.errors.files import InputMissingError

CONFIG = {"model_type": "toy", "hidden_size": 8}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "toy-model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face cache that holds one model, and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    model = tmp_path / "hub" / "models--acme--toy"
    commit = "0123456789abcdef0123456789abcdef01234567"
    for name in ("blobs", "refs", f"snapshots/{commit}"):
        (model / name).mkdir(parents=True)
    (model / "refs" / "main").write_text(commit)
    (model / "blobs" / "cafe").write_text(json.dumps(CONFIG))
    (model / "snapshots" / commit / "config.json").symlink_to("../../blobs/cafe")
    return model


def test_a_folder(folder: Path) -> None:
    save_file({"w": torch.ones(2)}, folder / "model.safetensors")
    model = open_model(folder)
    assert (model.kind, model.name, model.folder, model.graph_path) == ("folder", "toy-model", folder, None)
    assert model.config == CONFIG
    assert model.config_path == str(folder / "config.json")
    assert model.require_checkpoint().read("w").tolist() == [1, 1]


def test_a_folder_without_weights(folder: Path) -> None:
    model = open_model(str(folder))
    assert model.checkpoint is None
    with pytest.raises(NoWeightsError):
        model.require_checkpoint()


def test_a_folder_with_a_graph(folder: Path) -> None:
    (folder / "graph.rg").write_text("graph")
    assert open_model(folder).graph_path == folder / "graph.rg"


def test_a_config_alone_and_beside_its_weights(folder: Path) -> None:
    model = open_model(folder / "config.json")
    assert (model.kind, model.name, model.folder) == ("config", "toy-model", None)
    assert model.checkpoint is None
    save_file({"w": torch.ones(2)}, folder / "model.safetensors")
    assert open_model(folder / "config.json").require_checkpoint().names() == ["w"]


def test_a_graph(tmp_path: Path) -> None:
    path = tmp_path / "pair.rg"
    path.write_text("graph @pair() {}")
    model = open_model(path)
    assert (model.kind, model.name, model.graph_path, model.config) == ("graph", "pair", path, {})


def test_every_builtin() -> None:
    assert len(builtin_names()) == 23
    for name in builtin_names():
        model = open_model(f"builtin:{name}")
        assert model.name == name
        assert "model_type" in model.config
        assert model.checkpoint is None


def test_a_builtin_that_is_not_there() -> None:
    with pytest.raises(UnknownBuiltinError, match=r"there is no builtin:Qwen3-8; did you mean Qwen3-8B"):
        open_model("builtin:Qwen3-8")


def test_a_cached_id(cache: Path) -> None:
    model = open_model("acme/toy")
    assert (model.kind, model.name, model.config, model.hub_id) == ("hub", "toy", CONFIG, "acme/toy")
    assert model.config_path == "acme/toy/config.json"
    assert model.folder
    save_file({"w": torch.ones(2)}, cache / "blobs" / "beef")
    (model.folder / "model.safetensors").symlink_to("../../blobs/beef")
    assert model.require_checkpoint().read("w").tolist() == [1, 1]


def test_a_hub_that_cannot_be_reached_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    nowhere = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere)

    def wait(seconds: float) -> None:
        raise AssertionError(f"it waits {seconds} s to ask again")

    monkeypatch.setattr(time, "sleep", wait)
    with pytest.raises(HubError, match=r"cannot be fetched: .*refused"):
        open_model("acme/toy")


@pytest.mark.usefixtures("cache")
def test_an_id_whose_weights_are_not_cached_needs_the_network_for_them_only() -> None:
    model = open_model("acme/toy")
    with pytest.raises(HubError, match=r"acme/toy \(weights\) is neither here nor in the Hugging Face cache"):
        _ = model.checkpoint


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("name", ["acme/none", "gpt99"])
def test_an_id_that_cannot_be_fetched(name: str) -> None:
    with pytest.raises(HubError, match=name) as caught:
        open_model(name)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    "name", ["./none", "/none/at/all", "a/b/c", "none.rg", "none/config.json", "x.bin", "../x", ""]
)
def test_a_path_that_is_not_there(name: str) -> None:
    if name:
        with pytest.raises(InputMissingError, match="no such file or folder"):
            open_model(name)


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(NoConfigError):
        open_model(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(JsonSyntaxError, match=r"config\.json"):
        open_model(tmp_path)
    for name, error in {"model.pt": PickleRefusedError, "notes.txt": NotAModelError}.items():
        (tmp_path / name).write_text("x")
        with pytest.raises(error):
            open_model(tmp_path / name)


def test_a_builtin_loads_neither_torch_nor_the_hub() -> None:
    code = (
        "import sys; from regraft.frontends.folder import open_model; open_model('builtin:Qwen3-8B');"
        "print([name for name in ('torch', 'numpy', 'huggingface_hub') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
