"""`fuse-projections`: linear maps of the same value, done as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from regraft.ir.errors.recipe import StructureError
from regraft.ir.graph import Graph, layer_of
from regraft.ir.kinds import ranges
from regraft.ir.op import Op, Value
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.core import Activation, Clamp, Linear, Mul, Scale, Slice
from regraft.ir.ops.weight import ConcatWeight, SliceWeight
from regraft.passes.base import Constraints, Measurements, Pass, Preserves, Report, choice, option, optional_option
from regraft.passes.matching.rewrite import Editor, Rule, drive
from regraft.passes.matching.sites import Refusal, attentions, run_time_users
from regraft.passes.selection import LAYERS, Selection

Maps = tuple[Linear, ...]


@dataclass(frozen=True)
class FuseProjections(Pass):
    """Do linear maps of the same value as one product, and cut its result.

    Those to queries, keys and values are one, and an MLP's gate and up projection. Weights stand one below the other,
    in the order in which they were used, as one tensor; there are as many numbers as before.
    """

    name: ClassVar[str] = "fuse-projections"
    preserves: ClassVar[Preserves] = "exact"
    source: ClassVar[str] = "block matrices: [A; B] x = [A x; B x]"

    layers: Selection | None = optional_option(LAYERS, "which layers; by default all")
    maps: str = option(choice("all", "attention", "mlp"), "all", "which maps: to queries, keys and values; gate and up")

    def decide(self, graph: Graph, measurements: Measurements | None, constraints: Constraints) -> FuseProjections:
        """Return the pass as it is.

        Raises:
            IllegalPassError: A layer that is named has no two maps of one value that can be fused, or no layer has.
        """
        wanted, reasons, legal = self._wanted(graph), dict[int, str](), set[int]()
        for op in graph.ops:
            layer = layer_of(op.results[0].name)
            if layer is None or not isinstance(op, self._ops):
                continue
            found = _site(op, graph)
            if isinstance(found, Refusal):
                reasons.setdefault(layer, found.reason)
            else:
                legal.add(layer)
        refused = sorted((wanted or set()) - legal)
        if refused or not legal:
            layer = refused[0] if refused else min(reasons, default=0)
            reason = reasons.get(layer, "it has no two maps of one value")
            fix = f"layers with maps to fuse: {ranges(sorted(legal))}" if legal else "no layer has maps to fuse"
            raise StructureError(owner=self.name, layer=layer, reason=reason, fix=fix, where=self.place("layers"))
        return self

    def rewrite(self, graph: Graph) -> Report:
        """Fuse maps, attention by attention and MLP by MLP."""
        wanted = self._wanted(graph)
        reports = [drive(graph, rule(wanted)) for rule in (_FuseAttention, _FuseMLP) if rule.op in self._ops]
        return Report(tuple(note for report in reports for note in report.notes))

    @property
    def _ops(self) -> tuple[type[Op], ...]:
        return {"all": (Attend, Mul), "attention": (Attend,), "mlp": (Mul,)}[self.maps]

    def _wanted(self, graph: Graph) -> set[int] | None:
        if self.layers is None:
            return None
        return set(self.layers.resolve(attentions(graph), graph.layer_count(), self.name, self.place("layers")))


def _site(op: Op, graph: Graph) -> Maps | Refusal:
    """Return the maps that make what an attention reads in its own layer, or what an MLP multiplies."""
    if isinstance(op, Mul):
        ends = [_behind(op.a, (Activation, Clamp, Scale)), _behind(op.b, (Activation, Clamp, Scale))]
        found = [end.op for end in ends if isinstance(end.op, Linear)]
        plain = found if len(found) == 2 and found[0] is not found[1] and found[0].x is found[1].x else []
        return _fusable(plain, graph, "it multiplies no two maps of one value")
    assert isinstance(op, Attend)
    makers = _makers(op, layer_of(op.out.name))
    values = dict.fromkeys(linear.x for linear in makers)
    largest = max(([m for m in makers if m.x is value] for value in values), key=len, default=[])
    return _fusable(largest, graph, "its queries, keys and values are no maps of one value")


def _behind(value: Value, through: tuple[type[Op], ...]) -> Value:
    while isinstance(value.op, through):
        value = value.op.slots["x"][0]
    return value


def _makers(attend: Attend, layer: int | None) -> list[Linear]:
    """Return the linear ops of a layer that its attention's operands come from, the first on each way up, in order."""
    found: dict[Linear, None] = {}
    seen: set[Value] = set()

    def visit(value: Value) -> None:
        op = value.op
        if value in seen or op is None or op.weight_time or layer_of(value.name) != layer:
            return
        seen.add(value)
        if isinstance(op, Linear):
            found.setdefault(op)
            return
        for operand in op.operands:
            visit(operand)

    for operand in attend.operands:
        visit(operand)
    return list(found)


def _fusable(maps: Sequence[Linear], graph: Graph, otherwise: str) -> Maps | Refusal:
    """Return those of some maps that can be fused: of one element type, and with weights that serve them alone."""
    alike: dict[object, list[Linear]] = {}
    for linear in maps:
        parts = [part for part in (linear.weight, linear.bias) if part is not None]
        shared = [part for part in parts if not part.is_weight or len(run_time_users(part)) > 1]
        if shared:
            otherwise = f"%{shared[0].name} of {linear.label} serves other ops too, or is known only at run time"
        else:
            alike.setdefault(tuple(part.tensor.dtype for part in parts), []).append(linear)
    found = max(alike.values(), key=len, default=[])
    if len(found) < 2 and len(alike) > 1:
        otherwise = f"{' and '.join(m.label for m in maps)} differ in their element types, or in having a bias"
    first = min(found, key=graph.ops.index, default=None)
    ready = [linear for linear in found if first and Editor(graph).can_hoist(linear.weight, first)]
    if len(ready) < 2 <= len(found):
        otherwise = f"the weight of {found[-1].label} is fitted to what the others make"
    return tuple(ready) if len(ready) > 1 else Refusal(otherwise)


@dataclass(frozen=True)
class _Fuse(Rule[Op, Maps]):
    wanted: set[int] | None

    def match(self, op: Op, graph: Graph) -> Maps | Refusal:
        layer = layer_of(op.results[0].name)
        if layer is None or (self.wanted is not None and layer not in self.wanted):
            return Refusal("not among the layers")
        return _site(op, graph)

    def rewrite(self, site: Maps, edit: Editor) -> str:
        maps = sorted(site, key=edit.graph.ops.index)
        names = ", ".join(f"%{linear.out.name}" for linear in site)
        first, parts = maps[0], dict[str, Value]()
        for slot in ("weight", "bias"):
            if first.slots[slot]:
                parts[slot] = _joined(edit, [linear.slots[slot][0] for linear in site], first)
        name = f"{first.out.name.rpartition('.')[0]}.{_joined_name([m.out.name.rpartition('.')[2] for m in site])}"
        whole = edit.add(Linear, name, first.x, parts.pop("weight"), before=first, **parts)
        for linear, (start, stop) in zip(site, _spans(site), strict=True):
            old = linear.out.name
            edit.graph.rename(linear.out, edit.graph.fresh(f"{old}_alone"))
            part = edit.add(Slice, old, whole, start=start, stop=stop, before=first)
            edit.graph.replace_uses(linear.out, part)
        for linear in maps:
            edit.erase_unread(linear.out)
        return f"{names} made by one map, %{whole.name}"


@dataclass(frozen=True)
class _FuseAttention(_Fuse):
    op: ClassVar[type[Op]] = Attend


@dataclass(frozen=True)
class _FuseMLP(_Fuse):
    op: ClassVar[type[Op]] = Mul


def _spans(maps: Sequence[Linear]) -> Iterator[tuple[int, int]]:
    """Yield the rows of each map in the fused one."""
    start = 0
    for linear in maps:
        stop = start + linear.weight.tensor.sizes[0]
        yield start, stop
        start = stop


def _joined(edit: Editor, weights: Sequence[Value], before: Op) -> Value:
    """Return tensors one below the other: the one that they are cut from, where they are all of it."""
    whole = _cut_from(weights)
    if whole is not None:
        return whole
    for weight in weights:
        edit.hoist(weight, before)
    tails = [weight.name.rpartition(".") for weight in weights]
    if {tail[2] for tail in tails} <= {"weight", "bias"}:
        stems = [tail[0].rpartition(".") for tail in tails]
        name = f"{_joined_name([stem[2] for stem in stems])}.{tails[0][2]}"
        name = f"{stems[0][0]}.{name}" if stems[0][0] else name
    else:
        name = f"{weights[0].name}.fused"
    return edit.add(ConcatWeight, name, list(weights), axis=0, before=before)


def _cut_from(weights: Sequence[Value]) -> Value | None:
    """Return the tensor whose rows are just those of ``weights``, in order, if there is one."""
    cuts = [weight.op for weight in weights if isinstance(weight.op, SliceWeight) and not weight.op.axis]
    if len(cuts) < len(weights) or any(cut.x is not cuts[0].x for cut in cuts):
        return None
    bounds = [0, *(cut.stop for cut in cuts)]
    inside = [cut.start for cut in cuts] == bounds[:-1] and bounds[-1] == cuts[0].x.tensor.sizes[0]
    return cuts[0].x if inside else None


def _joined_name(names: Sequence[str]) -> str:
    """Return a name for several: ``qkv_proj`` for ``q_proj``, ``k_proj`` and ``v_proj``."""
    ending = "_proj" if all(name.endswith("_proj") for name in names) else ""
    stems = [name.removesuffix(ending) if ending else name for name in names]
    return ("" if all(len(stem) == 1 for stem in stems) else "_").join(stems) + ending
