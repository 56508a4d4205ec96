"""`to-cca`: attention with smaller heads: the frequencies of keys and directions of values that carry most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from regraft.ir.errors.recipe import MissingKeyError, RankError, StructureError
from regraft.ir.graph import Graph
from regraft.ir.op import Op, Value
from regraft.ir.ops.algebra import MatMul, Permute, Reshape
from regraft.ir.ops.attn import KV, Attend
from regraft.ir.ops.core import Flatten, Linear, Unflatten
from regraft.ir.ops.fits import Moment, Statistic, second_moment, width
from regraft.ir.ops.latents import Latent, LatentMetric, Recover, head_costs, pairs
from regraft.ir.ops.pos import Rope
from regraft.ir.ops.weight import Cast, ConcatWeight, SliceWeight, Stack, Take
from regraft.passes.add_short_convs import AddShortConvs
from regraft.passes.base import (
    BOOL,
    Constraints,
    Measurements,
    Pass,
    Preserves,
    Report,
    integer,
    option,
    optional_option,
)
from regraft.passes.choosing import leave_out
from regraft.passes.counts import HEADS, Heads, counts_by_layer
from regraft.passes.fitting.decoupled import Rotation, queries_of, rotation_of
from regraft.passes.fitting.frequencies import KEPT, Kept
from regraft.passes.fitting.latents import output_weight, spread_of
from regraft.passes.fitting.refit import RIDGE, RIDGES, TARGET, refit_output, refit_text, refits_refusal, undo_refit
from regraft.passes.gqa_to_latent import latent_sites
from regraft.passes.matching.memories import KeyValues, key_values
from regraft.passes.matching.rewrite import Editor, Rule, drive
from regraft.passes.matching.sites import Output, Refusal, attentions, output_of
from regraft.passes.selection import LAYERS, Selection


@dataclass(frozen=True)
class ToCCA(Pass):
    """Attend with smaller heads, as compressed convolutional attention does, and convolve over the last tokens before.

    Of a layer's rotary frequencies those stay that carry most of the scores, the same for all heads; of each KV head's
    values the directions that carry most of the output. Queries, keys and values become as narrow as that, and so does
    the cache. Convolutions start as deltas. At the full width nothing changes. Norms of whole heads are no part of this
    form, and layers that have them are refused.
    """

    name: ClassVar[str] = "to-cca"
    preserves: ClassVar[Preserves] = "refit"
    source: ClassVar[str] = (
        "Figliolia et al. 2025, Compressed Convolutional Attention; specs/passes_math.md, section 4.7"
    )

    width: Heads | None = optional_option(HEADS, "channels of a head that stay, an even number, or a share of them")
    kept: Kept | None = optional_option(KEPT, "the frequencies that stay, layer by layer")
    taps: int = option(integer(1, 256), 2, "tokens that the convolutions see; with 1 there are none")
    layers: Selection | None = optional_option(LAYERS, "which layers; by default all that can")
    refit: bool = option(BOOL, True, "fit the output projection in closed form")
    target: str = option(
        TARGET, "drift", "what the refit aims at; drift makes up for earlier layers too", needs="refit: true"
    )
    ridge: float = option(RIDGES, RIDGE, "of the refit, in units of the mean second moment", needs="refit: true")
    assumed: bool = field(default=False, compare=False, repr=False, kw_only=True)  # ``kept`` is right in number only

    @property
    def needs_data(self) -> bool:
        """Until the frequencies are chosen."""
        return self.kept is None

    @property
    def open_choice(self) -> tuple[str, str]:
        """What frequencies carry chooses those that stay."""
        return "what frequencies carry", "kept"

    @property
    def needs_text(self) -> str:
        """Directions and frequencies are chosen by what they carry."""
        return "what frequencies and values carry"

    def decide(self, graph: Graph, measurements: Measurements | None, constraints: Constraints) -> ToCCA:
        """Return the pass with each layer's width and frequencies; without measurements, with the widths.

        Raises:
            IllegalPassError: A width or a layer's structure does not allow it.
        """
        sites = _narrowable(self, graph)
        widths = self._widths(graph, sites)
        explicit = replace(self, width=widths, layers=Selection.of(widths))
        chosen = {layer: sites[layer] for layer in widths}
        self._check_refits(chosen, graph)
        if self.kept is not None:
            for layer, channels in widths.items():
                kept = self.kept.get(layer, ())
                if 2 * len(kept) != channels or any(f >= sites[layer].keys.width // 2 for f in kept):
                    self._refuse(layer, sites[layer], f"frequencies {list(kept)}")
            return explicit
        if measurements is None:
            return explicit
        return replace(explicit, kept=_carried(graph, chosen, widths, measurements))

    def assume(self, graph: Graph) -> ToCCA:
        """Return the pass with the fastest frequencies: right in number only."""
        assert isinstance(self.width, Mapping), "decide comes first"
        kept = {int(layer): tuple(range(int(channels) // 2)) for layer, channels in self.width.items()}
        return replace(self, kept=kept, assumed=True)

    def _widths(self, graph: Graph, sites: Mapping[int, KeyValues]) -> dict[int, int]:
        if self.width is None:
            where = self.place()
            raise MissingKeyError(owner=self.name, name="width", fix="add width: 32, or width: 0.5", where=where)
        found, widths = attentions(graph), dict[int, int]()
        where, count = self.place("width"), graph.layer_count()
        for layer, wanted in counts_by_layer(self.width, sorted(sites), found, count, self.name, where).items():
            channels = sites[layer].keys.width
            some = wanted if isinstance(wanted, int) else max(2, 2 * int(wanted * channels / 2))
            if some % 2 or not 2 <= some <= channels:
                self._refuse(layer, sites[layer], f"width {wanted}")
            widths[layer] = some
        return dict(sorted(widths.items()))

    def _refuse(self, layer: int, site: KeyValues, wanted: str) -> None:
        what, channels = f"layer {layer} has heads of {site.keys.width} channels", site.keys.width
        legal = f"an even width from 2 to {channels}, of different frequencies from 0 to {channels // 2 - 1}"
        raise RankError(owner=self.name, what=what, wanted=wanted, legal=legal, where=self.place("width"))

    def _check_refits(self, sites: Mapping[int, KeyValues], graph: Graph) -> None:
        refusals = {layer: refits_refusal(site.readers) for layer, site in sites.items() if self.refit}
        for layer, refusal in refusals.items():
            if refusal is not None:
                every = latent_sites(self, graph, None)
                fix = leave_out(sites, [at for at in every if refits_refusal(every[at].readers) is None])
                fix += ", or use refit: false"
                where = self.place("layers")
                raise StructureError(owner=self.name, layer=layer, reason=refusal.reason, fix=fix, where=where)

    def rewrite(self, graph: Graph) -> Report:
        """Narrow the heads of each layer, and add the convolutions."""
        assert self.kept is not None, "decide comes first"
        found = attentions(graph)
        report = drive(graph, _Narrow(self, {found[layer].attend: kept for layer, kept in self.kept.items()}))
        if self.taps == 1 or not self.kept:
            return report
        convs = AddShortConvs(layers=Selection.of(self.kept), of="qk", taps=self.taps).rewrite(graph)
        told = {note.layer: note.text for note in convs.applied}
        notes = tuple(replace(n, text=f"{n.text}; {told[n.layer]}") if n.layer in told else n for n in report.notes)
        return Report(notes)


def _refusal(site: KeyValues, graph: Graph) -> Refusal | None:
    """Return why a memory's heads cannot be narrowed, or None where they can."""
    turn = rotation_of(site)
    if isinstance(turn, Refusal):
        return turn
    queries = _linear_of(turn.queries.x)
    sides = (site.keys, site.values)
    if queries is None or any(side.linear is None or side.norm is not None for side in sides):
        return Refusal("queries, keys or values are more than projections: norms are of whole heads")
    keys, values = (side.linear for side in sides)
    if keys is values or not isinstance(site.state, KV):
        return Refusal("keys and values are not kept by themselves")
    if values is None or values.bias is not None:
        return Refusal("values have a bias, which narrower ones cannot hold")
    if graph.ops.index(turn.queries) > graph.ops.index(values):
        return Refusal("its queries are made after its values, which are fitted to them")
    output = output_of(turn.attend)
    if isinstance(output, Refusal) or [type(op) for op in output.chain] != [Flatten]:
        return output if isinstance(output, Refusal) else Refusal("something stands between attention and its output")
    if turn.keys.channels != site.keys.width or site.values.width < site.keys.width:
        return Refusal("only a part of a key's channels turns, or values are narrower than keys")
    return None


def _linear_of(heads: Value) -> Linear | None:
    maker = heads.op.x.op if isinstance(heads.op, Unflatten) else None
    return maker if isinstance(maker, Linear) and maker.weight.is_weight else None


def _narrowable(owner: ToCCA, graph: Graph) -> dict[int, KeyValues]:
    """Return the memories whose heads can be narrowed.

    Raises:
        StructureError: A layer that is named has heads that cannot, or all have.
    """
    sites = latent_sites(owner, graph, owner.layers)
    refused = {layer: reason for layer, site in sites.items() if (reason := _refusal(site, graph)) is not None}
    named = owner.layers is not None and owner.layers.explicit
    if refused and (named or len(refused) == len(sites)):
        layer, refusal = next(iter(refused.items()))
        every = latent_sites(owner, graph, None)
        fix = (
            leave_out(refused, [at for at in every if _refusal(every[at], graph) is None])
            + "; to-latent takes any keys and values"
        )
        where = owner.place("layers")
        raise StructureError(owner=owner.name, layer=layer, reason=refusal.reason, fix=fix, where=where)
    return {layer: site for layer, site in sites.items() if layer not in refused}


def _carried(
    graph: Graph, sites: Mapping[int, KeyValues], widths: Mapping[int, int], measurements: Measurements
) -> dict[int, tuple[int, ...]]:
    """Return the frequencies of each layer that carry most of what scores move."""
    turns = {layer: turn for layer, site in sites.items() if isinstance(turn := rotation_of(site), Rotation)}
    wanted = [statistic for layer, turn in turns.items() for statistic in _statistics(sites[layer], turn)]
    found = measurements.statistics(graph, wanted)
    kept: dict[int, tuple[int, ...]] = {}
    for layer, turn in turns.items():
        keys, queries, spread = next(found), next(found), next(found)
        output = output_of(turn.attend)
        assert not isinstance(output, Refusal)
        costs = head_costs(spread, measurements.weight(graph, output_weight(output.linear)))
        real, imaginary = pairs(turn.keys.channels, turn.keys.layout)
        asked = queries.diagonal(dim1=1, dim2=2) * costs[:, None]
        held = keys.diagonal().view(sites[layer].keys.heads, -1)[list(turn.attend.groups)]
        worth = ((asked[:, real] + asked[:, imaginary]) * (held[:, real] + held[:, imaginary])).sum(0)
        best = worth.argsort(descending=True, stable=True)[: widths[layer] // 2]
        kept[layer] = tuple(sorted(int(f) for f in best))
    return kept


def _statistics(site: KeyValues, turn: Rotation) -> tuple[Statistic, ...]:
    return second_moment(site.keys.before), queries_of(turn), spread_of(site, turn.attend)


# -- rewriting


@dataclass(frozen=True)
class _Narrow(Rule[Attend, KeyValues]):
    op: ClassVar[type[Op]] = Attend
    options: ToCCA
    kept: Mapping[Attend, tuple[int, ...]]

    def match(self, op: Attend, graph: Graph) -> KeyValues | Refusal:
        if op not in self.kept:
            return Refusal("keeps its heads as they are")
        return key_values(op, graph)

    def rewrite(self, site: KeyValues, edit: Editor) -> str:
        attend, kept = site.readers[0], self.kept[site.readers[0]]
        turn, output = rotation_of(site), output_of(attend)
        assert not isinstance(turn, Refusal)
        assert not isinstance(output, Refusal)
        channels = 2 * len(kept)
        done = f"heads of {channels} channels instead of {site.keys.width}"
        if channels == site.keys.width == site.values.width:
            return f"{done}: as they are"
        down, back = _values(edit, site, turn, output, channels)
        asking = _linear_of(turn.queries.x)
        assert asking is not None
        assert turn.queries.x.op is not None
        edit.set_aside_measured([asking, turn.queries.x.op, turn.queries])
        for heads, rope in ((turn.queries.x, turn.queries), (site.keys.before, turn.keys)):
            _take(edit, heads, rope, kept, turn)
        values = site.values.linear
        assert values is not None
        dtype = values.weight.tensor.dtype
        edit.replace_weight(values, "weight", lambda _, name: edit.add(Cast, name, down, dtype=dtype, before=values))
        undo_refit(edit, output)
        edit.replace_weight(output.linear, "weight", lambda old, name: _narrowed(edit, attend, output, old, back, name))
        edit.graph.retype()
        if not self.options.refit:
            return done
        refit_output(edit, output, self.options.target, self.options.ridge)
        return f"{done}, {refit_text(output, self.options.target, self.options.ridge)}"


def _take(edit: Editor, heads: Value, rope: Rope, kept: Sequence[int], turn: Rotation) -> None:
    """Let a projection make only the pairs that are kept, and turn by their angles."""
    linear = _linear_of(heads)
    assert linear is not None
    count, channels = int(str(heads.tensor.shape[2])), int(str(heads.tensor.shape[3]))
    real, imaginary = pairs(rope.channels, rope.layout)
    order = [real[f] for f in kept] + [imaginary[f] for f in kept]
    rows = tuple(head * channels + channel for head in range(count) for channel in order)

    def taken(old: Value, name: str) -> Value:
        return edit.add(Take, f"{name}.kept", old, block=1, indices=rows, before=linear)

    for slot in ("weight", "bias"):
        if linear.slots[slot]:
            edit.replace_weight(linear, slot, taken)
    size, angles = 2 * len(kept), turn.angles
    factors = tuple(1 / (angles[f] * rope.base ** (2 * place / size)) for place, f in enumerate(kept))
    facts: dict[str, object] = {"base": rope.base, "channels": size, "amplitude": rope.amplitude}
    facts |= {"scaling": "longrope", "factors": factors}
    for name in rope.spec.attributes:
        edit.set_attribute(rope, name, facts.get(name, rope.spec.attributes[name].default))


def _values(edit: Editor, site: KeyValues, turn: Rotation, output: Output, channels: int) -> tuple[Value, Value]:
    """Return the narrower value projection, in float64, and each KV head's map back ``[Hkv, Dv, channels]``."""
    values, attend = site.values.linear, turn.attend
    assert values is not None
    name, size = values.weight.name, width(values.x.tensor)
    gram = edit.add(Moment, f"{name}.gram", a=values.x, b=values.x, rows=size, columns=size, before=values)
    (spread,) = edit.graph.add(spread_of(site, attend), [edit.graph.fresh(f"{name}.spread")], before=values)
    (queries,) = edit.graph.add(queries_of(turn), [edit.graph.fresh(f"{name}.queries")], before=values)
    weight = output_weight(output.linear)
    edit.hoist(weight, values)
    facts: dict[str, object] = {"groups": attend.groups, "scale": attend.scale, "kv_heads": site.keys.heads}
    metric = edit.add(LatentMetric, f"{name}.metric", queries, weight, spread=spread, before=values, **facts)
    down, back = list[Value](), list[Value]()
    start, wide = site.keys.heads * site.keys.width, site.values.width
    for head in range(site.values.heads):
        first, last = head * wide, (head + 1) * wide
        mine = edit.add(SliceWeight, f"{name}.{head}", values.weight, start=first, stop=last, before=values)
        first += start
        cut = edit.add(SliceWeight, f"{name}.{head}.costs", metric, start=first, stop=first + wide, before=values)
        cost = edit.add(SliceWeight, f"{name}.{head}.cost", cut, axis=1, start=first, stop=first + wide, before=values)
        rest: dict[str, object] = {"gram": gram, "metric": cost, "rank": channels, "keys": wide, "balance": 1.0}
        made = edit.add(Latent, f"{name}.{head}.fitted", mine, before=values, **rest)
        down.append(made)
        back.append(edit.add(Recover, f"{name}.{head}.back", mine, made, gram=gram, before=values))
    joined = edit.add(ConcatWeight, f"{name}.fitted", down, before=values)
    return joined, edit.add(Stack, f"{name}.back", back, before=values)


def _narrowed(edit: Editor, attend: Attend, output: Output, old: Value, back: Value, name: str) -> Value:
    """Return the output projection of narrower values."""
    linear = output.linear
    model, _ = old.tensor.sizes
    _, wide, channels = back.tensor.sizes
    heads = old.tensor.sizes[1] // wide
    split = edit.add(Reshape, f"{name}.heads", old, shape=(model, heads, wide), before=linear)
    by_head = edit.add(Permute, f"{name}.by_head", split, axes=(1, 0, 2), before=linear)
    maps = edit.add(Take, f"{name}.maps", back, block=1, indices=attend.groups, before=linear)
    narrow = edit.add(MatMul, f"{name}.narrow", by_head, maps, before=linear)
    rows = edit.add(Permute, f"{name}.rows", narrow, axes=(1, 0, 2), before=linear)
    flat = edit.add(Reshape, f"{name}.flat", rows, shape=(model, heads * channels), before=linear)
    return edit.add(Cast, f"{name}.narrowed", flat, dtype=old.tensor.dtype, before=linear)
