"""`fold-norms`: a norm's weight multiplied into the maps that read the norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from regraft.ir.errors.recipe import StructureError
from regraft.ir.graph import Graph, layer_of
from regraft.ir.kinds import ranges
from regraft.ir.op import Op, Value
from regraft.ir.ops.algebra import Fill, ScaleWeight
from regraft.ir.ops.core import Linear, Norm
from regraft.ir.ops.moe import Experts
from regraft.passes.base import Constraints, Measurements, Pass, Preserves, Report, choice, option, optional_option
from regraft.passes.matching.rewrite import Editor, Rule, drive
from regraft.passes.matching.sites import Refusal, attentions, run_time_users
from regraft.passes.selection import LAYERS, Selection


@dataclass(frozen=True)
class FoldNorms(Pass):
    """Multiply the weights of norms into the columns of the maps that read them.

    ``W (n * x) = (W diag n) x``, where ``n`` is the weight, or ``1 + weight``. A norm keeps its weight where anything
    but maps of its own reads it: a rotation, the stream, a cache, or a head that is tied to the embedding.
    """

    name: ClassVar[str] = "fold-norms"
    preserves: ClassVar[Preserves] = "exact"
    source: ClassVar[str] = "specs/passes_math.md, sections 0 and 1 (what S6 starts from)"

    layers: Selection | None = optional_option(LAYERS, "whose norms; by default all, the last one's included")
    leave: str = option(
        choice("nothing", "ones"), "nothing", "ones: norms keep a weight that changes nothing, as stock classes have it"
    )

    def decide(self, graph: Graph, measurements: Measurements | None, constraints: Constraints) -> FoldNorms:
        """Return the pass as it is; without a norm that can be folded it is refused.

        Raises:
            IllegalPassError: A layer that is named has no such norm, or there is none at all.
        """
        reasons: dict[int, str] = {}
        foldable: set[int | None] = set()
        for op in graph.ops:
            if isinstance(op, Norm):
                layer, found = layer_of(op.out.name), _site(op)
                if isinstance(found, list):
                    foldable.add(layer)
                elif layer is not None:
                    reasons.setdefault(layer, found.reason)
        wanted = self._wanted(graph)
        refused = sorted(layer for layer in wanted or set[int]() if layer not in foldable)
        if refused or not foldable:
            layer = refused[0] if refused else 0
            legal = ranges(sorted(each for each in foldable if each is not None))
            fix = f"layers whose norms can be folded: {legal}" if legal else "no norm is read by maps of its own alone"
            where = self.place("layers")
            reason = reasons.get(layer, "it has no norm with a weight")
            raise StructureError(owner=self.name, layer=layer, reason=reason, fix=fix, where=where)
        return self

    def rewrite(self, graph: Graph) -> Report:
        """Fold what can be folded, norm by norm."""
        return drive(graph, _Fold(self._wanted(graph), self.leave == "ones"))

    def _wanted(self, graph: Graph) -> set[int] | None:
        """Return the layers that are selected, or None for everything."""
        if self.layers is None:
            return None
        return set(
            self.layers.resolve(attentions(graph), graph.layer_count(), self.name, self.place("layers")),
        )


def _site(norm: Norm) -> list[tuple[Op, str, int]] | Refusal:
    """Return what a norm's weight can be folded into: ops, their operands, and the axis of the channels."""
    weight = norm.weight
    if weight is None or not weight.is_weight:
        return Refusal(f"{norm.label} has no weight")
    maps: list[tuple[Op, str, int]] = []
    for user in norm.out.users:
        if user.weight_time:
            return Refusal(f"{user.label} fits to what {norm.label} gives as it is")
        found = _map_of(user, norm.out)
        if found is None:
            return Refusal(f"{user.label} reads {norm.label}, and is no map whose weight could take its weight over")
        slot, axis = found
        (matrix,) = user.slots[slot]
        others = [reader for reader in run_time_users(matrix) if reader is not user]
        if others:
            return Refusal(f"%{matrix.name} of {user.label} serves {others[0].label} too, so it stays as it is")
        maps.append((user, slot, axis))
    return maps or Refusal(f"nobody reads {norm.label}")


def _map_of(user: Op, x: Value) -> tuple[str, int] | None:
    """Return the operand by which an op maps ``x`` linearly, and the axis of the channels; None if it does more."""
    if isinstance(user, Linear) and user.weight.is_weight and user.weight is not x:
        return "weight", 1
    others = isinstance(user, Experts) and (user.weights is x or user.skip == "identity")
    if isinstance(user, Experts) and user.gate_up.is_weight and not others:
        return "gate_up", 2
    return None


@dataclass(frozen=True)
class _Fold(Rule[Norm, list[tuple[Op, str, int]]]):
    op: ClassVar[type[Op]] = Norm
    wanted: set[int] | None
    ones: bool

    def match(self, op: Norm, graph: Graph) -> list[tuple[Op, str, int]] | Refusal:
        if self.wanted is not None and layer_of(op.out.name) not in self.wanted:
            return Refusal("not among the layers")
        return _site(op)

    def rewrite(self, site: list[tuple[Op, str, int]], edit: Editor) -> str:
        first, slot, _ = site[0]
        norm = first.slots["x"][0].op
        assert isinstance(norm, Norm)
        weight, offset, label = norm.weight, norm.offset, norm.label
        assert weight is not None
        for user, slot, axis in site:

            def make(old: Value, name: str, user: Op = user, axis: int = axis) -> Value:
                return edit.add(ScaleWeight, f"{name}.folded", old, weight, axis=axis, offset=offset, before=user)

            edit.replace_weight(user, slot, make)
        if self.ones:
            facts = {"dtype": weight.tensor.dtype, "shape": weight.tensor.sizes, "value": 1.0 - offset}
            edit.replace_weight(norm, "weight", lambda _, name: edit.add(Fill, f"{name}.one", before=norm, **facts))
        else:
            edit.graph.set_operand(norm, "weight", ())
            edit.set_attribute(norm, "offset", 0.0)
            edit.set_attribute(norm, "cast", norm.spec.attributes["cast"].default)
        count = len(site)
        return f"the weight of {label} folded into {count} map{'' if count == 1 else 's'}"
