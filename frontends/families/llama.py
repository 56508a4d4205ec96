"""Llama 2 and 3, and the many models that have their form."""

from __future__ import annotations

from regraft.frontends.blocks import MLP, Block
from regraft.frontends.config import boolean, fixed, token_ids
from regraft.frontends.decoder import Decoder


class Llama(Decoder):
    """Pre-norm blocks of grouped-query attention and a gated MLP. Source: specs/relatives.md, section 1."""

    family = "llama"
    model_types = ("llama",)
    architectures = ("LlamaForCausalLM",)
    inert = ("is_llama_config", "pretraining_tp")

    bos_token_id = token_ids((1,))
    eos_token_id = token_ids((2,))
    attention_bias = boolean(False)
    mlp_bias = boolean(False)
    rope_interleaved = fixed(False)

    def block(self, layer: int) -> Block:
        return Block(
            self.norm,
            self.attention(bias=self.attention_bias, out_bias=self.attention_bias),
            MLP(self.intermediate_size, self.hidden_act, bias=self.mlp_bias),
        )
