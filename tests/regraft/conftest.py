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


@pytest.fixture
def fitted() -> str:
    """A recipe with fits, small enough to be quick."""
    text = f'calibration{{text="{CALIBRATION}", tokens=2048, seed=0, context=128}}'
    return f'share-kv{{layers="5..7", donor=4}},{text}'
