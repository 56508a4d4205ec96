"""Qwen3-MoE."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.frontends.blocks import MLP, Block, MoE
from regraft.frontends.config import (
    MAX_CONTEXT,
    MAX_EXPERTS,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_VOCABULARY,
    boolean,
    integer,
    integers,
    optional_integer,
)
from regraft.frontends.decoder import Decoder


class Qwen3Moe(Decoder):
    """Qwen3's attention, with experts in some layers or all. Source: specs/relatives.md, section 2.

    As in the transformers class, a window holds in every layer, and ``max_window_layers`` says nothing.
    """

    family = "qwen3_moe"
    model_types = ("qwen3_moe",)
    architectures = ("Qwen3MoeForCausalLM",)
    inert = ("max_window_layers", "output_router_logits", "router_aux_loss_coef")

    vocab_size = integer(151936, high=MAX_VOCABULARY)
    hidden_size = integer(2048)
    intermediate_size = integer(6144)
    num_hidden_layers = integer(24, high=MAX_LAYERS)
    num_key_value_heads = optional_integer(4, high=MAX_HEADS)
    max_position_embeddings = integer(32768, high=MAX_CONTEXT)
    attention_bias = boolean(False)
    use_sliding_window = boolean(False)
    sliding_window = optional_integer(4096, high=MAX_CONTEXT)
    decoder_sparse_step = integer(1)
    mlp_only_layers = integers()
    moe_intermediate_size = integer(768)
    num_experts = integer(128, high=MAX_EXPERTS, names=("num_local_experts",))
    num_experts_per_tok = integer(8, high=MAX_EXPERTS)
    norm_topk_prob = boolean(False)

    def check(self) -> None:
        super().check()
        if self.num_experts_per_tok > self.num_experts:
            raise self.disagree(
                "num_experts_per_tok",
                f"{self.num_experts_per_tok} experts a token of {self.num_experts}",
                "a token cannot choose more experts than there are",
            )

    @property
    def window(self) -> int | None:
        """Every layer's window: none unless ``use_sliding_window``."""
        return self.sliding_window if self.use_sliding_window else None

    def sparse(self, layer: int) -> bool:
        """Return whether a layer has experts."""
        return layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0

    def block(self, layer: int) -> Block:
        attention = self.attention(
            window=self.window, norm=self.norm, bias=self.attention_bias, out_bias=self.attention_bias
        )
        experts = MoE(
            self.num_experts,
            self.num_experts_per_tok,
            self.moe_intermediate_size,
            self.hidden_act,
            normalize=self.norm_topk_prob,
        )
        dense = MLP(self.intermediate_size, self.hidden_act)
        return Block(self.norm, attention, experts if self.sparse(layer) else dense)

    def per_layer(self, layers: Sequence[int]) -> dict[str, object]:
        experts = min(self.num_experts, 8)
        return {
            "sliding_window": self.window and 8,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [place for place, layer in enumerate(layers) if not self.sparse(layer)],
            "moe_intermediate_size": 32,
            "num_experts": experts,
            "num_experts_per_tok": min(self.num_experts_per_tok, max(1, experts // 2 - 1)),
        }
