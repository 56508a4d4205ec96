"""Passes whose effect on a decoded token is predicted by the schedule, and measured."""

from __future__ import annotations

import regraft
from regraft.ir.graph import Graph
from regraft.passes.fitting.fold import folded

CONTEXT = 131072
_HALF = ", ".join(f"{i}: [{', '.join(str(head) for head in range(32) if head % 4 < 2)}]" for i in range(32))
_TURNING = ", ".join(f"{i}: [{', '.join(str(pair) for pair in range(0, 64, 2))}]" for i in range(32))
PASSES = {  # what is measured: a builtin model and a recipe; fits change numbers alone, and are left out
    "KV sharing": ("Qwen3-8B", "share-kv{groups=2, refit=false}"),
    "key from value": ("gemma-4-31B", "key-from-value{rotated=kept}"),
    "head budget": ("Llama-3.1-8B", f"budget-heads{{keep={{{_HALF}}}, refit=false}}"),
    "latent": (
        "Llama-3.1-8B",
        f"to-latent{{rank=512, rope=64, kept={{{_TURNING}}}, form=absorbed, method=weight-svd, refit=false}}",
    ),
}


def before_and_after(of: tuple[str, str]) -> tuple[Graph, Graph]:
    """Return a model's graph, and the one that `apply` would write of it."""
    name, recipe = of
    graph = regraft.lift(f"builtin:{name}").graph
    return graph, folded(regraft.opt(f"builtin:{name}", recipe).graph)
