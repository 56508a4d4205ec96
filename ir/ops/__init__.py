"""The op families. Importing this package registers every op."""

from regraft.ir.ops import attn, compress, core, hyper, index, layout, memory, moe, pos, quantized, seq, weight

__all__ = ["attn", "compress", "core", "hyper", "index", "layout", "memory", "moe", "pos", "quantized", "seq", "weight"]
