"""`budget-heads`: fewer query heads, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, cast

from regraft.ir.errors.recipe import (
    HeadBudgetError,
    MissingKeyError,
    OptionConflictError,
    OptionRangeError,
    StructureError,
    TensorParallelError,
)
from regraft.ir.graph import Graph
from regraft.passes.base import (
    BOOL,
    Constraints,
    Measurements,
    Note,
    OptionKind,
    Pass,
    Preserves,
    Report,
    choice,
    integer,
    option,
    optional_option,
    read_integer,
    read_key,
    type_error,
)
from regraft.passes.choosing import leave_out
from regraft.passes.counts import COUNT, HEADS, MOST_HEADS, Count, Heads, counts_by_layer
from regraft.passes.fitting.head_choice import SCORES, Choice, Score, choose_heads
from regraft.passes.fitting.head_cut import CutHeads, Keep, cut_refusal, largest_group
from regraft.passes.fitting.head_scores import Shares
from regraft.passes.fitting.refit import RIDGE, RIDGES, TARGET
from regraft.passes.fitting.spread import even_deal, measured_deal
from regraft.passes.located import Node
from regraft.passes.matching.heads import drop_unread_kv_heads
from regraft.passes.matching.rewrite import Editor, drive
from regraft.passes.matching.sites import Attention, attentions
from regraft.passes.selection import LAYERS, MOST_LAYERS, Selection

if TYPE_CHECKING:
    pass


def _read_keep(node: Node, owner: str, name: str) -> Keep:
    if node.entries is None:
        raise type_error(node, owner, name, "a map {layer: [heads]}")
    kept: dict[int, tuple[int, ...]] = {}
    for key, value in node.entries:
        if not value.items:
            raise type_error(value, owner, name, "the heads of a layer, such as [0, 2, 3]")
        heads = sorted(read_integer(each, owner, name, 0, MOST_HEADS) for each in value.items)
        if len(set(heads)) < len(heads):
            raise type_error(value, owner, name, "different heads")
        kept[read_key(key, owner, name, MOST_LAYERS)] = tuple(heads)
    return kept


KEEP: OptionKind[Keep] = OptionKind(
    "a map {layer: [heads]}", _read_keep, lambda keep: {layer: list(heads) for layer, heads in keep.items()}
)


@dataclass(frozen=True)
class BudgetHeads(Pass):
    """Keep only some query heads of each layer.

    Rows of the query projection and columns of the output projection go; keys, values and the cache stay as they are
    unless no head is left that reads a KV head: then that one goes too. Where groups become uneven the attention gets
    an explicit head map; with ``layout: padded``, heads whose queries are zero fill them up, as many in each layer, so
    that a stock class can hold the result. With ``refit`` the output projection is fitted to make up for the heads that
    went; it may then use heads of zeros too, which see the mean of all rows.
    """

    name: ClassVar[str] = "budget-heads"
    preserves: ClassVar[Preserves] = "refit"
    source: ClassVar[str] = (
        "Hassibi and Stork 1993, Second order derivatives for network pruning (elimination with least-squares "
        "compensation), applied to head outputs; specs/passes_math.md, section 3"
    )

    heads: Heads | None = optional_option(HEADS, "how many query heads stay")
    layers: Selection | None = optional_option(LAYERS, "which layers; by default all that heads speaks of")
    score: str = option(
        choice(*SCORES),
        "output-error",
        "which heads go first: least error of the refitted output, the same as the loss weighs it, least measured KL "
        "(slow), least output, least gradient of a gate on the head, or least weights (needs no text)",
    )
    total: Count | None = optional_option(
        COUNT, "query heads of all layers together, or their share, dealt by what each number costs in measured KL"
    )
    step: int = option(integer(1, MOST_HEADS), 1, "heads go so many at a time", needs="total")
    keep: Keep | None = optional_option(KEEP, "the heads that stay, layer by layer, instead of a count")
    layout: str = option(
        choice("map", "padded"),
        "map",
        "uneven groups: an explicit map of heads, or as many heads for each KV head, those that are missing of zeros",
    )
    refit: bool = option(BOOL, True, "fit the output projection in closed form")
    mlp: bool = option(BOOL, False, "fit the last projection of the layer's MLP too", needs="refit: true")
    target: str = option(
        TARGET, "drift", "what the refit aims at; drift makes up for earlier layers too", needs="refit: true"
    )
    ridge: float = option(RIDGES, RIDGE, "of score and refit, in units of the mean second moment")
    assumed: bool = field(default=False, compare=False, repr=False, kw_only=True)  # ``keep`` is right in number only

    @property
    def claim(self) -> Preserves:
        """``refit``, or ``structural`` where nothing is fitted."""
        return "refit" if self.refit else "structural"

    @property
    def needs_data(self) -> bool:
        """Until ``keep`` is known."""
        return self.keep is None

    @property
    def open_choice(self) -> tuple[str, str]:
        """The score chooses the heads that ``keep`` lists, measured divergence how many."""
        return "measured divergence" if self.total is not None else f"the score {self.score}", "keep"

    @property
    def needs_text(self) -> str:
        """The refit needs text, and so do a total and every score but weight-norm."""
        if self.refit:
            return "the output refit"
        if self.total is not None:
            return "the deal of the total"
        return f"the score {self.score}" if self.keep is None and self.score != "weight-norm" else ""

    # -- decide

    def decide(self, graph: Graph, measurements: Measurements | None, constraints: Constraints) -> BudgetHeads:
        """Return the pass with the heads of each layer listed; without measurements, with their number.

        Raises:
            IllegalPassError: A count, a list or a layer's structure does not allow it.
        """
        found = attentions(graph)
        parts = math.lcm(*constraints.tensor_parallel) if constraints.tensor_parallel else 1
        if self.total is not None:
            return self._dealt(graph, found, parts, measurements)
        counts = self._counts(found, graph.layer_count(), parts)
        for layer, count in counts.items():
            self._check(found[layer], count, parts)
        explicit = replace(self, heads=counts, layers=Selection.of(counts))
        cut = {layer: count for layer, count in counts.items() if count < found[layer].heads}
        self._check_sites(cut, found)
        if self.keep is not None:
            for layer, heads in self.keep.items():
                self._check_shares(found[layer], heads, parts)
            return replace(explicit, keep={layer: self.keep[layer] for layer in cut})
        if not cut:
            return replace(explicit, keep={})
        if measurements is None:
            return explicit
        chosen = self._choices(graph, found, {layer: (count,) for layer, count in cut.items()}, parts, measurements)
        return replace(explicit, keep={layer: choice[cut[layer]] for layer, choice in chosen.items()})

    def assume(self, graph: Graph) -> BudgetHeads:
        """Return the pass with heads that go evenly from all groups: right in number, not in choice."""
        found = attentions(graph)
        if self.total is not None:
            options = self._options(found, graph.layer_count(), 1)
            return replace(self, heads=even_deal(options, int(self.total)), total=None).assume(graph)
        assert isinstance(self.heads, Mapping), "decide comes first"
        keep: dict[int, tuple[int, ...]] = {}
        for layer, count in self.heads.items():
            groups = found[cast("int", layer)].attend.groups
            order = sorted(range(len(groups)), key=lambda head: (groups[:head].count(groups[head]), groups[head]))
            if count < len(groups):
                keep[cast("int", layer)] = tuple(sorted(order[: int(count)]))
        return replace(self, keep=keep, assumed=True)

    def _counts(self, found: Mapping[int, Attention], layers: int, parts: int) -> dict[int, int]:
        """Return how many heads each layer keeps, as the options name it."""
        if self.keep is not None and (self.heads is None or isinstance(self.heads, Mapping)):
            return self._counts_of_keep(self.keep, found, layers)
        if self.keep is not None:
            fix = "keep says how many heads stay: leave heads out"
            where = self.place("heads")
            raise OptionConflictError(owner=self.name, first="heads", second="keep", fix=fix, where=where)
        if self.heads is None:
            fix = "add heads: 6, heads: 0.5, heads: {full: 6, sliding: 8}, or a list with one entry a layer"
            raise MissingKeyError(owner=self.name, name="heads", fix=fix, where=self.place())
        selection = self.layers or Selection(predicate="all")
        selected = selection.resolve(found, layers, self.name, self.place("layers"))
        wanted = counts_by_layer(self.heads, selected, found, layers, self.name, self.place("heads"))
        return {layer: _count(share, found[layer].heads, parts) for layer, share in sorted(wanted.items())}

    def _counts_of_keep(self, keep: Keep, found: Mapping[int, Attention], layers: int) -> dict[int, int]:
        if keep:
            Selection.of(keep).resolve(found, layers, self.name, self.place("keep"))
        for layer, heads in keep.items():
            if heads[-1] >= found[layer].heads:
                self._refuse_count(found[layer], f"head {heads[-1]}", f"heads 0 to {found[layer].heads - 1}", "keep")
        given = cast("Mapping[int, int]", self.heads or {})
        here = {layer: len(keep[layer]) if layer in keep else attention.heads for layer, attention in found.items()}
        if any(here.get(layer) != count for layer, count in given.items()):
            fix = "keep says how many heads stay: leave heads out"
            where = self.place("heads")
            raise OptionConflictError(owner=self.name, first="heads", second="keep", fix=fix, where=where)
        rest = {layer: found[layer].heads for layer in given if layer not in keep}
        return dict(sorted({**rest, **{layer: len(heads) for layer, heads in keep.items()}}.items()))

    def _check(self, attention: Attention, count: int, parts: int) -> None:
        heads, kv_heads = attention.heads, attention.kv_heads
        if not 1 <= count <= heads:
            self._refuse_count(attention, str(count), f"1 to {heads}", "heads")
        if parts == 1:
            return
        counts = [n for n in range(parts, heads + 1, parts) if n >= kv_heads]
        legal = (
            f"{', '.join(map(str, counts))} query heads" if kv_heads % parts == 0 and counts else "no number of heads"
        )
        problem = ""
        if kv_heads % parts:
            problem = f"{kv_heads} KV heads do not split evenly"
        elif count % parts:
            problem = f"{count} query heads do not split evenly"
        elif count < kv_heads:
            problem = f"{count} query heads leave some of {kv_heads} KV heads unread, which do not go evenly"
        if problem:
            self._refuse_parallel(attention.layer, problem, parts, legal)

    def _check_shares(self, attention: Attention, heads: Sequence[int], parts: int) -> None:
        if parts == 1:
            return
        groups = [attention.attend.groups[head] for head in heads]
        shares = Shares(attention.attend.groups, attention.kv_heads, parts)
        held = [shares.part(head) for head in heads]
        if len({held.count(part) for part in range(parts)}) > 1 or len(set(groups)) < attention.kv_heads:
            problem = f"heads {', '.join(map(str, heads))} do not go evenly"
            legal = f"{len(heads) // parts} of each device's query heads, and one at least of each KV head's"
            self._refuse_parallel(attention.layer, problem, parts, legal)

    def _refuse_count(self, attention: Attention, wanted: str, legal: str, option: str) -> None:
        layer, heads, where = attention.layer, attention.heads, self.place(option)
        raise HeadBudgetError(layer=layer, heads=heads, wanted=wanted, legal=legal, where=where)

    def _refuse_parallel(self, layer: int, problem: str, parts: int, legal: str) -> None:
        where = self.place("keep" if self.keep is not None else "heads")
        raise TensorParallelError(
            owner=self.name, layer=layer, problem=problem, parallel=parts, legal=legal, where=where
        )

    def _check_sites(self, cut: Iterable[int], found: Mapping[int, Attention]) -> None:
        refusals = {layer: cut_refusal(each.attend, self._fit) for layer, each in found.items()}
        for layer, refusal in ((layer, refusals[layer]) for layer in cut):
            if refusal is None:
                continue
            fix = leave_out(cut, [at for at in found if refusals[at] is None])
            fix += ", or use refit: false" if "refit" in refusal.reason else ""
            where = self.place("layers")
            raise StructureError(owner=self.name, layer=layer, reason=refusal.reason, fix=fix, where=where)

    @property
    def _fit(self) -> tuple[str, float] | None:
        return (self.target, self.ridge) if self.refit else None

    # -- choose

    def _choices(
        self,
        graph: Graph,
        found: Mapping[int, Attention],
        numbers: Mapping[int, Sequence[int]],
        parts: int,
        measurements: Measurements,
    ) -> dict[int, Choice]:
        """Return the heads that stay, for each number of them."""
        here = {layer: found[layer] for layer in numbers}
        by = Score(self.score, self.ridge, parts, lambda keep: self._keeping(keep).rewrite)
        return choose_heads(self, graph, here, numbers, measurements, by)

    def _dealt(
        self, graph: Graph, found: Mapping[int, Attention], parts: int, measurements: Measurements | None
    ) -> BudgetHeads:
        """Return the pass with a total dealt to layers; without measurements, with what it is to be dealt to."""
        step = math.lcm(self.step, parts)
        options = replace(self, step=step)._options(found, graph.layer_count(), parts)
        total = self._checked_total({layer: found[layer].heads for layer in options}, options)
        explicit = replace(self, layers=Selection.of(options), total=total, step=step)
        if measurements is None:
            return explicit
        fewer = {layer: [n for n in numbers if n < found[layer].heads] for layer, numbers in options.items()}
        choices = self._choices(graph, found, fewer, parts, measurements)

        def edit(counts: Mapping[int, int]) -> BudgetHeads:
            keep = {layer: choices[layer][n] for layer, n in counts.items() if n < found[layer].heads}
            return replace(explicit._keeping(keep), heads=dict(counts))

        def measure(deals: Sequence[Mapping[int, int]]) -> list[float]:
            return measurements.damage(graph, [edit(counts).rewrite for counts in deals])

        single = [(layer, number) for layer, numbers in fewer.items() for number in numbers]
        costs = dict(zip(single, measure([{layer: number} for layer, number in single]), strict=True))
        table = {
            layer: {number: costs.get((layer, number), 0.0) for number in numbers} for layer, numbers in options.items()
        }
        return edit(measured_deal(table, total, measure))

    def _keeping(self, keep: Keep) -> BudgetHeads:
        return replace(self, total=None, step=1, heads=None, keep=keep)

    def _options(self, found: Mapping[int, Attention], layers: int, parts: int) -> dict[int, list[int]]:
        """Return how many heads each layer may keep of a total."""
        for other in ("heads", "keep"):
            if getattr(self, other) is not None:
                fix = "total deals heads by itself: leave the other out"
                where = self.place("total")
                raise OptionConflictError(owner=self.name, first="total", second=other, fix=fix, where=where)
        selection = self.layers or Selection(predicate="all")
        options: dict[int, list[int]] = {}
        selected = selection.resolve(found, layers, self.name, self.place("layers"))
        strict = selection.explicit or all(cut_refusal(found[layer].attend, self._fit) for layer in selected)
        if strict:
            self._check_sites(selected, found)
        for layer in selected:
            heads, least = found[layer].heads, found[layer].kv_heads if parts > 1 else 1
            self._check(found[layer], heads, parts)
            refused = cut_refusal(found[layer].attend, self._fit) is not None
            options[layer] = [heads] if refused else [n for n in range(heads, 0, -self.step) if n >= least]
        return options

    def _checked_total(self, heads: Mapping[int, int], options: Mapping[int, Sequence[int]]) -> int:
        assert self.total is not None
        most, least = sum(heads.values()), sum(min(numbers) for numbers in options.values())
        total = self.total
        if isinstance(total, float):
            total = most - self.step * round((1 - total) * most / self.step)
        if not least <= total <= most or even_deal(options, total) is None:
            step = f", {self.step} at a time" if self.step > 1 else ""
            legal, where = f"from {least} to {most} query heads{step}", self.place("total")
            raise OptionRangeError(owner=self.name, name="total", found=self.total, legal=legal, where=where)
        return total

    # -- rewrite

    def rewrite(self, graph: Graph) -> Report:
        """Cut the projections of each layer, refit the output, and drop KV heads that nobody reads any more."""
        assert self.keep is not None, "decide comes first"
        group = largest_group(attentions(graph).values(), self.keep) if self.layout == "padded" else None
        report = drive(graph, CutHeads(self.keep, self._fit, group, self.score if self.assumed else "", self.mlp))
        edit = Editor(graph)
        found = attentions(graph)
        memories = {found[layer].memory: layer for layer in self.keep}
        dropped = {layer: drop_unread_kv_heads(graph, edit, memory) for memory, layer in memories.items()}

        def completed(note: Note) -> Note:
            if not note.applied or note.layer is None:
                return note
            head_map = "" if self.assumed or found[note.layer].attend.head_map is None else "head map explicit"
            extra = [each for each in (head_map, dropped.get(note.layer)) if each]
            return replace(note, text="; ".join([note.text, *extra]))

        notes = [completed(note) for note in report.notes]
        return Report(tuple(notes))


def _count(wanted: Count, heads: int, parts: int) -> int:
    """Return a number of heads; a share is rounded to the nearest that splits evenly over ``parts``."""
    if isinstance(wanted, int):
        return wanted
    return max(parts, math.floor(wanted * heads / parts + 0.5) * parts)
