"""ZAYA1, in the layout of transformers and in that of its older checkpoints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from regraft.frontends.blocks import ModelBuilder, RMSNorm
from regraft.frontends.cca import CCA, LEGACY, NATIVE, DepthRouted, Names, merge, scaled
from regraft.frontends.config import (
    MAX_CONTEXT,
    MAX_EXPERTS,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_VOCABULARY,
    Given,
    boolean,
    choice,
    fixed,
    integer,
    number,
    optional_integer,
    show,
    token_ids,
    words,
)
from regraft.frontends.decoder import Decoder
from regraft.ir.builder import Builder
from regraft.ir.errors.config import KeyValueError, MissingKeyError
from regraft.ir.op import Value
from regraft.ir.ops.core import Embed
from regraft.ir.ops.precision import CastLike, Widen

HYBRID, SLIDING = "hybrid", "hybrid_sliding"
THETAS = {HYBRID: 5e6, SLIDING: 1e4}
RENAMED = {
    "num_query_groups": "num_key_value_heads",
    "kv_channels": "head_dim",
    "norm_epsilon": "rms_norm_eps",
    "zaya_mlp_expansion": "router_hidden_size",
    "moe_router_topk": "num_experts_per_tok",
}
LISTS = {  # by layer, 0 in those of the other sort; the number for all that stands beside it may be another
    "cca_num_q_heads": "num_attention_heads",
    "num_query_groups_list": "num_key_value_heads",
    "ffn_hidden_size_list": "ffn_hidden_size",
    "zaya_mlp_expansion": "router_hidden_size",
}
FLAGS = ("cca", "gated_linear_unit", "zaya_use_eda", "zaya_use_mod", "scale_residual_merge", "residual_in_fp32")
MARKERS = {*RENAMED, *LISTS, *FLAGS, "ffn_hidden_size", "zaya_layers"}
_ATTENTION = "a"  # what zaya_layers calls a layer of attention; one of experts has their number
_KERNELS = (  # how older configs were trained and run
    *("activation_func_fp8_input_store", "apply_rope_fusion", "bias_activation_fusion", "fused_add_norm"),
    *("mamba_cache_dtype", "swa_rotary_base", "zaya_high_prec"),
)


@dataclass(frozen=True)
class Layer:
    """A layer's parts. The first one's router has no state to add."""

    norm: RMSNorm
    attention: CCA
    experts: DepthRouted
    first: bool


class Zaya(Decoder):
    """Compressed convolutional attention and one expert a token, each merged by learned vectors.

    Older checkpoints, known by keys of theirs, count attention and experts as a layer each, and keep the merge with the
    layer that it enters. Source: specs/zaya_cca.md.
    """

    family = "zaya"
    model_types = ("zaya",)
    architectures = ("ZayaForCausalLM",)
    inert = ("output_router_logits", *FLAGS, *_KERNELS)

    vocab_size = integer(262272, high=MAX_VOCABULARY)
    hidden_size = integer(2048)
    num_hidden_layers = integer(40, high=MAX_LAYERS)
    num_attention_heads = integer(8, high=MAX_HEADS)
    num_key_value_heads = optional_integer(2, high=MAX_HEADS, names=("num_query_groups",))
    head_dim = optional_integer(128, low=2, names=("kv_channels",))
    max_position_embeddings = integer(131072, high=MAX_CONTEXT)
    rms_norm_eps = number(1e-5, low=1e-30, high=1.0, names=("norm_epsilon",))
    tie_word_embeddings = boolean(True)
    bos_token_id = token_ids((2,))
    eos_token_id = token_ids((106,))
    attention_bias = boolean(False)
    lm_head_bias = fixed(False)
    partial_rotary_factor = number(0.5, low=1e-6, high=1.0)
    sliding_window = optional_integer(None, high=MAX_CONTEXT)
    layer_types = words((HYBRID, SLIDING))
    cca_time0 = integer(2, low=2, high=256)
    cca_time1 = integer(2, low=2, high=256)
    moe_intermediate_size = integer(2048)
    num_experts = integer(16, high=MAX_EXPERTS)
    num_experts_per_tok = fixed(1, names=("moe_router_topk",))
    router_hidden_size = integer(256, names=("zaya_mlp_expansion",))
    skip_expert = choice("zero", {"zero": "zero", "identity": "identity"})
    activation_func = fixed("swiglu")
    add_bias_linear = fixed(False)
    clamp_temp = fixed(False)
    normalization = fixed("RMSNorm")
    swa_layers = fixed(None)

    def __init__(self, given: Given, allow: Iterable[str] = (), *, strict: bool = True) -> None:
        self.legacy = not MARKERS.isdisjoint(given.values)
        super().__init__(_native(given) if self.legacy else given, allow, strict=strict)
        if self.legacy:
            self.last_norm = "final_norm"

    def check(self) -> None:
        self.check_types(self.layer_types)
        if SLIDING in (self.layer_types or ()) and self.sliding_window is None:
            raise self.disagree("sliding_window", "layers slide and there is no window", "give sliding_window")
        if self.kv_heads * self.head_width % 2:
            raise self.disagree("head_dim", "half of the values' channels is no integer", "make it even")
        super().check()

    @property
    def rotary_part(self) -> float | None:
        return self.partial_rotary_factor

    @property
    def names(self) -> Names:
        """What the tensors are called."""
        return LEGACY if self.legacy else NATIVE

    def block(self, layer: int) -> Any:
        kind = self.layer_types[layer] if self.layer_types else HYBRID
        attention = CCA(
            heads=self.num_attention_heads,
            kv_heads=self.kv_heads,
            width=self.head_width,
            taps=(self.cca_time0, self.cca_time1),
            rope=self.rope_of(kind, theta=THETAS[kind]),
            window=self.sliding_window if kind == SLIDING else None,
            bias=self.attention_bias,
            names=self.names,
        )
        experts = DepthRouted(
            experts=self.num_experts,
            width=self.moe_intermediate_size,
            router=self.router_hidden_size,
            eps=self.rms_norm_eps,
            activation=self.hidden_act,
            skip=self.skip_expert,
            names=self.names,
        )
        return Layer(self.norm, attention, experts, layer == 0)

    # -- the graph

    def embed(self, b: ModelBuilder, tokens: Value, table: Value) -> Value:
        if self.legacy:
            return super().embed(b, tokens, table)
        rows = scaled(b, "rows_scaled", b(Embed, "rows", tokens, table), f"{self.prefix}.input_", "hidden_states")
        return b(Widen, "embed", rows)

    def layers(self, b: ModelBuilder, x: Value, pos: Value) -> Value:
        if self.legacy:
            return self._split_layers(b, x, pos)
        carried = [x]
        for layer in range(self.num_hidden_layers):
            block = self.block(layer)
            key = (block, b.tensors.layer(layer))
            carried = b.layer(
                layer, key, carried, lambda b, n, inputs, block=block: self._whole(b, n, inputs, block, pos)
            )
        return self._narrowed(b, carried[0], f"{self.prefix}.{self.last_norm}")

    def _whole(self, b: Builder, layer: int, inputs: Sequence[Value], block: Layer, pos: Value) -> list[Value]:
        """Build a layer of attention and experts, from the stream and the router's state, and return these."""
        assert isinstance(b, ModelBuilder)
        x, state, module = inputs[0], inputs[1] if len(inputs) > 1 else None, f"{self.prefix}.layers.{layer}"
        with b.scope("attn"):
            normed = self._normed(b, block.norm, x, f"{module}.input_layernorm")
            y = block.attention.build(b, normed, pos, f"{module}.self_attn")
            x = merge(b, "residual", y, x, f"{module}.post_attention_residual_scale.")
        with b.scope("moe"):
            normed = self._normed(b, block.norm, x, f"{module}.post_attention_layernorm")
            y, state = block.experts.build(b, normed, f"{module}.mlp", state)
        return [merge(b, "out", y, x, f"{module}.post_mlp_residual_scale."), state]

    def _split_layers(self, b: ModelBuilder, x: Value, pos: Value) -> Value:
        """Build attention and experts as layers of their own; each merges, before it, what the one before it gave."""
        stream, state = [x], []
        for layer in range(2 * self.num_hidden_layers):
            block = self.block(layer // 2)
            key = (block, layer == 0, layer % 2, b.tensors.layer(layer))
            inputs = [*stream, *(state if layer % 2 else [])]
            made = b.layer(layer, key, inputs, lambda b, n, given, block=block: self._half(b, n, given, block, pos))
            stream, state = made[:2], made[2:] or state
        out = merge(b, "out", stream[0], stream[1], f"{self.prefix}.res_scale.")
        return self._narrowed(b, out, f"{self.prefix}.{self.last_norm}")

    def _half(self, b: Builder, layer: int, inputs: Sequence[Value], block: Layer, pos: Value) -> list[Value]:
        assert isinstance(b, ModelBuilder)
        module = f"{self.prefix}.layers.{layer}"
        if layer == 0:
            x = b(Widen, "stream", scaled(b, "rows", inputs[0], f"{module}.res_scale.", "hidden_states"))
        else:
            x = merge(b, "stream", inputs[0], inputs[1], f"{module}.res_scale.")
        if layer % 2 == 0:
            with b.scope("attn"):
                normed = self._normed(b, block.norm, x, f"{module}.input_norm")
                return [block.attention.build(b, normed, pos, f"{module}.self_attn"), x]
        with b.scope("moe"):
            normed = self._normed(b, block.norm, x, f"{module}.input_norm")
            state = inputs[2] if len(inputs) > 2 else None
            y, state = block.experts.build(b, normed, f"{module}.zaya_block", state)
        return [y, x, state]

    def _normed(self, b: ModelBuilder, norm: RMSNorm, x: Value, module: str) -> Value:
        """Norm the stream, which is kept in float32, in the model's own type."""
        return norm.build(b, "norm", self._narrowed(b, x, module), module)

    def _narrowed(self, b: ModelBuilder, x: Value, module: str) -> Value:
        return b(CastLike, "narrow", x, b.weight(f"{module}.weight", self.hidden_size))

    # -- the small twin

    def twin_layers(self) -> list[int]:
        return super().twin_layers()[1:]  # the first layer once: a second one would be of another kind

    def twin(self) -> dict[str, object]:
        config = super().twin()
        return _old(config) if self.legacy else config

    def per_layer(self, layers: Sequence[int]) -> dict[str, object]:
        types = self.layer_types or (HYBRID,) * self.num_hidden_layers
        few = min(self.num_experts, 8)
        return {
            "layer_types": [types[layer] for layer in layers],
            "sliding_window": self.sliding_window and 8,
            "num_attention_heads": 4,
            "head_dim": 16,
            "num_experts": few,
            "moe_intermediate_size": 32,
            "router_hidden_size": 24,
        }


def _native(given: Given) -> Given:
    """Return the keys of an older config: layers counted as today, one number for a list by layer.

    Raises:
        KeyValueError: Layers differ from one another, or there is no whole number of them as they are counted today; or
            a part is switched off.
        MissingKeyError: There is no base of the rotation.
    """
    values = dict(given.values)
    if switched := next((flag for flag in FLAGS if values.get(flag, True) is not True), None):
        raise _refused(given, switched, "true")
    for name, key in LISTS.items():
        if isinstance(values.get(name), list) or (name in values and name not in RENAMED):
            for other in (key, *(old for old, new in RENAMED.items() if new == key)):
                values.pop(other, None)
            values[key] = _alike(given, name)
            values.pop(name, None)
    layers, experts = _layers(given)
    values |= {"num_hidden_layers": layers} | ({} if experts is None else {"num_experts": experts})
    width = values.pop("ffn_hidden_size", 4096)
    if not _whole(width) or width % 2:
        raise _refused(given, "ffn_hidden_size", "an even number, of gate and up projection together")
    if values.pop("rope_scaling", None) not in (None, False):
        raise _refused(given, "rope_scaling", "false or null, as older configs have it")
    if values.get("rope_parameters") is not None:
        raise _refused(given, "rope_parameters", "null: older configs have rope_theta")
    theta = values.pop("rope_theta", None)
    if theta is None:
        raise MissingKeyError(key="rope_theta", why="older configs have it", where=given.path)
    values |= {"moe_intermediate_size": width // 2, "rope_parameters": {HYBRID: {"rope_theta": theta}}}
    return Given({name: value for name, value in values.items() if name != "zaya_layers"}, given.path, given.prefix)


def _layers(given: Given) -> tuple[object, int | None]:
    """Return how many blocks there are, and of how many experts where a list of layers says so."""
    sorts = given.values.get("zaya_layers")
    if sorts is None:
        count = given.values.get("num_hidden_layers", 80)
        if _whole(count) and count % 2:
            raise _refused(given, "num_hidden_layers", "an even number: attention and experts are a layer each")
        return (count // 2 if _whole(count) else count), None
    legal = f'a list of "{_ATTENTION}" and a number of experts in turn'
    if not isinstance(sorts, list) or not sorts or len(sorts) % 2 or not _whole(sorts[1]):
        raise _refused(given, "zaya_layers", legal)
    if sorts != [_ATTENTION, sorts[1]] * (len(sorts) // 2):
        raise _refused(given, "zaya_layers", legal)
    return len(sorts) // 2, sorts[1]


def _alike(given: Given, name: str) -> object:
    """Return the number that a key has for all layers which it is about."""
    value = given.values[name]
    held: list[object] = [each for each in value if each] if isinstance(value, list) else [value]
    if not held or any(each != held[0] for each in held):
        raise _refused(given, name, "one number in all layers that have it")
    return held[0]


def _whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _refused(given: Given, key: str, legal: str) -> KeyValueError:
    found = show(given.values.get(key))
    return KeyValueError(family=Zaya.family, key=key, found=found, legal=legal, where=given.where(key))


def _old(config: Mapping[str, Any]) -> dict[str, object]:
    """Return the keys of a config as older ones have them."""
    new = {value: key for key, value in RENAMED.items()}
    gone = ("layer_types", "sliding_window", "moe_intermediate_size", "rope_parameters", "intermediate_size")
    kept = (name for name in config if name not in gone and RENAMED.get(name) not in config)
    old: dict[str, object] = {new.get(name, name): config[name] for name in kept}
    old |= {"num_hidden_layers": 2 * config["num_hidden_layers"]}
    old |= {"ffn_hidden_size": 2 * config["moe_intermediate_size"]}
    return old | {"rope_theta": config["rope_parameters"][HYBRID]["rope_theta"], "cca": True}
