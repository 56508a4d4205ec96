"""Emitted programs, one module a target."""
