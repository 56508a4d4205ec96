"""Single wrong choices of structure: each would move a twin's logits, so the comparisons with transformers can tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from regraft.frontends.decoder import Decoder
from regraft.frontends.family import read_config
from regraft.frontends.folder import open_model
from regraft.frontends.lift import expected_tensors, lift_config
from regraft.frontends.tensors import Declared
from regraft.frontends.twin import random_tensors, twin_config
from regraft.ir.interpret import Interpreter
from regraft.ir.source import TensorSource

torch.set_num_threads(1)
Patch = Callable[[Any], None]


def of_blocks(change: Callable[[Any], Any]) -> Patch:
    """Return a patch that changes every block."""

    def patch(config: Any) -> None:
        right = config.block
        config.block = lambda layer: change(right(layer))  # pyright: ignore[reportUnknownLambdaType]

    return patch


def of_mixers(**changed: object) -> Patch:
    return of_blocks(lambda block: replace(block, mixer=replace(block.mixer, **changed)))


def of_feeds(**changed: object) -> Patch:
    return of_blocks(lambda block: replace(block, feed=replace(block.feed, **changed)))


def first_source(config: Any) -> None:
    right = config.source
    config.source = lambda layer: right(layer) and config.types.index(config.types[layer])  # pyright: ignore


def neighbours_embedding(config: Any) -> None:
    right, count = config.layer_inputs, config.num_hidden_layers

    def inputs(b: Any, layer: int) -> list[Any]:
        return [*right(b, layer)[:-1], b.graph[f"ple.of_{(layer + 1) % count}"]]

    config.layer_inputs = inputs


def swapped_after(block: Any) -> Any:
    return replace(block, before=block.before[::-1])


WRONG: dict[str, tuple[dict[str, Any] | str, Patch]] = {
    "gemma4: another layer's memory of the right type": ("gemma-4-E2B", first_source),
    "gemma4: another layer's embedding": ("gemma-4-E2B", neighbours_embedding),
    "gemma4: values not normed": ("gemma-4-E2B", of_mixers(value_norm=None)),
    "gemma4: queries and keys not normed": ("gemma-4-31B", of_mixers(norm=None)),
    "gpt-oss: no sinks": ("gpt-oss-20b", of_mixers(sink=False)),
    "gpt-oss: output without its bias": ("gpt-oss-20b", of_mixers(out_bias=False)),
    "laguna: no gates": ("laguna-XS.2", of_mixers(gate="")),
    "qwen2: no biases": ({"model_type": "qwen2"}, of_mixers(bias=False)),
    "mixtral: gate and up projection swapped": ({"model_type": "mixtral"}, of_feeds(parts=("w3", "w1", "w2"))),
    "granite: branches not scaled": (
        {"model_type": "granite", "residual_multiplier": 0.3},
        of_blocks(lambda block: replace(block, scale=1.0)),
    ),
    "gemma2: norms before the branches swapped": ({"model_type": "gemma2"}, of_blocks(swapped_after)),
    "gemma3: queries and keys not normed": ({"model_type": "gemma3_text"}, of_mixers(norm=None)),
    "smollm3: no layer turns": ({"model_type": "smollm3"}, of_mixers(rope=None)),
    "glm4: no norms after the branches": (
        {"model_type": "glm4"},
        of_blocks(lambda block: replace(block, after=("", ""))),
    ),
    "olmo2: no norms after the branches": (
        {"model_type": "olmo2"},
        of_blocks(lambda block: replace(block, after=("", ""))),
    ),
}


def logits(config: Decoder, seed: int = 0) -> torch.Tensor:
    graph = lift_config(config, Declared("f32", published=True))
    right = lift_config(read_config(config.given.values), Declared("f32", published=True))
    weights = {name: torch.from_numpy(array) for name, array in random_tensors(right, seed, config.twin_gain).items()}
    assert {info.name for info in expected_tensors(graph)} <= set(weights)
    tokens = torch.randint(0, 128, (1, 24), generator=torch.Generator().manual_seed(0))
    return Interpreter(graph, TensorSource(weights))(tokens)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_structure_shows_on_the_twin(wrong: str) -> None:
    given, patch = WRONG[wrong]
    given = given if isinstance(given, dict) else dict(open_model(f"builtin:{given}").config)
    small = twin_config(given)
    config = read_config(small)
    patch(config)
    assert (logits(config) - logits(read_config(small))).abs().max() > 1e-3
