"""Qwen3.5 and 3.6 with experts."""

from __future__ import annotations

from regraft.frontends.config import MAX_EXPERTS, MAX_LAYERS, MAX_VOCABULARY, fixed, integer, integers
from regraft.frontends.families.qwen3_5 import ROPE, TOWERS, WRAPPER
from regraft.frontends.families.qwen3_next import Qwen3Next


class Qwen35Moe(Qwen3Next):
    """Qwen3-Next with a projection for each part, and experts in every layer. Source: specs/relatives.md, section 5."""

    family = "qwen3_5_moe"
    model_types = ("qwen3_5_moe", "qwen3_5_moe_text")
    architectures = ("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration")
    prefixes = ("model", "model.language_model")
    towers = TOWERS
    wrapper = WRAPPER
    rope_inert = ROPE
    inert = (*Qwen3Next.inert, "mtp_use_dedicated_embeddings")
    packed = False

    vocab_size = integer(248320, high=MAX_VOCABULARY)
    num_hidden_layers = integer(40, high=MAX_LAYERS)
    num_experts = integer(256, high=MAX_EXPERTS, names=("num_local_experts",))
    num_experts_per_tok = integer(8, high=MAX_EXPERTS)
    decoder_sparse_step = fixed(1)
    mlp_only_layers = integers(high=-1)
    norm_topk_prob = fixed(True)
