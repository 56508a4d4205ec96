"""Whether a stock transformers class holds a rewritten model: some config, lifted, gives the same graph."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from regraft.frontends.folder import ModelFolder
from regraft.frontends.lift import lift
from regraft.ir.errors.base import RegraftError
from regraft.ir.graph import Graph
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.pos import Rope
from regraft.ir.text import print_graph
from regraft.joining import Join, joins_of
from regraft.passes.fitting.fold import folded
from regraft.passes.matching.latents import LatentSite, expanded_site

_DTYPE = re.compile(r"\b(?:f64|f32|f16|bf16)(?=[\[;])")
_COMMON = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "hidden_act", "rms_norm_eps",
    "max_position_embeddings", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id",
    "initializer_range", "dtype", "torch_dtype", "use_cache", "attention_dropout", "transformers_version",
)  # fmt: skip
_HEADER = re.compile(r"^graph @.*?\(", re.MULTILINE)


@dataclass(frozen=True)
class StockForm:
    """How a stock class holds a model.

    Attributes:
        config: The config with which it does.
        graph: What that config lifts to, where the checkpoint joins tensors that the rewritten graph has apart.
        joins: Those tensors, by name.
    """

    config: dict[str, Any]
    graph: Graph | None
    joins: Mapping[str, Join]


def stock_form(graph: Graph, folder: ModelFolder, written: Path | None = None) -> StockForm | None:
    """Return how a stock class computes ``graph``, or none.

    Args:
        graph: A folded graph: every parameter loads under its own name.
        folder: The model that it came from.
        written: The folder with its weights, where these are not as a config alone calls for them.
    """
    wanted = _signature(graph)
    for config in _candidates(graph, dict(folder.config)):
        try:
            found = lift(
                replace(folder, kind="config", config=config, folder=written, graph_path=None, hub_id=None),
                strict=False,
            )
        except RegraftError:
            continue
        if _signature(found.graph) == wanted:
            return StockForm(config, None, {})
        joins = joins_of(found.graph) if written is None else {}
        if joins and _signature(folded(found.graph)) == wanted:
            return StockForm(config, found.graph, joins)
    return None


def _signature(graph: Graph) -> str:
    """Return the graph's text without its name, its facts and the dtypes that weights are stored in."""
    text = print_graph(graph)
    return _HEADER.sub("graph (", _DTYPE.sub("f", text), count=1)


def _candidates(graph: Graph, config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the config as it is, and with the numbers of heads that the graph has, where all layers agree."""
    if not config:
        return
    yield config
    latent = _latent_config(graph, config)
    if latent is not None:
        yield latent
    shapes = {(op.q.tensor.shape[2], op.memory.memory.fields[0].shape) for op in graph.ops if isinstance(op, Attend)}
    if len(shapes) == 1:
        heads, (kv_heads, width) = shapes.pop()
        yield {**config, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": width}


def _latent_config(graph: Graph, config: dict[str, Any]) -> dict[str, Any] | None:
    """Return the config of DeepSeek V3, of MLPs alone, with the sizes of a graph's first latent attention, or none."""
    attend = next((op for op in graph.ops if isinstance(op, Attend)), None)
    site = None if attend is None else expanded_site(attend)
    rope = site.turned.op if isinstance(site, LatentSite) and site.turned is not None else None
    if attend is None or not isinstance(site, LatentSite) or not isinstance(rope, Rope):
        return None
    return {
        **{name: config[name] for name in _COMMON if name in config},
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": "deepseek_v3",
        "num_attention_heads": site.heads,
        "num_key_value_heads": site.heads,
        "head_dim": rope.channels,
        "q_lora_rank": None,
        "kv_lora_rank": site.rank,
        "qk_nope_head_dim": site.plain.tensor.shape[-1],
        "qk_rope_head_dim": rope.channels,
        "v_head_dim": attend.out.tensor.shape[-1],
        "attention_bias": True,
        "rope_interleave": rope.layout == "interleaved",
        "rope_parameters": _turning(rope, config),
        "first_k_dense_replace": graph.layer_count(),
        **dict.fromkeys(("n_routed_experts", "num_experts_per_tok", "n_group", "topk_group"), 1),
    }


def _turning(rope: Rope, config: dict[str, Any]) -> dict[str, Any]:
    """Return ``rope_parameters``; frequencies that follow no rule stand as factors of the usual ones."""
    if rope.scaling == "none":
        return {"rope_type": "default", "rope_theta": rope.base}
    factors = list(rope.factors or ())
    return {
        "rope_type": "longrope",
        "rope_theta": rope.base,
        "short_factor": factors,
        "long_factor": factors,
        "factor": 1.0,
        "attention_factor": rope.amplitude,
        "original_max_position_embeddings": config.get("max_position_embeddings"),
    }
