"""`absorb-mla` and `expand-mla`: attention to a kept latent, from one of its two forms to the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from regraft.ir.cost import call_sizes
from regraft.ir.dims import Sizes
from regraft.ir.errors.recipe import OptionConflictError, StructureError
from regraft.ir.errors.usage import UnknownDeviceError
from regraft.ir.graph import Graph, layer_of
from regraft.ir.hardware import Device, device
from regraft.ir.kinds import ranges
from regraft.ir.op import Op
from regraft.ir.ops.attn import Attend
from regraft.passes.base import (
    TEXT,
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
from regraft.passes.matching.latents import LatentSite, absorb, absorbed_site, expand, expanded_site
from regraft.passes.matching.rewrite import Editor, Rule, drive
from regraft.passes.matching.sites import Refusal, attentions
from regraft.passes.selection import LAYERS, Selection

SOURCE = "DeepSeek-AI 2024, DeepSeek-V2 (latent attention); specs/mla.md, sections 3 and 4"
MOST_TOKENS = 1 << 30

Match = Callable[[Attend], LatentSite | Refusal]
Change = Callable[[LatentSite, Editor], None]


@dataclass(frozen=True)
class LatentForm(Pass):
    """Attention to a kept latent in one of its forms. Subclasses say which, and how to recognise the other."""

    preserves: ClassVar[Preserves] = "exact"
    source: ClassVar[str] = SOURCE
    match: ClassVar[Match]
    change: ClassVar[Change]
    other: ClassVar[Match]
    done: ClassVar[str]

    layers: Selection | None = optional_option(
        LAYERS, "which layers; by default all whose attention has the other form"
    )
    when: str = option(
        choice("always", "faster"), "always", "faster: only in layers where it is, by the cost model, at these sizes"
    )
    tokens: int = option(integer(1, MOST_TOKENS), 1, "query tokens of a call; 1 is a decode step", needs="when: faster")
    context: int = option(integer(1, MOST_TOKENS), 4096, "tokens visible to the last of them", needs="when: faster")
    device: str | None = optional_option(
        TEXT,
        "a device or a file that describes one; without, the form with fewer operations",
        needs="when: faster",
    )

    def decide(self, graph: Graph, measurements: Measurements | None, constraints: Constraints) -> LatentForm:
        """Return the pass with its layers listed; as it is where the other form is faster in all of them.

        Raises:
            IllegalPassError: A layer that is named has another form of attention, or no layer has this one.
            OptionConflictError: A call has more tokens than its context.
            UnknownDeviceError: There is no such device.
        """
        layers = self._layers(graph)
        if self.when == "always":
            return replace(self, layers=Selection.of(layers))
        chosen = self._faster(graph, layers)
        return type(self)(layers=Selection.of(chosen), places=self.places) if chosen else self

    def rewrite(self, graph: Graph) -> Report:
        """Change the form of the layers' attention."""
        wanted = self._layers(graph)
        reason = "not among the layers"
        if self.when == "faster":
            wanted = self._faster(graph, wanted)
            reason = f"as it is, it is as fast or faster at {self.tokens} of {self.context} tokens"
        return drive(graph, _ChangeForm(type(self), frozenset(wanted), reason))

    def _layers(self, graph: Graph) -> list[int]:
        """Return the layers whose form can be changed, of those that are selected."""
        found = attentions(graph)
        selection = self.layers or Selection(predicate="all")
        layers = selection.resolve(found, graph.layer_count(), self.name, self.place("layers"))
        sites = {layer: type(self).match(found[layer].attend) for layer in found}
        refused = {layer: site.reason for layer in layers if isinstance(site := sites[layer], Refusal)}
        legal = [layer for layer, site in sites.items() if isinstance(site, LatentSite)]
        if refused and (selection.explicit or len(refused) == len(layers)):
            layer, reason = next(iter(refused.items()))
            if isinstance(type(self).other(found[layer].attend), LatentSite):
                reason = f"its attention is {self.done} already"
            fix = f"layers that have the other form: {ranges(legal)}" if legal else "no layer has the other form"
            raise StructureError(owner=self.name, layer=layer, reason=reason, fix=fix, where=self.place("layers"))
        return [layer for layer in layers if layer not in refused]

    def _faster(self, graph: Graph, layers: list[int]) -> list[int]:
        """Return the layers in which the form that they would get is faster."""
        if self.tokens > self.context:
            fix = "context counts the call's own tokens too"
            first, second = f"tokens: {self.tokens}", f"context: {self.context}"
            where = self.place("tokens")
            raise OptionConflictError(owner=self.name, first=first, second=second, fix=fix, where=where)
        try:
            on = None if self.device is None else device(self.device)
        except UnknownDeviceError as error:
            error.where = self.place("device")
            raise
        changed = graph.copy()
        drive(changed, _ChangeForm(type(self), frozenset(layers), ""))
        changed.drop_dead()
        before, after = (layer_times(each, self.tokens, self.context, on) for each in (graph, changed))
        return [layer for layer in layers if after[layer] < before[layer]]


@dataclass(frozen=True)
class AbsorbMLA(LatentForm):
    """Attend to a kept latent itself: its maps to keys and values move to the queries and to the result.

    Per query and row it costs more arithmetic, and nothing per row that is only kept: the form for decoding. Weights
    and cache stay as they are.
    """

    name: ClassVar[str] = "absorb-mla"
    match: ClassVar[Match] = staticmethod(expanded_site)
    change: ClassVar[Change] = staticmethod(absorb)
    other: ClassVar[Match] = staticmethod(absorbed_site)
    done: ClassVar[str] = "absorbed"


@dataclass(frozen=True)
class ExpandMLA(LatentForm):
    """Make keys and values by head of a kept latent, and attend to these.

    It costs a product for each row in every call, and less arithmetic per query and row: the form for prefill. Weights
    and cache stay as they are.
    """

    name: ClassVar[str] = "expand-mla"
    match: ClassVar[Match] = staticmethod(absorbed_site)
    change: ClassVar[Change] = staticmethod(expand)
    other: ClassVar[Match] = staticmethod(expanded_site)
    done: ClassVar[str] = "expanded"


def decoding_form(graph: Graph) -> Graph | None:
    """Return a graph as it is best computed for one token a call: with attention to kept latents absorbed.

    Parameters and memories stay as they are. For a single query that is fewer operations at any context. None where
    there is no such attention.
    """
    return _absorbed(graph, [found.attend for found in attentions(graph).values()])


def choosing_form(graph: Graph) -> Graph | None:
    """Return a graph as kernels best compute it for many tokens: where rows of latents are chosen, attention absorbed.

    A chosen latent is then read once for all heads. None where there is no such attention.
    """
    attends = [found.attend for found in attentions(graph).values()]
    return _absorbed(graph, [attend for attend in attends if attend.chosen is not None])


def _absorbed(graph: Graph, attends: Iterable[Attend]) -> Graph | None:
    """Return a graph with those of some attentions absorbed that can be; none if none can."""
    layers = {layer_of(attend.out.name) for attend in attends if isinstance(expanded_site(attend), LatentSite)}
    found = frozenset(layer for layer in layers if layer is not None)
    if not found:
        return None
    form = graph.copy()
    drive(form, _ChangeForm(AbsorbMLA, found, ""))
    form.verify()
    return form


@dataclass(frozen=True)
class _ChangeForm(Rule[Attend, LatentSite]):
    op: ClassVar[type[Op]] = Attend
    form: type[LatentForm]
    layers: frozenset[int]
    reason: str

    def match(self, op: Attend, graph: Graph) -> LatentSite | Refusal:
        found = self.form.match(op)
        if isinstance(found, LatentSite) and layer_of(op.out.name) not in self.layers:
            return Refusal(self.reason)
        return found

    def rewrite(self, site: LatentSite, edit: Editor) -> str:
        self.form.change(site, edit)
        return f"{site.heads} heads over a latent of {site.rank}: {self.form.done}"


def layer_times(graph: Graph, tokens: int, context: int, on: Device | None) -> Mapping[int, tuple[float, int]]:
    """Return how long each layer takes at best, and its operations.

    An op takes as long as reading its parameters and memories does, or its arithmetic where that is longer; layers sum
    their ops up. Without a device, or with one whose arithmetic is not known, only operations, or only bytes, count.

    Args:
        graph: A verified graph.
        tokens: Query tokens of a call, of one sequence.
        context: Tokens visible to the last of them.
        on: A device.
    """
    at = call_sizes(graph, 1, tokens, context)
    found: dict[int, tuple[float, int]] = {}
    for op in graph.run_time():
        layer = layer_of(op.results[0].name)
        if layer is not None:
            seconds, flops = found.get(layer, (0.0, 0))
            found[layer] = (seconds + _seconds(op, at, on), flops + op.cost(at).flops)
    return found


def _seconds(op: Op, at: Sizes, on: Device | None) -> float:
    if on is None:
        return 0.0
    cost, speed = op.cost(at), on.bf16_dense_flops
    reading = cost.bytes_read / on.bandwidth_bytes_per_s
    return max(reading, cost.flops / speed) if speed else reading
