"""The op families. Importing this package registers every op."""

from regraft.ir.ops import attn, core, index, layout, memory, moe, pos, quantized, seq, weight

__all__ = ["attn", "core", "index", "layout", "memory", "moe", "pos", "quantized", "seq", "weight"]
