"""Small random models of each family, every parameter randomised: the interpreter against transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from regraft.frontends.folder import open_model
from regraft.frontends.lift import lift
from regraft.frontends.twin import write_twin
from regraft.ir.interpret import Interpreter

LENGTH = 40
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CASES: dict[str, dict[str, Any]] = {
    "llama, llama3 rope, tied": {
        "model_type": "llama",
        "rope_theta": 500000.0,
        "rope_scaling": {**LLAMA3, "original_max_position_embeddings": 8192},
        "tie_word_embeddings": True,
    },
    "llama, as many key/value heads as query heads, biases, linear rope": {
        "model_type": "llama",
        "num_key_value_heads": 32,
        "attention_bias": True,
        "mlp_bias": True,
        "rope_scaling": {"type": "linear", "factor": 2.5},
    },
    "llama, one key/value head, yarn": {
        "model_type": "llama",
        "num_key_value_heads": 1,
        "head_dim": 64,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    },
    "mistral, window by default": {"model_type": "mistral"},
    "mistral, no window, gelu": {"model_type": "mistral", "sliding_window": None, "hidden_act": "gelu"},
    "qwen3": {"model_type": "qwen3", "num_key_value_heads": 8, "rope_theta": 1000000, "tie_word_embeddings": True},
    "qwen3, later layers slide, biases": {
        "model_type": "qwen3",
        "num_key_value_heads": 8,
        "use_sliding_window": True,
        "sliding_window": 4096,
        "max_window_layers": 20,
        "attention_bias": True,
    },
    "qwen3 moe": {"model_type": "qwen3_moe", "norm_topk_prob": True, "head_dim": 128},
    "qwen3 moe, dense layers between, a window": {
        "model_type": "qwen3_moe",
        "norm_topk_prob": False,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [3],
        "use_sliding_window": True,
    },
}


@dataclass(frozen=True)
class Pair:
    """Our interpreter, some tokens ``[2, LENGTH]``, and the original's logits for them."""

    interpreter: Interpreter
    tokens: Tensor
    logits: Tensor

    def check(self, found: Tensor, expected: Tensor) -> None:
        limit = 1e-5 * max(1.0, float(self.logits.abs().max()) / 4)
        torch.testing.assert_close(found, expected, rtol=0, atol=limit)


@pytest.fixture(scope="module", params=list(CASES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    import transformers

    folder: Path = write_twin(CASES[request.param], tmp_path_factory.mktemp("model") / "twin", seed=1)
    original = cast(
        Any,
        transformers.AutoModelForCausalLM.from_pretrained(  # pyright: ignore[reportUnknownMemberType]
            folder, dtype=torch.float32, attn_implementation="eager"
        ),
    )
    tokens = torch.randint(0, 128, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = original(tokens).logits
    model = open_model(folder)
    lifted = lift(model)
    assert not lifted.warnings
    return Pair(Interpreter(lifted.graph, model.require_checkpoint()), tokens, logits)


def test_logits_spread(pair: Pair) -> None:
    assert pair.logits.std() >= 1


def test_prefill(pair: Pair) -> None:
    pair.check(pair.interpreter(pair.tokens), pair.logits)


@pytest.mark.parametrize("sizes", [(1, 7, LENGTH - 8), (1,) * LENGTH], ids=["chunks", "step by step"])
def test_chunks(pair: Pair, sizes: tuple[int, ...]) -> None:
    cache = pair.interpreter.new_cache(2)
    found = [pair.interpreter(part, cache) for part in pair.tokens.split(sizes, 1)]
    pair.check(torch.cat(found, 1), pair.logits)


def test_a_ragged_batch_gives_what_its_rows_give(pair: Pair) -> None:
    tokens, lengths = pair.tokens.clone(), torch.tensor([LENGTH, 23])
    tokens[1, 23:] = 0
    cache = pair.interpreter.new_cache(2)
    found = pair.interpreter(tokens, cache, lengths)
    pair.check(found[0], pair.logits[0])
    pair.check(found[1, :23], pair.logits[1, :23])
    # and each row goes on where it stands
    following = torch.stack((pair.tokens[0, :5], pair.tokens[1, 23:28]))
    pair.check(pair.interpreter(following, cache)[1], pair.logits[1, 23:28])
