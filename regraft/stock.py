"""Whether a stock transformers class holds a rewritten model: some config, lifted, gives the same graph."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from regraft.frontends.folder import ModelFolder
from regraft.frontends.lift import lift
from regraft.ir.errors.base import RegraftError
from regraft.ir.graph import Graph
from regraft.ir.ops.attn import Attend
from regraft.ir.text import print_graph

_DTYPE = re.compile(r"\b(?:f64|f32|f16|bf16)(?=[\[;])")
_HEADER = re.compile(r"^graph @.*?\(", re.MULTILINE)


def stock_config(graph: Graph, folder: ModelFolder, written: Path | None = None) -> dict[str, Any] | None:
    """Return the config with which a stock class computes ``graph``, or none.

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
            return config
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
    shapes = {(op.q.tensor.shape[2], op.memory.memory.fields[0].shape) for op in graph.ops if isinstance(op, Attend)}
    if len(shapes) == 1:
        heads, (kv_heads, width) = shapes.pop()
        yield {**config, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": width}
