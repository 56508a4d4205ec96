"""Phi-3 and Phi-4."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from regraft.frontends.blocks import MLP, Block
from regraft.frontends.config import (
    MAX_CONTEXT,
    MAX_VOCABULARY,
    Given,
    fixed,
    integer,
    number,
    optional_integer,
    token_ids,
)
from regraft.frontends.decoder import Decoder


class Phi3(Decoder):
    """Llama's block with its maps joined: queries, keys and values in one, gate and up projection in one."""

    family = "phi3"
    model_types = ("phi3",)
    architectures = ("Phi3ForCausalLM",)

    vocab_size = integer(32064, high=MAX_VOCABULARY)
    hidden_size = integer(3072)
    intermediate_size = integer(8192)
    max_position_embeddings = integer(4096, high=MAX_CONTEXT)
    original_max_position_embeddings = integer(4096, high=MAX_CONTEXT)
    rms_norm_eps = number(1e-5, low=1e-30, high=1.0)
    bos_token_id = token_ids((1,))
    eos_token_id = token_ids((32000,))
    sliding_window = optional_integer(None, high=MAX_CONTEXT)
    partial_rotary_factor = number(1.0, low=1e-6, high=1.0)
    attention_bias = fixed(False)

    @property
    def rotary_part(self) -> float | None:
        return self.partial_rotary_factor

    def rope_keys(self) -> Given:
        given, original = super().rope_keys(), self.original_max_position_embeddings
        if not {"short_factor", "long_factor"} & given.values.keys():
            return given
        return replace(given, values={**given.values, "original_max_position_embeddings": original})

    def block(self, layer: int) -> Block:
        attention = replace(self.attention(window=self.sliding_window), fused="qkv_proj")
        return Block(self.norm, attention, MLP(self.intermediate_size, self.hidden_act, fused="gate_up_proj"))

    def per_layer(self, layers: Sequence[int]) -> dict[str, object]:
        small: dict[str, Any] = {"sliding_window": self.sliding_window and 8}
        if self.rope.factors is None:
            return small
        pairs = int(16 * self.partial_rotary_factor) // 2
        given = self.rope_keys()
        few = {name: spread(given.values[name], pairs) for name in ("short_factor", "long_factor")}
        keys = {**given.values, **few, "original_max_position_embeddings": 512}
        return {**small, "original_max_position_embeddings": 512, given.prefix.rstrip("."): keys}


def spread(values: Sequence[float], count: int) -> list[float]:
    """Return ``count`` of some values, from the first to the last."""
    return [values[i * (len(values) - 1) // max(1, count - 1)] for i in range(count)]
