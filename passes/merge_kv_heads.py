"""`merge-kv-heads`: fewer key/value heads, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, NoReturn, cast

from regraft.ir.errors.recipe import (
    MergeHeadsError,
    MissingKeyError,
    OptionConflictError,
    StructureError,
    TensorParallelError,
)
from regraft.ir.graph import Graph, layer_of
from regraft.ir.kinds import ranges
from regraft.ir.op import Op
from regraft.ir.ops.attn import KV
from regraft.ir.ops.fits import Statistic
from regraft.ir.ops.merging import METHODS, Channels, group_gram
from regraft.passes.base import (
    BOOL,
    Constraints,
    Measurements,
    OptionKind,
    Pass,
    Preserves,
    Report,
    choice,
    option,
    optional_option,
    read_integer,
    read_key,
    type_error,
)
from regraft.passes.choosing import leave_out
from regraft.passes.counts import HEADS, MOST_HEADS, Heads, counts_by_layer
from regraft.passes.fitting.grouping import Cost, Partition, adjacent, cluster, merge_cost
from regraft.passes.fitting.merging import (
    Merge,
    Merger,
    Shared,
    key_statistics,
    shared_of,
    turning,
    value_statistics,
)
from regraft.passes.fitting.norm_merging import CarryMerger, GaugeMerger, ScoreMerger, score_refusal
from regraft.passes.fitting.refit import RIDGE, RIDGES, TARGET, refit_refusal
from regraft.passes.located import Node
from regraft.passes.matching.rewrite import Editor, Rule, drive
from regraft.passes.matching.sites import Attention, Refusal, attentions
from regraft.passes.selection import LAYERS, MOST_LAYERS, Selection

Groups = Mapping[int, Partition]


def _read_groups(node: Node, owner: str, name: str) -> Groups:
    if node.entries is None:
        raise type_error(node, owner, name, GROUPS_FORM)
    return {read_key(key, owner, name, MOST_LAYERS): _read_partition(value, owner, name) for key, value in node.entries}


def _read_partition(node: Node, owner: str, name: str) -> Partition:
    if not node.items or not all(item.items for item in node.items):
        raise type_error(node, owner, name, "the groups of a layer, such as [[0, 2], [1, 3]]")
    groups = tuple(
        tuple(sorted(read_integer(each, owner, name, 0, MOST_HEADS) for each in item.items or ()))
        for item in node.items
    )
    heads = sorted(head for group in groups for head in group)
    if heads != list(range(len(heads))):
        raise type_error(node, owner, name, "each KV head once, counted from 0")
    return tuple(sorted(groups))


GROUPS_FORM = "a map {layer: [[heads], [heads]]}"
GROUPS: OptionKind[Groups] = OptionKind(
    GROUPS_FORM,
    _read_groups,
    lambda groups: {layer: [list(group) for group in each] for layer, each in groups.items()},
)


@dataclass(frozen=True)
class MergeKVHeads(Pass):
    """Merge key/value heads, so that the cache shrinks with their number: MHA to GQA to MQA, or fewer groups.

    Each group of heads becomes one. Keys merge by a complex factor a head and rotary frequency, values by a map a head;
    queries and output projection absorb what is undone, so that the result is plain attention with fewer KV heads.
    Query heads are put in order, group by group. With ``refit`` the output projection is then fitted to the original's
    residual stream.
    """

    name: ClassVar[str] = "merge-kv-heads"
    preserves: ClassVar[Preserves] = "refit"
    source: ClassVar[str] = (
        "Ainslie et al. 2023, GQA (mean pooling); Jin et al. 2024, Align attention heads before merging them "
        "(Procrustes); specs/passes_math.md, section 2"
    )

    heads: Heads | None = optional_option(HEADS, "how many KV heads stay")
    layers: Selection | None = optional_option(LAYERS, "which layers; by default all that heads speaks of")
    method: str = option(choice(*METHODS), "pca", "the new head: leading components that readers weigh, or a mean")
    norm: str = option(
        choice("gauge", "carry", "stock"),
        "gauge",
        "under norms: maps after them, maps before and factors kept, or norms and projections fitted for a stock class",
    )
    grouping: str = option(choice("cost", "adjacent"), "cost", "which heads merge: what loses least, or neighbours")
    even: bool = option(BOOL, True, "make groups of as many heads each, as stock layouts need")
    groups: Groups | None = optional_option(GROUPS, "the heads that merge, layer by layer, instead of a count")
    refit: bool = option(BOOL, True, "fit the output projection in closed form")
    target: str = option(
        TARGET, "drift", "what the refit aims at; drift makes up for earlier layers too", needs="refit: true"
    )
    ridge: float = option(RIDGES, RIDGE, "how strongly the refit is drawn to the old weight", needs="refit: true")
    assumed: bool = field(default=False, compare=False, repr=False, kw_only=True)  # ``groups`` is right in number only

    @property
    def claim(self) -> Preserves:
        """``refit``, or ``structural`` where nothing is fitted."""
        return "refit" if self.refit or self.method != "mean" else "structural"

    @property
    def needs_data(self) -> bool:
        """Until ``groups`` is known."""
        return self.groups is None

    @property
    def open_choice(self) -> tuple[str, str]:
        """Cost decides what merges."""
        return "cost", "groups"

    @property
    def needs_text(self) -> str:
        """Fits need text, and so does the choice by cost."""
        if self.method != "mean":
            return f"the merge by {self.method}"
        if self.refit:
            return "the output refit"
        return "the grouping by cost" if self.groups is None and self.grouping == "cost" else ""

    # -- decide

    def decide(self, graph: Graph, measurements: Measurements | None, constraints: Constraints) -> MergeKVHeads:
        """Return the pass with the groups of each layer listed; without measurements, with their number.

        Raises:
            IllegalPassError: A count, a list of groups or a layer's structure does not allow it.
        """
        found = attentions(graph)
        parts = math.lcm(*constraints.tensor_parallel) if constraints.tensor_parallel else 1
        counts = self._counts(found, graph.layer_count())
        for layer, count in counts.items():
            self._check(found[layer], count, parts)
        explicit = replace(self, heads=counts, layers=Selection.of(counts))
        fewer = [layer for layer, count in counts.items() if count < found[layer].kv_heads]
        sites = self._sites(fewer, found, graph)
        if self.groups is not None:
            for layer in fewer:
                self._check_groups(found[layer], self.groups[layer], parts)
            return replace(explicit, groups={layer: self.groups[layer] for layer in fewer})
        if self.grouping == "adjacent" or all(counts[layer] == 1 for layer in fewer):
            near = {layer: adjacent(found[layer].kv_heads, counts[layer]) for layer in fewer}
            return replace(explicit, groups=near)
        if measurements is None:
            return explicit
        chosen = {
            layer: cluster(found[layer].kv_heads, counts[layer], cost, self.even)
            for layer, cost in self._costs(graph, sites, measurements)
        }
        return replace(explicit, groups=chosen)

    def assume(self, graph: Graph) -> MergeKVHeads:
        """Return the pass with groups of neighbours: right in number, not in choice."""
        assert isinstance(self.heads, Mapping), "decide comes first"
        found = attentions(graph)
        counts = {cast("int", layer): cast("int", count) for layer, count in self.heads.items()}
        near = {
            layer: adjacent(found[layer].kv_heads, count)
            for layer, count in counts.items()
            if count < found[layer].kv_heads
        }
        return replace(self, groups=near, assumed=True)

    def _counts(self, found: Mapping[int, Attention], layers: int) -> dict[int, int]:
        """Return how many KV heads each layer keeps, as the options name it."""
        if self.groups is not None:
            return self._counts_of_groups(self.groups, found, layers)
        if self.heads is None:
            fix = "add heads: 2, heads: 0.5, heads: {full: 2, sliding: 4}, or a list with one entry a layer"
            raise MissingKeyError(owner=self.name, name="heads", fix=fix, where=self.place())
        selection = self.layers or Selection(predicate="all")
        selected = selection.resolve(found, layers, self.name, self.place("layers"))
        if not selection.explicit:  # a predicate means memories; their readers in other layers go along
            selected = [layer for layer in selected if found[layer].owner == layer]
        wanted = counts_by_layer(self.heads, selected, found, layers, self.name, self.place("heads"))
        return {
            layer: share if isinstance(share, int) else max(1, math.floor(share * found[layer].kv_heads + 0.5))
            for layer, share in sorted(wanted.items())
        }

    def _counts_of_groups(self, groups: Groups, found: Mapping[int, Attention], layers: int) -> dict[int, int]:
        if groups:
            Selection.of(groups).resolve(found, layers, self.name, self.place("groups"))
        here = {layer: len(groups[layer]) if layer in groups else each.kv_heads for layer, each in found.items()}
        given = self.heads if isinstance(self.heads, Mapping) else {} if self.heads is None else {None: 0}
        if any(here.get(cast("int", layer)) != count for layer, count in given.items()):
            fix = "groups say how many heads stay: leave heads out"
            where = self.place("heads")
            raise OptionConflictError(owner=self.name, first="heads", second="groups", fix=fix, where=where)
        return {layer: here[layer] for layer in sorted({*groups, *cast("Mapping[int, int]", given)})}

    def _check(self, attention: Attention, count: int, parts: int) -> None:
        heads = attention.kv_heads
        if attention.owner != attention.layer:
            reason = f"it reads the keys and values of layer {attention.owner}"
            fix = f"name layer {attention.owner}, whose readers go along, or leave it out"
            where = self.place("layers")
            raise StructureError(owner=self.name, layer=attention.layer, reason=reason, fix=fix, where=where)
        legal = [n for n in range(1, heads + 1) if not self.even or heads % n == 0]
        if count not in legal and self.groups is None:
            self._refuse(attention, str(count), legal, "heads")
        if parts > 1 and (count % parts or attention.heads % parts):
            options = [n for n in legal if n % parts == 0 and attention.heads % parts == 0]
            problem = f"{count} KV heads under {attention.heads} query heads do not split evenly"
            listed = f"{', '.join(map(str, options))} KV heads" if options else "no number of heads"
            self._refuse_parallel(attention.layer, problem, parts, listed)

    def _check_groups(self, attention: Attention, groups: Partition, parts: int) -> None:
        heads = sum(map(len, groups))
        if heads != attention.kv_heads:
            legal = [f"groups of its heads 0 to {attention.kv_heads - 1}"]
            self._refuse(attention, f"groups of {heads} heads", legal, "groups")
        sizes = {len(group) for group in groups}
        if self.even and len(sizes) > 1:
            legal = [f"groups of {heads // len(groups)} heads each" if heads % len(groups) == 0 else "other groups"]
            self._refuse(attention, f"groups of {', '.join(str(len(group)) for group in groups)}", legal, "groups")
        if parts > 1 and len(sizes) > 1:
            self._refuse_parallel(attention.layer, "uneven groups do not split evenly", parts, "groups of one size")

    def _refuse(self, attention: Attention, wanted: str, legal: Sequence[object], option: str) -> NoReturn:
        uneven = ", or any with even: false" if self.even else ""
        raise MergeHeadsError(
            layer=attention.layer,
            heads=attention.kv_heads,
            wanted=wanted,
            legal=", ".join(map(str, legal)) + uneven,
            where=self.place(option),
        )

    def _refuse_parallel(self, layer: int, problem: str, parts: int, legal: str) -> NoReturn:
        where = self.place("groups" if self.groups is not None else "heads")
        raise TensorParallelError(
            owner=self.name, layer=layer, problem=problem, parallel=parts, legal=legal, where=where
        )

    def _sites(self, fewer: Sequence[int], found: Mapping[int, Attention], graph: Graph) -> dict[int, Shared]:
        """Return the memories of some layers and their readers, or refuse."""

        def site(layer: int) -> Shared | Refusal:
            return self.match(found[layer].memory.op, graph)

        sites: dict[int, Shared] = {}
        for layer in fewer:
            match = site(layer)
            if isinstance(match, Refusal):
                fix = leave_out(fewer, [at for at in found if not isinstance(site(at), Refusal)])
                fix += ", or use refit: false" if "refit" in match.reason else ""
                where = self.place("layers")
                raise StructureError(owner=self.name, layer=layer, reason=match.reason, fix=fix, where=where)
            sites[layer] = match
        return sites

    def match(self, state: Op | None, graph: Graph) -> Shared | Refusal:
        """Return a memory whose heads can be merged with these options, or why they cannot."""
        if not isinstance(state, KV):
            return Refusal("its memory holds no keys and values by head")
        shared = shared_of(state, graph)
        if isinstance(shared, Refusal):
            return shared
        if self._merger(shared) is ScoreMerger:
            refusal = score_refusal(shared)
            if refusal is not None:
                return refusal
        for reader in shared.readers if self.refit else ():
            refusal = refit_refusal(reader.output)
            if refusal is not None:
                return refusal
        return shared

    def _merger(self, shared: Shared) -> type[Merger]:
        """Return how a memory's heads are merged; means fold into projections whatever follows these."""
        if not shared.normalised or self.method == "mean":
            return Merger
        if self.norm == "stock":
            return ScoreMerger
        return CarryMerger if self.norm == "carry" and shared.keys.norm is not None else GaugeMerger

    def merger(self, edit: Editor, shared: Shared, groups: Partition) -> Merger:
        """Return what merges a memory's heads in these groups."""
        new = {head: number for number, group in enumerate(groups) for head in group}
        fit = (self.target, self.ridge) if self.refit else None
        merge = Merge(tuple(new[head] for head in range(shared.heads)), self.method, fit)
        return self._merger(shared)(edit, shared, merge)

    def _costs(
        self, graph: Graph, sites: Mapping[int, Shared], measurements: Measurements
    ) -> Iterator[tuple[int, Cost]]:
        """Yield each layer with what its groups cost."""
        import torch

        wanted: list[Statistic] = []
        for shared in sites.values():
            keys, queries = key_statistics(shared, graph)
            wanted += [keys, *queries, value_statistics(shared, graph)]
        found = iter(measurements.statistics(graph, wanted))
        for layer, shared in sites.items():
            keys, queries = next(found), [next(found) for _ in shared.readers]
            values = next(found)
            metrics = [
                group_gram(measurements.weight(graph, r.output.linear.weight), r.groups, shared.heads)
                for r in shared.readers
            ]
            turn = turning(shared.keys)
            rest = Channels(shared.values.width, mixing=shared.mixing)
            both = ((keys, torch.stack(queries).sum(0), turn), (values, torch.stack(metrics).sum(0), rest))
            yield layer, merge_cost(both, self.method)

    # -- rewrite

    def rewrite(self, graph: Graph) -> Report:
        """Merge the heads of each memory, and let all its readers follow."""
        assert self.groups is not None, "decide comes first"
        return drive(graph, _MergeHeads(self, self.groups))


@dataclass(frozen=True)
class _MergeHeads(Rule[KV, tuple[Shared, Partition]]):
    op: ClassVar[type[Op]] = KV
    options: MergeKVHeads
    groups: Groups

    def match(self, op: KV, graph: Graph) -> tuple[Shared, Partition] | Refusal:
        layer = layer_of(op.out.name)
        groups = None if layer is None else self.groups.get(layer)
        if groups is None:
            return Refusal(f"keeps its {op.out.memory.fields[0].shape[0]} KV heads")
        shared = self.options.match(op, graph)
        return shared if isinstance(shared, Refusal) else (shared, groups)

    def rewrite(self, site: tuple[Shared, Partition], edit: Editor) -> str:
        shared, groups = site
        merger = self.options.merger(edit, shared, groups)
        merger.run()
        options, merge = self.options, merger.merge
        done = f"merges {shared.heads} KV heads into {merge.heads} by {merge.method}"
        if options.assumed:
            done += f", which ones decided at apply by {options.grouping}"
        else:
            done += f": {' | '.join(ranges(group) for group in groups)}"
        owner = layer_of(shared.state.out.name)
        layers = {layer_of(reader.attend.out.name) for reader in shared.readers} - {owner, None}
        if layers:
            done += f"; layers {ranges(sorted(layer for layer in layers if layer is not None))} read them too"
        done += merger.told
        return done + (f"; output refitted ({merge.refit[0]}, ridge {merge.refit[1]:g})" if merge.refit else "")
