"""gpt-oss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from regraft.frontends.blocks import Block, ModelBuilder, MoE, RMSNorm
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
    integer,
    number,
    optional_integer,
    table,
    words,
)
from regraft.frontends.decoder import DTYPES, FULL, SLIDING, Decoder
from regraft.ir.op import Value
from regraft.ir.ops.layout import Deinterleave, Transpose
from regraft.ir.ops.moe import Experts, Route
from regraft.ir.ops.quantized import Mxfp4

_ROPE = {"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096}
_BLOCK = 32  # values that share a scale


@dataclass(frozen=True)
class ClampedMoE(MoE):
    """Experts whose gate and up projection are cut at a limit, with biases, stored channel by channel in turn.

    ``packed`` says that the config announces MXFP4; a checkpoint at hand decides for itself.
    """

    limit: float = 7.0
    packed: bool = False

    def build(self, b: ModelBuilder, x: Value, module: str) -> Value:
        model = x.tensor.shape[-1]
        assert isinstance(model, int)
        logits = b.linear("logits", x, f"{module}.router", self.experts, bias=True)
        # a softmax of the chosen logits is the softmax of all, made to add up to one
        weights, chosen = b.many(Route, ["weights", "experts"], logits, chosen=self.chosen, normalize=True)
        place, both = f"{module}.experts", 2 * self.width
        gate_up = self._matrix(b, f"{place}.gate_up_proj", both, model, f"{place}.gate_up_rows")
        gate_up = self._dealt(b, gate_up, f"{place}.gate_up.weight")
        down = self._matrix(b, f"{place}.down_proj", model, self.width, f"{place}.down.weight")
        bias = self._dealt(b, b.weight(f"{place}.gate_up_proj_bias", self.experts, both), f"{place}.gate_up.bias")
        more = {"gate_up_bias": bias, "down_bias": b.weight(f"{place}.down_proj_bias", self.experts, model)}
        options = {"activation": "quick_gelu", "limit": self.limit, "shift": 1.0}
        return b(Experts, "out", x, weights, chosen, gate_up, down, **more, **options)

    def _matrix(self, b: ModelBuilder, tensor: str, rows: int, columns: int, name: str) -> Value:
        """Return a matrix of each expert, ``[E, rows, columns]``; plain checkpoints have it the other way round."""
        packed = b.tensors.has(f"{tensor}_blocks")
        if self.packed if packed is None else packed:
            shape = (self.experts, rows, columns // _BLOCK)
            blocks = b.weight(f"{tensor}_blocks", *shape, _BLOCK // 2, dtype="u8")
            scales = b.weight(f"{tensor}_scales", *shape, dtype="u8")
            return b.graph.add(Mxfp4({"blocks": (blocks,), "scales": (scales,)}, {"dtype": b.dtype}), [name])[0]
        plain = b.weight(tensor, self.experts, columns, rows)
        return b.graph.add(Transpose({"x": (plain,)}, {}), [name])[0]

    def _dealt(self, b: ModelBuilder, rows: Value, name: str) -> Value:
        """Return rows of gate and up projection in turn as all of the one, then all of the other."""
        return b.graph.add(Deinterleave({"x": (rows,)}, {"axis": 1}), [name])[0]


class GptOss(Decoder):
    """Attention with sinks, every second layer with a window, over clamped experts. Source: relatives.md, section 3."""

    family = "gpt_oss"
    model_types = ("gpt_oss",)
    architectures = ("GptOssForCausalLM",)
    theta = 150000.0
    inert = ("experts_per_token", "initial_context_length", "output_router_logits", "router_aux_loss_coef")

    vocab_size = integer(201088, high=MAX_VOCABULARY)
    hidden_size = integer(2880)
    intermediate_size = integer(2880)
    num_hidden_layers = integer(36, high=MAX_LAYERS)
    num_attention_heads = integer(64, high=MAX_HEADS)
    num_key_value_heads = optional_integer(8, high=MAX_HEADS)
    head_dim = optional_integer(64, low=2, high=MAX_HEAD_WIDTH)
    max_position_embeddings = integer(131072, high=MAX_CONTEXT)
    rms_norm_eps = number(1e-5, low=1e-30, high=1.0)
    attention_bias = boolean(True)
    sliding_window = optional_integer(128, high=MAX_CONTEXT)
    layer_types = words((FULL, SLIDING))
    dtype = choice("bfloat16", DTYPES, null=True, names=("torch_dtype",))  # what its packed experts unpack to
    num_local_experts = integer(128, high=MAX_EXPERTS, names=("num_experts",))
    num_experts_per_tok = integer(4, high=MAX_EXPERTS)
    swiglu_alpha = number(1.702)
    swiglu_limit = number(7.0, low=1e-9)
    quantization_config: Any = table()

    def check(self) -> None:
        self.check_types(self.layer_types)
        super().check()
        self.check_chosen(self.num_experts_per_tok, self.num_local_experts)
        method: Mapping[str, object] = self.quantization_config or {"quant_method": "mxfp4"}
        if method.get("quant_method") != "mxfp4":
            raise self.unsupported("quantization_config.quant_method", "mxfp4")
        if self.swiglu_alpha != 1.702:
            raise self.unsupported("swiglu_alpha", "1.702")
        if self.quantization_config and (self.hidden_size % _BLOCK or self.intermediate_size % _BLOCK):
            raise self.disagree(
                "quantization_config",
                f"widths {self.hidden_size} and {self.intermediate_size} in blocks of {_BLOCK}",
                f"mxfp4 packs {_BLOCK} values under one scale",
            )

    @cached_property
    def types(self) -> tuple[str, ...]:
        """Each layer's type."""
        count = self.num_hidden_layers
        return self.layer_types or tuple(SLIDING if (i + 1) % 2 else FULL for i in range(count))

    @property
    def norm(self) -> RMSNorm:
        return RMSNorm(self.rms_norm_eps, cast="after")

    def rope_keys(self) -> Given:
        given = super().rope_keys()
        return given if given.values else Given(_ROPE, given.path, f"{self.given.prefix}rope_parameters.")

    def block(self, layer: int) -> Block:
        bias = self.attention_bias
        window = self.sliding_window if self.types[layer] == SLIDING else None
        experts = ClampedMoE(
            self.num_local_experts,
            self.num_experts_per_tok,
            self.intermediate_size,
            limit=self.swiglu_limit,
            packed=bool(self.quantization_config),
        )
        return Block(self.norm, replace(self.attention(window=window, bias=bias, out_bias=bias), sink=True), experts)

    def per_layer(self, layers: Sequence[int]) -> dict[str, object]:
        return {
            "sliding_window": self.sliding_window and 8,
            "layer_types": [self.types[layer] for layer in layers],
            "num_local_experts": 8,
            "num_experts_per_tok": 3,
            "swiglu_limit": 1.0,
        }

    def quantized_tensor(self, name: str) -> bool:
        return name.endswith(("_blocks", "_scales"))

    def twin_packing(self) -> Mapping[str, object]:
        return {"quantization_config": self.quantization_config} if self.quantization_config else {}

    def twin(self) -> dict[str, object]:
        """Return the small config, with experts that are not packed."""
        return {key: value for key, value in super().twin().items() if key != "quantization_config"}
