"""What the DeepSeek families with latent attention have in common. Source: specs/mla.md."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from regraft.frontends.blocks import MLP, Block, ModelBuilder
from regraft.frontends.config import (
    MAX_EXPERTS,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_VOCABULARY,
    boolean,
    fixed,
    integer,
    number,
    optional_integer,
    table,
    token_ids,
)
from regraft.frontends.decoder import Decoder
from regraft.frontends.mla import GroupedMoE, Indexer, LatentAttention
from regraft.frontends.quantization import TWIN_BLOCK, float8_block
from regraft.frontends.rope import Rope

_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_SCALED = re.compile(r"model\.layers\.\d+\..*(_proj|_proj_with_mqa|indexer\.w[a-z_]+)\.weight_scale_inv")


class DeepSeek(Decoder):
    """Latent attention, an MLP in the first layers and experts beside a shared one in the others.

    Checkpoints in float8 have a scale for each block of a tensor; the blocks' size is in ``quantization_config``.
    """

    twin_gain = 0.7  # yarn sharpens attention, which then amplifies rounding
    inert = ("aux_loss_alpha", "ep_size", "output_router_logits", "pretraining_tp", "qk_head_dim", "seq_aux")

    vocab_size = integer(129280, high=MAX_VOCABULARY)
    hidden_size = integer(7168)
    intermediate_size = integer(18432)
    num_hidden_layers = integer(61, high=MAX_LAYERS)
    num_attention_heads = integer(128, high=MAX_HEADS)
    attention_bias = boolean(False)
    mlp_bias = fixed(False)
    q_lora_rank = optional_integer(1536)
    kv_lora_rank = integer(512)
    qk_nope_head_dim = integer(128)
    qk_rope_head_dim = integer(64, low=2)
    v_head_dim = integer(128)
    moe_intermediate_size = integer(2048)
    n_routed_experts = integer(256, high=MAX_EXPERTS, names=("num_local_experts", "num_experts"))
    n_shared_experts = integer(1, low=0)
    num_experts_per_tok = integer(8, high=MAX_EXPERTS)
    first_k_dense_replace = integer(3, low=0)
    moe_layer_freq = fixed(1)
    n_group = integer(8, high=MAX_EXPERTS)
    topk_group = integer(4, high=MAX_EXPERTS)
    routed_scaling_factor = number(2.5, low=1e-6)
    num_nextn_predict_layers = integer(0, low=0, names=("num_mtp_layers",))
    quantization_config = table()
    bos_token_id = token_ids((0,))
    eos_token_id = token_ids((1,))

    def check(self) -> None:
        """Check that heads, groups and the packing agree."""
        if self.kv_heads != self.num_attention_heads:
            raise self.disagree(
                "num_key_value_heads",
                f"{self.num_attention_heads} heads and {self.kv_heads} key/value heads",
                "all heads read one latent: give as many key/value heads as heads",
            )
        if self.qk_rope_head_dim % 2:
            raise self.disagree(
                "qk_rope_head_dim", f"{self.qk_rope_head_dim} channels turn", "rotary embeddings need an even width"
            )
        self._check_groups()
        if self.quantization_config is not None:
            float8_block(self, self.quantization_config)
        self.block(0)  # reads the rope's keys

    def _check_groups(self) -> None:
        groups, experts = self.n_group, self.n_routed_experts
        if experts % groups:
            raise self.disagree("n_group", f"{experts} experts in {groups} groups", "groups are equal")
        if self.topk_group > groups:
            raise self.disagree("topk_group", f"{self.topk_group} groups kept of {groups}", "keep fewer")
        if self.num_experts_per_tok > self.topk_group * (experts // groups):
            raise self.disagree(
                "num_experts_per_tok",
                f"{self.num_experts_per_tok} experts a token of {self.topk_group} groups of {experts // groups}",
                "a token cannot choose more experts than its groups hold",
            )

    @property
    def head_width(self) -> int:
        """The channels of a head that turn."""
        return self.qk_rope_head_dim

    @property
    def turning(self) -> Rope:
        """How the attention's queries and keys turn."""
        return replace(self.rope, layout="interleaved")

    @property
    def scale(self) -> float:
        """What multiplies scores: under yarn larger for queries and keys that were stretched."""
        gain = 1.0
        everywhere = self.rope_keys().values.get("mscale_all_dim")
        if everywhere and self.rope.scaling == "yarn" and self.rope.factor > 1:
            gain = 0.1 * everywhere * math.log(self.rope.factor) + 1.0
        return (self.qk_nope_head_dim + self.qk_rope_head_dim) ** -0.5 * gain * gain

    @property
    def indexer(self) -> Indexer | None:
        """What chooses the rows that a query sees; None where it sees all."""
        return None

    def latent_attention(self) -> LatentAttention:
        """Return the attention of every layer."""
        return LatentAttention(
            heads=self.num_attention_heads,
            plain=self.qk_nope_head_dim,
            value=self.v_head_dim,
            rank=self.kv_lora_rank,
            query_rank=self.q_lora_rank,
            scale=self.scale,
            rope=self.turning,
            bias=self.attention_bias,
            indexer=self.indexer,
        )

    def experts(self) -> GroupedMoE:
        """Return the experts of the layers that have them: all in one group, scores that need not add up."""
        return GroupedMoE(
            self.n_routed_experts,
            self.num_experts_per_tok,
            self.moe_intermediate_size,
            self.hidden_act,
            scale=self.routed_scaling_factor,
            shared=self.n_shared_experts * self.moe_intermediate_size,
        )

    def dense(self, layer: int) -> bool:
        """Return whether a layer has an MLP instead of experts."""
        return layer < self.first_k_dense_replace

    def block(self, layer: int) -> Block:
        """Return what layer ``layer`` is."""
        feed = MLP(self.intermediate_size, self.hidden_act) if self.dense(layer) else self.experts()
        return Block(self.norm, self.latent_attention(), feed)

    def build(self, b: ModelBuilder, name: str, *, tied: bool, facts: Mapping[str, object]) -> None:
        """Build the model; the tensors of a checkpoint in float8 are dequantised."""
        if self.quantization_config is not None:
            b.block = float8_block(self, self.quantization_config)
        super().build(b, name, tied=tied, facts=facts)

    # -- what checkpoints hold beside the decoder

    def left_out(self, tensors: Iterable[str]) -> str | None:
        """Return a line on the layers that predict further tokens, which follow the decoder's own."""
        count = self.num_nextn_predict_layers or (1 if any(map(self._predicts, tensors)) else 0)
        if not count:
            return None
        layers = f"layer {self.num_hidden_layers}" if count == 1 else f"{count} layers from {self.num_hidden_layers} on"
        return f"left out: {layers} for multi-token prediction; the text decoder is lifted"

    def _predicts(self, name: str) -> bool:
        found = _LAYER.match(name)
        return found is not None and int(found[1]) >= self.num_hidden_layers

    def inert_tensor(self, name: str) -> bool:
        """Return whether a checkpoint may hold a tensor of this name though the model does not read it."""
        return self._predicts(name) or super().inert_tensor(name)

    def quantized_tensor(self, name: str) -> bool:
        """Return whether a name is that of scales that a checkpoint in float8 has."""
        return _SCALED.fullmatch(name) is not None and not name.endswith("weights_proj.weight_scale_inv")

    # -- the small twin

    def twin_packing(self) -> Mapping[str, object]:
        """Return the packing as it is, in smaller blocks."""
        given = self.quantization_config
        return {"quantization_config": {**given, "weight_block_size": TWIN_BLOCK}} if given else {}

    def per_layer(self, layers: Sequence[int]) -> dict[str, object]:
        """Return small sizes, and as many layers without experts as the twin keeps."""
        return {
            "q_lora_rank": self.q_lora_rank and 24,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 24,
            "qk_rope_head_dim": 16,
            "v_head_dim": 20,
            "head_dim": 16,
            "moe_intermediate_size": 16,
            "n_routed_experts": 16,
            "num_experts_per_tok": 3,
            "n_group": min(self.n_group, 4),
            "topk_group": min(self.topk_group, 2),
            "first_k_dense_replace": sum(map(self.dense, layers)),
            "num_nextn_predict_layers": 0,
            "quantization_config": None,
        }
