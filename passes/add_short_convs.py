"""`add-short-convs`: convolutions over the last tokens' queries, keys and values, before attention."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from regraft.ir.dims import L
from regraft.ir.errors.recipe import StructureError
from regraft.ir.graph import Graph, layer_of
from regraft.ir.op import Op, Value
from regraft.ir.ops.attn import KV, Attend
from regraft.ir.ops.core import Linear
from regraft.ir.ops.seq import Conv, Tail
from regraft.ir.ops.weight import ConcatWeight
from regraft.passes.base import (
    Constraints,
    Measurements,
    Pass,
    Preserves,
    Report,
    choice,
    integer,
    option,
    optional_option,
)
from regraft.passes.choosing import leave_out
from regraft.passes.matching.growth import Start, free_module, module_of
from regraft.passes.matching.heads import trace
from regraft.passes.matching.rewrite import Editor, Rule, drive
from regraft.passes.matching.sites import Refusal, attentions, run_time_users
from regraft.passes.selection import LAYERS, Selection

Maps = tuple[tuple[str, Linear], ...]


@dataclass(frozen=True)
class AddShortConvs(Pass):
    """Convolve each channel of queries, keys and values over the last few tokens, before norms and rotation.

    A kernel starts as a delta: 1 for the token itself, 0 for those before it. All its taps get gradients. A sequence
    keeps ``taps - 1`` further rows of each, whatever its length; of a memory that a layer reads from another, only that
    one has keys and values to convolve.
    """

    name: ClassVar[str] = "add-short-convs"
    preserves: ClassVar[Preserves] = "exact"
    source: ClassVar[str] = "So et al. 2021, Primer (depthwise convolutions of projections); specs/passes_math.md, 4.7"

    layers: Selection | None = optional_option(LAYERS, "which layers; by default all")
    of: str = option(choice("qkv", "qk", "kv", "q", "k", "v"), "qkv", "what is convolved: queries, keys, values")
    taps: int = option(integer(2, 256), 3, "tokens that a kernel sees, its own included")

    def decide(self, graph: Graph, measurements: Measurements | None, constraints: Constraints) -> AddShortConvs:
        """Return the pass with the layers listed; those that have nothing of what is convolved are left out.

        Raises:
            IllegalPassError: A layer that is named, or every layer, has none that comes from projections alone.
        """
        found = attentions(graph)
        selection = self.layers or Selection(predicate="all")
        layers = selection.resolve(found, graph.layer_count(), self.name, self.place("layers"))
        sites = {layer: _site(found[layer].attend, self.of) for layer in layers}
        refused = {layer: site.reason for layer, site in sites.items() if isinstance(site, Refusal)}
        if refused and (selection.explicit or len(refused) == len(layers)):
            layer, reason = next(iter(refused.items()))
            fix = leave_out(layers, [at for at in found if not isinstance(_site(found[at].attend, self.of), Refusal)])
            fix, where = f"{fix}; or convolve something else", self.place("layers")
            raise StructureError(owner=self.name, layer=layer, reason=reason, fix=fix, where=where)
        return replace(self, layers=Selection.of(layer for layer in layers if layer not in refused))

    def rewrite(self, graph: Graph) -> Report:
        """Add the convolutions of each layer."""
        found = attentions(graph)
        assert self.layers is not None, "decide comes first"
        layers = self.layers.resolve(found, graph.layer_count(), self.name, self.place("layers"))
        return drive(graph, _AddConvs(self, frozenset(found[layer].attend for layer in layers)))


def _site(attend: Attend, of: str) -> Maps | Refusal:
    """Return the maps to be convolved, each with the side that it makes."""
    state = attend.memory.op
    own = isinstance(state, KV) and layer_of(state.out.name) == layer_of(attend.out.name)
    sides: dict[str, tuple[Value, Op]] = {"q": (attend.q, attend)}
    if isinstance(state, KV) and own:
        sides |= {"k": (state.k, state), "v": (state.v, state)}
    found: dict[Linear, str] = {}
    reason = "its keys and values are another layer's, or are kept in another form"
    for side in of:
        if side not in sides:
            continue
        made = _maps(*sides[side])
        if isinstance(made, Refusal):
            return made
        for linear in made:
            found.setdefault(linear, side)
    if any(linear.out.tensor.sequence == L for linear in found):
        return Refusal("it sees the last tokens alone, and a convolution those before; let last-tokens-only come after")
    return tuple((side, linear) for linear, side in found.items()) or Refusal(reason)


def _maps(value: Value, reader: Op) -> list[Linear] | Refusal:
    """Return the projections that make heads; keys that are values too have one."""
    cut = trace(value, reader)
    if not isinstance(cut, Refusal):
        return cut.linears
    at = value
    while at.op is not None and len(at.op.slots.get("x", ())) == 1:
        if isinstance(at.op, Linear):
            return [at.op]
        at = at.op.slots["x"][0]
    return cut


@dataclass(frozen=True)
class _AddConvs(Rule[Attend, Maps]):
    op: ClassVar[type[Op]] = Attend
    options: AddShortConvs
    wanted: frozenset[Attend]

    def match(self, op: Attend, graph: Graph) -> Maps | Refusal:
        return _site(op, self.options.of) if op in self.wanted else Refusal("not among the layers")

    def rewrite(self, site: Maps, edit: Editor) -> str:
        for side, linear in site:
            self._add(side, linear, edit)
        return f"{', '.join(f'%{linear.out.name}' for _, linear in site)} convolved over {self.options.taps} tokens"

    def _add(self, side: str, linear: Linear, edit: Editor) -> None:
        graph, taps = edit.graph, self.options.taps
        channels, users = linear.out.tensor.shape[-1], run_time_users(linear.out)
        assert isinstance(channels, int)
        before = min(users, key=graph.ops.index)
        module = free_module(graph, f"{module_of(linear.weight)}.{side}_conv")
        start = Start(edit, linear.weight.tensor.dtype, before)
        parts = [
            start.fill(f"{module}.before", (channels, 1, taps - 1)),
            start.fill(f"{module}.itself", (channels, 1, 1), 1.0),
        ]
        weight = edit.add(ConcatWeight, f"{module}.weight", parts, axis=2, before=before)
        scope = linear.out.name.rpartition(".")[0]
        tail = edit.add(Tail, f"{scope}.{side}_tail", linear.out, rows=taps - 1, before=before)
        conv = edit.add(Conv, f"{scope}.{side}_conv", tail, weight, groups=channels, before=before)
        graph.replace_uses(linear.out, conv, lambda op: op in users)
