"""`merge-duplicate-heads`: query heads that attend alike, as one head with the sum of their columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, ClassVar

from regraft.ir.errors.recipe import StructureError
from regraft.ir.graph import Graph
from regraft.ir.op import Op, Value
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.weight import Combine, ConcatWeight, Take
from regraft.passes.base import (
    BOOL,
    Constraints,
    Measurements,
    OptionKind,
    Pass,
    Preserves,
    Report,
    number,
    option,
    optional_option,
    read_integer,
    read_key,
    type_error,
)
from regraft.passes.choosing import leave_out
from regraft.passes.fitting.refit import RIDGE, RIDGES, TARGET, refit_refusal, refit_text
from regraft.passes.fitting.stream import ancestors
from regraft.passes.located import Node
from regraft.passes.matching.query_heads import QueryHeads, query_heads, take_query_heads
from regraft.passes.matching.rewrite import Editor, Rule, drive
from regraft.passes.matching.sites import Attention, Refusal, attentions
from regraft.passes.selection import LAYERS, MOST_LAYERS, Selection

if TYPE_CHECKING:
    from torch import Tensor

Duplicates = Mapping[int, tuple[tuple[int, ...], ...]]
MOST_HEADS = 65536


def _read_duplicates(node: Node, owner: str, name: str) -> Duplicates:
    if node.entries is None:
        raise type_error(node, owner, name, FORM)
    found: dict[int, tuple[tuple[int, ...], ...]] = {}
    for key, value in node.entries:
        sets = [
            tuple(sorted(read_integer(each, owner, name, 0, MOST_HEADS) for each in item.items or ()))
            for item in value.items or ()
        ]
        heads = [head for each in sets for head in each]
        if not sets or min(map(len, sets)) < 2 or len(set(heads)) < len(heads):
            raise type_error(value, owner, name, "sets of two heads or more, no head twice, such as [[0, 2], [1, 3]]")
        found[read_key(key, owner, name, MOST_LAYERS)] = tuple(sorted(sets))
    return found


FORM = "a map {layer: [[heads], [heads]]}"
DUPLICATES: OptionKind[Duplicates] = OptionKind(
    FORM, _read_duplicates, lambda found: {layer: [list(each) for each in sets] for layer, sets in found.items()}
)


@dataclass(frozen=True)
class MergeDuplicateHeads(Pass):
    """Merge query heads whose rows are equal, number for number, and that read the same key/value head.

    They attend alike, so one stays, and its columns of the output projection are the sum of theirs. Gates and sinks
    must be equal too. Weights decide. With a ``tolerance`` heads that are only nearly equal merge too, into the first
    of them: no longer exact, the more so where scores are large; so the output projection is then fitted.
    """

    name: ClassVar[str] = "merge-duplicate-heads"
    preserves: ClassVar[Preserves] = "exact"
    source: ClassVar[str] = "O_a z + O_b z = (O_a + O_b) z; specs/passes_math.md, section 0"

    layers: Selection | None = optional_option(LAYERS, "which layers; by default all")
    heads: Duplicates | None = optional_option(DUPLICATES, "the heads that are equal; by default as the weights say")
    tolerance: float | None = optional_option(
        number(1e-6, 1.0), "rows count as equal that differ by so much of their norm, head by head"
    )
    refit: bool = option(BOOL, True, "fit the output projection in closed form", needs="tolerance")
    target: str = option(
        TARGET, "drift", "what the refit aims at; drift makes up for earlier layers too", needs="tolerance"
    )
    ridge: float = option(RIDGES, RIDGE, "how strongly the refit is drawn to the old weight", needs="tolerance")
    assumed: bool = field(default=False, compare=False, repr=False, kw_only=True)  # ``heads`` is not known yet
    proven: bool = field(default=False, compare=False, repr=False, kw_only=True)  # the weights are equal

    @property
    def claim(self) -> Preserves:
        """``exact``; with a tolerance ``refit``, or ``structural`` where nothing is fitted."""
        return "exact" if self.tolerance is None else "refit" if self.refit else "structural"

    @property
    def needs_text(self) -> str:
        """A refit needs text."""
        return "the output refit" if self._fit is not None else ""

    @property
    def _fit(self) -> tuple[str, float] | None:
        return (self.target, self.ridge) if self.tolerance is not None and self.refit else None

    @property
    def needs_data(self) -> bool:
        """Until the equal heads are known."""
        return self.heads is None

    @property
    def open_choice(self) -> tuple[str, str]:
        """The weights say which heads are equal."""
        return "equal weights", "heads"

    def decide(self, graph: Graph, measurements: Measurements | None, constraints: Constraints) -> MergeDuplicateHeads:
        """Return the pass with the equal heads of each layer listed, where weights are at hand.

        Raises:
            IllegalPassError: Heads that are listed are not equal, as far as that can be seen, or cannot be merged.
        """
        found = attentions(graph)
        if self.heads:
            Selection.of(self.heads).resolve(found, graph.layer_count(), self.name, self.place("heads"))
        selection = self.layers or Selection(predicate="all")
        layers = selection.resolve(found, graph.layer_count(), self.name, self.place("layers"))
        for layer, sets in (self.heads or {}).items():
            self._check(found[layer], sets)
        sites = {layer: _site(found[layer].attend, self._fit) for layer in layers}
        refused = {layer: site for layer, site in sites.items() if isinstance(site, Refusal)}
        if refused and (selection.explicit or len(refused) == len(sites)) and self.heads is None:
            layer, refusal = next(iter(refused.items()))
            fix = leave_out(
                refused, [at for at in found if not isinstance(_site(found[at].attend, self._fit), Refusal)]
            )
            raise self._refused(layer, refusal.reason, fix, "layers")
        if measurements is None:
            return self
        equal = {
            layer: _equal_heads(graph, site, measurements, self.tolerance or 0.0)
            for layer, site in sites.items()
            if isinstance(site, QueryHeads)
        }
        for layer, sets in (self.heads or {}).items():
            for heads in sets:
                if not any(set(heads) <= set(each) for each in equal.get(layer, ())):
                    within = f" within {self.tolerance:g}" if self.tolerance is not None else ""
                    reason = f"heads {', '.join(map(str, heads))} are not equal{within}"
                    raise self._refused(layer, reason, _listed(equal.get(layer, ())), "heads")
        if self.heads is not None:
            return replace(self, proven=True)
        return replace(self, heads={layer: sets for layer, sets in equal.items() if sets}, layers=None, proven=True)

    def assume(self, graph: Graph) -> MergeDuplicateHeads:
        """Return the pass without equal heads: usually there are none."""
        return replace(self, heads={}, assumed=True)

    def rewrite(self, graph: Graph) -> Report:
        """Merge the equal heads of each layer."""
        assert self.heads is not None, "decide comes first"
        found = attentions(graph)
        reason = "decided at apply, by equal weights" if self.assumed else "no equal heads"
        unproven = "" if self.proven else ", if apply finds their weights equal"
        merged = {found[at].attend: sets for at, sets in self.heads.items()}
        return drive(graph, _Merge(merged, reason, unproven, self.tolerance, self._fit))

    def _check(self, attention: Attention, sets: Sequence[Sequence[int]]) -> None:
        layer, groups, site = attention.layer, attention.attend.groups, _site(attention.attend, self._fit)
        if isinstance(site, Refusal):
            raise self._refused(layer, site.reason, "leave the layer out", "heads")
        for heads in sets:
            if heads[-1] >= len(groups):
                raise self._refused(layer, f"there is no head {heads[-1]}", f"heads 0 to {len(groups) - 1}", "heads")
            if len({groups[head] for head in heads}) > 1:
                reason = f"heads {', '.join(map(str, heads))} read different key/value heads"
                raise self._refused(layer, reason, f"their key/value heads are {', '.join(map(str, groups))}", "heads")

    def _refused(self, layer: int, reason: str, fix: str, option: str) -> StructureError:
        return StructureError(owner=self.name, layer=layer, reason=reason, fix=fix, where=self.place(option))


def _listed(sets: Iterable[Sequence[int]]) -> str:
    return f"equal are {', '.join(str(list(each)) for each in sets)}" if sets else "no two heads of it are equal"


def _site(attend: Attend, fit: tuple[str, float] | None) -> QueryHeads | Refusal:
    """Return an attention whose heads can be merged; a fit to all of them would come out otherwise."""
    site = query_heads(attend)
    if isinstance(site, QueryHeads) and any(op.reads_run_time for op in ancestors([site.output.linear.weight])):
        return Refusal("its output projection is fitted to all heads; merge them before the pass that fits it")
    if isinstance(site, QueryHeads) and fit is not None:
        return refit_refusal(site.output) or site
    return site


def _equal_heads(
    graph: Graph, site: QueryHeads, measurements: Measurements, tolerance: float
) -> tuple[tuple[int, ...], ...]:
    """Return the sets of heads that read the same key/value head, by rows, gates and sinks that are as the first's."""
    tables = [_by_head(measurements.weight(graph, value), site.heads) for value in _tables(site)]
    groups = site.attend.groups
    sets: list[list[int]] = []
    for head in range(site.heads):
        for each in sets:
            alike = groups[head] == groups[each[0]]
            if alike and all(_alike(table[head], table[each[0]], tolerance) for table in tables):
                each.append(head)
                break
        else:
            sets.append([head])
    return tuple(tuple(each) for each in sets if len(each) > 1)


def _alike(rows: Tensor, others: Tensor, tolerance: float) -> bool:
    if not tolerance:
        return bool((rows == others).all())
    rows, others = rows.double(), others.double()
    return float((rows - others).norm()) <= tolerance * float(max(rows.norm(), others.norm()))


def _tables(site: QueryHeads) -> list[Value]:
    """Return every weight that has rows by query head."""
    linears = [*site.queries.linears, *site.gates.linears]
    found = [part for linear in linears for part in (linear.weight, linear.bias) if part is not None]
    return found if site.attend.sink is None else [*found, site.attend.sink]


def _by_head(weight: Tensor, heads: int) -> Tensor:
    return weight.unflatten(0, (heads, -1))


@dataclass(frozen=True)
class _Merge(Rule[Attend, tuple[QueryHeads, tuple[tuple[int, ...], ...]]]):
    op: ClassVar[type[Op]] = Attend
    duplicates: Mapping[Attend, tuple[tuple[int, ...], ...]]
    otherwise: str
    unproven: str
    tolerance: float | None
    fit: tuple[str, float] | None

    def match(self, op: Attend, graph: Graph) -> tuple[QueryHeads, tuple[tuple[int, ...], ...]] | Refusal:
        sets = self.duplicates.get(op)
        if not sets:
            return Refusal(self.otherwise)
        site = _site(op, self.fit)
        return site if isinstance(site, Refusal) else (site, sets)

    def rewrite(self, site: tuple[QueryHeads, tuple[tuple[int, ...], ...]], edit: Editor) -> str:
        heads, sets = site
        linear, groups = heads.output.linear, heads.attend.groups
        members = {each[0]: each for each in sets}
        gone = {head for each in sets for head in each[1:]}
        order = sorted((h for h in range(heads.heads) if h not in gone), key=lambda head: (groups[head], head))

        def taken(old: Value, name: str, block: int, *indices: int) -> Value:
            return edit.add(Take, f"{name}.kept", old, axis=1, block=block, indices=indices, before=linear)

        def columns(old: Value, name: str, block: int) -> Value:
            parts: list[Value] = []
            for single, run in groupby(order, lambda head: head not in members):
                if single:
                    parts.append(taken(old, name, block, *run))
                    continue
                for head in run:
                    equal = [taken(old, name, block, each) for each in members[head]]
                    ones = (1.0,) * len(equal)
                    parts.append(edit.add(Combine, f"{name}.sum", equal, factors=ones, before=linear))
            return edit.add(ConcatWeight, f"{name}.merged", parts, axis=1, before=linear)

        take_query_heads(edit, heads, order, self.fit, columns)
        told = ", ".join(" and ".join(map(str, each)) for each in sets)
        equal = "equal" if self.tolerance is None else f"within {self.tolerance:g} equal"
        done = f"{equal} query heads merged: {told}{self.unproven}"
        return f"{done}, {refit_text(heads.output, *self.fit)}" if self.fit is not None else done
