"""What facts say that transformers' cache holds, against the tensors that it does hold, on twins of every make."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from regraft.frontends.folder import open_model
from regraft.frontends.lift import lift
from regraft.frontends.twin import twin_config
from regraft.views.facts import facts
from tests.frontends.cases import CASES

MODELS = [
    "Llama-3.2-1B",  # every token
    "gemma-4-E2B",  # windows, shared memories
    "laguna-XS.2",  # windows, head budgets
    "mixtral",  # a window in every layer
    "ZAYA1-8B",  # tails
    "DeepSeek-V3.2",  # latents and index keys
    "DeepSeek-V4-Flash",  # pooled rows, windows, unfinished ones
    "Qwen3-Next-80B-A3B",  # recurrent matrices and longer tails
]
LENGTHS = (3, 41, 64)


@pytest.fixture(params=MODELS)
def twin(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Return the folder of a twin's config, in bfloat16."""
    small = twin_config(CASES[request.param])
    small.get("text_config", small)["dtype"] = "bfloat16"
    small["dtype"] = "bfloat16"
    (tmp_path / "config.json").write_text(json.dumps(small), encoding="utf-8")
    return tmp_path


def tensors(held: object) -> Iterator[torch.Tensor]:
    """Yield the tensors that a layer's cache holds, those of more than one row or channel."""
    match held:
        case torch.Tensor():
            yield held
        case Mapping():
            for each in cast("Mapping[str, object]", held).values():
                yield from tensors(each)
        case list() | tuple():
            for each in cast("Sequence[object]", held):
                yield from tensors(each)
        case _:
            pass


def test_the_dynamic_cache_holds_as_many_bytes(twin: Path) -> None:
    import transformers

    config = transformers.AutoConfig.from_pretrained(twin).get_text_config()
    loader = cast(Any, transformers.AutoModelForCausalLM)
    model = loader.from_config(config, dtype=torch.bfloat16).eval()
    found = facts(lift(open_model(twin / "config.json"), strict=False).graph, LENGTHS)
    for length in LENGTHS:
        with torch.no_grad():
            cache = model(torch.ones(1, length, dtype=torch.int64), use_cache=True).past_key_values
        parts = [tensor for layer in cache.layers for tensor in tensors(list(vars(layer).values()))]
        places = {(t.data_ptr(), t.numel()): t.numel() * t.element_size() for t in parts if t.dim() > 1 and t.numel()}
        assert sum(places.values()) == found.cache[length].bytes_transformers


def test_a_family_that_transformers_does_not_have() -> None:
    graph = lift(open_model("builtin:OpenELM-270M"), strict=False).graph
    assert facts(graph, (64,)).cache[64].bytes_transformers is None
