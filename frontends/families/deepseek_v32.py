"""DeepSeek V3.2."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.frontends.config import MAX_CONTEXT, MAX_HEADS, integer, words
from regraft.frontends.families.deepseek_v3 import DeepSeekV3
from regraft.frontends.mla import Indexer, in_halves


class DeepSeekV32(DeepSeekV3):
    """DeepSeek V3 with an indexer: each query attends to the rows that it chooses. Source: specs/mla.md, section 8."""

    family = "deepseek_v32"
    model_types = ("deepseek_v32",)
    architectures = ("DeepseekV32ForCausalLM",)

    max_position_embeddings = integer(163840, high=MAX_CONTEXT)
    index_n_heads = integer(64, high=MAX_HEADS)
    index_head_dim = integer(128, low=2)
    index_topk = integer(2048, high=MAX_CONTEXT)
    layer_types = words(("indexed_attention",))
    mlp_layer_types = words(("dense", "sparse"))

    def check(self) -> None:
        super().check()
        if self.q_lora_rank is None:
            raise self.unsupported("q_lora_rank", "an integer: the indexer reads the queries' latent")
        if not self.rope_interleave:
            raise self.unsupported("rope_interleave", "true")
        if self.index_head_dim < self.qk_rope_head_dim:
            raise self.disagree(
                "index_head_dim",
                f"index heads of {self.index_head_dim} channels, of which {self.qk_rope_head_dim} turn",
                "index_head_dim is at least qk_rope_head_dim",
            )
        for key, types in (("layer_types", self.layer_types), ("mlp_layer_types", self.mlp_layer_types)):
            if types is not None and len(types) != self.num_hidden_layers:
                problem = f"{key} has {len(types)} entries for {self.num_hidden_layers} layers"
                raise self.disagree(key, problem, "one entry a layer")

    @property
    def indexer(self) -> Indexer | None:
        return Indexer(self.index_n_heads, self.index_head_dim, self.index_topk, in_halves(self.rope))

    def dense(self, layer: int) -> bool:
        return super().dense(layer) if self.mlp_layer_types is None else self.mlp_layer_types[layer] == "dense"

    def per_layer(self, layers: Sequence[int]) -> dict[str, object]:
        types = {
            "layer_types": self.layer_types and ["indexed_attention"] * len(layers),
            "mlp_layer_types": self.mlp_layer_types and ["dense" if self.dense(n) else "sparse" for n in layers],
        }
        index = {"index_n_heads": 16, "index_head_dim": 24, "index_topk": 7}
        return super().per_layer(layers) | index | {key: value for key, value in types.items() if value}
