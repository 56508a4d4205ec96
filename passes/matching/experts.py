"""Mixtures of experts: a router, the choice, and the experts; and experts without effect taken out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regraft.ir.graph import Graph
from regraft.ir.op import Op
from regraft.ir.ops.core import Linear, Scale, Softcap
from regraft.ir.ops.moe import Experts, Route
from regraft.ir.ops.precision import CastLike, Widen
from regraft.passes.base import Measurements
from regraft.passes.fitting.stream import ancestors
from regraft.passes.matching.heads import take_blocks
from regraft.passes.matching.rewrite import Editor
from regraft.passes.matching.sites import Refusal, run_time_users


@dataclass(frozen=True)
class ExpertSite:
    """A mixture whose experts can be put in another order: what scores them, chooses among them and runs them."""

    experts: Experts
    route: Route
    linear: Linear

    @property
    def count(self) -> int:
        """The experts that have weights."""
        return self.experts.gate_up.tensor.sizes[0]

    @property
    def classes(self) -> int:
        """What the router chooses among: the experts, and what gives nothing."""
        return self.linear.weight.tensor.sizes[0]


def expert_site(experts: Experts) -> ExpertSite | Refusal:
    """Return a mixture whose experts can be put in another order, or why they cannot."""
    route = experts.chosen.op
    if not isinstance(route, Route) or experts.weights.op is not route:
        return Refusal("its experts are not chosen by a router alone")
    if route.given is not None:
        return Refusal("a table of token ids chooses its experts by number")
    if route.groups > 1:
        return Refusal("its experts are chosen by groups, which order makes")
    if experts.skip == "identity":
        return Refusal("it has a number that gives the input, after the last expert's")
    reader: Op = route
    value = route.logits
    while run_time_users(value) == [reader] and isinstance(value.op, Softcap | Scale | Widen | CastLike):
        reader, value = value.op, value.op.x
    linear = value.op
    alone = [run_time_users(each) for each in (value, route.experts, route.weights)]
    if not isinstance(linear, Linear) or alone != [[reader], [experts], [experts]]:
        return Refusal("its scores or its choice come from elsewhere than a map of its own, or are read elsewhere too")
    owners = [(op, slot) for op, slots in _tables(experts, route, linear) for slot in slots]
    parts = [(op, value) for op, slot in owners for value in op.slots[slot]]
    shared = [part for op, part in parts if not part.is_weight or run_time_users(part) != [op]]
    return Refusal(f"%{shared[0].name} serves other ops too") if shared else ExpertSite(experts, route, linear)


def _tables(
    experts: Experts, route: Route, linear: Linear
) -> tuple[tuple[Experts | Route | Linear, tuple[str, ...]], ...]:
    """Return each op with the operands that have a row for each expert."""
    weights = ("gate_up", "down", "gate_up_bias", "down_bias")
    return (experts, weights), (route, ("bias", "gain")), (linear, ("weight", "bias"))


def idle_experts(graph: Graph, site: ExpertSite, measurements: Measurements) -> tuple[int, ...]:
    """Return the experts that give nothing for any input: a zero map back, or a number that is never chosen.

    Scores lie between 0 and 1, so an expert is never chosen if as many others as are chosen have biases more than 1
    above its own.
    """
    back = [part for part in (site.experts.down, site.experts.down_bias) if part is not None]
    if any(op.reads_run_time for op in ancestors(back)):
        return ()
    tables = [measurements.weight(graph, part) for part in back]
    idle = {expert for expert in range(site.count) if not any(bool(table[expert].any()) for table in tables)}
    if site.route.bias is not None and site.route.score in ("softmax", "sigmoid"):
        biases: list[float] = measurements.weight(graph, site.route.bias).double().tolist()
        for expert in range(site.count):
            above = sum(bias > biases[expert] + 1 for bias in biases)
            if above >= site.route.chosen:
                idle.add(expert)
    return tuple(sorted(idle))


def drop_experts(edit: Editor, site: ExpertSite, gone: Sequence[int]) -> None:
    """Take away some experts' weights; the router weighs them after all others, as numbers that give nothing."""
    kept = [expert for expert in range(site.count) if expert not in gone]
    order = [*kept, *gone, *range(site.count, site.classes)]
    for op, slots in _tables(site.experts, site.route, site.linear):
        for slot in slots:
            if op.slots[slot]:
                take_blocks(edit, op, slot, 0, 1, kept if op is site.experts else order)
    edit.set_attribute(site.experts, "skip", "zero")
