"""The op families. Importing this package registers every op."""

from regraft.ir.ops import (
    algebra,
    attn,
    compress,
    core,
    fits,
    hyper,
    index,
    layout,
    memory,
    moe,
    merging,
    pos,
    precision,
    quantized,
    seq,
    weight,
)

__all__ = [
    "algebra",
    "attn",
    "compress",
    "core",
    "fits",
    "hyper",
    "index",
    "layout",
    "memory",
    "moe",
    "pos",
    "precision",
    "merging",
    "quantized",
    "seq",
    "weight",
]
