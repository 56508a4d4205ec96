"""Qwen3.5 and 3.6, dense."""

from __future__ import annotations

from regraft.frontends.config import MAX_HEADS, MAX_VOCABULARY, fixed, integer, optional_integer
from regraft.frontends.delta import Hybrid

TOWERS = {"model.visual.": ("vision_config", "the vision tower"), **Hybrid.towers}
WRAPPER = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "language_model_only")
ROPE = ("mrope_interleaved", "mrope_section")  # where time, height and width coincide, as in text, they say nothing


class Qwen35(Hybrid):
    """DeltaNet and gated attention over gated MLPs. Source: specs/relatives.md, section 5."""

    family = "qwen3_5"
    model_types = ("qwen3_5", "qwen3_5_text")
    architectures = ("Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration")
    prefixes = ("model", "model.language_model")
    towers = TOWERS
    wrapper = WRAPPER
    rope_inert = ROPE
    inert = (*Hybrid.inert, "mtp_use_dedicated_embeddings")

    vocab_size = integer(248320, high=MAX_VOCABULARY)
    intermediate_size = integer(12288)
    num_key_value_heads = optional_integer(4, high=MAX_HEADS)
    attention_bias = fixed(False)
