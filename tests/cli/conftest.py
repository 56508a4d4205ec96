from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from regraft.cli.main import main

CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "dtype": "bfloat16",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "eos_token_id": 0,
}


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a random model of kilobytes: four layers, without a tokenizer."""
    import torch
    from safetensors.torch import save_file

    from regraft.frontends.folder import open_model
    from regraft.frontends.lift import lift
    from regraft.ir.ops.weight import Load

    folder = tmp_path_factory.mktemp("model") / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    graph = lift(open_model(folder / "config.json")).graph
    torch.manual_seed(0)
    loads = [op for op in graph.ops if isinstance(op, Load)]
    save_file({op.source: torch.randn(op.shape).to(torch.bfloat16) * 0.2 for op in loads}, folder / "model.safetensors")
    return folder


@pytest.fixture
def model(tiny_folder: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny model that a test may damage."""
    return shutil.copytree(tiny_folder, tmp_path / "tiny")


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[[str], str]:
    """Return a function that writes a recipe of one pass and returns its path."""

    def write(step: str) -> str:
        file = tmp_path / "recipe.yaml"
        file.write_text(f"regraft: 1\npipeline:\n  - {step}\n", encoding="utf-8")
        return str(file)

    return write


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs a command which must refuse, and returns the code of the one error that it prints."""

    def run(*arguments: str | Path, exit_code: int) -> str:
        found = main([*map(str, arguments)])
        captured = capsys.readouterr()
        assert found == exit_code, captured.err
        assert captured.out == ""
        assert captured.err.startswith("error[RG"), captured.err
        assert captured.err.count("error[") == 1
        assert "Traceback" not in captured.err
        return captured.err[6:11]

    return run
