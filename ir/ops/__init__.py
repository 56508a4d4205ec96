"""The op families. Importing this package registers every op."""

from regraft.ir.ops import attn, core, moe, pos, seq, weight

__all__ = ["attn", "core", "moe", "pos", "seq", "weight"]
