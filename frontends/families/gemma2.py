"""Gemma 2."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import ClassVar

from regraft.frontends.blocks import MLP, Attention, Block, RMSNorm
from regraft.frontends.config import (
    MAX_CONTEXT,
    MAX_HEAD_WIDTH,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_VOCABULARY,
    boolean,
    choice,
    fixed,
    integer,
    number,
    optional_integer,
    optional_number,
    token_ids,
    words,
)
from regraft.frontends.decoder import ACTIVATIONS, FULL, SLIDING, Decoder
from regraft.frontends.rope import Rope


class Gemma2(Decoder):
    """Norms on both sides of each branch, capped scores and logits, every second layer with a window."""

    family = "gemma2"
    model_types = ("gemma2",)
    architectures: ClassVar[Sequence[str]] = ("Gemma2ForCausalLM",)
    inert = ("cache_implementation",)

    vocab_size = integer(256000, high=MAX_VOCABULARY)
    hidden_size = integer(2304)
    intermediate_size = integer(9216)
    num_hidden_layers = integer(26, high=MAX_LAYERS)
    num_attention_heads = integer(8, high=MAX_HEADS)
    num_key_value_heads = optional_integer(4, high=MAX_HEADS)
    head_dim = optional_integer(256, low=2, high=MAX_HEAD_WIDTH)
    hidden_act = choice("gelu_pytorch_tanh", ACTIVATIONS, names=("hidden_activation",))
    max_position_embeddings = integer(8192, high=MAX_CONTEXT)
    tie_word_embeddings = boolean(True)
    bos_token_id = token_ids((2,))
    eos_token_id = token_ids((1,))
    attention_bias = boolean(False)
    query_pre_attn_scalar = number(256, low=1e-9)
    sliding_window = optional_integer(4096, high=MAX_CONTEXT)
    layer_types = words((FULL, SLIDING))
    final_logit_softcapping = optional_number(30.0)
    attn_logit_softcapping = optional_number(50.0)
    use_bidirectional_attention = fixed(False)

    def check(self) -> None:
        self.check_types(self.layer_types)
        super().check()

    @property
    def norm(self) -> RMSNorm:
        return RMSNorm(self.rms_norm_eps, offset=1.0, cast="after")

    @property
    def embedding_scale(self) -> float:
        return self.hidden_size**0.5

    @property
    def logit_cap(self) -> float:
        return self.final_logit_softcapping or 0.0

    @property
    def pattern(self) -> int:
        """Layers of which the last one has no window."""
        return 2

    @cached_property
    def types(self) -> tuple[str, ...]:
        """Each layer's type."""
        count = self.num_hidden_layers
        return self.layer_types or tuple(SLIDING if (i + 1) % self.pattern else FULL for i in range(count))

    def turn(self, layer: int) -> Rope:
        """Return how a layer turns queries and keys."""
        return self.rope

    def heads(self, layer: int) -> Attention:
        """Return a layer's attention."""
        window = self.sliding_window if self.types[layer] == SLIDING else None
        bias = self.attention_bias
        attention = self.attention(window=window, bias=bias, out_bias=bias, rope=self.turn(layer))
        return replace(attention, scale=self.query_pre_attn_scalar**-0.5, softcap=self.attn_logit_softcapping)

    def block(self, layer: int) -> Block:
        return Block(
            self.norm,
            self.heads(layer),
            MLP(self.intermediate_size, self.hidden_act),
            before=("input_layernorm", "pre_feedforward_layernorm"),
            after=("post_attention_layernorm", "post_feedforward_layernorm"),
        )

    def per_layer(self, layers: Sequence[int]) -> dict[str, object]:
        small: dict[str, object] = {
            "sliding_window": self.sliding_window and 8,
            "layer_types": [self.types[layer] for layer in layers],
            "query_pre_attn_scalar": 20,
        }
        return small | ({"attn_logit_softcapping": 2.0} if self.attn_logit_softcapping else {})
