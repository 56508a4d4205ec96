"""DeepSeek V3 and R1."""

from __future__ import annotations

from dataclasses import replace

from regraft.frontends.config import MAX_CONTEXT, boolean, fixed, integer
from regraft.frontends.deepseek import DeepSeek
from regraft.frontends.mla import GroupedMoE
from regraft.frontends.rope import Rope


class DeepSeekV3(DeepSeek):
    """Latent attention, experts chosen by sigmoids within the best groups. Source: specs/mla.md, sections 1 to 7."""

    family = "deepseek_v3"
    model_types = ("deepseek_v3",)
    architectures = ("DeepseekV3ForCausalLM",)

    max_position_embeddings = integer(4096, high=MAX_CONTEXT)
    rope_interleave = boolean(True)
    norm_topk_prob = boolean(True)
    scoring_func = fixed("sigmoid")
    topk_method = fixed("noaux_tc")

    @property
    def turning(self) -> Rope:
        return super().turning if self.rope_interleave else self.rope

    def experts(self) -> GroupedMoE:
        """Return the experts: a group counts by its two best, a bias takes part in the choice."""
        return replace(
            super().experts(),
            normalize=self.norm_topk_prob,
            score="sigmoid",
            bias=True,
            groups=self.n_group,
            kept=self.topk_group,
            best=min(2, self.n_routed_experts // self.n_group),
            eps=1e-20,
        )
