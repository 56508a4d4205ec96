"""GLM-4."""

from __future__ import annotations

from dataclasses import replace

from regraft.frontends.blocks import MLP, Block
from regraft.frontends.config import (
    MAX_CONTEXT,
    MAX_HEAD_WIDTH,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_VOCABULARY,
    boolean,
    integer,
    number,
    optional_integer,
    token_ids,
)
from regraft.frontends.decoder import Decoder


class Glm4(Decoder):
    """Norms before and after each branch; half of a head's channels turn, neighbours in pairs."""

    family = "glm4"
    model_types = ("glm4",)
    architectures = ("Glm4ForCausalLM",)

    vocab_size = integer(151552, high=MAX_VOCABULARY)
    intermediate_size = integer(13696)
    num_hidden_layers = integer(40, high=MAX_LAYERS)
    num_key_value_heads = optional_integer(2, high=MAX_HEADS)
    head_dim = optional_integer(128, low=2, high=MAX_HEAD_WIDTH)
    max_position_embeddings = integer(131072, high=MAX_CONTEXT)
    rms_norm_eps = number(1.5625e-07, low=1e-30, high=1.0)
    eos_token_id = token_ids((151329, 151336, 151338))
    attention_bias = boolean(True)
    partial_rotary_factor = number(0.5, low=1e-6, high=1.0)

    @property
    def rotary_part(self) -> float | None:
        return self.partial_rotary_factor

    def block(self, layer: int) -> Block:
        return Block(
            self.norm,
            replace(self.attention(bias=self.attention_bias), rope=replace(self.rope, layout="interleaved")),
            MLP(self.intermediate_size, self.hidden_act, fused="gate_up_proj"),
            after=("post_self_attn_layernorm", "post_mlp_layernorm"),
        )
