"""`window`: layers, or some heads of them, that look back a bounded number of tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from regraft.ir.errors.recipe import OptionRangeError, StructureError
from regraft.ir.graph import Graph, layer_of
from regraft.ir.kinds import ranges
from regraft.ir.op import Op, Value
from regraft.ir.ops.algebra import Log
from regraft.ir.ops.attn import KV, Attend, PickHeads
from regraft.ir.ops.core import Concat, Flatten, Unflatten
from regraft.ir.ops.fits import BeyondWindow
from regraft.ir.ops.weight import Cast, Take
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
from regraft.passes.choosing import check_choose, least_damage, leave_out, never_outrun
from regraft.passes.fitting.refit import RIDGE, RIDGES, TARGET, refit_output, refit_refusal, refit_text
from regraft.passes.located import Node
from regraft.passes.matching.heads import group_map
from regraft.passes.matching.rewrite import Editor, Rule, drive
from regraft.passes.matching.sites import Attention, Output, Refusal, attentions, output_of
from regraft.passes.selection import LAYERS, MOST_LAYERS, Selection

LocalHeads = Mapping[int, tuple[int, ...]]

MOST_ROWS = 1 << 40
SINKS = 4


def _read_local(node: Node, owner: str, name: str) -> LocalHeads:
    if node.entries is None:
        raise type_error(node, owner, name, "a map {layer: [KV heads]}")
    found: dict[int, tuple[int, ...]] = {}
    for key, value in node.entries:
        if not value.items:
            raise type_error(value, owner, name, "the KV heads of a layer, such as [0, 2]")
        heads = {read_integer(each, owner, name, 0, 65536) for each in value.items}
        found[read_key(key, owner, name, MOST_LAYERS)] = tuple(sorted(heads))
    return found


LOCAL: OptionKind[LocalHeads] = OptionKind(
    "a map {layer: [KV heads]}", _read_local, lambda local: {layer: list(heads) for layer, heads in local.items()}
)


@dataclass(frozen=True)
class Window(Pass):
    """Let layers attend to the last tokens only, and to the first ones.

    The rows between are forgotten, so a layer's cache stops to grow. It is the same function up to ``window`` tokens;
    beyond, what the forgotten rows had of the softmax is lost. Kept sinks hold most of that. ``choose`` windows those
    layers, and ``full_heads`` those KV heads of each layer, whose windowing alone diverges least on calibration text.
    With ``refit`` the output projection is fitted to the original's residual stream. Judge it at contexts several times
    the window.
    """

    name: ClassVar[str] = "window"
    preserves: ClassVar[Preserves] = "refit"
    source: ClassVar[str] = (
        "Xiao et al. 2023, Efficient Streaming Language Models with Attention Sinks; Xiao et al. 2024, DuoAttention "
        "(heads that keep everything); specs/passes_math.md, sections 6.1 and 6.5"
    )

    window: int | None = optional_option(integer(1, MOST_ROWS), "how many tokens back, its own included", required=True)
    layers: Selection | None = optional_option(LAYERS, "which layers; by default all that look further back")
    sinks: int | None = optional_option(
        integer(0, 65536), "how many of the first tokens stay visible; by default 4", needs="sink: kept"
    )
    sink: str = option(
        choice("kept", "fitted"),
        "kept",
        "fitted: instead of keeping tokens, each head gets a score without a value that takes what was forgotten had",
    )
    choose: int | None = optional_option(integer(1, MOST_LAYERS), "window only so many of the layers, by measured KL")
    full_heads: int | None = optional_option(
        integer(1, 65536), "so many KV heads of each layer keep everything, by measured KL"
    )
    local: LocalHeads | None = optional_option(LOCAL, "the KV heads that get the window, layer by layer")
    refit: bool = option(BOOL, True, "fit the output projection in closed form")
    target: str = option(
        TARGET, "drift", "what the refit aims at; drift makes up for earlier layers too", needs="refit: true"
    )
    ridge: float = option(RIDGES, RIDGE, "how strongly the refit is drawn to the old weight", needs="refit: true")

    @property
    def claim(self) -> Preserves:
        """``refit``, or ``structural`` where nothing is fitted."""
        return "refit" if self.refit or self.sink == "fitted" else "structural"

    @property
    def needs_data(self) -> bool:
        """While layers or heads are still to be chosen."""
        return self.choose is not None or (self.full_heads is not None and self.local is None)

    @property
    def open_choice(self) -> tuple[str, str]:
        """Measured divergence chooses."""
        return "measured KL", "layers" if self.choose is not None else "local"

    @property
    def needs_text(self) -> str:
        """The refit needs text, and so do choices and fitted sinks."""
        if self.needs_data:
            return "the choice by measured KL"
        return "the output refit" if self.refit else "the fitted sinks" if self.sink == "fitted" else ""

    @property
    def shortest_context(self) -> int:
        """Calibration text in windows as long as the attention's shows nothing of what is forgotten."""
        assert self.window is not None
        return self.window + 1 + self.first

    @property
    def first(self) -> int:
        """How many of the first tokens stay visible."""
        return 0 if self.sink == "fitted" else SINKS if self.sinks is None else self.sinks

    # -- decide

    def decide(self, graph: Graph, measurements: Measurements | None, constraints: Constraints) -> Window:
        """Return the pass with its layers, and KV heads where they are split, listed.

        Raises:
            IllegalPassError: A layer has no attention that can get the window.
        """
        found = attentions(graph)
        layers = self._selected(found, graph.layer_count())
        sinks = None if self.sink == "fitted" else self.first
        decided = replace(self, layers=Selection.of(layers), sinks=sinks)
        split = self.full_heads is not None or self.local is not None
        for layer in layers:
            refusal = decided.refusal(found[layer], split)
            if refusal is not None:
                fix = leave_out(layers, [at for at in found if decided.refusal(found[at], split) is None])
                fix += ", or use refit: false" if "refit" in refusal.reason else ""
                where = self.place("layers")
                raise StructureError(owner=self.name, layer=layer, reason=refusal.reason, fix=fix, where=where)
        decided = decided.checked(found, layers)
        if measurements is None:
            return decided
        return decided.measured(graph, found, layers, measurements)

    def assume(self, graph: Graph) -> Window:
        """Return the pass with the last layers and the last heads: right in number, not in choice."""
        found, layers = attentions(graph), self._listed(graph)
        chosen = layers[-self.choose :] if self.choose is not None else layers
        local = self.local
        if self.full_heads is not None and local is None:
            local = {layer: tuple(range(self.full_heads, found[layer].kv_heads)) for layer in chosen}
        return replace(self, layers=Selection.of(chosen), choose=None, local=local)

    def _listed(self, graph: Graph) -> list[int]:
        assert self.layers is not None, "decide comes first"
        return self.layers.resolve(attentions(graph), graph.layer_count(), self.name, self.place("layers"))

    def _selected(self, found: Mapping[int, Attention], count: int) -> list[int]:
        assert self.window is not None
        if self.layers is None and self.local is not None:
            named = Selection.of(self.local)
            return named.resolve(found, count, self.name, self.place("local"))
        if self.layers is not None:
            return self.layers.resolve(found, count, self.name, self.place("layers"))
        further = [layer for layer, each in found.items() if each.window is None or each.window > self.window]
        if not further:
            legal = f"below {max((each.window or 0 for each in found.values()), default=1)}, which all layers look back"
            where = self.place("window")
            raise OptionRangeError(owner=self.name, name="window", found=self.window, legal=legal, where=where)
        return further

    def refusal(self, attention: Attention, split: bool) -> Refusal | None:
        """Return why a layer cannot get the window, or None."""
        attend = attention.attend
        assert self.window is not None
        if attention.window is not None and attention.window <= self.window:
            return Refusal(f"it looks back {attention.window} tokens already")
        if attend.entries is not None:
            return Refusal("it attends to pooled rows beside a window of its own")
        if attend.chosen is not None:
            return Refusal("it attends to rows that an index chooses among all")
        if self.sink == "fitted" and attend.sink is not None:
            return Refusal("it has a sink of its own already")
        if split and not isinstance(attend.memory.op, KV):
            return Refusal("its memory holds no keys and values by head")
        if split and (len(attend.memory.users) > 1 or attention.owner != attention.layer):
            return Refusal("its memory has other readers, which see all heads")
        output = output_of(attend) if self.refit else None
        if output is None or isinstance(output, Refusal):
            return output
        return refit_refusal(output)

    def checked(self, found: Mapping[int, Attention], layers: Sequence[int]) -> Window:
        """Return the pass with counts that fit the model: not all layers chosen, some heads of each left."""
        choose = check_choose(self, self.choose, layers)
        least = min(found[layer].kv_heads for layer in layers)
        if self.full_heads is not None and self.full_heads >= least:
            legal = f"from 1 to {least - 1}: with all {least} KV heads kept, nothing is windowed"
            where = self.place("full_heads")
            raise OptionRangeError(owner=self.name, name="full_heads", found=self.full_heads, legal=legal, where=where)
        for layer, heads in (self.local or {}).items():
            if heads[-1] >= found[layer].kv_heads:
                legal = f"for layer {layer} from 0 to {found[layer].kv_heads - 1}"
                where = self.place("local")
                raise OptionRangeError(owner=self.name, name="local", found=heads[-1], legal=legal, where=where)
        return replace(self, choose=choose)

    def measured(
        self, graph: Graph, found: Mapping[int, Attention], layers: Sequence[int], measurements: Measurements
    ) -> Window:
        """Return the pass with layers and heads chosen: those whose windowing alone costs least."""
        decided = self
        if self.full_heads is not None and self.local is None:
            single = [(layer, head) for layer in layers for head in range(found[layer].kv_heads)]
            edits = [replace(self, choose=None, layers=Selection.of([at]), local={at: (head,)}) for at, head in single]
            costs = dict(zip(single, measurements.damage(graph, [each.rewrite for each in edits]), strict=True))
            local: dict[int, tuple[int, ...]] = {}
            for layer in layers:
                heads = sorted(range(found[layer].kv_heads), key=lambda head, at=layer: costs[at, head])
                local[layer] = tuple(sorted(heads[: len(heads) - self.full_heads]))
            decided = replace(self, local=local)
        if decided.choose is not None:
            alone = replace(decided, choose=None)
            chosen = least_damage(
                measurements, graph, layers, decided.choose, lambda at: replace(alone, layers=Selection.of([at]))
            )
            kept = {layer: decided.local[layer] for layer in chosen} if decided.local is not None else None
            decided = replace(decided, layers=Selection.of(chosen), choose=None, local=kept)
        return decided

    # -- rewrite

    def rewrite(self, graph: Graph) -> Report:
        """Give each layer its window, its sinks and its refit."""
        return drive(graph, _AddWindow(self, frozenset(self._listed(graph))))


@dataclass(frozen=True)
class _Site:
    attend: Attend
    output: Output | None
    local: tuple[int, ...] | None


@dataclass(frozen=True)
class _AddWindow(Rule[Attend, _Site]):
    op: ClassVar[type[Op]] = Attend
    options: Window
    layers: frozenset[int]

    def match(self, op: Attend, graph: Graph) -> _Site | Refusal:
        layer = layer_of(op.out.name)
        if layer is None or layer not in self.layers:
            return Refusal("not among the layers")
        local = (self.options.local or {}).get(layer)
        kv_heads = op.memory.memory.fields[0].shape[0]
        if local is not None and len(local) == kv_heads:
            local = None
        refusal = self.options.refusal(Attention(layer, op), local is not None)
        if refusal is not None:
            return refusal
        output = output_of(op) if self.options.refit else None
        return output if isinstance(output, Refusal) else _Site(op, output, local)

    def rewrite(self, site: _Site, edit: Editor) -> str:
        options, attend = self.options, site.attend
        done = f"looks back {options.window} tokens"
        if site.local is not None:
            attend = split_heads(edit, attend, site.local)
            done = f"KV heads {ranges(site.local)} look back {options.window} tokens"
        if options.sink == "fitted":
            _fit_sink(edit, attend, options.window or 0)
            done += ", sinks fitted"
        elif options.first:
            done += f" and at the first {options.first}"
        _narrow(edit, attend, options.window or 0, options.first)
        readers = (layer_of(op.results[0].name) for op in attend.memory.users if op is not attend)
        others = sorted({layer for layer in readers if layer is not None})
        if others and isinstance(attend.memory.op, KV):
            done += f"; %{attend.memory.name} is read by layer {ranges(others)} too"
        if site.output is not None:
            refit_output(edit, site.output, options.target, options.ridge)
            done += f", {refit_text(site.output, options.target, options.ridge)}"
        return done + never_outrun(edit.graph, (options.window or 0) + options.first)


def _narrow(edit: Editor, attend: Attend, window: int, first: int) -> None:
    """Set what an attention sees; what its memory keeps follows from all its readers."""
    edit.set_attribute(attend, "window", window)
    edit.set_attribute(attend, "first", first)


def _fit_sink(edit: Editor, attend: Attend, window: int) -> None:
    """Give each head a score that takes the share of the softmax which the rows beyond the window had on average."""
    name = attend.out.name.rpartition(".")[0]
    sight = {"scale": attend.scale, "window": window, "groups": attend.groups}
    beyond = edit.add(BeyondWindow, f"{name}.beyond", attend.q, attend.memory, before=attend, **sight)
    score = edit.add(Log, f"{name}.sink_f64", beyond, before=attend)
    sink = edit.add(Cast, f"{name}.sink", score, before=attend, dtype=attend.q.tensor.dtype)
    edit.set_operand(attend, "sink", sink)


def split_heads(edit: Editor, attend: Attend, local: Sequence[int]) -> Attend:
    """Give some KV heads, and the query heads that read them, an attention and a memory of their own; return it.

    Args:
        edit: The editor.
        attend: An attention that is the only reader of its memory.
        local: KV heads, not all of them.
    """
    state = attend.memory.op
    assert isinstance(state, KV)
    groups, scope = attend.groups, attend.out.name.rpartition(".")[0]
    order: list[int] = []
    parts: list[Value] = []
    made: list[Attend] = []
    kv_heads = state.k.tensor.shape[2]
    assert isinstance(kv_heads, int)
    for label, kept in (("far", [g for g in range(kv_heads) if g not in local]), ("near", sorted(local))):
        k, v = (
            edit.add(PickHeads, f"{scope}.{stem}_{label}", value, before=state, heads=tuple(kept))
            for stem, value in (("k", state.k), ("v", state.v))
        )
        memory = edit.add(KV, f"{state.out.name}_{label}", k, v, before=state, window=state.window, first=state.first)
        heads = [head for head, group in enumerate(groups) if group in kept]
        q = edit.add(PickHeads, f"{scope}.q_{label}", attend.q, before=attend, heads=tuple(heads))
        mapped = group_map([kept.index(groups[head]) for head in heads], len(kept))
        rest: dict[str, object] = {**attend.attributes, "head_map": mapped}
        if attend.sink is not None:
            rest["sink"] = edit.add(
                Take, f"{attend.sink.name}.{label}", attend.sink, before=attend, block=1, indices=tuple(heads)
            )
        ctx = edit.add(Attend, f"{scope}.ctx_{label}", q, memory, before=attend, **rest)
        assert isinstance(ctx.op, Attend)
        made.append(ctx.op)
        parts.append(edit.add(Flatten, f"{scope}.flat_{label}", ctx, before=attend))
        order += heads
    joined = edit.add(Concat, f"{scope}.ctx_joined", parts, before=attend)
    whole = edit.add(Unflatten, f"{scope}.ctx_heads", joined, before=attend, parts=len(groups))
    if order != sorted(order):
        back = tuple(order.index(head) for head in range(len(groups)))
        whole = edit.add(PickHeads, f"{scope}.ctx_ordered", whole, before=attend, heads=back)
    edit.graph.replace_uses(attend.out, whole)
    return made[1]
