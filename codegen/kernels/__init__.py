"""Fused kernels: each is a template, the constants that it is specialised to, and what it moves (specs/kernels.md)."""
