"""The ops, one module a family."""
