"""What a package generates, as `run` does it, is what each prompt alone would be continued with."""

from __future__ import annotations

import sys

import pytest
import torch

from tests.frontends.agreement import load_module
from tests.frontends.conftest import TwinOf

STEPS = 10
NAMES = [
    *("DeepSeek-V4-Flash", "DeepSeek-V3.2", "Qwen3-Next-80B-A3B", "ZAYA1-8B"),
    *("gemma-4-E2B", "gpt-oss-20b", "laguna-XS.2"),
]


@pytest.mark.parametrize("name", NAMES)
def test_prompts_of_unequal_length_are_continued_as_each_alone(
    name: str, twin_of: TwinOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = twin_of(name)
    monkeypatch.setitem(sys.modules, "model", sys.modules[type(twin.program).__module__])
    generate = load_module(twin.folder.parent / "package" / "generate.py").generate
    prompts: list[list[int]] = [twin.tokens[0, :13].tolist(), [5]]
    steps: list[list[int]] = list(generate(twin.program, prompts, STEPS))
    assert len(steps) == STEPS
    for row, prompt in enumerate(prompts):
        tokens = torch.tensor([[*prompt, *(step[row] for step in steps)]])
        likeliest = twin.interpreter(tokens)[0, len(prompt) - 1 : -1].argmax(-1)
        assert [step[row] for step in steps] == likeliest.tolist()
