"""`gqa-to-latent`: keys and values kept as one row before rotation, and turned where they are read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from regraft.ir.errors.recipe import StructureError
from regraft.ir.graph import Graph, layer_of
from regraft.ir.op import Op
from regraft.ir.ops.attn import KV, Attend
from regraft.passes.base import Constraints, Measurements, Pass, Preserves, Report, optional_option
from regraft.passes.choosing import leave_out
from regraft.passes.matching.memories import KeyValues, keep_whole_rows, key_values
from regraft.passes.matching.rewrite import Editor, Rule, drive
from regraft.passes.matching.sites import Attention, Refusal, attentions
from regraft.passes.selection import LAYERS, Selection


@dataclass(frozen=True)
class GQAToLatent(Pass):
    """Keep each token's keys and values as one row, before rotation, and turn keys where they are read.

    The row is the whole latent, from which `to-latent` takes fewer numbers. The cache holds as much as before, and the
    same function is computed; each reader rotates the keys of all rows anew. All readers of a memory go along.
    """

    name: ClassVar[str] = "gqa-to-latent"
    preserves: ClassVar[Preserves] = "exact"
    source: ClassVar[str] = "specs/passes_math.md, section 4.1"

    layers: Selection | None = optional_option(LAYERS, "whose memories; by default all that hold keys and values")

    def decide(self, graph: Graph, measurements: Measurements | None, constraints: Constraints) -> GQAToLatent:
        """Return the pass with the layers that make the memories listed.

        Raises:
            IllegalPassError: A layer that is named has no memory of keys and values that can be kept as rows.
        """
        sites = latent_sites(self, graph, self.layers)
        return replace(self, layers=Selection.of(sites))

    def rewrite(self, graph: Graph) -> Report:
        """Keep rows, and rebuild keys and values from them for each reader."""
        found = attentions(graph)
        assert self.layers is not None
        wanted = self.layers.resolve(found, graph.layer_count(), self.name, self.place("layers"))
        return drive(graph, _KeepRows(frozenset(found[layer].attend for layer in wanted)))


def latent_sites(owner: Pass, graph: Graph, layers: Selection | None) -> dict[int, KeyValues]:
    """Return the memories of keys and values of some layers, by the layer that makes each.

    Raises:
        IllegalPassError: A layer that is named has none; or none of all has.
    """
    found = attentions(graph)
    selection = layers or Selection(predicate="all")
    sites: dict[int, KeyValues] = {}
    refused: dict[int, str] = {}
    for layer in selection.resolve(found, graph.layer_count(), owner.name, owner.place("layers")):
        site = _site(found[layer], graph)
        if isinstance(site, Refusal):
            refused[layer] = site.reason
        else:
            sites[site.layer] = site
    if refused and (selection.explicit or not sites):
        layer, reason = next(iter(refused.items()))
        fix = leave_out(refused, [at for at in found if not isinstance(_site(found[at], graph), Refusal)])
        fix += ", a memory of keys and values by head" if not sites else ""
        raise StructureError(owner=owner.name, layer=layer, reason=reason, fix=fix, where=owner.place("layers"))
    return dict(sorted(sites.items()))


def _site(attention: Attention, graph: Graph) -> KeyValues | Refusal:
    return key_values(attention.attend, graph)


@dataclass(frozen=True)
class _KeepRows(Rule[Attend, KeyValues]):
    op: ClassVar[type[Op]] = Attend
    wanted: frozenset[Attend]

    def match(self, op: Attend, graph: Graph) -> KeyValues | Refusal:
        if op not in self.wanted:
            return Refusal("not among the layers that make a memory")
        site = key_values(op, graph)
        if isinstance(site, KeyValues) and not isinstance(site.state, KV):
            return Refusal(f"%{site.memory.name} keeps rows already")
        return site

    def rewrite(self, site: KeyValues, edit: Editor) -> str:
        keep_whole_rows(edit, site)
        return f"%{site.memory.name} keeps rows of {site.width} for layers {_layers(site)}"


def _layers(site: KeyValues) -> str:
    return ", ".join(map(str, sorted({layer_of(op.out.name) or 0 for op in site.readers})))
