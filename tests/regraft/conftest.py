"""The shipped model, and where things are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
CALIBRATION = ROOT / "examples" / "text" / "calibration.txt"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Sums in one order, whatever the machine: bytes are compared."""
    torch.set_num_threads(1)


@pytest.fixture
def tiny() -> Path:
    return ROOT / "examples" / "tiny-qwen3"


@pytest.fixture
def heldout() -> Path:
    return ROOT / "examples" / "text" / "heldout.txt"


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A part of the calibration text, quick to read."""
    path = tmp_path_factory.mktemp("text") / "part.txt"
    path.write_text(CALIBRATION.read_text(encoding="utf-8")[:20_000], encoding="utf-8")
    return path


@pytest.fixture
def fitted(text: Path) -> str:
    """A recipe with fits, small enough to be quick."""
    section = f'calibration{{text="{text}", tokens=2048, seed=0, context=128}}'
    return f'share-kv{{layers="5..7", donor=4}},{section}'
