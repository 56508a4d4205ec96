"""`fuse-convs`: two causal convolutions, one after the other, as one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from regraft.ir.errors.recipe import StructureError
from regraft.ir.graph import Graph, layer_of
from regraft.ir.kinds import ranges
from regraft.ir.op import Op, Value
from regraft.ir.ops.algebra import JoinConvs
from regraft.ir.ops.seq import Conv, Tail
from regraft.passes.base import Constraints, Measurements, Pass, Preserves, Report, optional_option
from regraft.passes.matching.rewrite import Editor, Rule, drive
from regraft.passes.matching.sites import Refusal, attentions, run_time_users
from regraft.passes.selection import LAYERS, Selection


@dataclass(frozen=True)
class FuseConvs(Pass):
    """Do a convolution of each channel and one of groups of channels, as ZAYA's attention has them, in one.

    It has a tap less than both together, and keeps as many rows as both tails. What the second one saw before the start
    must be what the first one gives for zeros, its bias. A pass over the tokens goes; groups are wider than one
    channel, so there are more parameters and operations.
    """

    name: ClassVar[str] = "fuse-convs"
    preserves: ClassVar[Preserves] = "exact"
    source: ClassVar[str] = "specs/zaya_cca.md, section 9.2"

    layers: Selection | None = optional_option(LAYERS, "which layers; by default all that have such convolutions")

    def decide(self, graph: Graph, measurements: Measurements | None, constraints: Constraints) -> FuseConvs:
        """Return the pass as it is.

        Raises:
            IllegalPassError: A layer that is named has no such convolutions, or no layer has.
        """
        reasons: dict[int, str] = {}
        legal: set[int] = set()
        for op in graph.ops:
            layer = layer_of(op.results[0].name)
            if layer is not None and isinstance(op, Conv):
                found = _site(op)
                if isinstance(found, Refusal):
                    reasons[layer] = found.reason
                else:
                    legal.add(layer)
        refused = sorted((self._wanted(graph) or set()) - legal)
        if refused or not legal:
            layer = refused[0] if refused else min(reasons, default=0)
            reason = reasons.get(layer, "it has no convolution")
            fix = f"layers whose convolutions can be fused: {ranges(sorted(legal))}" if legal else "no layer has two"
            raise StructureError(owner=self.name, layer=layer, reason=reason, fix=fix, where=self.place("layers"))
        return self

    def rewrite(self, graph: Graph) -> Report:
        """Fuse the convolutions of each layer."""
        return drive(graph, _Fuse(self._wanted(graph)))

    def _wanted(self, graph: Graph) -> set[int] | None:
        if self.layers is None:
            return None
        return set(self.layers.resolve(attentions(graph), graph.layer_count(), self.name, self.place("layers")))


@dataclass(frozen=True)
class _Site:
    first: Conv
    tail: Tail
    second: Conv
    taps: int


def _site(second: Conv) -> _Site | Refusal:
    """Return the convolution that another one reads through a tail of its own, and both tails."""
    after = second.memory.op
    first = after.x.op if isinstance(after, Tail) else None
    if not isinstance(after, Tail) or not isinstance(first, Conv):
        return Refusal(f"{second.label} reads no other convolution")
    tail = first.memory.op
    if not isinstance(tail, Tail) or tail.initial is not None:
        return Refusal(f"{first.label} sees something else than zeros before the start")
    readers = [*run_time_users(first.out), *run_time_users(after.out), *run_time_users(tail.out)]
    if readers != [after, second, first]:
        return Refusal(f"{first.label} or one of the tails is read by other ops too")
    if after.initial is not first.bias:
        return Refusal(f"{second.label} does not see before the start what {first.label} gives for zeros")
    channels, of, taps = first.weight.tensor.sizes
    if of != 1 or first.groups != channels:
        return Refusal(f"{first.label} mixes channels")
    if (tail.rows, after.rows) != (taps - 1, second.weight.tensor.sizes[2] - 1):
        return Refusal("a tail keeps more rows than its convolution reads")
    weights = [part for conv in (first, second) for part in (conv.weight, conv.bias) if part is not None]
    allowed = {first, second, after}
    shared = [part for part in weights if not part.is_weight or not allowed.issuperset(run_time_users(part))]
    if shared:
        return Refusal(f"%{shared[0].name} serves other ops too, or is known only at run time")
    return _Site(first, tail, second, taps + second.weight.tensor.sizes[2] - 1)


@dataclass(frozen=True)
class _Fuse(Rule[Conv, _Site]):
    op: ClassVar[type[Op]] = Conv
    wanted: set[int] | None

    def match(self, op: Conv, graph: Graph) -> _Site | Refusal:
        if self.wanted is not None and layer_of(op.out.name) not in self.wanted:
            return Refusal("not among the layers")
        return _site(op)

    def rewrite(self, site: _Site, edit: Editor) -> str:
        graph, first, second = edit.graph, site.first, site.second
        biases = {"first_bias": first.bias, "second_bias": second.bias}
        joined: list[Value] = []

        def join(old: Value, name: str) -> Value:
            slots = {"first": (first.weight,), "second": (old,)}
            slots |= {key: (value,) for key, value in biases.items() if value is not None}
            names = [graph.fresh(f"{name}.joined"), graph.fresh(f"{name}.bias")]
            joined.extend(graph.add(JoinConvs(slots, {}), names, before=second))
            return joined[0]

        edit.replace_weight(second, "weight", join)
        if second.bias is not None:
            edit.replace_weight(second, "bias", lambda _old, _name: joined[1])
        elif first.bias is not None:
            graph.rename(joined[1], graph.fresh(f"{second.weight.name.removesuffix('.weight')}.bias"))
            edit.set_operand(second, "bias", joined[1])
        after = second.memory
        edit.set_attribute(site.tail, "rows", site.taps - 1)
        edit.set_operand(second, "memory", site.tail.out)
        edit.erase_unread(after)
        edit.retype([site.tail, second])
        return f"%{second.out.name} has {site.taps} taps and does what two did"
