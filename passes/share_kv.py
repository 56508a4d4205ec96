"""`share-kv`: layers that read an earlier layer's keys and values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, NoReturn

from regraft.ir.errors.recipe import (
    DonorError,
    MissingKeyError,
    NoLegalDonorError,
    OptionConflictError,
    OptionRangeError,
    RankError,
    StructureError,
)
from regraft.ir.graph import Graph
from regraft.ir.kinds import ranges
from regraft.passes.base import (
    BOOL,
    Constraints,
    Measurements,
    Pass,
    Preserves,
    Report,
    choice,
    integer,
    option,
    optional_option,
)
from regraft.passes.counts import COUNT, Count
from regraft.passes.fitting.donors import Donors, Pair, best_sets, dissimilarities, most_readers
from regraft.passes.fitting.joint import joint_rank, most_ranks
from regraft.passes.fitting.refit import RIDGE, RIDGES, TARGET, refit_refusal
from regraft.passes.fitting.sharing import LEVELS, ReadDonor, Sharing, level_refusal
from regraft.passes.matching.memories import KeyValues, key_values
from regraft.passes.matching.rewrite import drive
from regraft.passes.matching.sharing import collapsed, groups_of_kind, legal_donors, misfit
from regraft.passes.matching.sites import Attention, Refusal, attentions, output_of
from regraft.passes.pairs import CHOSEN, DONOR, READERS, Donor, Groups
from regraft.passes.selection import MOST_LAYERS, Selection

NEEDS = "a reader needs its donor's attention kind, window, KV heads, head width and rotary base"
NEEDS_MAPPED = "a reader needs its donor's attention kind, and a window that is no wider"


@dataclass(frozen=True)
class ShareKV(Pass):
    """Let layers read an earlier layer's keys and values instead of their own.

    A reader's own keys and values are no longer made or kept, so its cache goes. Layer inputs differ, so their keys do
    too, even under equal projections. What is adapted to the reader goes by level: at ``gauge`` its queries are turned
    towards the donor's keys, by a complex factor for each head and rotary frequency, and its output projection towards
    the donor's values, by a map for each KV head; at ``raw`` nothing is. With ``refit`` the output projection is fitted
    to the original's residual stream instead, whatever the level. At ``cross`` each head attends to all of the donor's
    heads at once, as they are kept, by matrices that are fitted: as many times the operations of a row as there are
    heads. At ``map`` the donor keeps its keys before rotation, which changes nothing for itself, and the reader maps
    each row to its own keys and values, by matrices that are fitted: nearer, at the cost of these and of their products
    with all rows in each step. At ``input`` the reader keeps a cache of its own, made of the donor's input: no smaller,
    but known as soon as the donor's is. At ``latent`` the donor keeps ``rank`` numbers of its input instead, from which
    it and its readers rebuild their keys and values.

    ``donor: measured`` takes the pairs, or with ``choose`` the readers too, whose sharing diverges least from the
    original on calibration text, after the fits. ``similar`` is a baseline: the pairs whose caches are most alike.
    """

    name: ClassVar[str] = "share-kv"
    preserves: ClassVar[Preserves] = "refit"
    source: ClassVar[str] = (
        "Brandon et al. 2024, Reducing Transformer Key-Value Cache Size with Cross-Layer Attention; "
        "specs/passes_math.md, section 5"
    )

    layers: Selection | Groups | None = optional_option(READERS, "the readers; in a group the first layer is the donor")
    groups: int | None = optional_option(integer(2, 1024), "make groups of so many layers of one kind, in order")
    last: int | None = optional_option(
        integer(1, MOST_LAYERS), "the last so many layers read the last own layer of their kind, as in Gemma 3n"
    )
    choose: Count | None = optional_option(
        COUNT, "so many readers among the layers, with donors measured or similar; a share is of all with attention"
    )
    donor: Donor = option(
        DONOR, "nearest", "whose memory they read; nearest is the last earlier layer that fits and is no reader"
    )
    within: int | None = optional_option(integer(1, MOST_LAYERS), "measure only donors at most so many layers before")
    finalists: int = option(
        integer(1, 1000),
        8,
        "of the sets of readers that measure best pair by pair, measure so many whole",
        needs="donor: measured",
    )
    level: str | None = optional_option(
        choice(*LEVELS), "what is adapted to the reader; by default gauge with refit, and raw without"
    )
    rank: Count | None = optional_option(
        COUNT, "with level latent, numbers a token; a share is of the donor's keys and values"
    )
    refit: bool = option(BOOL, True, "fit the output projection in closed form")
    target: str = option(
        TARGET, "drift", "what the refit aims at; drift makes up for earlier layers too", needs="refit: true"
    )
    ridge: float = option(RIDGES, RIDGE, "how strongly fits are drawn to the old weights")
    assumed: bool = field(default=False, compare=False, repr=False, kw_only=True)  # ``donor`` is right in number only

    @property
    def adapted(self) -> str:
        """The level, as given or by default."""
        return self.level or ("gauge" if self.refit else "raw")

    @property
    def claim(self) -> Preserves:
        """``refit``, or ``structural`` where nothing is fitted."""
        return "refit" if self.refit or self.adapted != "raw" else "structural"

    @property
    def needs_data(self) -> bool:
        """While donors are still to be chosen by what text shows."""
        return self.donor in CHOSEN

    @property
    def open_choice(self) -> tuple[str, str]:
        """Divergence, or likeness, chooses the donors."""
        return "the caches' likeness" if self.donor == "similar" else "measured divergence", "donor"

    @property
    def needs_text(self) -> str:
        """Fits need text, and so does the choice of donors."""
        if self.refit:
            return "the refit"
        if self.adapted != "raw":
            return f"the level {self.adapted}"
        return "the choice of donors" if self.needs_data else ""

    # -- decide

    def decide(self, graph: Graph, measurements: Measurements | None, constraints: Constraints) -> ShareKV:
        """Return the pass with a donor for each reader. Chains collapse: a reader's reader reads the root donor.

        Raises:
            IllegalPassError: A reader does not fit its donor, or its projection cannot be refitted.
        """
        found = attentions(graph)
        explicit = replace(self, level=self.adapted)
        self._check_conflicts()
        if self.needs_data:
            pairs, count = self._open(graph)
            if measurements is None:
                return explicit
            return explicit._with(explicit._chosen(graph, pairs, count, measurements), graph)
        return explicit._with(explicit._pairs(found, graph.layer_count()), graph)

    def assume(self, graph: Graph) -> ShareKV:
        """Return the pass with near donors, for as many readers: right in number, not in choice."""
        pairs, count = self._open(graph)
        near = best_sets({(reader, donor): float(reader - donor) for reader, donor in pairs}, count)
        return replace(self._with(near[0], graph), assumed=True)

    def _with(self, pairs: Mapping[int, int], graph: Graph) -> ShareKV:
        """Return the pass with donors, followed to the root, checked and spelled out."""
        found = attentions(graph)
        for reader, donor in pairs.items():
            if donor >= reader or donor not in found:
                self._refuse(found, reader, donor, f"layer {donor} does not come before layer {reader}", pairs)
        donors = dict(sorted(pairs.items())) if self.adapted == "input" else collapsed(pairs, found)
        for reader, donor in donors.items():
            reason = misfit(found[reader], found.get(donor), self._mapped)
            if reason is not None:
                self._refuse(found, reader, donor, reason, donors)
            refusal = self._refusal(graph, found[reader], found[donor])
            if refusal is not None:
                other = "level: gauge" if self._refit_refusal(found[reader]) is None else "refit: false"
                where = "level" if other.startswith("level") else "refit"
                self._refuse_structure(reader, refusal, f"leave the layer out, or use {other}", where)
        layers = Selection.of(donors) if donors else None
        return replace(self, layers=layers, groups=None, last=None, choose=None, within=None, finalists=8, donor=donors)

    @property
    def _mapped(self) -> bool:
        """Whether a reader's heads and rotation may be other than its donor's."""
        return self.adapted in ("map", "input", "latent") and self.donor != "similar"

    def _refit_refusal(self, attention: Attention) -> Refusal | None:
        if not self.refit:
            return None
        output = output_of(attention.attend)
        return output if isinstance(output, Refusal) else refit_refusal(output)

    def _refusal(self, graph: Graph, reader: Attention, donor: Attention) -> Refusal | None:
        """Return why a reader that fits its donor cannot be fitted to it, or None where it can."""
        refusal = self._refit_refusal(reader) or level_refusal(self.adapted, graph, reader.attend, donor.attend)
        if refusal is None and self.rank is not None:
            self._check_rank(graph, donor, self.rank)
        return refusal

    def _check_rank(self, graph: Graph, donor: Attention, rank: Count) -> None:
        site = key_values(donor.attend, graph)
        if isinstance(site, KeyValues) and not joint_rank(rank, site) <= most_ranks(site):
            what = f"layer {donor.layer} makes its keys and values of {most_ranks(site)} numbers"
            legal, where = f"a rank from 1 to {most_ranks(site)}", self.place("rank")
            raise RankError(owner=self.name, what=what, wanted=f"a latent of rank {rank}", legal=legal, where=where)

    def _check_conflicts(self) -> None:
        if self.rank is None and self.adapted == "latent":
            fix, where = "add rank: 64, or rank: 0.5", self.place("level")
            raise MissingKeyError(owner=self.name, name="rank", fix=fix, where=where)
        grouped = self.groups is not None or isinstance(self.layers, tuple)
        second = fix = ""
        first = "groups"
        if grouped and self.donor != "nearest":
            second, fix = "donor", "in a group the first layer is the donor"
        elif self.groups is not None and isinstance(self.layers, tuple):
            second, fix = "a list of groups in layers", "in a group the first layer is the donor"
        elif self.last is not None and (grouped or self.layers is not None or self.donor != "nearest"):
            first, second = "last", "groups" if grouped else "layers" if self.layers is not None else "donor"
            fix = "last says which layers read, and whom"
        elif not self.needs_data and (self.choose is not None or self.within is not None):
            first, second = "choose" if self.choose is not None else "within", f"donor: {self._donor_text}"
            fix = "donor: measured chooses"
        elif self.rank is not None and self.adapted != "latent":
            first, second, fix = "rank", f"level: {self.adapted}", "level: latent has a rank"
        if second:
            raise OptionConflictError(owner=self.name, first=first, second=second, fix=fix, where=self.place(first))

    @property
    def _donor_text(self) -> str:
        return "a map" if isinstance(self.donor, Mapping) else str(self.donor)

    def _pairs(self, found: Mapping[int, Attention], count: int) -> dict[int, int]:
        """Return each reader's donor as the options name it."""
        if self.groups is not None or isinstance(self.layers, tuple):
            return {reader: group[0] for group in self._grouped(found, count) for reader in group[1:]}
        if isinstance(self.donor, Mapping):
            named = Selection.of(self.donor).resolve(found, count, self.name, self.place("donor")) if self.donor else []
            readers = self._readers(found, count) if self.layers is not None else named
            if set(readers) != set(named):
                fix = "with donors given one by one, leave layers out"
                where = self.place("donor")
                raise OptionConflictError(owner=self.name, first="layers", second="donor", fix=fix, where=where)
            return {reader: self.donor[reader] for reader in readers}
        readers = self._readers(found, count)
        named_one_by_one = self.last is not None or (isinstance(self.layers, Selection) and self.layers.explicit)
        pairs: dict[int, int] = {}
        for reader in readers:
            if isinstance(self.donor, int):
                if named_one_by_one or (
                    reader > self.donor and misfit(found[reader], found.get(self.donor), self._mapped) is None
                ):
                    pairs[reader] = self.donor
                continue
            legal = self._legal(found, reader, readers if named_one_by_one else pairs)
            if legal:
                pairs[reader] = legal[-1]
            elif named_one_by_one:
                self._refuse_reader(found, reader)
        return pairs

    def _readers(self, found: Mapping[int, Attention], count: int) -> list[int]:
        if self.last is not None:
            if self.last >= len(found):
                legal, where = f"from 1 to {len(found) - 1}", self.place("last")
                raise OptionRangeError(owner=self.name, name="last", found=self.last, legal=legal, where=where)
            return sorted(found)[-self.last :]
        if self.layers is None:
            fix = 'add layers: "4..7", groups: 2, last: 4, or donor: {4: 3}'
            raise MissingKeyError(owner=self.name, name="layers", fix=fix, where=self.place())
        assert isinstance(self.layers, Selection)
        return self.layers.resolve(found, count, self.name, self.place("layers"))

    def _grouped(self, found: Mapping[int, Attention], count: int) -> Iterable[Sequence[int]]:
        if isinstance(self.layers, tuple):
            return [Selection.of(group).resolve(found, count, self.name, self.place("layers")) for group in self.layers]
        assert self.groups is not None
        chosen = Selection(predicate="all") if self.layers is None else self.layers
        layers = chosen.resolve(found, count, self.name, self.place("layers"))
        return groups_of_kind(found, layers, self.groups)

    def _legal(self, found: Mapping[int, Attention], reader: int, readers: Iterable[int]) -> list[int]:
        return legal_donors(found, reader, readers, self._mapped)

    # -- donors chosen by what text shows

    def _open(self, graph: Graph) -> tuple[list[Pair], int]:
        """Return the legal pairs (reader, donor) to choose from, and how many readers there are to be."""
        assert not isinstance(self.layers, tuple)
        found, count = attentions(graph), graph.layer_count()
        if self.layers is None and self.choose is None:
            fix = "add choose: 4, choose: 0.5, or the layers that are to read"
            raise MissingKeyError(owner=self.name, name="choose", fix=fix, where=self.place("donor"))
        selection = self.layers or Selection(predicate="all")
        candidates = selection.resolve(found, count, self.name, self.place("layers"))
        fixed = selection.explicit and self.choose is None
        if not selection.explicit:  # a predicate means memories; their readers in other layers go along
            candidates = [layer for layer in candidates if found[layer].owner == layer]
        pairs: list[Pair] = []
        refused: dict[int, Refusal] = {}
        for reader in candidates:
            legal = self._legal(found, reader, candidates if fixed else ())
            near = [donor for donor in legal if self.within is None or reader - donor <= self.within]
            if fixed and not near:
                self._refuse_reader(found, reader)
            for donor in near:
                refusal = None if fixed else self._refusal(graph, found[reader], found[donor])
                if refusal is None:
                    pairs.append((reader, donor))
                else:
                    refused.setdefault(reader, refusal)
        most = len(most_readers(pairs))
        if most == 0 and refused:
            reader = min(refused)
            self._refuse_structure(reader, refused[reader], "use refit: false or another level", "level")
        if most == 0:
            self._refuse_reader(found, candidates[0])
        wanted = most
        if self.choose is not None:
            share = self.choose if isinstance(self.choose, float) else None
            wanted = math.floor(share * len(found) + 0.5) if share is not None else int(self.choose)
        if not 1 <= wanted <= most:
            legal = f"from 1 to {most}, for as many layers can have a donor that is no reader itself"
            where = self.place("choose")
            raise OptionRangeError(owner=self.name, name="choose", found=self.choose, legal=legal, where=where)
        return pairs, wanted

    def _chosen(self, graph: Graph, pairs: Sequence[Pair], count: int, measurements: Measurements) -> Donors:
        """Return the readers and their donors."""
        found = attentions(graph)
        if self.donor == "similar":
            return best_sets(dissimilarities(graph, found, pairs, measurements), count)[0]

        def edit(donors: Mapping[int, int]) -> ShareKV:
            return self._with(donors, graph)

        single = measurements.damage(graph, [edit({reader: donor}).rewrite for reader, donor in pairs])
        costs = dict(zip(pairs, single, strict=True))
        sets = best_sets(costs, count, self.finalists)
        if len(sets) == 1:
            return sets[0]
        whole = measurements.damage(graph, [edit(donors).rewrite for donors in sets])
        return sets[min(range(len(sets)), key=whole.__getitem__)]

    # -- refusals

    def _refuse(
        self, found: Mapping[int, Attention], reader: int, donor: int, reason: str, pairs: Mapping[int, int]
    ) -> NoReturn:
        legal = [layer for layer in self._legal(found, reader, ()) if layer not in pairs]
        needs = NEEDS_MAPPED if self._mapped else NEEDS
        notes = [reason, needs] if reason else [needs]
        raise DonorError(
            reader=reader,
            reader_kind=found[reader].described,
            donor=donor,
            donor_kind=found[donor].described if donor in found else "no attention",
            legal=f"layer {reader} may read {_listed(legal)}" if legal else f"layer {reader} has no legal donor",
            notes=notes,
            where=self.place("donor" if self.donor != "nearest" else "layers" if self.layers else "groups"),
        )

    def _refuse_structure(self, layer: int, refusal: Refusal, fix: str, option: str) -> NoReturn:
        where = self.place(option)
        raise StructureError(owner=self.name, layer=layer, reason=refusal.reason, fix=fix, where=where)

    def _refuse_reader(self, found: Mapping[int, Attention], reader: int) -> NoReturn:
        others = [layer for layer in found if self._legal(found, layer, ())]
        fix = f"layers that have one: {ranges(others)}" if others else "no layer of this model has one"
        kind = found[reader].described
        where = self.place("last" if self.last is not None else "layers")
        raise NoLegalDonorError(
            reader=reader, reader_kind=kind, fix=fix, notes=[NEEDS_MAPPED if self._mapped else NEEDS], where=where
        )

    # -- rewrite

    def rewrite(self, graph: Graph) -> Report:
        """Point each reader at its donor's memory, adapt it, and refit its output projection."""
        assert isinstance(self.donor, Mapping), "decide comes first"
        report = drive(
            graph, ReadDonor(Sharing(self.adapted, self.refit, self.target, self.ridge, self.rank), self.donor)
        )
        if not self.assumed:
            return report
        open_text = "reads an earlier layer's memory; which layers do, and whose they read, is decided at apply"
        return Report(tuple(replace(note, text=open_text) if note.applied else note for note in report.notes))


def _listed(layers: Sequence[int]) -> str:
    if len(layers) > 8:
        return ranges(layers)
    *first, last = map(str, layers)
    return f"{', '.join(first)} or {last}" if first else last
