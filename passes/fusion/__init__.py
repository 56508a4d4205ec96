"""Fusion: ops of a graph become ``kernel.*`` ops, each of which a program computes in one launch or few."""
