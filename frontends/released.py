"""DeepSeek V4's released checkpoints: other names than in transformers, float8 and packed float4 with scales.

Source: specs/deepseek_v4.md, section 15.
"""

from __future__ import annotations

import re

from regraft.frontends.blocks import ModelBuilder
from regraft.frontends.tensors import Tensors
from regraft.ir.graph import Graph
from regraft.ir.op import Value
from regraft.ir.ops.quantized import Fp4
from regraft.ir.ops.weight import ConcatWeight, Load, LoadEach

_GROUP = 32  # values of a row that share one in float4
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_MARK = "layers.0.attn_norm.weight"  # what tells a release
_TOP = {
    "model.embed_tokens.weight": "embed.weight",
    "model.norm.weight": "norm.weight",
    "lm_head.weight": "head.weight",
    "model.hc_head.hc_fn": "hc_head_fn",
    "model.hc_head.hc_base": "hc_head_base",
    "model.hc_head.hc_scale": "hc_head_scale",
}
_SITES = {f"{site}_hc.{part}": f"hc_{site}_{part}" for site in ("attn", "ffn") for part in ("fn", "base", "scale")}
_PARTS = {
    **_SITES,
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.sinks": "attn.attn_sink",
    "self_attn.q_a_proj": "attn.wq_a",
    "self_attn.q_a_norm": "attn.q_norm",
    "self_attn.q_b_proj": "attn.wq_b",
    "self_attn.kv_proj": "attn.wkv",
    "self_attn.kv_norm": "attn.kv_norm",
    "self_attn.o_a_proj": "attn.wo_a",
    "self_attn.o_b_proj": "attn.wo_b",
    "self_attn.compressor.position_bias": "attn.compressor.ape",
    "self_attn.compressor.kv_proj": "attn.compressor.wkv",
    "self_attn.compressor.gate_proj": "attn.compressor.wgate",
    "self_attn.compressor.kv_norm": "attn.compressor.norm",
    "self_attn.compressor.indexer.q_b_proj": "attn.indexer.wq_b",
    "self_attn.compressor.indexer.scorer.weights_proj": "attn.indexer.weights_proj",
    "self_attn.compressor.indexer.position_bias": "attn.indexer.compressor.ape",
    "self_attn.compressor.indexer.kv_proj": "attn.indexer.compressor.wkv",
    "self_attn.compressor.indexer.gate_proj": "attn.indexer.compressor.wgate",
    "self_attn.compressor.indexer.kv_norm": "attn.indexer.compressor.norm",
    "mlp.gate": "ffn.gate",
    "mlp.gate.e_score_correction_bias": "ffn.gate.bias",
    "mlp.gate.tid2eid": "ffn.gate.tid2eid",
    "mlp.shared_experts.gate_proj": "ffn.shared_experts.w1",
    "mlp.shared_experts.up_proj": "ffn.shared_experts.w3",
    "mlp.shared_experts.down_proj": "ffn.shared_experts.w2",
}
_SCALED = re.compile(  # what is published in float8 beside experts, and experts
    r"layers\.\d+\.(attn\.(wq_a|wq_b|wkv|wo_a|wo_b|indexer\.wq_b)|ffn\.(shared_experts|experts\.\d+)\.w[123])\.scale"
)
_RESAVED = {"embed.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}


def quantized_name(name: str) -> bool:
    """Return whether a released checkpoint has a tensor of this name, and one saved anew has not."""
    return name == _MARK or _SCALED.fullmatch(name) is not None


def is_released(tensors: Tensors) -> bool | None:
    """Return whether a checkpoint has the released names; False also where transformers saved them with a prefix."""
    if tensors.has(_MARK) is True:
        return True
    return False if tensors.has("model.layers.0.attn_norm.weight") is True else None


def released_name(name: str) -> str:
    """Return the released name of a tensor, given transformers' name in the model."""
    found = _LAYER.fullmatch(name)
    if found is None:
        return _TOP[name]
    stem, dot, weight = found[2].rpartition(".")
    part = _PARTS.get(found[2]) or f"{_PARTS[stem]}{dot}{weight}"
    return f"layers.{found[1]}.{part}"


def resaved_name(name: str) -> str:
    """Return the name that transformers gives a tensor when it saves the model anew."""
    if name.startswith("model.hc_head."):
        return name
    released = released_name(name)
    if released.endswith(".attn.kv_norm.weight"):
        released = released.replace("attn.kv_norm", "attn.norm")
    return f"model.{released}" if released.startswith("layers.") else _RESAVED.get(released, released)


class ReleasedBuilder(ModelBuilder):
    """A builder over a checkpoint with the released names, or with those that transformers gives them.

    Args:
        graph: The graph to build.
        tensors: The checkpoint's tensors.
        released: Whether it is the release, and not a model saved anew.
        block: Rows and columns that share a scale in float8.
        experts: The element type of experts' codes where the checkpoint is not at hand: ``i8`` for two in float4 each,
            ``f8e4m3``.
    """

    def __init__(
        self, graph: Graph, tensors: Tensors, *, released: bool, block: tuple[int, int], experts: str = "i8"
    ) -> None:
        super().__init__(graph, tensors)
        self.block = block
        self._coded = experts
        self._named = released_name if released else resaved_name

    def weight(self, tensor: str, *shape: int, dtype: str | None = None) -> Value:
        """Return the tensor that transformers calls so, dequantised, experts stacked."""
        if tensor in self.graph:
            return self.graph[tensor]
        module, _, part = tensor.rpartition(".")
        if part == "gate_up_proj":
            half = (shape[0], shape[1] // 2, shape[2])
            pair = tuple(self._experts(module, name, half, f"{module}.{name}") for name in ("w1", "w3"))
            return self.graph.add(ConcatWeight({"xs": pair}, {"axis": 1}), [tensor])[0]
        if part == "down_proj" and module.endswith(".experts"):
            return self._experts(module, "w2", shape, tensor)
        source = self._named(tensor)
        scale = f"{source.removesuffix('.weight')}.scale"
        coded = self.tensors.has(scale) is True or self.tensors.stored(source) == "f8e4m3"
        if scale == source or not coded:
            return self._load(Load, tensor, self.tensors.dtype(source), shape, tensor=source)
        block, blocks = self._scales(shape)
        packed = self._load(Load, f"{tensor}_packed", "f8e4m3", shape, tensor=source)
        scales = self._load(Load, f"{tensor}_scale", "f8e8m0", blocks, tensor=scale)
        return self._dequantized(tensor, packed, scales, block)

    def buffer(self, tensor: str, *shape: int, dtype: str | None = None) -> Value:
        """Return a tensor that transformers counts as no parameter."""
        source = self._named(tensor)
        return self._load(Load, tensor, dtype or self.tensors.dtype(source), shape, tensor=source, buffer=True)

    def _experts(self, module: str, part: str, shape: tuple[int, ...], name: str) -> Value:
        """Return one map of all experts ``[E, O, I]``."""
        gate = self._named(f"{module.removesuffix('.experts')}.gate.weight")
        tensors = f"{gate.removesuffix('gate.weight')}experts.{{}}.{part}"
        count, rows, columns = shape
        source, scale = f"{tensors}.weight", f"{tensors}.scale"
        coded = self.tensors.stored(source.format(0))
        if self.tensors.has(scale.format(0)) is not True and coded not in ("i8", "f8e4m3"):
            return self._load(LoadEach, name, self.tensors.dtype(source.format(0)), shape, tensors=source)
        if (coded or self._coded) == "f8e4m3":
            block, blocks = self._scales(shape)
            packed = self._load(LoadEach, f"{name}_packed", "f8e4m3", shape, tensors=source)
            scales = self._load(LoadEach, f"{name}_scale", "f8e8m0", blocks, tensors=scale)
            return self._dequantized(name, packed, scales, block)
        codes = self._load(LoadEach, f"{name}_packed", "i8", (count, rows, columns // 2), tensors=source)
        groups = (count, rows, columns // _GROUP)
        scales = self._load(LoadEach, f"{name}_scale", "f8e8m0", groups, tensors=scale)
        return self.graph.add(Fp4({"codes": (codes,), "scales": (scales,)}, {"dtype": self.dtype}), [name])[0]
