"""`share-kv`: layers that read an earlier layer's keys and values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NoReturn

from regraft.ir.errors.base import nearest
from regraft.ir.errors.recipe import (
    ChoiceError,
    DonorError,
    MissingKeyError,
    NoLegalDonorError,
    OptionConflictError,
    StructureError,
)
from regraft.ir.graph import Graph, layer_of
from regraft.ir.kinds import ranges
from regraft.ir.op import Op, Value
from regraft.ir.ops.attn import Attend
from regraft.passes.base import (
    BOOL,
    Constraints,
    Measurements,
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
from regraft.passes.fitting.align import align_queries
from regraft.passes.fitting.refit import RIDGE, RIDGES, TARGET, refit_output, refit_refusal
from regraft.passes.located import Node, Plain
from regraft.passes.matching.rewrite import Editor, Rule, drive
from regraft.passes.matching.sites import Attention, Output, Refusal, attentions, key_rotation, output_of, rotation_text
from regraft.passes.selection import MOST_LAYERS, Selection, read_selection

Groups = tuple[tuple[int, ...], ...]
Donor = str | int | Mapping[int, int]

NEEDS = "a reader needs its donor's attention kind, window, KV heads, head width and rotary base"


def _read_layers(node: Node, owner: str, name: str) -> Selection | Groups:
    if node.items and node.items[0].items is not None:
        return tuple(_read_group(item, owner, name) for item in node.items)
    return read_selection(node, owner, name)


def _read_group(node: Node, owner: str, name: str) -> tuple[int, ...]:
    if node.items is None or len(node.items) < 2:
        raise type_error(node, owner, name, "a group of two layers or more, such as [0, 1]")
    group = tuple(sorted(read_integer(each, owner, name, 0, MOST_LAYERS) for each in node.items))
    if len(set(group)) < len(group):
        raise type_error(node, owner, name, "a group of different layers")
    return group


def _spell_layers(layers: Selection | Groups) -> Plain:
    return layers.plain if isinstance(layers, Selection) else [list(group) for group in layers]


def _read_donor(node: Node, owner: str, name: str) -> Donor:
    if node.entries is not None:
        return {
            read_key(key, owner, name, MOST_LAYERS): read_integer(value, owner, name, 0, MOST_LAYERS)
            for key, value in node.entries
        }
    if isinstance(node.scalar, int) and not isinstance(node.scalar, bool):
        return read_integer(node, owner, name, 0, MOST_LAYERS)
    if not isinstance(node.scalar, str):
        raise type_error(node, owner, name, DONOR_FORM)
    if node.scalar != "nearest":
        near = nearest(node.scalar, ["nearest"])
        raise ChoiceError(owner=owner, name=name, found=node, near=near, legal=DONOR_FORM, where=str(node.place))
    return node.scalar


DONOR_FORM = "nearest, a layer, or a map {reader: donor}"
READERS: OptionKind[Selection | Groups] = OptionKind(
    "layers, or groups such as [[0, 1], [2, 3]]", _read_layers, _spell_layers
)
DONOR: OptionKind[Donor] = OptionKind(DONOR_FORM, _read_donor, lambda d: dict(d) if isinstance(d, Mapping) else d)


@dataclass(frozen=True)
class ShareKV(Pass):
    """Let layers read an earlier layer's keys and values instead of their own.

    A reader's own keys and values are no longer made or kept, so its cache goes. Layer inputs differ, so their keys do
    too, even under equal projections. With ``refit`` the reader's queries are turned towards the donor's keys, by a
    complex factor for each head and rotary frequency, and then its output projection is fitted to the original's
    residual stream; without, nothing makes up for the change.
    """

    name: ClassVar[str] = "share-kv"
    preserves: ClassVar[Preserves] = "refit"
    source: ClassVar[str] = (
        "Brandon et al. 2024, Reducing Transformer Key-Value Cache Size with Cross-Layer Attention; "
        "specs/passes_math.md, section 5"
    )

    layers: Selection | Groups | None = optional_option(READERS, "the readers; in a group the first layer is the donor")
    groups: int | None = optional_option(integer(2, 1024), "make groups of so many layers of one kind, in order")
    donor: Donor = option(DONOR, "nearest", "whose memory they read; nearest is the last earlier layer that fits")
    level: str = option(choice("raw"), "raw", "what is adapted to the reader; raw: nothing")
    refit: bool = option(BOOL, True, "fit the reader's queries and its output projection in closed form")
    queries: bool = option(BOOL, True, "within a refit, turn the queries towards the donor's keys")
    target: str = option(TARGET, "drift", "what the refit aims at; drift makes up for earlier layers too")
    ridge: float = option(RIDGES, RIDGE, "how strongly the refit is drawn to the old weight")

    @property
    def claim(self) -> Preserves:
        """``refit``, or ``structural`` where nothing is fitted."""
        return "refit" if self.refit else "structural"

    @property
    def needs_text(self) -> str:
        """The refit needs text."""
        return "the refit" if self.refit else ""

    # -- decide

    def decide(self, graph: Graph, measurements: Measurements | None, constraints: Constraints) -> ShareKV:
        """Return the pass with a donor for each reader. Chains collapse: a reader's reader reads the root donor.

        Raises:
            IllegalPassError: A reader does not fit its donor, or its projection cannot be refitted.
        """
        found = attentions(graph)
        donors = self._collapse(self._pairs(found, graph.layer_count()), found)
        for reader, donor in donors.items():
            misfit = _misfit(found[reader], found.get(donor))
            if misfit is not None:
                self._refuse(found, reader, donor, misfit, donors)
            refusal = _refit_refusal(found[reader], self.target) if self.refit else None
            if refusal is not None:
                fix = "leave the layer out, or use refit: false"
                where = self.place("refit")
                raise StructureError(owner=self.name, layer=reader, reason=refusal.reason, fix=fix, where=where)
        return replace(self, layers=Selection.of(donors) if donors else None, groups=None, donor=donors)

    def _pairs(self, found: Mapping[int, Attention], count: int) -> dict[int, int]:
        """Return each reader's donor as the options name it."""
        if self.groups is not None or isinstance(self.layers, tuple):
            if self.donor != "nearest" or (self.groups is not None and isinstance(self.layers, tuple)):
                second = "donor" if self.donor != "nearest" else "a list of groups in layers"
                fix = "in a group the first layer is the donor"
                first, where = "groups", self.place("groups")
                raise OptionConflictError(owner=self.name, first=first, second=second, fix=fix, where=where)
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
        assert isinstance(self.layers, Selection)
        named_one_by_one = self.layers.explicit
        pairs: dict[int, int] = {}
        for reader in readers:
            if isinstance(self.donor, int):
                if named_one_by_one or (reader > self.donor and _misfit(found[reader], found.get(self.donor)) is None):
                    pairs[reader] = self.donor
                continue
            legal = _legal_donors(found, reader, readers if named_one_by_one else pairs)
            if legal:
                pairs[reader] = legal[-1]
            elif named_one_by_one:
                self._refuse_reader(found, reader)
        return pairs

    def _readers(self, found: Mapping[int, Attention], count: int) -> list[int]:
        if self.layers is None:
            fix = 'add layers: "4..7", groups: 2, or donor: {4: 3}'
            raise MissingKeyError(owner=self.name, name="layers", fix=fix, where=self.place())
        assert isinstance(self.layers, Selection)
        return self.layers.resolve(found, count, self.name, self.place("layers"))

    def _grouped(self, found: Mapping[int, Attention], count: int) -> Iterable[Sequence[int]]:
        if isinstance(self.layers, tuple):
            for group in self.layers:
                yield Selection.of(group).resolve(found, count, self.name, self.place("layers"))
            return
        assert self.groups is not None
        chosen = Selection(predicate="all") if self.layers is None else self.layers
        kinds: dict[object, list[int]] = {}
        for layer in chosen.resolve(found, count, self.name, self.place("layers")):
            rotation = key_rotation(found[layer].memory)
            memory = found[layer].memory.memory.with_window(None)
            kinds.setdefault((found[layer].window, memory, str(rotation and rotation.attributes)), []).append(layer)
        for layers in kinds.values():
            for start in range(0, len(layers), self.groups):
                yield layers[start : start + self.groups]

    def _collapse(self, pairs: Mapping[int, int], found: Mapping[int, Attention]) -> dict[int, int]:
        """Follow each donor to the layer that makes the memory, and take along who read a reader's memory before."""
        for reader, donor in pairs.items():
            if donor >= reader or donor not in found:
                self._refuse(found, reader, donor, f"layer {donor} does not come before layer {reader}", pairs)
        wide = {**{a.layer: a.owner for a in found.values() if a.owner in pairs}, **pairs}

        def root(layer: int) -> int:
            while True:
                above = wide.get(layer, found[layer].owner if layer in found else layer)
                if above == layer:
                    return layer
                layer = above

        return {reader: root(donor) for reader, donor in sorted(wide.items()) if reader != donor}

    def _refuse(
        self, found: Mapping[int, Attention], reader: int, donor: int, misfit: str, pairs: Mapping[int, int]
    ) -> NoReturn:
        legal = [layer for layer in _legal_donors(found, reader, ()) if layer not in pairs]
        notes = [misfit, NEEDS] if misfit else [NEEDS]
        raise DonorError(
            reader=reader,
            reader_kind=found[reader].described,
            donor=donor,
            donor_kind=found[donor].described if donor in found else "no attention",
            legal=f"layer {reader} may read {_listed(legal)}" if legal else f"layer {reader} has no legal donor",
            notes=notes,
            where=self.place("donor" if self.donor != "nearest" else "layers" if self.layers else "groups"),
        )

    def _refuse_reader(self, found: Mapping[int, Attention], reader: int) -> NoReturn:
        others = [layer for layer in found if _legal_donors(found, layer, ())]
        fix = f"layers that have one: {ranges(others)}" if others else "no layer of this model has one"
        kind = found[reader].described
        raise NoLegalDonorError(reader=reader, reader_kind=kind, fix=fix, notes=[NEEDS], where=self.place("layers"))

    # -- rewrite

    def rewrite(self, graph: Graph) -> Report:
        """Point each reader at its donor's memory, and refit its output projection."""
        assert isinstance(self.donor, Mapping), "decide comes first"
        found = attentions(graph)
        memories = {reader: found[donor].memory for reader, donor in self.donor.items()}
        return drive(graph, _ReadDonor(self, memories))


@dataclass(frozen=True)
class _Site:
    attend: Attend
    donor: Value
    output: Output | None


@dataclass(frozen=True)
class _ReadDonor(Rule[Attend, _Site]):
    op: ClassVar[type[Op]] = Attend
    options: ShareKV
    memories: Mapping[int, Value]

    def match(self, op: Attend, graph: Graph) -> _Site | Refusal:
        layer = layer_of(op.out.name)
        if layer is None or layer not in self.memories:
            return Refusal("not among the readers")
        donor = self.memories[layer]
        if donor is op.memory:
            return Refusal(f"it reads %{donor.name} already")
        output = output_of(op) if self.options.refit else None
        return output if isinstance(output, Refusal) else _Site(op, donor, output)

    def rewrite(self, site: _Site, edit: Editor) -> str:
        done = f"reads %{site.donor.name}"
        if self.options.refit and self.options.queries:
            refusal = align_queries(edit, site.attend, site.donor, self.options.ridge)
            done += f", queries as they were ({refusal.reason})" if refusal else ", queries turned to its keys"
        edit.set_operand(site.attend, "memory", site.donor)
        if site.output is not None:
            refit_output(edit, site.output, self.options.target, self.options.ridge)
            done += f", output projection refitted ({self.options.target}, ridge {self.options.ridge:g})"
        return done


def _misfit(reader: Attention, donor: Attention | None) -> str | None:
    """Return why ``reader`` cannot read the donor's memory, empty where the kinds say it already; None where it can."""
    if donor is None:
        return "the donor has no attention"
    if donor.layer >= reader.layer:
        return f"layer {donor.layer} does not come before layer {reader.layer}"
    if donor.kind != reader.kind:
        return ""
    if reader.window is not None and donor.window is not None and reader.window > donor.window:
        return f"the reader looks back {reader.window} rows, the donor keeps {donor.window}"
    mine, theirs = reader.memory.memory.with_window(None), donor.memory.memory.with_window(None)
    if mine != theirs:
        return f"their rows differ: {mine} and {theirs}"
    mine, theirs = key_rotation(reader.memory), key_rotation(donor.memory)
    if (mine and mine.attributes) != (theirs and theirs.attributes):
        return f"their keys are rotated differently: {rotation_text(mine)} and {rotation_text(theirs)}"
    return None


def _legal_donors(found: Mapping[int, Attention], reader: int, readers: Iterable[int]) -> list[int]:
    """Return the earlier layers whose memory ``reader`` may read: those that make one and are no readers themselves."""
    taken = set(readers)
    return [
        layer
        for layer, attention in found.items()
        if layer not in taken and attention.owner == layer and _misfit(found[reader], attention) is None
    ]


def _refit_refusal(attention: Attention, target: str) -> Refusal | None:
    output = output_of(attention.attend)
    return output if isinstance(output, Refusal) else refit_refusal(output, target)


def _listed(layers: Sequence[int]) -> str:
    if len(layers) > 8:
        return ranges(layers)
    *first, last = map(str, layers)
    return f"{', '.join(first)} or {last}" if first else last
