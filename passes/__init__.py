"""Rewrites, the pipeline, folding, statistics and fits."""
