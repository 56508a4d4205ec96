"""`drop-dead`: heads and experts that change nothing, whatever the input, and keys and values that nobody reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from regraft.ir.errors.recipe import StructureError
from regraft.ir.graph import Graph, layer_of
from regraft.ir.kinds import ranges
from regraft.ir.op import Op, Value
from regraft.ir.ops.attn import KV, Attend
from regraft.ir.ops.core import Activation, Flatten, Gain, Linear, Mul, Norm, Scale, Softcap, Unflatten
from regraft.ir.ops.moe import Experts
from regraft.passes.base import (
    Constraints,
    Measurements,
    Note,
    OptionKind,
    Pass,
    Preserves,
    Report,
    optional_option,
    read_integer,
    read_key,
    type_error,
)
from regraft.passes.fitting.stream import ancestors
from regraft.passes.located import Node
from regraft.passes.matching.experts import ExpertSite, drop_experts, expert_site, idle_experts
from regraft.passes.matching.heads import Cut, drop_unread_kv_heads, trace
from regraft.passes.matching.query_heads import QueryHeads, query_heads, take_query_heads
from regraft.passes.matching.rewrite import Editor, Rule, drive
from regraft.passes.matching.sites import Refusal, attentions
from regraft.passes.selection import LAYERS, MOST_LAYERS, Selection

Numbers = Mapping[int, tuple[int, ...]]
FORM = "a map {layer: [numbers]}"
MOST = 65536


def _read_numbers(node: Node, owner: str, name: str) -> Numbers:
    if node.entries is None:
        raise type_error(node, owner, name, FORM)
    found: dict[int, tuple[int, ...]] = {}
    for key, value in node.entries:
        if not value.items:
            raise type_error(value, owner, name, "numbers, such as [0, 2]")
        numbers = {read_integer(each, owner, name, 0, MOST) for each in value.items}
        found[read_key(key, owner, name, MOST_LAYERS)] = tuple(sorted(numbers))
    return found


NUMBERS: OptionKind[Numbers] = OptionKind(
    FORM, _read_numbers, lambda found: {layer: list(numbers) for layer, numbers in found.items()}
)


@dataclass(frozen=True)
class DropDeadParts(Pass):
    """Remove heads and experts that change nothing for any input, and key/value heads that nobody reads.

    A query head goes if its columns of the output projection are all zero, or its values are. An expert's weights go if
    its down projection is zero, or if others' biases are so far above its own that it is never chosen; the router still
    weighs it, after all others, and its number gives nothing. (Of experts with exactly equal scores another may then be
    chosen.) Weights decide; what they do not prove stays. One head of a layer and one expert stay in any case.
    """

    name: ClassVar[str] = "drop-dead"
    preserves: ClassVar[Preserves] = "exact"
    source: ClassVar[str] = "0 z = 0; a softmax or sigmoid lies between 0 and 1 (specs/zaya_cca.md, section 5)"

    layers: Selection | None = optional_option(LAYERS, "which layers; by default all")
    heads: Numbers | None = optional_option(NUMBERS, "the query heads that go; by default as the weights say")
    experts: Numbers | None = optional_option(NUMBERS, "the experts that go; by default as the weights say")
    assumed: bool = field(default=False, compare=False, repr=False, kw_only=True)  # what goes is not known yet
    proven: bool = field(default=False, compare=False, repr=False, kw_only=True)  # the weights are dead

    @property
    def needs_data(self) -> bool:
        """Until it is known what goes."""
        return self.heads is None or self.experts is None

    @property
    def open_choice(self) -> tuple[str, str]:
        """Weights say what is dead."""
        return "zeros among the weights", "heads and experts"

    # -- decide

    def decide(self, graph: Graph, measurements: Measurements | None, constraints: Constraints) -> DropDeadParts:
        """Return the pass with what goes listed, where weights are at hand.

        Raises:
            IllegalPassError: What is listed is not there, cannot go, or is not dead as far as that can be seen.
        """
        heads, mixtures = self._attentions(graph), self._mixtures(graph)
        for option, given in (("heads", self.heads or {}), ("experts", self.experts or {})):
            for layer, numbers in given.items():
                site = heads.get(layer) if option == "heads" else mixtures.get(layer)
                self._check(option, layer, numbers, site)
        if measurements is None:
            return self
        dead = {layer: _dead_heads(graph, site, measurements) for layer, site in heads.items() if _usable(site)}
        idle = {
            layer: idle_experts(graph, site, measurements)
            for layer, site in mixtures.items()
            if isinstance(site, ExpertSite)
        }
        self._prove("heads", self.heads or {}, dead)
        self._prove("experts", self.experts or {}, idle)
        return replace(
            self,
            heads=_some(dead, {layer: each.heads for layer, each in heads.items() if isinstance(each, QueryHeads)})
            if self.heads is None
            else self.heads,
            experts=_some(idle, {layer: each.count for layer, each in mixtures.items() if isinstance(each, ExpertSite)})
            if self.experts is None
            else self.experts,
            proven=True,
        )

    def assume(self, graph: Graph) -> DropDeadParts:
        """Return the pass without anything dead but what structure shows: usually there is nothing."""
        return replace(self, heads=self.heads or {}, experts=self.experts or {}, assumed=True)

    def _selected(self, graph: Graph) -> set[int] | None:
        if self.layers is None or self.layers.predicate == "all":
            return None
        return set(self.layers.resolve(attentions(graph), graph.layer_count(), self.name, self.place("layers")))

    def _attentions(self, graph: Graph) -> dict[int, QueryHeads | Refusal]:
        wanted = self._selected(graph)
        found = attentions(graph).items()
        return {layer: query_heads(each.attend) for layer, each in found if wanted is None or layer in wanted}

    def _mixtures(self, graph: Graph) -> dict[int, ExpertSite | Refusal]:
        wanted, found = self._selected(graph), dict[int, ExpertSite | Refusal]()
        for op in graph.ops:
            layer = layer_of(op.results[0].name) if isinstance(op, Experts) else None
            if isinstance(op, Experts) and layer is not None and (wanted is None or layer in wanted):
                found.setdefault(layer, expert_site(op))
        return found

    def _check(
        self, option: str, layer: int, numbers: Sequence[int], site: QueryHeads | ExpertSite | Refusal | None
    ) -> None:
        if site is None or isinstance(site, Refusal):
            reason = f"it has no {option} among the layers" if site is None else site.reason
            raise self._refused(option, layer, reason, "leave the layer out")
        if option == "heads" and not _usable(site):
            raise self._refused(
                option, layer, "its output projection is fitted to all heads", "let this pass come first"
            )
        count = site.heads if isinstance(site, QueryHeads) else site.count
        if numbers[-1] >= count or len(numbers) == count:
            reason = f"{option} {ranges(numbers)} of {count} cannot all go"
            raise self._refused(option, layer, reason, f"{option} 0 to {count - 1}, one of which stays")

    def _prove(self, option: str, given: Numbers, dead: Numbers) -> None:
        for layer, numbers in given.items():
            if alive := sorted(set(numbers) - set(dead.get(layer, ()))):
                proven = f"{option} {ranges(dead[layer])} are" if dead.get(layer) else "none is"
                reason = f"{option} {ranges(alive)} change something, or the weights do not prove that they do not"
                raise self._refused(option, layer, reason, f"leave them out; of this layer {proven} dead")

    def _refused(self, option: str, layer: int, reason: str, fix: str) -> StructureError:
        return StructureError(owner=self.name, layer=layer, reason=reason, fix=fix, where=self.place(option))

    # -- rewrite

    def rewrite(self, graph: Graph) -> Report:
        """Drop what is listed, then key/value heads that nobody reads."""
        assert self.heads is not None, "decide comes first"
        assert self.experts is not None, "decide comes first"
        found, edit, wanted = attentions(graph), Editor(graph), self._selected(graph)
        nothing = "{}, decided at apply, by the weights" if self.assumed else "no dead {}"
        heads = {found[layer].attend: gone for layer, gone in self.heads.items()}
        unproven = "" if self.proven else ", if apply finds them dead"
        notes = [*drive(graph, _DropHeads(heads, nothing.format("query heads"), unproven)).notes]
        notes += drive(graph, _DropExperts(self.experts, nothing.format("experts"), unproven)).notes
        for layer, each in attentions(graph).items():
            if each.owner == layer and (wanted is None or layer in wanted):
                done = drop_unread_kv_heads(graph, edit, each.memory)
                notes += [Note(f"layer {layer}", "unread, but" not in done, done, layer)] if done else []
        return Report(tuple(notes))


def _some(dead: Numbers, counts: Mapping[int, int]) -> Numbers:
    """Return what goes in each layer; where all are dead, the first one stays."""
    kept = {layer: numbers[1:] if len(numbers) == counts[layer] else numbers for layer, numbers in dead.items()}
    return {layer: numbers for layer, numbers in kept.items() if numbers}


def _usable(site: object) -> bool:
    """Whether an attention's heads can go: a fit to all of them would come out otherwise."""
    return isinstance(site, QueryHeads) and not _fitted(site.output.linear.weight)


def _fitted(value: Value) -> bool:
    return any(op.reads_run_time for op in ancestors([value]))


def _dead_heads(graph: Graph, site: object, measurements: Measurements) -> tuple[int, ...]:
    """Return the heads whose columns of the output projection are zero, or whose values are."""
    assert isinstance(site, QueryHeads)
    columns = measurements.weight(graph, site.output.linear.weight).unflatten(1, (site.heads, -1))
    dead = {head for head in range(site.heads) if not bool(columns[:, head].any())}
    state = site.attend.memory.op
    cut = trace(state.v, state) if isinstance(state, KV) and state.v is not state.k else Refusal("no values by head")
    if isinstance(cut, Cut) and _keeps_zero(cut.ops) and _keeps_zero(site.output.chain):
        rows = [part for op in cut.linears for part in (op.weight, op.bias) if part is not None]
        kv_heads = site.attend.memory.memory.fields[0].shape[0]
        if not any(_fitted(part) for part in rows):
            tables = [measurements.weight(graph, part).unflatten(0, (kv_heads, -1)) for part in rows]
            silent = {group for group in range(kv_heads) if not any(bool(table[group].any()) for table in tables)}
            dead |= {head for head, group in enumerate(site.attend.groups) if group in silent}
    return tuple(sorted(dead))


def _keeps_zero(ops: Sequence[Op]) -> bool:
    """Return whether zero heads stay zero through some ops."""
    plain = (Flatten, Unflatten, Gain, Mul, Scale, Softcap, Linear, Norm)
    quiet = ("silu", "gelu", "gelu_tanh", "quick_gelu", "relu", "tanh")
    return all(isinstance(op, plain) or (isinstance(op, Activation) and op.kind in quiet) for op in ops)


@dataclass(frozen=True)
class _DropHeads(Rule[Attend, tuple[QueryHeads, tuple[int, ...]]]):
    op: ClassVar[type[Op]] = Attend
    gone: Mapping[Attend, tuple[int, ...]]
    otherwise: str
    unproven: str

    def match(self, op: Attend, graph: Graph) -> tuple[QueryHeads, tuple[int, ...]] | Refusal:
        gone = self.gone.get(op)
        if not gone:
            return Refusal(self.otherwise)
        site = query_heads(op)
        return site if isinstance(site, Refusal) else (site, gone)

    def rewrite(self, site: tuple[QueryHeads, tuple[int, ...]], edit: Editor) -> str:
        heads, gone = site
        groups = heads.attend.groups
        order = sorted(set(range(heads.heads)) - set(gone), key=lambda head: (groups[head], head))
        take_query_heads(edit, heads, order)
        return f"dead query heads {ranges(gone)} of {len(groups)} dropped{self.unproven}"


@dataclass(frozen=True)
class _DropExperts(Rule[Experts, tuple[ExpertSite, tuple[int, ...]]]):
    op: ClassVar[type[Op]] = Experts
    gone: Numbers
    otherwise: str
    unproven: str

    def match(self, op: Experts, graph: Graph) -> tuple[ExpertSite, tuple[int, ...]] | Refusal:
        layer = layer_of(op.out.name)
        gone = None if layer is None else self.gone.get(layer)
        if not gone:
            return Refusal(self.otherwise)
        site = expert_site(op)
        return site if isinstance(site, Refusal) else (site, gone)

    def rewrite(self, site: tuple[ExpertSite, tuple[int, ...]], edit: Editor) -> str:
        experts, gone = site
        drop_experts(edit, experts, gone)
        told = f"weights of idle experts {ranges(gone)} of {experts.count} dropped"
        return f"{told}; the router weighs them last{self.unproven}"
