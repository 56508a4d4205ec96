"""Qwen3."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.frontends.blocks import MLP, Block
from regraft.frontends.config import MAX_CONTEXT, MAX_HEADS, MAX_VOCABULARY, boolean, integer, optional_integer, words
from regraft.frontends.decoder import FULL, SLIDING, Decoder


class Qwen3(Decoder):
    """Llama's block with normed queries and keys, and windows by layer. Source: specs/relatives.md, section 2."""

    family = "qwen3"
    model_types = ("qwen3",)
    architectures = ("Qwen3ForCausalLM",)

    vocab_size = integer(151936, high=MAX_VOCABULARY)
    intermediate_size = integer(22016)
    num_key_value_heads = optional_integer(32, high=MAX_HEADS)
    head_dim = optional_integer(128, low=2)
    max_position_embeddings = integer(32768, high=MAX_CONTEXT)
    attention_bias = boolean(False)
    use_sliding_window = boolean(False)
    sliding_window = optional_integer(4096, high=MAX_CONTEXT)
    max_window_layers = integer(28, low=0)
    layer_types = words((FULL, SLIDING))

    def check(self) -> None:
        super().check()
        types = self.layer_types
        if types is not None and len(types) != self.num_hidden_layers:
            raise self.disagree(
                "layer_types",
                f"layer_types has {len(types)} entries for {self.num_hidden_layers} layers",
                "one entry a layer",
            )
        if types is not None and SLIDING in types and self.window is None:
            raise self.disagree(
                "layer_types",
                "layer_types has sliding layers and there is no window",
                "give sliding_window, and use_sliding_window true",
            )

    @property
    def window(self) -> int | None:
        """The sliding layers' window: none unless ``use_sliding_window``."""
        return self.sliding_window if self.use_sliding_window else None

    def slides(self, layer: int) -> bool:
        """Return whether a layer has the window."""
        if self.layer_types is not None:
            return self.layer_types[layer] == SLIDING
        return self.window is not None and layer >= self.max_window_layers

    def block(self, layer: int) -> Block:
        return Block(
            self.norm,
            self.attention(
                window=self.window if self.slides(layer) else None,
                norm=self.norm,
                bias=self.attention_bias,
                out_bias=self.attention_bias,
            ),
            MLP(self.intermediate_size, self.hidden_act),
        )

    def per_layer(self, layers: Sequence[int]) -> dict[str, object]:
        return {
            "sliding_window": self.window and 8,
            "layer_types": [SLIDING if self.slides(layer) else FULL for layer in layers],
        }
