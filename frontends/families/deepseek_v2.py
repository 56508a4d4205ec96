"""DeepSeek V2 and V2-Lite."""

from __future__ import annotations

from dataclasses import replace

from regraft.frontends.config import (
    MAX_CONTEXT,
    MAX_EXPERTS,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_VOCABULARY,
    choice,
    fixed,
    integer,
    number,
    token_ids,
)
from regraft.frontends.deepseek import DeepSeek
from regraft.frontends.mla import GroupedMoE


class DeepSeekV2(DeepSeek):
    """Latent attention, experts chosen by a softmax, from all or from the best groups. Source: specs/mla.md."""

    family = "deepseek_v2"
    model_types = ("deepseek_v2",)
    architectures = ("DeepseekV2ForCausalLM",)

    vocab_size = integer(102400, high=MAX_VOCABULARY)
    hidden_size = integer(4096)
    intermediate_size = integer(11008)
    num_hidden_layers = integer(32, high=MAX_LAYERS)
    num_attention_heads = integer(32, high=MAX_HEADS)
    max_position_embeddings = integer(2048, high=MAX_CONTEXT)
    moe_intermediate_size = integer(1407)
    n_routed_experts = integer(64, high=MAX_EXPERTS, names=("num_local_experts", "num_experts"))
    n_shared_experts = integer(2, low=0)
    first_k_dense_replace = integer(0, low=0)
    n_group = integer(1, high=MAX_EXPERTS)
    topk_group = integer(1, high=MAX_EXPERTS)
    routed_scaling_factor = number(1.0, low=1e-6)
    norm_topk_prob = fixed(False)  # transformers ignores it, the original code does not scale where it is true
    scoring_func = fixed("softmax")
    topk_method = choice("greedy", {"greedy": "greedy", "group_limited_greedy": "group_limited_greedy"})
    rope_interleave = fixed(True)
    bos_token_id = token_ids((1,))
    eos_token_id = token_ids((2,))

    def experts(self) -> GroupedMoE:
        """Return the experts: with groups, one counts by its best."""
        if self.topk_method == "greedy":
            return super().experts()
        return replace(super().experts(), groups=self.n_group, kept=self.topk_group)
