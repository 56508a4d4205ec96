"""Granite 3."""

from __future__ import annotations

from dataclasses import replace

from regraft.frontends.blocks import MLP, Block
from regraft.frontends.config import boolean, number, token_ids
from regraft.frontends.decoder import Decoder


class Granite(Decoder):
    """Llama's block with factors: for the embedding, for scores, for what joins the stream, and under the logits."""

    family = "granite"
    model_types = ("granite",)
    architectures = ("GraniteForCausalLM",)

    bos_token_id = token_ids((1,))
    eos_token_id = token_ids((2,))
    attention_bias = boolean(False)
    mlp_bias = boolean(False)
    embedding_multiplier = number(1.0, low=1e-9)
    logits_scaling = number(1.0, low=1e-9)
    residual_multiplier = number(1.0, low=1e-9)
    attention_multiplier = number(1.0, low=1e-9)

    @property
    def embedding_scale(self) -> float:
        return self.embedding_multiplier

    @property
    def logit_scale(self) -> float:
        return 1.0 / self.logits_scaling

    def block(self, layer: int) -> Block:
        bias = self.attention_bias
        return Block(
            self.norm,
            replace(self.attention(bias=bias, out_bias=bias), scale=self.attention_multiplier),
            MLP(self.intermediate_size, self.hidden_act, bias=self.mlp_bias),
            scale=self.residual_multiplier,
        )
