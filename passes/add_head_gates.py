"""`add-head-gates`: gates of each head's result, made of the attention's input."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from regraft.ir.errors.recipe import StructureError
from regraft.ir.graph import Graph
from regraft.ir.op import Op, Value
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.core import Activation, Gain, Linear, Unflatten
from regraft.passes.base import Constraints, Measurements, Pass, Preserves, Report, choice, option, optional_option
from regraft.passes.choosing import leave_out
from regraft.passes.matching.growth import Start, free_module, input_of, module_of, scalable, scale_output
from regraft.passes.matching.rewrite import Editor, Rule, drive
from regraft.passes.matching.sites import Output, Refusal, attentions, output_of
from regraft.passes.selection import LAYERS, Selection

CLOSED = {"softplus": math.log(2.0), "sigmoid": 0.5}  # what a gate gives for a zero map


@dataclass(frozen=True)
class AddHeadGates(Pass):
    """Multiply each head's result by a gate that the attention's input opens, as Laguna does.

    The map to the gates starts at zero, so that every gate is the same constant: log 2 for softplus, 1/2 for sigmoid.
    The output projection is divided by it, at 1/2 without rounding. The map gets a gradient from the first step on.
    """

    name: ClassVar[str] = "add-head-gates"
    preserves: ClassVar[Preserves] = "exact"
    source: ClassVar[str] = "specs/laguna.md (softplus gates); Qiu et al. 2025, Gated Attention (sigmoid gates)"

    layers: Selection | None = optional_option(LAYERS, "which layers; by default all")
    gate: str = option(choice("softplus", "sigmoid"), "softplus", "what opens a gate")
    by: str = option(choice("head", "channel"), "head", "a gate for each head, or for each channel of each head")

    def decide(self, graph: Graph, measurements: Measurements | None, constraints: Constraints) -> AddHeadGates:
        """Return the pass with the layers listed.

        Raises:
            IllegalPassError: A layer's attention is not followed by an output projection that can take the constant.
        """
        found = attentions(graph)
        selection = self.layers or Selection(predicate="all")
        layers = selection.resolve(found, graph.layer_count(), self.name, self.place("layers"))
        for layer in layers:
            site = _site(found[layer].attend)
            if isinstance(site, Refusal):
                fix = leave_out(layers, [at for at in found if not isinstance(_site(found[at].attend), Refusal)])
                where = self.place("layers")
                raise StructureError(owner=self.name, layer=layer, reason=site.reason, fix=fix, where=where)
        return replace(self, layers=Selection.of(layers))

    def rewrite(self, graph: Graph) -> Report:
        """Add the gates of each layer."""
        found = attentions(graph)
        assert self.layers is not None, "decide comes first"
        layers = self.layers.resolve(found, graph.layer_count(), self.name, self.place("layers"))
        return drive(graph, _AddGates(self, frozenset(found[layer].attend for layer in layers)))


def _site(attend: Attend) -> tuple[Attend, Output, Value] | Refusal:
    """Return an attention, its output projection, and its input."""
    output = output_of(attend)
    if isinstance(output, Refusal):
        return output
    refusal = scalable(output)
    if refusal is not None:
        return refusal
    x = input_of(attend.q, output.linear.out)
    return Refusal("its queries come from no value as wide as the model") if x is None else (attend, output, x)


@dataclass(frozen=True)
class _AddGates(Rule[Attend, tuple[Attend, Output, Value]]):
    op: ClassVar[type[Op]] = Attend
    options: AddHeadGates
    wanted: frozenset[Attend]

    def match(self, op: Attend, graph: Graph) -> tuple[Attend, Output, Value] | Refusal:
        return _site(op) if op in self.wanted else Refusal("not among the layers")

    def rewrite(self, site: tuple[Attend, Output, Value], edit: Editor) -> str:
        attend, output, x = site
        heads, width = attend.out.tensor.shape[-2:]
        model = x.tensor.shape[-1]
        assert isinstance(heads, int)
        assert isinstance(width, int)
        assert isinstance(model, int)
        gates = heads if self.options.by == "head" else heads * width
        after, scope = output.chain[0] if output.chain else output.linear, attend.out.name.rpartition(".")[0]
        weight = output.linear.weight
        module = free_module(edit.graph, f"{module_of(weight)}.g_proj")
        zero = Start(edit, weight.tensor.dtype, after).fill(f"{module}.weight", (gates, model))
        logits = edit.add(Linear, f"{scope}.gate_logits", x, zero, before=after)
        gate = edit.add(Activation, f"{scope}.gate", logits, kind=self.options.gate, before=after)
        by_head = edit.add(Unflatten, f"{scope}.gate_heads", gate, parts=heads, before=after)
        gated = edit.add(Gain, f"{scope}.gated", attend.out, by_head, before=after)
        edit.graph.replace_uses(attend.out, gated, lambda op: op is after)
        scale_output(edit, output, 1 / CLOSED[self.options.gate])
        each = "head" if self.options.by == "head" else "channel"
        return f"a {self.options.gate} gate for each {each}, {gates} in all"
