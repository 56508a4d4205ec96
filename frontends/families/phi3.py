"""Phi-3 and Phi-4."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from regraft.frontends.blocks import MLP, Block
from regraft.frontends.config import MAX_CONTEXT, MAX_VOCABULARY, fixed, integer, number, optional_integer, token_ids
from regraft.frontends.decoder import Decoder


class Phi3(Decoder):
    """Llama's block with its maps joined: queries, keys and values in one, gate and up projection in one."""

    family = "phi3"
    model_types = ("phi3",)
    architectures = ("Phi3ForCausalLM",)
    inert = ("original_max_position_embeddings",)

    vocab_size = integer(32064, high=MAX_VOCABULARY)
    hidden_size = integer(3072)
    intermediate_size = integer(8192)
    max_position_embeddings = integer(4096, high=MAX_CONTEXT)
    rms_norm_eps = number(1e-5, low=1e-30, high=1.0)
    bos_token_id = token_ids((1,))
    eos_token_id = token_ids((32000,))
    sliding_window = optional_integer(None, high=MAX_CONTEXT)
    partial_rotary_factor = number(1.0, low=1e-6, high=1.0)
    attention_bias = fixed(False)

    @property
    def rotary_part(self) -> float | None:
        return self.partial_rotary_factor

    def block(self, layer: int) -> Block:
        attention = replace(self.attention(window=self.sliding_window), fused="qkv_proj")
        return Block(self.norm, attention, MLP(self.intermediate_size, self.hidden_act, fused="gate_up_proj"))

    def per_layer(self, layers: Sequence[int]) -> dict[str, object]:
        return {"sliding_window": self.sliding_window and 8}
