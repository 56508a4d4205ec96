"""OpenELM."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from regraft.frontends.blocks import MLP, Attention, Block
from regraft.frontends.config import (
    MAX_CONTEXT,
    MAX_HEAD_WIDTH,
    MAX_HEADS,
    MAX_LAYERS,
    boolean,
    choice,
    fixed,
    integer,
    integers,
    number,
    numbers,
    optional_integer,
    token_ids,
)
from regraft.frontends.decoder import ACTIVATIONS, Decoder


def divisible(value: float, by: int) -> int:
    """Return the multiple of ``by`` nearest to a width, at least nine tenths of it."""
    near = max(by, int(value + by / 2) // by * by)
    return near + by if near < 0.9 * value else near


class OpenELM(Decoder):
    """Llama's block, whose heads and widths grow from layer to layer. Source: specs/relatives.md, section 4."""

    family = "openelm"
    model_types = ("openelm",)
    architectures = ("OpenELMForCausalLM",)
    prefix = "transformer"
    prefixes = ("transformer",)
    embedding = "token_embeddings.weight"
    inert = ("rope_max_length",)

    hidden_size = integer(2048, names=("model_dim",))
    num_hidden_layers = integer(12, high=MAX_LAYERS, names=("num_transformer_layers",))
    head_dim = optional_integer(128, low=2, high=MAX_HEAD_WIDTH)
    hidden_act = choice("swish", ACTIVATIONS, names=("activation_fn_name",))
    max_position_embeddings = integer(2048, high=MAX_CONTEXT, names=("max_context_length",))
    tie_word_embeddings = boolean(True, names=("share_input_output_layers",))
    rope_theta = number(10000.0, low=1.0, high=1e12, names=("rope_freq_constant",))
    bos_token_id = token_ids((1,))
    eos_token_id = token_ids((2,))
    num_gqa_groups = integer(1, high=MAX_HEADS)
    qkv_multipliers = numbers(low=1e-3, high=1e3)
    ffn_multipliers = numbers(low=1e-3, high=1e3)
    num_query_heads = integers(low=1, high=MAX_HEADS)
    num_kv_heads = integers(low=1, high=MAX_HEADS)
    ffn_dim_divisor = integer(256)
    ffn_with_glu = fixed(True)
    normalize_qk_projections = boolean(True)
    normalization_layer_name = fixed("rms_norm")

    def check(self) -> None:
        for key, values in (("num_query_heads", self.num_query_heads), ("num_kv_heads", self.num_kv_heads)):
            if values and len(values) != self.num_hidden_layers:
                raise self.disagree(
                    key, f"{key} has {len(values)} entries for {self.num_hidden_layers} layers", "one entry a layer"
                )
        if len(self.ffn_multipliers) not in (0, 1, 2, self.num_hidden_layers):
            raise self.disagree(
                "ffn_multipliers",
                f"ffn_multipliers has {len(self.ffn_multipliers)} entries for {self.num_hidden_layers} layers",
                "give one for all, the first and the last, or one a layer",
            )
        if any(h % k for h, k in zip(self.query_heads, self.value_heads, strict=True)):
            raise self.disagree(
                "num_kv_heads", "a layer's query heads cannot be dealt evenly", "each divides num_query_heads"
            )
        super().check()

    def _spread(self, ends: Sequence[float]) -> list[float]:
        """Return a multiplier for each layer, from the first one to the last, rounded as the reference does."""
        count = self.num_hidden_layers
        if len(ends) == count:
            return list(ends)
        first, last = (ends[0], ends[-1]) if ends else (1.0, 1.0)
        return [round(first + (last - first) * i / max(1, count - 1), 2) for i in range(count)]

    @cached_property
    def query_heads(self) -> list[int]:
        """Each layer's query heads."""
        unit = self.head_width * self.num_gqa_groups
        widths = [divisible(self.hidden_size * m, unit) for m in self._spread(self.qkv_multipliers)]
        return list(self.num_query_heads) or [width // self.head_width for width in widths]

    @cached_property
    def value_heads(self) -> list[int]:
        """Each layer's key/value heads."""
        return list(self.num_kv_heads) or [max(1, heads // self.num_gqa_groups) for heads in self.query_heads]

    @cached_property
    def widths(self) -> list[int]:
        """Each layer's channels between the maps of its MLP."""
        return [divisible(self.hidden_size * m, self.ffn_dim_divisor) for m in self._spread(self.ffn_multipliers)]

    def block(self, layer: int) -> Block:
        attention = Attention(
            heads=self.query_heads[layer],
            kv_heads=self.value_heads[layer],
            width=self.head_width,
            scale=self.head_width**-0.5,
            rope=self.rope,
            norm=self.norm if self.normalize_qk_projections else None,
            fused="qkv_proj",
            out="out_proj",
            module="attn",
        )
        feed = MLP(self.widths[layer], self.hidden_act, fused="proj_1", down="proj_2", module="ffn")
        return Block(self.norm, attention, feed, before=("attn_norm", "ffn_norm"))

    # -- the small twin

    def twin(self) -> dict[str, object]:
        """Return a small config of four layers, two of them with more heads than the others."""
        gone = ("torch_dtype", "hidden_size")
        config: dict[str, object] = {key: value for key, value in self.given.values.items() if key not in gone}
        return config | {
            "vocab_size": 128,
            "model_dim": 64,
            "head_dim": 16,
            "num_transformer_layers": 4,
            "num_gqa_groups": 4,
            "num_query_heads": [4, 4, 8, 8],
            "num_kv_heads": [1, 1, 2, 2],
            "qkv_multipliers": [0.5, 1.0],
            "ffn_multipliers": [0.5, 1.67, 2.83, 4.0],
            "ffn_dim_divisor": 16,
            "max_context_length": 512,
            "dtype": "float32",
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
