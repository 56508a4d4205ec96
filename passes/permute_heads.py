"""`permute-heads`: query heads in another order, such as the one in which heads need no map to their keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from regraft.ir.errors.recipe import StructureError
from regraft.ir.graph import Graph
from regraft.ir.kinds import ranges
from regraft.ir.op import Op
from regraft.ir.ops.attn import Attend
from regraft.passes.base import (
    Constraints,
    Measurements,
    OptionKind,
    Pass,
    Preserves,
    Report,
    optional_option,
    read_integer,
    read_key,
    type_error,
)
from regraft.passes.choosing import leave_out
from regraft.passes.located import Node
from regraft.passes.matching.query_heads import QueryHeads, query_heads, take_query_heads
from regraft.passes.matching.rewrite import Editor, Rule, drive
from regraft.passes.matching.sites import Attention, Refusal, attentions
from regraft.passes.selection import LAYERS, MOST_LAYERS, Selection

Orders = Mapping[int, tuple[int, ...]]
MOST_HEADS = 65536


def _read_orders(node: Node, owner: str, name: str) -> Orders:
    if node.entries is None:
        raise type_error(node, owner, name, ORDERS_FORM)
    found: dict[int, tuple[int, ...]] = {}
    for key, value in node.entries:
        heads = tuple(read_integer(each, owner, name, 0, MOST_HEADS) for each in value.items or ())
        if sorted(heads) != list(range(len(heads))) or not heads:
            raise type_error(value, owner, name, "each query head of a layer once, such as [2, 0, 1, 3]")
        found[read_key(key, owner, name, MOST_LAYERS)] = heads
    return found


ORDERS_FORM = "a map {layer: [heads in their new order]}"
ORDERS: OptionKind[Orders] = OptionKind(
    ORDERS_FORM, _read_orders, lambda orders: {layer: list(heads) for layer, heads in orders.items()}
)


@dataclass(frozen=True)
class PermuteHeads(Pass):
    """Put query heads in another order, with their rows, gates, sinks and columns.

    By default heads that read the same key/value head come to stand side by side: where all of these have as many
    readers, the attention then needs no head map any more. Keys, values and the cache stay as they are.
    """

    name: ClassVar[str] = "permute-heads"
    preserves: ClassVar[Preserves] = "exact"
    source: ClassVar[str] = "specs/passes_math.md, section 1, S1"

    layers: Selection | None = optional_option(LAYERS, "which layers; by default all, or those that order names")
    order: Orders | None = optional_option(ORDERS, "the order, layer by layer; by default key/value head by head")

    def decide(self, graph: Graph, measurements: Measurements | None, constraints: Constraints) -> PermuteHeads:
        """Return the pass with the order of each layer that changes spelled out.

        Raises:
            IllegalPassError: An order does not fit its layer, or a layer's heads cannot be told apart.
        """
        found = attentions(graph)
        selection = self.layers or (Selection.of(self.order) if self.order else Selection(predicate="all"))
        place = "order" if self.order and self.layers is None else "layers"
        layers = selection.resolve(found, graph.layer_count(), self.name, self.place(place))
        if stray := sorted(set(self.order or ()) - set(layers)):
            reason, fix = "an order is given, and it is not among the layers", f"layers: {ranges(layers)}"
            raise self._refused(stray[0], reason, fix)
        orders: dict[int, tuple[int, ...]] = {}
        for layer in layers:
            order = (self.order or {}).get(layer) or _by_group(found[layer])
            if len(order) != found[layer].heads:
                reason = f"it has {found[layer].heads} query heads, and the order names {len(order)}"
                raise self._refused(layer, reason, f"heads 0 to {found[layer].heads - 1}, each once")
            site = query_heads(found[layer].attend)
            if order == tuple(range(len(order))):
                continue
            if isinstance(site, Refusal):
                fix = leave_out(layers, [at for at in found if not isinstance(query_heads(found[at].attend), Refusal)])
                raise self._refused(layer, site.reason, fix)
            orders[layer] = order
        return replace(self, order=orders, layers=None)

    def rewrite(self, graph: Graph) -> Report:
        """Permute the heads of each layer that an order is known for."""
        assert self.order is not None, "decide comes first"
        found = attentions(graph)
        return drive(graph, _Permute({found[layer].attend: order for layer, order in self.order.items()}))

    def _refused(self, layer: int, reason: str, fix: str) -> StructureError:
        where = self.place("order" if self.order else "layers")
        return StructureError(owner=self.name, layer=layer, reason=reason, fix=fix, where=where)


def _by_group(attention: Attention) -> tuple[int, ...]:
    """Return the query heads key/value head by key/value head, otherwise as they are."""
    groups = attention.attend.groups
    return tuple(sorted(range(len(groups)), key=lambda head: (groups[head], head)))


@dataclass(frozen=True)
class _Permute(Rule[Attend, tuple[QueryHeads, tuple[int, ...]]]):
    op: ClassVar[type[Op]] = Attend
    orders: Mapping[Attend, tuple[int, ...]]

    def match(self, op: Attend, graph: Graph) -> tuple[QueryHeads, tuple[int, ...]] | Refusal:
        order = self.orders.get(op)
        if order is None:
            return Refusal("its heads stay in order")
        site = query_heads(op)
        return site if isinstance(site, Refusal) else (site, order)

    def rewrite(self, site: tuple[QueryHeads, tuple[int, ...]], edit: Editor) -> str:
        heads, order = site
        had = heads.attend.head_map is not None
        take_query_heads(edit, heads, order)
        done = f"query heads in the order {', '.join(map(str, order))}"
        gone = had and heads.attend.head_map is None
        return f"{done}; no head map any more" if gone else done
