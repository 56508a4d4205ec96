"""Laguna."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

from regraft.frontends.blocks import MLP, Block, MoE
from regraft.frontends.config import (
    MAX_CONTEXT,
    MAX_EXPERTS,
    MAX_HEAD_WIDTH,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_VOCABULARY,
    Given,
    boolean,
    choice,
    fixed,
    integer,
    integers,
    number,
    optional_integer,
    words,
)
from regraft.frontends.decoder import FULL, SLIDING, Decoder
from regraft.frontends.rope import Rope

DENSE, SPARSE = "dense", "sparse"
_ROPES = {
    FULL: {"rope_type": "default", "rope_theta": 500000.0, "partial_rotary_factor": 0.5},
    SLIDING: {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
}


class Laguna(Decoder):
    """Query heads by layer, gated by a softplus, over experts with a shared one. Source: specs/laguna.md."""

    family = "laguna"
    model_types = ("laguna",)
    architectures = ("LagunaForCausalLM",)
    twin_gain = 0.75
    inert = ("output_router_logits", "router_aux_loss_coef")

    vocab_size = integer(100352, high=MAX_VOCABULARY)
    hidden_size = integer(2048)
    intermediate_size = integer(8192)
    num_hidden_layers = integer(40, high=MAX_LAYERS)
    num_attention_heads = integer(48, high=MAX_HEADS)
    num_key_value_heads = optional_integer(8, high=MAX_HEADS)
    head_dim = optional_integer(128, low=2, high=MAX_HEAD_WIDTH)
    max_position_embeddings = integer(131072, high=MAX_CONTEXT)
    attention_bias = boolean(False)
    gating = choice("per-head", {"per-head": "head", "per-element": "channel"}, true="per-head")
    sliding_window = integer(512, high=MAX_CONTEXT)
    layer_types = words((FULL, SLIDING))
    num_attention_heads_per_layer = integers(low=1, high=MAX_HEADS)
    mlp_layer_types = words((DENSE, SPARSE))
    num_experts = integer(256, high=MAX_EXPERTS)
    num_experts_per_tok = integer(8, high=MAX_EXPERTS)
    moe_intermediate_size = integer(512)
    shared_expert_intermediate_size = integer(512)
    moe_routed_scaling_factor = number(1.0, low=1e-9)
    moe_router_logit_softcapping = number(0.0)
    moe_apply_router_weight_on_input = fixed(False)

    def check(self) -> None:
        self.check_types(self.layer_types)
        self.check_types(self.mlp_layer_types, "mlp_layer_types")
        heads = self.num_attention_heads_per_layer
        if heads and len(heads) != self.num_hidden_layers:
            raise self.disagree(
                "num_attention_heads_per_layer",
                f"num_attention_heads_per_layer has {len(heads)} entries for {self.num_hidden_layers} layers",
                "one entry a layer",
            )
        uneven = next((count for count in heads if count % self.kv_heads), None)
        if uneven:
            raise self.disagree(
                "num_attention_heads_per_layer",
                f"{uneven} query heads cannot be dealt evenly to {self.kv_heads} key/value heads",
                "every layer's heads are a multiple of num_key_value_heads",
            )
        super().check()
        self.check_chosen(self.num_experts_per_tok, self.num_experts)

    def slides(self, layer: int) -> bool:
        """Return whether a layer has the window."""
        return self.layer_types is not None and self.layer_types[layer] == SLIDING

    def sparse(self, layer: int) -> bool:
        """Return whether a layer has experts."""
        return self.mlp_layer_types[layer] == SPARSE if self.mlp_layer_types else layer > 0

    def heads(self, layer: int) -> int:
        """Return a layer's query heads."""
        heads = self.num_attention_heads_per_layer
        return heads[layer] if heads else self.num_attention_heads

    @property
    def rotary_part(self) -> float | None:
        return 1.0

    def rope_keys(self) -> Given:
        given = super().rope_keys()
        return given if given.values else Given(_ROPES, given.path, f"{self.given.prefix}rope_parameters.")

    @cached_property
    def ropes(self) -> dict[str, Rope]:
        """How each type of layers turns; the bounds of yarn's ramp are always rounded."""
        return {kind: replace(self.rope_of(kind), truncate=True) for kind in (FULL, SLIDING)}

    def block(self, layer: int) -> Block:
        slides, bias = self.slides(layer), self.attention_bias
        window = self.sliding_window if slides else None
        rope = self.ropes[SLIDING if slides else FULL]
        attention = self.attention(window=window, norm=self.norm, bias=bias, out_bias=bias, rope=rope)
        attention = replace(attention, heads=self.heads(layer), gate=self.gating)
        experts = MoE(
            self.num_experts,
            self.num_experts_per_tok,
            self.moe_intermediate_size,
            self.hidden_act,
            normalize=True,
            score="sigmoid",
            scale=self.moe_routed_scaling_factor,
            bias=True,
            softcap=self.moe_router_logit_softcapping,
            shared=self.shared_expert_intermediate_size,
            shared_module="shared_experts",
            shared_gate=False,
        )
        dense = MLP(self.intermediate_size, self.hidden_act)
        return Block(self.norm, attention, experts if self.sparse(layer) else dense)

    def per_layer(self, layers: Sequence[int]) -> dict[str, object]:
        counts = sorted({self.heads(layer) for layer in layers})
        return {
            "sliding_window": 8,
            "layer_types": [SLIDING if self.slides(layer) else FULL for layer in layers],
            "mlp_layer_types": [SPARSE if self.sparse(layer) else DENSE for layer in layers],
            "num_attention_heads_per_layer": [4 + 4 * counts.index(self.heads(layer)) for layer in layers],
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 40,
        }
