"""OLMo 2."""

from __future__ import annotations

from dataclasses import replace

from regraft.frontends.blocks import MLP, Block, RMSNorm
from regraft.frontends.config import MAX_VOCABULARY, boolean, integer, number, token_ids
from regraft.frontends.decoder import Decoder


class Olmo2(Decoder):
    """Norms after each branch and none before; queries and keys normed over all heads at once."""

    family = "olmo2"
    model_types = ("olmo2",)
    architectures = ("Olmo2ForCausalLM",)

    vocab_size = integer(50304, high=MAX_VOCABULARY)
    rms_norm_eps = number(1e-5, low=1e-30, high=1.0)
    eos_token_id = token_ids((50279,))
    attention_bias = boolean(False)

    @property
    def norm(self) -> RMSNorm:
        return RMSNorm(self.rms_norm_eps, cast="after")

    def block(self, layer: int) -> Block:
        bias = self.attention_bias
        return Block(
            self.norm,
            replace(self.attention(norm=self.norm, bias=bias, out_bias=bias), whole_norm=True),
            MLP(self.intermediate_size, self.hidden_act),
            before=("", ""),
            after=("post_attention_layernorm", "post_feedforward_layernorm"),
        )
