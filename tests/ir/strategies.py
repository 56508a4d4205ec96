"""Hypothesis strategies: for every op a graph that holds a valid instance of it."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from regraft.ir.graph import Graph
from tests.ir import run_time_rules, weight_rules
from tests.ir.making import RULES, STRINGS, Making

__all__ = ["RULES", "STRINGS", "graphs_with", "run_time_rules", "weight_rules"]


@st.composite
def graphs_with(draw: DrawFn, opname: str) -> Graph:
    """A graph that ends in a valid instance of the op."""
    making = Making(draw)
    outputs = RULES[opname](making)
    making.graph.set_outputs(outputs)
    return making.graph
