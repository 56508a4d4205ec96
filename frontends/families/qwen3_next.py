"""Qwen3-Next."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.frontends.blocks import MLP, MoE
from regraft.frontends.config import MAX_EXPERTS, MAX_LAYERS, MAX_VOCABULARY, boolean, fixed, integer, integers
from regraft.frontends.delta import Hybrid


class Qwen3Next(Hybrid):
    """DeltaNet and gated attention over experts, one of them shared. Source: specs/relatives.md, section 5."""

    family = "qwen3_next"
    model_types = ("qwen3_next",)
    architectures = ("Qwen3NextForCausalLM",)
    inert = (*Hybrid.inert, "output_router_logits", "router_aux_loss_coef")
    packed = True

    vocab_size = integer(151936, high=MAX_VOCABULARY)
    hidden_size = integer(2048)
    intermediate_size = integer(5632)
    num_hidden_layers = integer(48, high=MAX_LAYERS)
    attention_bias = fixed(False)
    decoder_sparse_step = integer(1)
    mlp_only_layers = integers()
    moe_intermediate_size = integer(512)
    shared_expert_intermediate_size = integer(512)
    num_experts = integer(512, high=MAX_EXPERTS, names=("num_local_experts",))
    num_experts_per_tok = integer(10, high=MAX_EXPERTS)
    norm_topk_prob = boolean(True)

    def check(self) -> None:
        super().check()
        if self.num_experts_per_tok > self.num_experts:
            raise self.disagree(
                "num_experts_per_tok",
                f"{self.num_experts_per_tok} experts a token of {self.num_experts}",
                "a token cannot choose more experts than there are",
            )

    def sparse(self, layer: int) -> bool:
        """Return whether a layer has experts."""
        return layer not in self.mlp_only_layers and (layer + 1) % self.decoder_sparse_step == 0

    def feed(self, layer: int) -> MLP | MoE:
        if not self.sparse(layer):
            return super().feed(layer)
        return MoE(
            self.num_experts,
            self.num_experts_per_tok,
            self.moe_intermediate_size,
            self.hidden_act,
            normalize=self.norm_topk_prob,
            shared=self.shared_expert_intermediate_size,
        )

    def per_layer(self, layers: Sequence[int]) -> dict[str, object]:
        experts = min(self.num_experts, 8)
        return super().per_layer(layers) | {
            "decoder_sparse_step": 1,
            "mlp_only_layers": [place for place, layer in enumerate(layers) if not self.sparse(layer)],
            "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 24,
            "num_experts": experts,
            "num_experts_per_tok": min(self.num_experts_per_tok, max(1, experts // 2 - 1)),
        }
