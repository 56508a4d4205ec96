"""Where transformers differs from the specs: the specs decide, and both sides are shown.

ZAYA's class that skips, the third of them, is in test_zaya.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.frontends.agreement import Pair, original
from tests.frontends.conftest import TwinOf

PADS = 6


def padded(model: Any, row: Tensor, left: bool) -> Tensor:
    """Return transformers' logits of a row that stands in a batch beside a longer one, without those of its padding."""
    junk, width = torch.zeros(PADS, dtype=torch.int64), len(row)
    whole = torch.cat((junk, row) if left else (row, junk))
    mask = torch.cat((junk, torch.ones_like(row)) if left else (torch.ones_like(row), junk))
    rows, masks = torch.stack((whole, whole.flip(0))), torch.stack((mask, torch.ones_like(mask)))
    places = (masks.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(rows, attention_mask=masks, position_ids=places).logits[0]
    return logits[PADS:] if left else logits[:width]


def test_rows_padded_on_the_left_lose_their_windows_in_deepseek_v4(twin_of: TwinOf) -> None:
    """Its windows count padding (specs/deepseek_v4.md, section 18); right padding leaves a row as it is alone."""
    twin = twin_of("DeepSeek-V4-Flash")
    row, alone = twin.tokens[1], twin.logits[1]
    model = original(twin.folder)
    assert (padded(model, row, left=True) - alone).abs().max() > 0.1
    twin.check(padded(model, row, left=False), alone)
    tokens = torch.zeros(2, len(row) + PADS, dtype=torch.int64)
    tokens[1, : len(row)] = row
    found = twin.interpreter(tokens, lengths=torch.tensor([len(row) + PADS, len(row)]))
    twin.check(found[1, : len(row)], alone)


def with_equal_scores(twin: Pair, folder: Path) -> Path:
    """Write a twin whose indexes find all rows equal, and return its folder."""
    folder.mkdir()
    tensors = load_file(twin.folder / "model.safetensors")
    scales = [name for name in tensors if name.endswith("weights_proj.weight")]
    assert scales
    for name in scales:
        tensors[name].zero_()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_bytes((twin.folder / "config.json").read_bytes())
    return folder


def earlier_first(scores: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    """Return what `torch.topk` returns, of equal values the earlier ones."""
    assert largest
    ordered = scores.sort(dim=dim, descending=True, stable=True)
    return torch.return_types.topk((ordered.values.narrow(dim, 0, k), ordered.indices.narrow(dim, 0, k)))


@pytest.mark.parametrize("name", ["DeepSeek-V3.2", "DeepSeek-V4-Flash"])
def test_of_equal_rows_an_index_takes_the_earlier(
    name: str, twin_of: TwinOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Transformers takes what `torch.topk` gives, in no order (specs/mla.md, section 8): with an order it agrees."""
    folder, tokens = with_equal_scores(twin_of(name), tmp_path / "twin"), twin_of(name).tokens
    stock = original(folder)
    with torch.no_grad():
        unordered = stock(tokens).logits
        with monkeypatch.context() as patch:
            patch.setattr(Tensor, "topk", earlier_first)
            patch.setattr(torch, "topk", earlier_first)
            ordered = stock(tokens).logits
    assert (unordered - ordered).abs().max() > 1e-3
    equal = Pair(folder, tokens, ordered)
    equal.check_all(equal.interpreter)
    equal.check_all(equal.program)
