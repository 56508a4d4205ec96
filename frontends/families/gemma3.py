"""Gemma 3, the text decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from regraft.frontends.blocks import Attention
from regraft.frontends.config import MAX_CONTEXT, MAX_VOCABULARY, integer, number, optional_number
from regraft.frontends.decoder import FULL, SLIDING
from regraft.frontends.families.gemma2 import Gemma2
from regraft.frontends.rope import Rope


class Gemma3(Gemma2):
    """Gemma 2's block with normed queries and keys, and another base for the layers with a window."""

    family = "gemma3"
    model_types = ("gemma3", "gemma3_text")
    architectures: ClassVar[Sequence[str]] = ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration")
    prefixes = ("model", "model.language_model", "language_model.model")
    towers: ClassVar[Mapping[str, tuple[str, str]]] = {
        "vision_tower.": ("vision_config", "the vision tower"),
        "model.vision_tower.": ("vision_config", "the vision tower"),
        "multi_modal_projector.": ("", "the projection of images"),
        "model.multi_modal_projector.": ("", "the projection of images"),
    }
    wrapper = ("boi_token_index", "eoi_token_index", "image_token_index", "mm_tokens_per_image")
    theta = 1000000.0

    vocab_size = integer(262208, high=MAX_VOCABULARY)
    max_position_embeddings = integer(131072, high=MAX_CONTEXT)
    final_logit_softcapping = optional_number(None)
    attn_logit_softcapping = optional_number(None)
    rope_local_base_freq = number(10000.0, low=1.0, high=1e12)
    sliding_window_pattern = integer(6, names=("_sliding_window_pattern",))

    @property
    def pattern(self) -> int:
        return self.sliding_window_pattern

    def heads(self, layer: int) -> Attention:
        return replace(super().heads(layer), norm=self.norm)

    def turn(self, layer: int) -> Rope:
        """Return how a layer turns; keys that do not stand by type are those of the layers without a window."""
        kind = self.types[layer]
        by_type = self.rope_keys().values.keys() & {FULL, SLIDING}
        local = kind == SLIDING
        if by_type:
            return self.rope_of(kind, theta=self.rope_local_base_freq if local else 0.0)
        return Rope(self.rope_local_base_freq, self.head_width) if local else self.rope

    def twin(self) -> dict[str, object]:
        """Return the small config of the text model alone, as it is saved without the tower."""
        config = super().twin()
        text = config.get("text_config", config)
        assert isinstance(text, dict)
        return {**text, "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}
