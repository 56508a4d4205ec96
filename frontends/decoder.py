"""The base of all families: the keys that decoders have in common, and the model around the layers."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, ClassVar

from regraft.frontends.blocks import Attention, Block, ModelBuilder, RMSNorm
from regraft.frontends.config import (
    INERT,
    MAX_CONTEXT,
    MAX_HEAD_WIDTH,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_VOCABULARY,
    Config,
    Given,
    boolean,
    choice,
    fixed,
    integer,
    number,
    optional_integer,
    table,
    text_config,
    token_ids,
)
from regraft.frontends.rope import Rope, read_rope
from regraft.frontends.tensors import Tensors
from regraft.ir.builder import Builder
from regraft.ir.memory import infer_windows
from regraft.ir.op import Value
from regraft.ir.ops.core import Embed, Linear, Scale, Softcap

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
}
DTYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", "float64": "f64"}
FULL, SLIDING = "full_attention", "sliding_attention"
Body = Callable[[Builder, int, Sequence[Value]], Sequence[Value]]
_INERT_TENSORS = re.compile(r"\.rotary_emb\.(inv_freq|cos_cached|sin_cached)$")


class Decoder(Config):
    """A config of a decoder, and how it becomes a graph.

    A family lists its ``model_types`` and ``architectures``, declares the keys that differ from these, and says in
    ``block`` what each layer is; ``per_layer`` and ``twin`` where its small twin needs more than the usual keys.
    """

    model_types: ClassVar[Sequence[str]]
    architectures: ClassVar[Sequence[str]]
    prefixes: ClassVar[Sequence[str]] = ("model",)  # what tensors' names start with; the last one in multimodal files
    towers: ClassVar[Mapping[str, tuple[str, str]]] = {}  # what is left out: its tensors' prefix, its key, its name
    wrapper: ClassVar[Sequence[str]] = ()  # keys beside text_config
    rope_inert: ClassVar[Sequence[str]] = ()
    theta: ClassVar[float] = 10000.0
    twin_gain: ClassVar[float] = 1.0  # of the twin's maps: less where norms follow small sums or attention is sharp
    embedding: ClassVar[str] = "embed_tokens.weight"
    last_norm: str = "norm"
    head: ClassVar[str] = "lm_head.weight"

    vocab_size = integer(32000, high=MAX_VOCABULARY)
    hidden_size = integer(4096)
    intermediate_size = integer(11008)
    num_hidden_layers = integer(32, high=MAX_LAYERS)
    num_attention_heads = integer(32, high=MAX_HEADS)
    num_key_value_heads = optional_integer(None, high=MAX_HEADS)
    head_dim = optional_integer(None, low=2, high=MAX_HEAD_WIDTH)
    hidden_act = choice("silu", ACTIVATIONS)
    max_position_embeddings = integer(2048, high=MAX_CONTEXT)
    rms_norm_eps = number(1e-6, low=1e-30, high=1.0)
    tie_word_embeddings = boolean(False)
    rope_theta = number(0.0, low=1.0, high=1e12)
    rope_parameters = table(names=("rope_scaling",))
    bos_token_id = token_ids(())
    eos_token_id = token_ids(())
    dtype = choice("float32", DTYPES, null=True, names=("torch_dtype",))
    quantization_config = fixed(None)
    is_encoder_decoder = fixed(False)
    add_cross_attention = fixed(False)
    cross_attention_hidden_size = fixed(None)
    pruned_heads = fixed({})

    def __init__(self, given: Given, allow: Iterable[str] = (), *, strict: bool = True) -> None:
        self.outer = given if self.towers and "text_config" in given.values else None
        super().__init__(given if self.outer is None else text_config(given), allow, strict=strict)
        self.prefix = self.prefixes[-1 if self.outer else 0]
        self._check_tokens()
        names = (name for key in type(self).keys().values() for name in key.names)
        known = INERT.union(self.wrapper, names, (key for key, _ in self.towers.values()))
        for name, value in self.outer.values.items() if self.outer else ():
            if name not in known and name != "text_config" and value is not None:
                self.stranger(given, name, [*self.wrapper, "text_config"])

    def _check_tokens(self) -> None:
        last = max(self.eos_token_id, default=0)
        if last >= self.vocab_size and self.given.values.get("eos_token_id") is not None:
            problem = f"eos_token_id names token {last} of {self.vocab_size}"
            raise self.disagree("eos_token_id", problem, f"tokens are numbered 0 to {self.vocab_size - 1}")

    def check(self) -> None:
        """Check that heads, widths and the rope's keys agree."""
        if self.num_attention_heads % self.kv_heads:
            raise self.disagree(
                "num_attention_heads",
                f"{self.num_attention_heads} query heads cannot be dealt evenly to {self.kv_heads} key/value heads",
                "num_attention_heads must be a multiple of num_key_value_heads",
            )
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise self.disagree(
                "hidden_size",
                f"hidden_size {self.hidden_size} is no multiple of {self.num_attention_heads} heads",
                "correct one of them, or give head_dim",
            )
        if self.head_width % 2:
            raise self.disagree(
                "head_dim" if self.head_dim else "hidden_size",
                f"heads are {self.head_width} wide",
                "rotary embeddings need an even width",
            )
        self.block(0)  # reads the rope's keys

    # -- what the keys say

    @property
    def kv_heads(self) -> int:
        """Key/value heads: as many as query heads where the config does not say."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_width(self) -> int:
        """Channels of a head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def norm(self) -> RMSNorm:
        """The norm of the layers' inputs and of the last stream."""
        return RMSNorm(self.rms_norm_eps)

    @cached_property
    def rope(self) -> Rope:
        """How queries and keys turn."""
        return read_rope(
            self.rope_keys(),
            theta=self.rope_theta or self.theta,
            context=self.max_position_embeddings,
            width=self.head_width,
            allow=self.allow.union(f"{self.rope_keys().prefix}{name}" for name in self.rope_inert),
            unknown=self,
            partial=self.rotary_part,
        )

    def rope_of(self, layer_type: str, *, width: int = 0, theta: float = 0.0) -> Rope:
        """Return how a type of layers turns, where the rope's keys stand by type; ``theta`` if they do not give it."""
        given = self.rope_keys()
        if isinstance(given.values.get(layer_type), dict):
            given = given.nested(layer_type)
        return read_rope(
            given,
            theta=self.rope_theta or theta or self.theta,
            context=self.max_position_embeddings,
            width=width or self.head_width,
            allow=self.allow,
            unknown=self,
            partial=self.rotary_part,
        )

    @property
    def rotary_part(self) -> float | None:
        """The part of a head's channels that turns where the rope's keys do not say; None where all must."""
        return None

    def rope_keys(self) -> Given:
        """Return the rope's own keys, under whatever name they stand."""
        key = next((name for name in type(self).rope_parameters.names if self.given.values.get(name)), None)
        return self.given.nested(key) if key else Given({}, self.given.path)

    def attention(
        self,
        *,
        window: int | None = None,
        norm: RMSNorm | None = None,
        bias: bool = False,
        out_bias: bool = False,
        rope: Rope | None = None,
    ) -> Attention:
        """Return grouped-query attention as the common keys describe it."""
        return Attention(
            heads=self.num_attention_heads,
            kv_heads=self.kv_heads,
            width=self.head_width,
            scale=self.head_width**-0.5,
            rope=rope or self.rope,
            window=window,
            norm=norm,
            bias=bias,
            out_bias=out_bias,
        )

    def check_types(self, types: tuple[str, ...] | None, key: str = "layer_types") -> None:
        """Check that a list has an entry for each layer."""
        if types is not None and len(types) != self.num_hidden_layers:
            raise self.disagree(
                key, f"{key} has {len(types)} entries for {self.num_hidden_layers} layers", "one entry a layer"
            )

    def check_chosen(self, chosen: int, experts: int) -> None:
        """Check that a token chooses no more experts than there are."""
        if chosen > experts:
            raise self.disagree(
                "num_experts_per_tok",
                f"{chosen} experts a token of {experts}",
                "a token cannot choose more experts than there are",
            )

    def block(self, layer: int) -> Block:
        """Return what layer ``layer`` is; equal layers give equal values."""
        raise NotImplementedError

    # -- the graph

    def build(self, b: ModelBuilder, name: str, *, tied: bool, facts: Mapping[str, object]) -> None:
        """Build the model into the builder's graph.

        Args:
            b: A builder over an empty graph.
            name: What to call the graph.
            tied: Whether the embedding serves as the head.
            facts: Facts for the graph's ``meta`` beside those of the config.
        """
        graph = b.graph
        graph.name = name
        graph.meta = {
            "family": self.family,
            "model_type": str(self.given.values.get("model_type") or self.model_types[0]),
            "architecture": self.architectures[0],
            "dtype": b.dtype,
            "vocab": self.vocab_size,
            "context": self.max_position_embeddings,
            "eos": self.eos_token_id,
            "bos": self.bos_token_id[0] if self.bos_token_id else None,
            "tied": tied,
            **facts,
        }
        tokens, pos = b.tokens()
        embedding, head = self.embedding_name, self.head
        if tied and b.tensors.has(embedding) is False and b.tensors.has(head):
            embedding = head
        x = self.embed(b, tokens, b.weight(embedding, self.vocab_size, self.hidden_size))
        x = self.layers(b, x, pos)
        x = self.norm.build(b, "norm", x, f"{self.prefix}.{self.last_norm}")
        weight = b.weight(embedding if tied else head, self.vocab_size, self.hidden_size)
        graph.set_outputs([self.logits(b, x, weight)])
        infer_windows(graph)

    @property
    def embedding_name(self) -> str:
        """The embedding table's name in the checkpoint."""
        return f"{self.prefix}.{self.embedding}"

    @property
    def embedding_scale(self) -> float:
        """What multiplies the embedding's rows, rounded to their element type."""
        return 1.0

    @property
    def logit_scale(self) -> float:
        """What multiplies the logits."""
        return 1.0

    @property
    def logit_cap(self) -> float:
        """What bounds the logits, 0 where nothing does."""
        return 0.0

    def embed(self, b: ModelBuilder, tokens: Value, table: Value) -> Value:
        """Return the stream before the layers."""
        if self.embedding_scale == 1.0:
            return b(Embed, "embed", tokens, table)
        factor = rounded(self.embedding_scale, table.tensor.dtype)
        return b(Scale, "embed", b(Embed, "rows", tokens, table), factor=factor)

    def logits(self, b: ModelBuilder, x: Value, weight: Value) -> Value:
        """Return the logits of the normed last stream."""
        scaled, capped = self.logit_scale != 1.0, self.logit_cap > 0
        y = b(Linear, "head" if scaled or capped else "logits", x, weight)
        if scaled:
            y = b(Scale, "scaled" if capped else "logits", y, factor=self.logit_scale)
        return b(Softcap, "logits", y, cap=self.logit_cap) if capped else y

    def layers(self, b: ModelBuilder, x: Value, pos: Value) -> Value:
        """Add the layers, each kind built once, and return the stream after the last."""
        for layer in range(self.num_hidden_layers):
            block = self.block(layer)
            inputs = [x, *self.layer_inputs(b, layer)]
            (x,) = b.layer(layer, (block, b.tensors.layer(layer)), inputs, self._body(block, pos))
        return x

    def layer_inputs(self, b: ModelBuilder, layer: int) -> Sequence[Value]:
        """Return what a layer is given beside the stream; its block's ``build`` takes it after the module's name."""
        return ()

    def _body(self, block: Block, pos: Value) -> Body:
        def body(b: Builder, layer: int, inputs: Sequence[Value]) -> Sequence[Value]:
            assert isinstance(b, ModelBuilder)
            return [block.build(b, inputs[0], pos, f"{self.prefix}.layers.{layer}", *inputs[1:])]

        return body

    def locate(self, tensors: Tensors) -> None:
        """Note under which name the model stands in a checkpoint."""
        found = (prefix for prefix in self.prefixes if tensors.has(f"{prefix}.{self.embedding}"))
        self.prefix = next(found, self.prefix)

    def left_out(self, tensors: Iterable[str]) -> str | None:
        """Return a line that says what the config or the names of its tensors have beside the text decoder."""
        keys = {**(self.outer.values if self.outer else {}), **self.given.values}
        names = [name for name in tensors if name.startswith(tuple(self.towers))]
        parts = [
            words
            for prefix, (key, words) in self.towers.items()
            if keys.get(key) or any(name.startswith(prefix) for name in names)
        ]
        return f"left out: {' and '.join(parts)}; the text decoder is lifted" if parts else None

    def inert_tensor(self, name: str) -> bool:
        """Return whether a checkpoint may hold a tensor of this name though the model does not read it."""
        return _INERT_TENSORS.search(name) is not None or name.startswith(tuple(self.towers))

    def quantized_tensor(self, name: str) -> bool:
        """Return whether checkpoints have a tensor of this name only where they are published quantised."""
        return False

    # -- the small twin

    def twin(self) -> dict[str, object]:
        """Return a small config of the same structure: every kind of layer twice, every mechanism at work."""
        heads, kv_heads = self.num_attention_heads, self.kv_heads
        few = 4 if heads == kv_heads else 1 if kv_heads == 1 else 2
        layers = self.twin_layers()
        small: dict[str, object] = {
            "vocab_size": 128,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": len(layers),
            "num_attention_heads": 4,
            "num_key_value_heads": few,
            "max_position_embeddings": 512,
            "dtype": "float32",
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": None,
        }
        if self.head_dim is not None:
            plain = self.head_dim * heads == self.hidden_size
            small["head_dim"] = 16 if plain else 24
        config: dict[str, object] = {n: value for n, value in self.given.values.items() if n != "torch_dtype"}
        config |= small | self._twin_rope() | self.per_layer(layers)
        if self.outer is None:
            return config
        gone = {"text_config", *(key for key, _ in self.towers.values())}
        outer: dict[str, object] = {name: value for name, value in self.outer.values.items() if name not in gone}
        return outer | {"text_config": config}

    def twin_packing(self) -> Mapping[str, object]:
        """Return the keys by which the twin is quantised as the model is published; none where it is not."""
        return {}

    def twin_layers(self) -> list[int]:
        """Return the layers that the twin keeps: the first two of each kind, in order."""
        seen: dict[Block, list[int]] = {}
        for layer in range(self.num_hidden_layers):
            seen.setdefault(self.block(layer), []).append(layer)
        return sorted(layer for layers in seen.values() for layer in (layers * 2)[:2])

    def per_layer(self, layers: Sequence[int]) -> dict[str, object]:
        """Return the keys that say what each layer is, for a model of ``layers`` only; and the small windows."""
        return {}

    def _twin_rope(self) -> dict[str, object]:
        """Return the rope's keys with an original context so short that scaling shows."""
        given = self.rope_keys()
        key = given.prefix.rstrip(".").rpartition(".")[2]
        by_type: dict[str, object] = {
            name: _shortened(keys) for name, keys in given.values.items() if isinstance(keys, dict)
        }
        if by_type:
            return {key: {**given.values, **by_type}}
        if "original_max_position_embeddings" not in given.values and self.rope.original is None:
            return {}
        return {key: {**given.values, "original_max_position_embeddings": 64}}


def _shortened(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return a rope's keys with a short original context where they give one."""
    name = "original_max_position_embeddings"
    return {**keys, name: 64} if name in keys else dict(keys)


def rounded(value: float, dtype: str) -> float:
    """Return a number as an element type has it: to nearest, ties to even."""
    if dtype == "f64":
        return value
    if dtype == "f16":
        return struct.unpack("e", struct.pack("e", value))[0]
    (bits,) = struct.unpack("I", struct.pack("f", value))
    if dtype == "bf16":
        bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
    return struct.unpack("f", struct.pack("I", bits))[0]
