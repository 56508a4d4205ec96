"""Gemma 4, the text decoder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from regraft.frontends.blocks import MLP, Attention, Block, ModelBuilder, RMSNorm
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
    optional_integer,
    optional_number,
    table,
    token_ids,
    words,
)
from regraft.frontends.decoder import ACTIVATIONS, FULL, SLIDING, Decoder, rounded
from regraft.ir.op import Value
from regraft.ir.ops.core import Activation, Add, Embed, Flatten, Gain, Mul, Norm, Scale, Slice, Unflatten
from regraft.ir.ops.moe import Experts, Route

_UNREAD = re.compile(r"\.layers\.(\d+)\.self_attn\.(k_proj|v_proj|k_norm)\.weight$")
_ROPES = {
    SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
    FULL: {"rope_type": "proportional", "rope_theta": 1000000.0, "partial_rotary_factor": 0.25},
}


@dataclass(frozen=True)
class Mixture:
    """Experts beside the dense MLP. The router reads the stream through a norm of its own. Source: section 6."""

    experts: int
    chosen: int
    width: int
    activation: str
    norm: RMSNorm

    def build(self, b: ModelBuilder, x: Value, dense: Value, module: str) -> Value:
        """Return the experts' sum for the stream ``x [B, T, M]``, added to what the dense MLP made, each normed."""
        model = x.tensor.shape[-1]
        assert isinstance(model, int)
        scale = b.weight(f"{module}.router.scale", model)
        routed = b(Norm, "router_norm", x, weight=scale, eps=self.norm.eps)
        logits = b.linear(
            "logits", b(Scale, "router_in", routed, factor=model**-0.5), f"{module}.router.proj", self.experts
        )
        gain = b.weight(f"{module}.router.per_expert_scale", self.experts)
        options = {"chosen": self.chosen, "normalize": True}
        weights, chosen = b.many(Route, ["weights", "experts"], logits, gain=gain, **options)
        u = self.norm.build(b, "norm", x, f"{module}.pre_feedforward_layernorm_2")
        gate_up = b.weight(f"{module}.experts.gate_up_proj", self.experts, 2 * self.width, model)
        down = b.weight(f"{module}.experts.down_proj", self.experts, model, self.width)
        y = b(Experts, "routed", u, weights, chosen, gate_up, down, activation=self.activation)
        y = self.norm.build(b, "routed_norm", y, f"{module}.post_feedforward_layernorm_2")
        dense = self.norm.build(b, "dense_norm", dense, f"{module}.post_feedforward_layernorm_1")
        return b(Add, "out", dense, y)


@dataclass(frozen=True)
class Gemma4Block(Block):
    """Attention and an MLP between norms, then the layer's own embedding, then a scale for the stream itself.

    ``reads`` says that keys and values are an earlier layer's; ``own`` is the width of the layer's own embedding, 0 for
    none. Source: specs/gemma4.md, section 3.
    """

    reads: bool = False
    own: int = 0
    mixture: Mixture | None = None

    def build(self, b: ModelBuilder, x: Value, pos: Value, module: str, *rest: Value) -> Value:
        attention = self.mixer
        assert isinstance(attention, Attention)
        with b.scope("attn"):
            y = self.normed(b, "norm", x, module, "input_layernorm")
            place = f"{module}.self_attn"
            y = attention.read(b, y, pos, place, rest[0]) if self.reads else attention.build(b, y, pos, place)
            x = b(Add, "residual", x, self.normed(b, "post_norm", y, module, "post_attention_layernorm"))
        with b.scope("mlp"):
            y = self.normed(b, "norm", x, module, "pre_feedforward_layernorm")
            y = self.feed.build(b, y, f"{module}.mlp")
        if self.mixture:
            with b.scope("moe"):
                y = self.mixture.build(b, x, y, module)
        with b.scope("mlp"):
            x = b(Add, "residual", x, self.normed(b, "post_norm", y, module, "post_feedforward_layernorm"))
        if self.own:
            with b.scope("ple"):
                x = b(Add, "residual", x, self._own(b, x, rest[-1], module))
        return b(Gain, "out", x, b.buffer(f"{module}.layer_scalar", 1))

    def _own(self, b: ModelBuilder, x: Value, embedded: Value, module: str) -> Value:
        assert isinstance(self.feed, MLP)
        model = x.tensor.shape[-1]
        assert isinstance(model, int)
        gate = b.linear("gate", x, f"{module}.per_layer_input_gate", self.own)
        hidden = b(Mul, "hidden", b(Activation, "act", gate, kind=self.feed.activation), embedded)
        y = b.linear("projected", hidden, f"{module}.per_layer_projection", model)
        return self.normed(b, "norm", y, module, "post_per_layer_input_norm")


class Gemma4(Decoder):
    """Windows and wide global heads in turn, later layers reading earlier ones' memories. Source: specs/gemma4.md."""

    family = "gemma4"
    model_types = ("gemma4", "gemma4_text")
    architectures = ("Gemma4ForCausalLM", "Gemma4ForConditionalGeneration")
    prefixes = ("model", "model.language_model")
    towers: ClassVar[Mapping[str, tuple[str, str]]] = {
        "model.vision_tower.": ("vision_config", "the vision tower"),
        "model.audio_tower.": ("audio_config", "the audio tower"),
        "model.embed_vision.": ("", "the projection of images"),
        "model.embed_audio.": ("", "the projection of sounds"),
    }
    wrapper = (
        *("audio_token_id", "boa_token_id", "boi_token_id", "eoa_token_id", "eoa_token_index", "eoi_token_id"),
        *("image_token_id", "video_token_id", "vision_soft_tokens_per_image"),
    )

    vocab_size = integer(262144, high=MAX_VOCABULARY)
    hidden_size = integer(2304)
    intermediate_size = integer(9216)
    num_hidden_layers = integer(30, high=MAX_LAYERS)
    num_attention_heads = integer(8, high=MAX_HEADS)
    num_key_value_heads = optional_integer(4, high=MAX_HEADS)
    head_dim = optional_integer(256, low=2, high=MAX_HEAD_WIDTH)
    global_head_dim = integer(512, low=2, high=MAX_HEAD_WIDTH)
    num_global_key_value_heads = optional_integer(None, high=MAX_HEADS)
    per_layer_config = table()
    hidden_act = choice("gelu_pytorch_tanh", ACTIVATIONS, names=("hidden_activation",))
    max_position_embeddings = integer(131072, high=MAX_CONTEXT)
    tie_word_embeddings = boolean(True)
    bos_token_id = token_ids((2,))
    eos_token_id = token_ids((1,))
    attention_bias = fixed(False)
    sliding_window = integer(512, high=MAX_CONTEXT)
    layer_types = words((FULL, SLIDING))
    final_logit_softcapping = optional_number(None)
    use_bidirectional_attention = choice("vision", {"vision": "vision"}, null=True)
    vocab_size_per_layer_input = integer(262144, high=MAX_VOCABULARY)
    hidden_size_per_layer_input = integer(256, low=0)
    attention_k_eq_v = boolean(False)
    num_kv_shared_layers = integer(0, low=0, high=MAX_LAYERS)
    use_double_wide_mlp = boolean(False)
    enable_moe_block = boolean(False)
    num_experts = optional_integer(None, high=MAX_EXPERTS)
    top_k_experts = optional_integer(None, high=MAX_EXPERTS)
    moe_intermediate_size = optional_integer(None, names=("expert_intermediate_size",))

    def check(self) -> None:
        self.check_types(self.layer_types)
        self._check_sharing()
        for key in ("num_experts", "top_k_experts", "moe_intermediate_size") if self.enable_moe_block else ():
            if self.values[key] is None:
                raise self.missing(key, "enable_moe_block calls for it")
        if self.enable_moe_block and (self.top_k_experts or 0) > (self.num_experts or 0):
            raise self.disagree(
                "top_k_experts",
                f"{self.top_k_experts} experts a token of {self.num_experts}",
                "a token cannot choose more experts than there are",
            )
        for layer in range(self.num_hidden_layers):
            if self.num_attention_heads % self.kv_heads_of(layer):
                raise self.disagree(
                    "num_attention_heads",
                    f"layer {layer} has {self.num_attention_heads} query heads and {self.kv_heads_of(layer)} key/value "
                    "heads",
                    "query heads are dealt evenly",
                )
        super().check()

    def _check_sharing(self) -> None:
        own, shared = set(self.types[: self.first_shared]), set(self.types[self.first_shared :])
        if self.num_kv_shared_layers >= self.num_hidden_layers or shared - own:
            raise self.disagree(
                "num_kv_shared_layers",
                f"the last {self.num_kv_shared_layers} of {self.num_hidden_layers} layers share memories that no layer "
                "before them makes",
                "each of their types must occur before them",
            )

    # -- what the keys say of a layer

    @cached_property
    def types(self) -> tuple[str, ...]:
        """Each layer's type; the last one is full."""
        count = self.num_hidden_layers
        types = self.layer_types or tuple(SLIDING if (i + 1) % 6 else FULL for i in range(count))
        return (*types[:-1], FULL)

    @property
    def first_shared(self) -> int:
        """The first layer that reads an earlier one's memory."""
        return self.num_hidden_layers - self.num_kv_shared_layers

    def source(self, layer: int) -> int | None:
        """Return the layer whose memory a layer reads, None for its own."""
        if layer < self.first_shared:
            return None
        return max(i for i in range(self.first_shared) if self.types[i] == self.types[layer])

    def head_width_of(self, layer: int) -> int:
        """Return the channels of a layer's heads."""
        return self._special.get(("head_dim", layer)) or (
            self.global_head_dim if self._widened and self.types[layer] == FULL else self.head_width
        )

    def kv_heads_of(self, layer: int) -> int:
        """Return a layer's key/value heads."""
        special = self._special.get(("num_key_value_heads", layer))
        if special is None and self._widened and self.types[layer] == FULL and self.attention_k_eq_v:
            special = self.num_global_key_value_heads
        return special or self.kv_heads

    @property
    def _widened(self) -> bool:
        """Whether the global layers' own keys count: they do not beside a map of layers."""
        return self.per_layer_config is None

    @cached_property
    def _special(self) -> Mapping[tuple[str, int], int]:
        """What ``per_layer_config`` says of single layers, by key and layer."""
        found: dict[tuple[str, int], int] = {}
        for layer, entry in (self.per_layer_config or {}).items():
            legal = 'layers by number, such as {"05": {"head_dim": 512, "num_key_value_heads": 2}}'
            if not layer.isdecimal() or int(layer) >= self.num_hidden_layers or not isinstance(entry, dict):
                raise self.unsupported("per_layer_config", legal)
            for name, value in entry.items():
                whole = isinstance(value, int) and not isinstance(value, bool)
                if name not in ("head_dim", "num_key_value_heads") or not whole or not 0 < value <= MAX_HEAD_WIDTH:
                    raise self.unsupported("per_layer_config", legal)
                found[name, int(layer)] = value
        return found

    # -- the graph

    @property
    def norm(self) -> RMSNorm:
        return RMSNorm(self.rms_norm_eps, cast="after")

    @property
    def embedding_scale(self) -> float:
        return self.hidden_size**0.5

    @property
    def logit_cap(self) -> float:
        return self.final_logit_softcapping or 0.0

    def rope_keys(self) -> Given:
        given = super().rope_keys()
        return given if given.values else Given(_ROPES, given.path, f"{self.given.prefix}rope_parameters.")

    def block(self, layer: int) -> Block:
        kind, width, shared = self.types[layer], self.head_width_of(layer), self.source(layer) is not None
        attention = Attention(
            heads=self.num_attention_heads,
            kv_heads=self.kv_heads_of(layer),
            width=width,
            scale=1.0,
            rope=self.rope_of(kind, width=width),
            window=self.sliding_window if kind == SLIDING else None,
            norm=self.norm,
            value_norm=self.norm,
            keys_are_values=self.attention_k_eq_v and kind == FULL,
        )
        wide = 2 if self.use_double_wide_mlp and shared else 1
        feed = MLP(self.intermediate_size * wide, self.hidden_act)
        return Gemma4Block(
            self.norm, attention, feed, reads=shared, own=self.hidden_size_per_layer_input, mixture=self.mixture
        )

    @cached_property
    def mixture(self) -> Mixture | None:
        """The experts of every layer, if there are any."""
        if not self.enable_moe_block:
            return None
        sizes = (self.num_experts, self.top_k_experts, self.moe_intermediate_size)
        return Mixture(*(size or 1 for size in sizes), activation=self.hidden_act, norm=self.norm)

    def embed(self, b: ModelBuilder, tokens: Value, table: Value) -> Value:
        x = super().embed(b, tokens, table)
        if self.hidden_size_per_layer_input:
            with b.scope("ple"):
                self._per_layer_embeddings(b, tokens, x)
        return x

    def _per_layer_embeddings(self, b: ModelBuilder, tokens: Value, x: Value) -> None:
        """Add the layers' own embeddings, one value each. Source: specs/gemma4.md, section 4."""
        count, width = self.num_hidden_layers, self.hidden_size_per_layer_input
        table = b.weight(f"{self.prefix}.embed_tokens_per_layer.weight", self.vocab_size_per_layer_input, count * width)
        factor = rounded(width**0.5, table.tensor.dtype)
        of_token = b(Scale, "of_token", b(Embed, "rows", tokens, table), factor=factor)
        context = b.linear("projected", x, f"{self.prefix}.per_layer_model_projection", count * width)
        context = b(Scale, "context", context, factor=self.hidden_size**-0.5)
        context = b(Unflatten, "by_layer", context, parts=count)
        context = self.norm.build(b, "norm", context, f"{self.prefix}.per_layer_projection_norm")
        both = b(Add, "both", b(Flatten, "normed", context), of_token)
        both = b(Scale, "all", both, factor=2**-0.5)
        for layer in range(count):
            b(Slice, f"of_{layer}", both, start=layer * width, stop=(layer + 1) * width)

    def layer_inputs(self, b: ModelBuilder, layer: int) -> Sequence[Value]:
        source = self.source(layer)
        memory = [] if source is None else [b.graph[f"layers.{source}.attn.memory"]]
        return memory + ([b.graph[f"ple.of_{layer}"]] if self.hidden_size_per_layer_input else [])

    def inert_tensor(self, name: str) -> bool:
        """Accept keys and values of layers that read others': they are in published files, and nobody reads them."""
        found = _UNREAD.search(name)
        unread = found is not None and self.first_shared <= int(found[1]) < self.num_hidden_layers
        return unread or super().inert_tensor(name)

    # -- the small twin

    def per_layer(self, layers: Sequence[int]) -> dict[str, object]:
        small: dict[str, Any] = {
            "layer_types": [self.types[layer] for layer in layers],
            "num_kv_shared_layers": sum(self.source(layer) is not None for layer in layers),
            "sliding_window": 8,
            "head_dim": 16,
            "global_head_dim": 32,
            "num_global_key_value_heads": 1 if self.kv_heads_of(layers[-1]) != self.kv_heads else None,
        }
        if self.hidden_size_per_layer_input:
            small |= {"hidden_size_per_layer_input": 12, "vocab_size_per_layer_input": 128}
        if self.enable_moe_block:
            small |= {"num_experts": 8, "top_k_experts": 3, "moe_intermediate_size": 32}
        return small

    def twin(self) -> dict[str, object]:
        """Return the small config of the text model alone, as it is saved without the towers."""
        config = super().twin()
        text = config.get("text_config", config)
        assert isinstance(text, dict)
        small: dict[str, object] = {key: value for key, value in text.items() if key != "per_layer_config"}
        return small | {"model_type": "gemma4_text", "architectures": ["Gemma4ForCausalLM"]}
