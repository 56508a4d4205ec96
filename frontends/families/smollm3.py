"""SmolLM3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from regraft.frontends.blocks import MLP, Block
from regraft.frontends.config import (
    MAX_CONTEXT,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_VOCABULARY,
    boolean,
    integer,
    integers,
    optional_integer,
    token_ids,
    words,
)
from regraft.frontends.decoder import FULL, SLIDING, Decoder


class SmolLM3(Decoder):
    """Llama's block, where some layers do not turn queries and keys; these may have a window."""

    family = "smollm3"
    model_types = ("smollm3",)
    architectures = ("SmolLM3ForCausalLM",)
    theta = 2000000.0
    inert = ("max_window_layers", "pretraining_tp")

    vocab_size = integer(128256, high=MAX_VOCABULARY)
    hidden_size = integer(2048)
    num_hidden_layers = integer(36, high=MAX_LAYERS)
    num_attention_heads = integer(16, high=MAX_HEADS)
    num_key_value_heads = optional_integer(4, high=MAX_HEADS)
    max_position_embeddings = integer(32768, high=MAX_CONTEXT)
    tie_word_embeddings = boolean(True)
    bos_token_id = token_ids((128000,))
    eos_token_id = token_ids((128001,))
    attention_bias = boolean(False)
    mlp_bias = boolean(False)
    use_sliding_window = boolean(False)
    sliding_window = optional_integer(None, high=MAX_CONTEXT)
    no_rope_layers = integers(high=1)
    no_rope_layer_interval = integer(4)
    layer_types = words((FULL, SLIDING))

    def check(self) -> None:
        self.check_types(self.layer_types)
        if self.no_rope_layers and len(self.no_rope_layers) != self.num_hidden_layers:
            raise self.disagree(
                "no_rope_layers",
                f"no_rope_layers has {len(self.no_rope_layers)} entries for {self.num_hidden_layers} layers",
                "one entry a layer, 1 where queries and keys turn",
            )
        super().check()

    def turns(self, layer: int) -> bool:
        """Return whether a layer turns queries and keys."""
        if self.no_rope_layers:
            return bool(self.no_rope_layers[layer])
        return (layer + 1) % self.no_rope_layer_interval != 0

    def slides(self, layer: int) -> bool:
        """Return whether a layer has the window."""
        if not self.use_sliding_window or self.sliding_window is None:
            return False
        return self.layer_types[layer] == SLIDING if self.layer_types else not self.turns(layer)

    def block(self, layer: int) -> Block:
        bias = self.attention_bias
        attention = self.attention(window=self.sliding_window if self.slides(layer) else None, bias=bias, out_bias=bias)
        attention = attention if self.turns(layer) else replace(attention, rope=None)
        return Block(self.norm, attention, MLP(self.intermediate_size, self.hidden_act, bias=self.mlp_bias))

    def per_layer(self, layers: Sequence[int]) -> dict[str, object]:
        return {
            "no_rope_layers": [int(self.turns(layer)) for layer in layers],
            "layer_types": [SLIDING if self.slides(layer) else FULL for layer in layers],
            "sliding_window": self.sliding_window and 8,
        }
