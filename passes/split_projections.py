"""`split-projections`: a linear map whose result is taken in parts, done as a map for each part."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from regraft.ir.errors.recipe import StructureError
from regraft.ir.graph import Graph, layer_of
from regraft.ir.kinds import ranges
from regraft.ir.op import Op, Value
from regraft.ir.ops.algebra import Reshape
from regraft.ir.ops.core import Linear, Slice, Unflatten
from regraft.ir.ops.weight import ConcatWeight, SliceWeight
from regraft.passes.base import Constraints, Measurements, Pass, Preserves, Report, optional_option
from regraft.passes.matching.rewrite import Editor, Rule, drive
from regraft.passes.matching.sites import Refusal, attentions, run_time_users
from regraft.passes.selection import LAYERS, Selection


@dataclass(frozen=True)
class SplitProjections(Pass):
    """Do a linear map whose result is taken in parts as one map for each part.

    So a projection that makes queries and gates head by head, as in Qwen3-Next, becomes two, and passes that change
    queries by maps of their own, such as `merge-kv-heads`, then apply. It undoes `fuse-projections` too. Each part has
    its rows of the weight as a tensor of its own; rows that nobody takes go.
    """

    name: ClassVar[str] = "split-projections"
    preserves: ClassVar[Preserves] = "exact"
    source: ClassVar[str] = "block matrices: [A; B] x = [A x; B x]"

    layers: Selection | None = optional_option(LAYERS, "which layers; by default all")

    def decide(self, graph: Graph, measurements: Measurements | None, constraints: Constraints) -> SplitProjections:
        """Return the pass as it is.

        Raises:
            IllegalPassError: A layer that is named has no such map, or no layer has.
        """
        wanted, reasons, legal = self._wanted(graph), dict[int, str](), set[int]()
        for op in graph.ops:
            layer = layer_of(op.results[0].name)
            if layer is None or not isinstance(op, Linear):
                continue
            found = _site(op, graph)
            if isinstance(found, Refusal):
                reasons.setdefault(layer, found.reason)
            else:
                legal.add(layer)
        refused = sorted((wanted or set()) - legal)
        if refused or not legal:
            layer = refused[0] if refused else min(reasons, default=0)
            reason = reasons.get(layer, "it has no linear map")
            fix = f"layers with maps to split: {ranges(sorted(legal))}" if legal else "no layer has maps to split"
            raise StructureError(owner=self.name, layer=layer, reason=reason, fix=fix, where=self.place("layers"))
        return self

    def rewrite(self, graph: Graph) -> Report:
        """Split maps, and say so of those that are split alone: most maps are taken whole."""
        report = drive(graph, _Split(self._wanted(graph)))
        return Report(report.applied)

    def _wanted(self, graph: Graph) -> set[int] | None:
        if self.layers is None:
            return None
        return set(self.layers.resolve(attentions(graph), graph.layer_count(), self.name, self.place("layers")))


@dataclass(frozen=True)
class _Site:
    """A map, how many heads its result has where it is taken head by head, and what takes its parts."""

    linear: Linear
    heads: int | None
    slices: tuple[Slice, ...]


def _site(linear: Linear, graph: Graph) -> _Site | Refusal:
    """Return a map whose result is taken in parts that do not overlap, or why there is nothing to split."""
    users, heads = list(linear.out.users), None
    if len(users) == 1 and isinstance(users[0], Unflatten):
        heads, users = users[0].parts, list(users[0].out.users)
    slices = [user for user in users if isinstance(user, Slice)]
    if len(slices) < 2 or len(slices) < len(users) or linear.out in graph.outputs:
        return Refusal(f"%{linear.out.name} is taken whole")
    slices.sort(key=lambda each: each.start)
    if any(after.start < before.stop for before, after in pairwise(slices)):
        return Refusal(f"parts of %{linear.out.name} overlap")
    for part in (linear.weight, linear.bias):
        if part is not None and (not part.is_weight or len(run_time_users(part)) > 1):
            return Refusal(f"%{part.name} serves other ops too, or is known only at run time")
    return _Site(linear, heads, tuple(slices))


@dataclass(frozen=True)
class _Split(Rule[Linear, _Site]):
    op: ClassVar[type[Op]] = Linear
    wanted: set[int] | None

    def match(self, op: Linear, graph: Graph) -> _Site | Refusal:
        layer = layer_of(op.out.name)
        if layer is None or (self.wanted is not None and layer not in self.wanted):
            return Refusal("not among the layers")
        return _site(op, graph)

    def rewrite(self, site: _Site, edit: Editor) -> str:
        graph, linear = edit.graph, site.linear
        whole, modules = linear.out.name, dict[str, str]()
        for slot in ("weight", "bias"):
            if linear.slots[slot]:
                modules[slot] = linear.slots[slot][0].name.rpartition(".")[0].rpartition(".")[0]
                edit.set_aside(linear.slots[slot][0])
        graph.rename(linear.out, graph.fresh(f"{whole}_whole"))
        made: list[str] = []
        for part in site.slices:
            name = part.out.name
            graph.rename(part.out, graph.fresh(f"{name}_part"))
            scope, _, stem = name.rpartition(".")
            stem = stem if stem.endswith("_proj") else f"{stem}_proj"
            tensors = {
                slot: _rows(edit, site, linear.slots[slot][0], part, f"{module}.{stem}.{slot}")
                for slot, module in modules.items()
            }
            new = edit.add(Linear, f"{scope}.{stem}", linear.x, tensors.pop("weight"), before=linear, **tensors)
            if site.heads is not None:
                new = edit.add(Unflatten, name, new, parts=site.heads, before=linear)
            graph.replace_uses(part.out, new)
            edit.erase_unread(part.out)
            made.append(f"%{new.name}")
        return f"%{whole} made in parts: {', '.join(made)}"


def _rows(edit: Editor, site: _Site, old: Value, part: Slice, name: str) -> Value:
    """Return the rows of a weight, or the numbers of a bias, that make one part."""
    cut, before = {"start": part.start, "stop": part.stop}, site.linear
    if site.heads is None:
        joined = _joined_part(old, part)
        if joined is not None:
            return joined
        return edit.add(SliceWeight, name, old, axis=0, before=before, **cut)
    rows, *columns = old.tensor.sizes
    by_head = (site.heads, rows // site.heads, *columns)
    heads = edit.add(Reshape, f"{name}.heads", old, shape=by_head, before=before)
    taken = edit.add(SliceWeight, f"{name}.rows", heads, axis=1, before=before, **cut)
    shape = (site.heads * (part.stop - part.start), *columns)
    return edit.add(Reshape, name, taken, shape=shape, before=before)


def _joined_part(old: Value, part: Slice) -> Value | None:
    """Return the tensor that makes a part, where a weight is several joined and that is one of them."""
    if not isinstance(old.op, ConcatWeight) or old.op.axis:
        return None
    start = 0
    for each in old.op.xs:
        stop = start + each.tensor.sizes[0]
        if (start, stop) == (part.start, part.stop) and not run_time_users(each):
            return each
        start = stop
    return None
