"""Qwen2 and 2.5."""

from __future__ import annotations

from regraft.frontends.blocks import MLP, Block
from regraft.frontends.config import MAX_HEAD_WIDTH, boolean, optional_integer
from regraft.frontends.families.qwen3 import Qwen3


class Qwen2(Qwen3):
    """Llama's block with biased queries, keys and values, and windows by layer as Qwen3 has them."""

    family = "qwen2"
    model_types = ("qwen2",)
    architectures = ("Qwen2ForCausalLM",)
    inert = ("use_mrope",)

    head_dim = optional_integer(None, low=2, high=MAX_HEAD_WIDTH)
    attention_bias = boolean(True)

    def check(self) -> None:
        super().check()
        if not self.attention_bias:
            raise self.unsupported("attention_bias", "true")

    def block(self, layer: int) -> Block:
        attention = self.attention(window=self.window if self.slides(layer) else None, bias=True)
        return Block(self.norm, attention, MLP(self.intermediate_size, self.hidden_act))
