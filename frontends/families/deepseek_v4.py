"""DeepSeek V4."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

from regraft.frontends.blocks import Block, ModelBuilder, RMSNorm
from regraft.frontends.config import (
    MAX_CONTEXT,
    MAX_EXPERTS,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_VOCABULARY,
    Given,
    choice,
    fixed,
    integer,
    integers,
    number,
    optional_integer,
    table,
    token_ids,
    words,
)
from regraft.frontends.decoder import Decoder
from regraft.frontends.quantization import TWIN_BLOCK, float8_block
from regraft.frontends.released import ReleasedBuilder, is_released, quantized_name
from regraft.frontends.rope import Rope, read_rope
from regraft.frontends.streams import Chooser, ClampedMoE, Compressor, PooledAttention, StreamBlock, Streams
from regraft.ir.op import Value
from regraft.ir.ops.core import Embed, Repeat
from regraft.ir.ops.hyper import Collapse

SLIDING, SPARSE, HEAVY = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
_NOT_IN_TWINS = (
    *("compress_ratios", "compress_rate_csa", "compress_rate_hca", "expert_dtype", "intermediate_size"),
    *("num_hash_layers", "partial_rotary_factor", "quantization_config"),
)
_BY_RATIO = {0: SLIDING, 4: SPARSE, 128: HEAVY}


class DeepSeekV4(Decoder):
    """Residual streams, attention to a window and to pooled rows, experts by hash in the first layers.

    Checkpoints are as released, as transformers saves them, or as it holds them. Source: specs/deepseek_v4.md.
    """

    family = "deepseek_v4"
    model_types = ("deepseek_v4",)
    architectures = ("DeepseekV4ForCausalLM",)
    inert = (
        *("norm_topk_prob", "output_router_logits", "router_aux_loss_coef", "router_jitter_noise"),
        *("topk_method", "intermediate_size"),
    )
    twin_gain = 0.8  # yarn and cuts sharpen what rounding moves

    vocab_size = integer(129280, high=MAX_VOCABULARY)
    hidden_size = integer(4096)
    num_hidden_layers = integer(43, high=MAX_LAYERS)
    num_attention_heads = integer(64, high=MAX_HEADS)
    num_key_value_heads = optional_integer(1, high=1)
    head_dim = optional_integer(512, low=2)
    max_position_embeddings = integer(1048576, high=MAX_CONTEXT)
    q_lora_rank = integer(1024)
    qk_rope_head_dim = integer(0, low=2)
    partial_rotary_factor = number(0.0, low=1e-6, high=1.0)
    sliding_window = integer(128, high=MAX_CONTEXT)
    o_groups = integer(8, high=MAX_HEADS)
    o_lora_rank = integer(1024)
    layer_types = words((SLIDING, SPARSE, HEAVY))
    compress_ratios = integers()
    compress_rates = table()
    compress_rate_csa = integer(0)
    compress_rate_hca = integer(0)
    compress_rope_theta = number(160000.0, low=1.0, high=1e12)
    index_n_heads = integer(64, high=MAX_HEADS)
    index_head_dim = integer(128, low=2)
    index_topk = integer(512, high=MAX_CONTEXT)
    moe_intermediate_size = integer(2048)
    n_routed_experts = integer(256, high=MAX_EXPERTS, names=("num_local_experts",))
    n_shared_experts = fixed(1)
    num_experts_per_tok = integer(6, high=MAX_EXPERTS)
    num_hash_layers = integer(3, low=0, high=MAX_LAYERS)
    mlp_layer_types = words(("hash_moe", "moe"))
    routed_scaling_factor = number(1.5, low=1e-6)
    scoring_func = fixed("sqrtsoftplus")
    swiglu_limit = number(10.0, low=1e-6)
    attention_bias = fixed(False)
    mlp_bias = fixed(False)
    hc_mult = integer(4, high=64)
    hc_sinkhorn_iters = integer(20, high=1000)
    hc_eps = number(1e-6, high=1.0)
    num_nextn_predict_layers = integer(1, low=0)
    quantization_config = table()  # of the release's own layout of tensors
    expert_dtype = choice("fp4", {"fp4": "i8", "fp8": "f8e4m3"}, null=True)  # the codes' element type
    bos_token_id = token_ids((0,))
    eos_token_id = token_ids((1,))

    def check(self) -> None:
        """Check that schedules, rates and groups agree."""
        for key, types in (("layer_types", self.layer_types), ("mlp_layer_types", self.mlp_layer_types)):
            self.check_types(types, key)
        if strange := sorted(set(self.compress_ratios) - set(_BY_RATIO)):
            raise self.unsupported("compress_ratios", f"a list of {', '.join(map(str, _BY_RATIO))}, not {strange[0]}")
        if self.compress_ratios and len(self.compress_ratios) < self.num_hidden_layers:
            raise self.disagree(
                "compress_ratios",
                f"{len(self.compress_ratios)} ratios for {self.num_hidden_layers} layers",
                "one entry a layer, and one for each that predicts further tokens",
            )
        if self.num_attention_heads % self.o_groups:
            raise self.disagree(
                "o_groups", f"{self.num_attention_heads} heads in {self.o_groups} groups", "groups are equal"
            )
        if self.turning % 2 or not 0 < self.turning < min(self.head_width, self.index_head_dim):
            raise self.disagree(
                "qk_rope_head_dim",
                f"{self.turning} channels turn of heads with {self.head_width} and index heads with "
                f"{self.index_head_dim}",
                "an even number, fewer than either has",
            )
        for layer_type in (SPARSE, HEAVY):
            if self.rate(layer_type) < 1:
                raise self.unsupported(f"compress_rates.{layer_type}", "the number of tokens that make a row")
        self.check_chosen(self.num_experts_per_tok, self.n_routed_experts)
        float8_block(self, self.quantization_config)
        self.block(0)  # reads the ropes' keys

    # -- what the keys say

    @property
    def turning(self) -> int:
        """The channels of a head that turn, its last ones."""
        if self.partial_rotary_factor:
            return int(self.head_width * self.partial_rotary_factor)
        return self.qk_rope_head_dim or self.head_width // 8

    def layer_type(self, layer: int) -> str:
        """Return what a layer attends to."""
        if self.layer_types is not None:
            return self.layer_types[layer]
        if self.compress_ratios:
            return _BY_RATIO[self.compress_ratios[layer]]
        return SPARSE if layer >= 2 and layer % 2 else HEAVY

    def rate(self, layer_type: str) -> int:
        """Return how many tokens make a row in layers of a type."""
        given: Mapping[str, object] = self.compress_rates or {}
        single, usual = (self.compress_rate_csa, 4) if layer_type == SPARSE else (self.compress_rate_hca, 128)
        found = single or given.get(layer_type, usual)
        return found if isinstance(found, int) and not isinstance(found, bool) else 0

    def hashed(self, layer: int) -> bool:
        """Return whether a table of token ids chooses a layer's experts."""
        if self.mlp_layer_types is not None:
            return self.mlp_layer_types[layer] == "hash_moe"
        return layer < self.num_hash_layers

    @property
    def norm(self) -> RMSNorm:
        """The norm of layers' inputs, latents and keys."""
        return RMSNorm(self.rms_norm_eps, cast="after")

    @cached_property
    def ropes(self) -> tuple[Rope, Rope]:
        """How layers without pooled rows turn, and those with them."""
        given = self.rope_keys()
        if isinstance(given.values.get("main"), dict) and isinstance(given.values.get("compress"), dict):
            main, far = (self._rope(given.nested(key), theta=0.0) for key in ("main", "compress"))
            return main, far
        far = replace(self._rope(given, theta=self.compress_rope_theta), amplitude=1.0)
        return self._rope(Given({}, given.path), theta=self.rope_theta or self.theta), far

    def _rope(self, given: Given, theta: float) -> Rope:
        read = read_rope(
            given,
            theta=theta or self.theta,
            context=self.max_position_embeddings,
            width=self.head_width,
            allow=self.allow,
            unknown=self,
            partial=self.turning / self.head_width,
        )
        return replace(read, layout="interleaved", channels=self.turning)

    @cached_property
    def rope(self) -> Rope:
        """How layers without pooled rows turn."""
        return self.ropes[0]

    def pooling(self, layer_type: str, width: int) -> Compressor:
        """Return what pools rows of ``width`` in layers of a type."""
        return Compressor(self.rate(layer_type), width, layer_type == SPARSE, self.ropes[1], self.norm)

    def mixer(self, layer_type: str) -> PooledAttention:
        """Return the attention of a type of layers."""
        pooled = None if layer_type == SLIDING else self.pooling(layer_type, self.head_width)
        keys = self.pooling(layer_type, self.index_head_dim)
        return PooledAttention(
            heads=self.num_attention_heads,
            width=self.head_width,
            query_rank=self.q_lora_rank,
            window=self.sliding_window,
            rope=self.ropes[0 if pooled is None else 1],
            norm=self.norm,
            groups=self.o_groups,
            group_rank=self.o_lora_rank,
            pooled=pooled,
            chooser=Chooser(self.index_n_heads, self.index_topk, keys) if layer_type == SPARSE else None,
        )

    def block(self, layer: int) -> Block:
        """Return what layer ``layer`` is."""
        experts = ClampedMoE(
            self.n_routed_experts,
            self.num_experts_per_tok,
            self.moe_intermediate_size,
            self.hidden_act,
            scale=self.routed_scaling_factor,
            limit=self.swiglu_limit,
            hashed=self.hashed(layer),
        )
        return StreamBlock(self.norm, self.mixer(self.layer_type(layer)), experts, streams=self.streams)

    @property
    def streams(self) -> Streams:
        """The residual streams."""
        return Streams(self.hc_mult, self.hc_sinkhorn_iters, self.hc_eps, self.rms_norm_eps)

    # -- the model around the layers

    def build(self, b: ModelBuilder, name: str, *, tied: bool, facts: Mapping[str, object]) -> None:
        """Build the model, whatever its tensors are called in the checkpoint."""
        released = is_released(b.tensors)
        builder = b
        if released is not None:
            block = float8_block(self, self.quantization_config)
            builder = ReleasedBuilder(b.graph, b.tensors, released=released, block=block, experts=self.expert_dtype)
        super().build(builder, name, tied=tied, facts=facts)

    def embed(self, b: ModelBuilder, tokens: Value, table: Value) -> Value:
        """Return the streams before the layers: all alike."""
        return b(Repeat, "embed", b(Embed, "rows", tokens, table), parts=self.hc_mult)

    def layers(self, b: ModelBuilder, x: Value, pos: Value) -> Value:
        """Add the layers, and return the one stream that is left of all."""
        x = super().layers(b, x, pos)
        module, count = f"{self.prefix}.hc_head", self.hc_mult
        weights = [b.weight(f"{module}.hc_fn", count, count * self.hidden_size)]
        weights += [b.weight(f"{module}.hc_base", count), b.weight(f"{module}.hc_scale", 1)]
        return b(Collapse, "collapsed", x, *weights, eps=self.rms_norm_eps, floor=self.hc_eps)

    def layer_inputs(self, b: ModelBuilder, layer: int) -> Sequence[Value]:
        """Return the token ids where they choose the experts."""
        return [b.graph["tokens"]] if self.hashed(layer) else []

    def left_out(self, tensors: Iterable[str]) -> str | None:
        """Return a line on the layers that predict further tokens."""
        if not (self.num_nextn_predict_layers or any(name.startswith("mtp.") for name in tensors)):
            return None
        return "left out: what predicts further tokens (mtp); the text decoder is lifted"

    def inert_tensor(self, name: str) -> bool:
        """Return whether a checkpoint may hold a tensor of this name though the model does not read it."""
        return name.startswith("mtp.") or super().inert_tensor(name)

    def quantized_tensor(self, name: str) -> bool:
        return quantized_name(name)

    # -- the small twin

    def twin_packing(self) -> Mapping[str, object]:
        given = self.quantization_config
        if not given:
            return {}
        kept = {"expert_dtype": self.given.values["expert_dtype"]} if "expert_dtype" in self.given.values else {}
        return {"quantization_config": {**given, "weight_block_size": TWIN_BLOCK}, **kept}

    def twin(self) -> dict[str, object]:
        """Return a small config, with schedules by layer and tensors that are not packed."""
        return {key: value for key, value in super().twin().items() if key not in _NOT_IN_TWINS}

    def per_layer(self, layers: Sequence[int]) -> dict[str, object]:
        """Return small sizes, rates and schedules."""
        return {
            "num_key_value_heads": 1,
            "head_dim": 32,
            "qk_rope_head_dim": 8,
            "q_lora_rank": 24,
            "sliding_window": 8,
            "o_groups": 2,
            "o_lora_rank": 12,
            "layer_types": [self.layer_type(layer) for layer in layers],
            "compress_rates": {SPARSE: min(self.rate(SPARSE), 4), HEAVY: min(self.rate(HEAVY), 8)},
            "index_n_heads": 16,
            "index_head_dim": 16,
            "index_topk": 3,
            "moe_intermediate_size": 32,
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "mlp_layer_types": ["hash_moe" if self.hashed(layer) else "moe" for layer in layers],
            "swiglu_limit": 0.6,
            "num_nextn_predict_layers": 0,
        }
