"""Mistral 7B."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.frontends.blocks import MLP, Block
from regraft.frontends.config import MAX_CONTEXT, MAX_HEADS, integer, optional_integer, token_ids
from regraft.frontends.decoder import Decoder


class Mistral(Decoder):
    """Llama's block, with a window on every layer or on none. Source: specs/relatives.md, section 1."""

    family = "mistral"
    model_types = ("mistral",)
    architectures = ("MistralForCausalLM",)

    intermediate_size = integer(14336)
    num_key_value_heads = optional_integer(8, high=MAX_HEADS)
    max_position_embeddings = integer(131072, high=MAX_CONTEXT)
    bos_token_id = token_ids((1,))
    eos_token_id = token_ids((2,))
    sliding_window = optional_integer(4096, high=MAX_CONTEXT)  # absent is the class's 4096, null is no window

    def block(self, layer: int) -> Block:
        return Block(
            self.norm,
            self.attention(window=self.sliding_window),
            MLP(self.intermediate_size, self.hidden_act),
        )

    def per_layer(self, layers: Sequence[int]) -> dict[str, object]:
        return {"sliding_window": self.sliding_window and 8}
