"""`to-latent`: few numbers a token instead of keys and values, which are rebuilt from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, cast

from regraft.ir.errors.recipe import (
    MissingKeyError,
    OptionConflictError,
    RankError,
    StructureError,
)
from regraft.ir.graph import Graph, layer_of
from regraft.ir.kinds import ranges
from regraft.ir.op import Op
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.latents import Latent, spread_ranks
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
    type_error,
)
from regraft.passes.choosing import leave_out
from regraft.passes.counts import HEADS, Heads, counts_by_layer
from regraft.passes.fitting.decoupled import Rotation, decouple, decoupled_shape, rotation_of
from regraft.passes.fitting.frequencies import KEPT, Kept, choose_frequencies, first_frequencies
from regraft.passes.fitting.latents import (
    BALANCED,
    METHODS,
    Fit,
    Shape,
    keep_latent,
    latent_refusal,
    shape_of,
    stored,
)
from regraft.passes.fitting.normed import add_output_bias, in_layout, normed_refusal
from regraft.passes.fitting.refit import RIDGE, RIDGES, TARGET, refit_output, refit_text, refits_refusal
from regraft.passes.gqa_to_latent import latent_sites
from regraft.passes.located import Node
from regraft.passes.matching.latents import absorb, expanded_site
from regraft.passes.matching.memories import KeyValues, key_values
from regraft.passes.matching.rewrite import Editor, Rule, drive
from regraft.passes.matching.sites import Refusal, attentions, output_of
from regraft.passes.selection import LAYERS, Selection

Balance = float | str
BALANCES = (0.1, 0.3, 1.0, 3.0)  # those that are measured
BALANCE_FORM = "measured, traces, or a number above 0 such as 0.3"


def _read_balance(node: Node, owner: str, name: str) -> Balance:
    value = node.scalar
    if value in ("measured", "traces"):
        return str(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1e6:
        raise type_error(node, owner, name, BALANCE_FORM)
    return float(value)


def _read_rope(node: Node, owner: str, name: str) -> str | int:
    if node.scalar == "all":
        return "all"
    if isinstance(node.scalar, str):
        raise type_error(node, owner, name, ROPE_FORM)
    return read_integer(node, owner, name, 0, 65536)


ROPE_FORM = "all, or a number of channels"
BALANCE: OptionKind[Balance] = OptionKind(BALANCE_FORM, _read_balance)
ROPE: OptionKind[str | int] = OptionKind(ROPE_FORM, _read_rope)


@dataclass(frozen=True)
class ToLatent(Pass):
    """Keep a latent of each token, a linear map of the layer's input, and rebuild keys and values from it.

    Keys are rebuilt before rotation and turned at their own positions. Of keys that are normed, one over what the norm
    divides by is kept beside the latent, a number for each KV head. At the full rank the function stays the same. The
    metric weighs errors by what they move the output; with ``refit`` the output projection makes up for a part of what
    is lost. Each call rebuilds all rows, so a decode step reads fewer bytes and takes many more operations.

    With a number of channels as ``rope`` the result has the form of multi-head latent attention: so many channels of
    one key that all heads share go on turning, the rest of the keys no longer does, each query head seeing it turned by
    the mean over what it attends to. That form can be ``absorbed``: attention in the latent itself, as programs do it
    for single tokens anyway. No class of transformers holds it: those norm the latent, which is another function. With
    ``layout: deepseek`` one more number is kept, the same large one for every token, so that the norm changes nothing:
    where the rest of the model is theirs too, transformers' DeepSeek V3 loads the result.
    """

    name: ClassVar[str] = "to-latent"
    preserves: ClassVar[Preserves] = "refit"
    source: ClassVar[str] = (
        "DeepSeek-AI 2024, DeepSeek-V2 (latent attention); specs/passes_math.md, sections 4.3, 4.6 and 4.8"
    )

    rank: Heads | None = optional_option(
        HEADS, "numbers a token, without those carried for norms; a share is of all that a token takes now"
    )
    total: int | None = optional_option(
        integer(1, 10**7), "ranks of all layers together, dealt by what each layer's spectrum says a rank is worth"
    )
    step: int = option(integer(1, 1024), 1, "deal so many ranks at a time", needs="total")
    layers: Selection | None = optional_option(LAYERS, "whose memories; by default all that hold keys and values")
    method: str = option(
        choice(*METHODS), "metric", "what the latent keeps most of: scores and outputs, keys and values, or weights"
    )
    balance: Balance = option(
        BALANCE, 1.0, "with metric, how much more keys weigh than they should to first order; or measured, or traces"
    )
    rope: str | int = option(ROPE, "all", "channels that go on turning, of one key for all heads; all: keys by head")
    kept: Kept | None = optional_option(KEPT, "with a number of rope channels, the frequency of each pair of them")
    alike: bool = option(BOOL, False, "with a number of rope channels, keep the same frequencies in all layers")
    form: str = option(
        choice("reconstruct", "absorbed"), "reconstruct", "rebuild keys and values, or attend in the latent"
    )
    layout: str = option(
        choice("own", "deepseek"),
        "own",
        "deepseek: as its checkpoints are, the same rank and frequencies in all layers",
    )
    normed: str = option(
        choice("carried", "inside"), "carried", "normed keys: what the norm divides by beside the latent, or within"
    )
    refit: bool = option(BOOL, True, "fit the output projection in closed form")
    target: str = option(
        TARGET, "drift", "what the refit aims at; drift makes up for earlier layers too", needs="refit: true"
    )
    ridge: float = option(RIDGES, RIDGE, "of the refit, in units of the mean second moment", needs="refit: true")
    assumed: bool = field(default=False, compare=False, repr=False, kw_only=True)  # right in number only

    @property
    def claim(self) -> Preserves:
        """``refit``, or ``structural`` where nothing is fitted to text."""
        return "refit" if self.needs_text else "structural"

    @property
    def needs_data(self) -> bool:
        """Until ranks are dealt, and balance and frequencies are chosen."""
        return self.total is not None or self._balance_is_open or self._kept_is_open

    @property
    def _balance_is_open(self) -> bool:
        return self.method == "metric" and self.balance == "measured"

    @property
    def _kept_is_open(self) -> bool:
        return self.rope != "all" and self.kept is None

    @property
    def open_choice(self) -> tuple[str, str]:
        """Spectra deal the ranks, divergences choose the balance, and what frequencies carry those that are kept."""
        if self.total is not None:
            return "the layers' spectra", "rank"
        return ("what frequencies carry", "kept") if self._kept_is_open else ("measured divergence", "balance")

    @property
    def needs_text(self) -> str:
        """All but weights alone needs text."""
        if self.rope != "all":
            return "what frequencies carry"
        if self.method != "weight-svd":
            return f"the method {self.method}"
        return "the output refit" if self.refit else ""

    # -- decide

    def decide(self, graph: Graph, measurements: Measurements | None, constraints: Constraints) -> ToLatent:
        """Return the pass with each layer's rank and the balance; without measurements, as far as they are known.

        Raises:
            IllegalPassError: A rank, a list or a layer's structure does not allow it.
        """
        self._check_options()
        sites = latent_sites(self, graph, self.layers)
        for layer, site in sites.items():
            self._check_site(layer, site, graph)
        if self.layout == "deepseek":
            self._check_layout(set(sites) == set(attentions(graph)))
        shapes = {layer: self._shape(site) for layer, site in sites.items()}
        if self._kept_is_open and measurements is not None:
            kept = choose_frequencies(sites, graph, cast("int", self.rope) // 2, measurements, self._alike)
            return replace(self, kept=kept).decide(graph, measurements, constraints)
        if self.total is not None:
            self._check_total(shapes)
            self._check_refits(sites if self.refit else {}, graph)
            if measurements is None:
                return replace(self, layers=Selection.of(sites))
            ranks = self._dealt(graph, sites, shapes, measurements)
        else:
            ranks = self._ranks(graph, sites, shapes)
        changed = {layer: sites[layer] for layer in ranks if self.rope != "all" or ranks[layer] < shapes[layer].full}
        self._check_refits(changed if self.refit else {}, graph)
        explicit = replace(self, rank=dict(sorted(ranks.items())), total=None, step=1, layers=Selection.of(ranks))
        if not explicit._balance_is_open:
            return explicit
        if self.rope == "all" and all(rank == shapes[layer].full for layer, rank in ranks.items()):
            return replace(explicit, balance="traces")
        if measurements is None:
            return explicit
        choices = [replace(explicit, balance=balance) for balance in BALANCES]
        damage = measurements.damage(graph, [each.rewrite for each in choices])
        return choices[min(range(len(choices)), key=damage.__getitem__)]

    def assume(self, graph: Graph) -> ToLatent:
        """Return the pass with ranks dealt evenly and keys and values weighed alike: right in number, not in choice."""
        balance = "traces" if self._balance_is_open else self.balance
        sites, kept = latent_sites(self, graph, self.layers), self.kept
        if self._kept_is_open:
            kept = {layer: first_frequencies(site, cast("int", self.rope) // 2) for layer, site in sites.items()}
        if self.total is None:
            return replace(self, balance=balance, kept=kept, assumed=True)
        fulls = [self._shape(site).full for site in sites.values()]
        flat = [[1.0] * full for full in fulls]
        ranks = spread_ranks(flat, self.total, 1, fulls, self.step)
        return replace(
            self, rank=dict(zip(sites, ranks, strict=True)), total=None, balance=balance, kept=kept, assumed=True
        )

    def _shape(self, site: KeyValues) -> Shape:
        """Return how a memory's latent is made; beside a shared key its channels are carried."""
        if self.rope == "all":
            return shape_of(site, self.normed == "inside")
        return replace(decoupled_shape(site), carried=cast("int", self.rope) + (self.layout == "deepseek"))

    @property
    def _alike(self) -> bool:
        return self.alike or self.layout == "deepseek"

    def _check_options(self) -> None:
        problem = None
        if self.rope == "all":
            problem = ("form", "rope: all") if self.form == "absorbed" else None
            problem = ("kept", "rope: all") if self.kept is not None else problem
            problem = ("alike", "rope: all") if self.alike else problem
            problem = ("layout", "rope: all") if self.layout == "deepseek" else problem
        if problem is not None:
            fix = "give rope a number of channels: what turns by head cannot be absorbed"
            where = self.place(problem[0])
            raise OptionConflictError(owner=self.name, first=problem[0], second=problem[1], fix=fix, where=where)

    def _check_layout(self, whole: bool) -> None:
        """Refuse what DeepSeek's layout has no place for: layers that differ, and keys of which nothing turns."""
        kept, ranks = set((self.kept or {}).values()), self.rank
        each = ranks.values() if isinstance(ranks, Mapping) else ranks if isinstance(ranks, tuple) else ()
        wrong = {
            "rope": self.rope == 0,
            "form": self.form == "absorbed",
            "total": self.total is not None,
            "layers": not whole,
            "kept": len(kept) > 1,
            "rank": len(set(each)) > 1,
        }
        for first in (name for name, found in wrong.items() if found):
            fix = "all layers keep the same: one rank, and the same frequencies of a key that turns, expanded by head"
            where = self.place(first)
            raise OptionConflictError(owner=self.name, first=first, second="layout: deepseek", fix=fix, where=where)

    def _refusal(self, site: KeyValues) -> Refusal | None:
        if self.rope == "all":
            return latent_refusal(site, self.method)
        turn = rotation_of(site)
        if isinstance(turn, Refusal):
            return turn
        return normed_refusal(site) if self.layout == "deepseek" else None

    def _check_site(self, layer: int, site: KeyValues, graph: Graph) -> None:
        refusal, turn = self._refusal(site), rotation_of(site) if self.rope != "all" else None
        if isinstance(turn, Rotation):
            self._check_rope(layer, site, turn)
        if refusal is not None:
            every = latent_sites(self, graph, None)
            fix = leave_out([layer], [at for at in every if self._refusal(every[at]) is None])
            fix += ", or use " + ("method: balanced-pca" if self.rope == "all" else "rope: all")
            where = self.place("layers")
            raise StructureError(owner=self.name, layer=layer, reason=refusal.reason, fix=fix, where=where)

    def _check_refits(self, sites: Mapping[int, KeyValues], graph: Graph) -> None:
        """Refuse layers whose output projection cannot be refitted."""
        refusals = {layer: refits_refusal(site.readers) for layer, site in sites.items()}
        for layer, refusal in refusals.items():
            if refusal is not None:
                every = latent_sites(self, graph, None)
                fix = leave_out(sites, [at for at in every if refits_refusal(every[at].readers) is None])
                fix += ", or use refit: false"
                where = self.place("layers")
                raise StructureError(owner=self.name, layer=layer, reason=refusal.reason, fix=fix, where=where)

    def _check_rope(self, layer: int, site: KeyValues, turn: Rotation) -> None:
        """Refuse more channels than turn, and frequencies that the layer does not have so often."""
        channels, most = cast("int", self.rope), 2 * turn.pairs * site.keys.heads
        kept = None if self.kept is None else self.kept.get(layer, ())
        wrong = kept is not None and (
            2 * len(kept) != channels or any(f >= turn.pairs or kept.count(f) > site.keys.heads for f in kept)
        )
        if channels % 2 or channels > most or wrong:
            wanted = f"frequencies {list(kept)}" if kept is not None and wrong else f"rope {channels}"
            legal = f"an even number of channels up to {most}, of {turn.pairs} frequencies each {site.keys.heads} times"
            what = f"layer {layer} turns {most} channels"
            raise RankError(owner=self.name, what=what, wanted=wanted, legal=legal, where=self.place("rope"))

    def _check_total(self, shapes: Mapping[int, Shape]) -> None:
        if self.rank is not None:
            fix = "give the ranks, or what they are together"
            where = self.place("total")
            raise OptionConflictError(owner=self.name, first="rank", second="total", fix=fix, where=where)
        most = sum(shape.full for shape in shapes.values())
        if not len(shapes) <= (self.total or 0) <= most:
            raise RankError(
                owner=self.name,
                what=f"layers {ranges(sorted(shapes))} keep {most} numbers a token at full rank",
                wanted=f"ranks of {self.total} in all",
                legal=f"a total from {len(shapes)} to {most}",
                where=self.place("total"),
            )

    def _ranks(self, graph: Graph, sites: Mapping[int, KeyValues], shapes: Mapping[int, Shape]) -> dict[int, int]:
        """Return each memory's rank, as the options name it."""
        if self.rank is None:
            fix = "add rank: 64, rank: 0.5, rank: {full: 64, sliding: 32}, a list with one entry a layer, or total: 512"
            raise MissingKeyError(owner=self.name, name="rank", fix=fix, where=self.place())
        ranks: dict[int, int] = {}
        found, where = attentions(graph), self.place("rank")
        for layer, wanted in counts_by_layer(
            self.rank, sorted(sites), found, graph.layer_count(), self.name, where
        ).items():
            site, shape = sites[layer], shapes[layer]
            rank = wanted
            if isinstance(rank, float):
                whole = rank >= 1 and shape.full == site.width
                rank = site.width if whole else min(int(rank * site.width) - shape.carried, shape.full)
            if not 1 <= rank <= shape.full:
                self._refuse_rank(layer, site, shape, wanted)
            ranks[layer] = rank
        return ranks

    def _refuse_rank(self, layer: int, site: KeyValues, shape: Shape, wanted: int | float) -> None:
        raise RankError(
            owner=self.name,
            what=f"layer {layer} keeps {site.width} numbers a token",
            wanted=f"rank {wanted}",
            legal=f"a rank from 1 to {shape.full}" + (f", and {shape.carried} carried" if shape.carried else ""),
            where=self.place("rank"),
        )

    def _dealt(
        self,
        graph: Graph,
        sites: Mapping[int, KeyValues],
        shapes: Mapping[int, Shape],
        measurements: Measurements,
    ) -> dict[int, int]:
        """Return ranks by the spectra of all layers, each taken where those before have the ranks of an even deal."""
        assert self.total is not None
        even = replace(self.assume(graph), refit=False)
        trial = graph.copy()
        even.rewrite(trial)
        fits = {layer_of(op.out.name): op for op in trial.ops if isinstance(op, Latent)}
        parts = {layer: [op.targets, op.gram, op.metric] for layer, op in fits.items()}
        wanted = [value for values in parts.values() for value in values if value is not None]
        known = dict(measurements.weights(trial, wanted))
        spectra: list[list[float]] = []
        for layer, shape in shapes.items():
            if layer not in parts:  # whole at an even deal
                spectra.append([1.0] * shape.full)
                continue
            tensors = [None if value is None else known[value] for value in parts[layer]]
            assert tensors[0] is not None
            _, values, _ = fits[layer].spectrum(tensors[0], tensors[1], tensors[2])
            spectra.append([float(value) for value in values[: shape.full]])
        ranks = spread_ranks(spectra, self.total, 1, [shape.full for shape in shapes.values()], self.step)
        return dict(zip(sites, ranks, strict=True))

    # -- rewrite

    def rewrite(self, graph: Graph) -> Report:
        """Keep latents, rebuild keys and values for each reader, and refit the readers' output projections."""
        assert isinstance(self.rank, Mapping), "decide comes first"
        found = attentions(graph)
        return drive(
            graph, _KeepLatent(self, {found[cast("int", layer)].attend: int(rank) for layer, rank in self.rank.items()})
        )

    @property
    def weight_of_keys(self) -> float | None:
        """How much more keys weigh than values in the fit; None so that both cost the same in all."""
        if self.method in (BALANCED, "metric") and isinstance(self.balance, str):
            return None
        return float(self.balance) if self.method == "metric" else 1.0


@dataclass(frozen=True)
class _KeepLatent(Rule[Attend, KeyValues]):
    op: ClassVar[type[Op]] = Attend
    options: ToLatent
    ranks: Mapping[Attend, int]

    def match(self, op: Attend, graph: Graph) -> KeyValues | Refusal:
        if op not in self.ranks:
            return Refusal("not among the layers that make a memory")
        return key_values(op, graph)

    def rewrite(self, site: KeyValues, edit: Editor) -> str:
        options = self.options
        rank = next(self.ranks[attend] for attend in site.readers if attend in self.ranks)
        fit = Fit(rank, options.method, options.weight_of_keys)
        if options.rope == "all":
            shape = shape_of(site, options.normed == "inside")
            keep_latent(edit, site, shape, fit)
            after = stored(site, shape, rank)
            done = f"keeps a latent of {rank}" + (f" and {after - rank} carried" if after > rank else "")
            done += f" instead of {site.width} numbers a token"
            if rank == shape.full:
                return f"{done}, the full rank: exact"
        else:
            done = self._decoupled(site, edit, fit)
        done += f", by {options.method}" + ("" if options.assumed else _told(options))
        if options.refit:
            told = ""
            for attend in site.readers:
                output = output_of(attend)
                assert not isinstance(output, Refusal)
                refit_output(edit, output, options.target, options.ridge)
                told = refit_text(output, options.target, options.ridge)
            done += f", {told}"
        if options.layout == "deepseek":
            output = output_of(site.readers[0])
            assert not isinstance(output, Refusal)
            add_output_bias(edit, output)
        return done

    def _decoupled(self, site: KeyValues, edit: Editor, fit: Fit) -> str:
        """Keep a latent and a shared key, in the form that is wished for."""
        assert self.options.kept is not None
        turn, kept = rotation_of(site), self.options.kept[site.layer]
        assert not isinstance(turn, Refusal)
        decouple(edit, site, turn, fit, kept)
        if self.options.form == "absorbed":
            made = expanded_site(turn.attend)
            assert not isinstance(made, Refusal), made
            absorb(made, edit)
        elif self.options.layout == "deepseek":
            in_layout(edit, turn.attend)
        done = f"keeps a latent of {fit.rank} and {2 * len(kept)} channels of one key that turns"
        return f"{done} instead of {site.width} numbers a token" + (", absorbed" * (self.options.form == "absorbed"))


def _told(options: ToLatent) -> str:
    return f", balance {options.balance}" if options.method == "metric" else ""
