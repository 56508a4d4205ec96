"""Mixtral."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.frontends.blocks import Block, MoE
from regraft.frontends.config import MAX_CONTEXT, MAX_EXPERTS, MAX_HEADS, integer, number, optional_integer, token_ids
from regraft.frontends.decoder import Decoder


class Mixtral(Decoder):
    """Mistral's attention over experts in every layer."""

    family = "mixtral"
    model_types = ("mixtral",)
    architectures = ("MixtralForCausalLM",)
    theta = 1000000.0
    inert = ("output_router_logits", "router_aux_loss_coef", "router_jitter_noise")

    intermediate_size = integer(14336)
    num_key_value_heads = optional_integer(8, high=MAX_HEADS)
    max_position_embeddings = integer(131072, high=MAX_CONTEXT)
    rms_norm_eps = number(1e-5, low=1e-30, high=1.0)
    bos_token_id = token_ids((1,))
    eos_token_id = token_ids((2,))
    sliding_window = optional_integer(None, high=MAX_CONTEXT)
    num_local_experts = integer(8, high=MAX_EXPERTS, names=("num_experts",))
    num_experts_per_tok = integer(2, high=MAX_EXPERTS)

    def check(self) -> None:
        super().check()
        self.check_chosen(self.num_experts_per_tok, self.num_local_experts)

    def block(self, layer: int) -> Block:
        experts = MoE(
            self.num_local_experts,
            self.num_experts_per_tok,
            self.intermediate_size,
            self.hidden_act,
            normalize=True,
            parts=("w1", "w3", "w2"),
            folder="block_sparse_moe",
        )
        return Block(self.norm, self.attention(window=self.sliding_window), experts)

    def per_layer(self, layers: Sequence[int]) -> dict[str, object]:
        experts = min(self.num_local_experts, 8)
        chosen = min(self.num_experts_per_tok, max(1, experts // 2 - 1))
        window = self.sliding_window and 8
        return {"sliding_window": window, "num_local_experts": experts, "num_experts_per_tok": chosen}
