"""`key-from-value`: of keys and values that come from one projection, the values are kept and keys made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

from regraft.ir.errors.recipe import StructureError
from regraft.ir.graph import Graph
from regraft.ir.kinds import ranges
from regraft.ir.op import Op, Value
from regraft.ir.ops.algebra import Fill
from regraft.ir.ops.attn import KV, Attend, Temper
from regraft.ir.ops.core import Concat, Flatten, Gain, Norm, Scale, Slice, Unflatten
from regraft.ir.ops.pos import Rope
from regraft.ir.ops.weight import Combine
from regraft.passes.base import Constraints, Measurements, Pass, Preserves, Report, choice, option, optional_option
from regraft.passes.matching.memories import KeyValues, Reading, keep_rows, key_values
from regraft.passes.matching.rewrite import Editor, Rule, drive
from regraft.passes.matching.sites import Refusal, attentions
from regraft.passes.selection import LAYERS, Selection

Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class KeyFromValue(Pass):
    """Keep the values alone where keys come from the same projection, and make the keys of them when they are read.

    Such are the global layers of Gemma 4's larger models. Keys differ from values by a weight of each channel, and by
    their rotation. Of rotated channels the keys are either kept beside the values, or turned anew in each call.
    """

    name: ClassVar[str] = "key-from-value"
    preserves: ClassVar[Preserves] = "exact"
    source: ClassVar[str] = "specs/gemma4.md, section 5"

    layers: Selection | None = optional_option(
        LAYERS, "whose memories; by default all whose keys come from their values"
    )
    rotated: str = option(
        choice("kept", "read"),
        "kept",
        "kept: channels of keys that turn stay beside the values; read: turned when read",
    )

    def decide(self, graph: Graph, measurements: Measurements | None, constraints: Constraints) -> KeyFromValue:
        """Return the pass with the layers that make the memories listed.

        Raises:
            IllegalPassError: A layer that is named has keys of its own, or no layer has keys like its values; or all
                channels turn, so that nothing is saved by keeping those that do.
        """
        return replace(self, layers=Selection.of(self._sites(graph)))

    def rewrite(self, graph: Graph) -> Report:
        """Keep values, and make keys for each reader."""
        return drive(graph, _KeepValues(self.rotated == "kept", frozenset(self._sites(graph))))

    def _sites(self, graph: Graph) -> list[int]:
        found = attentions(graph)
        selection = self.layers or Selection(predicate="all")
        refused: dict[int, str] = {}
        makers: set[int] = set()
        for layer in selection.resolve(found, graph.layer_count(), self.name, self.place("layers")):
            site = site_of(found[layer].attend, graph, self.rotated == "kept")
            if isinstance(site, Refusal):
                refused[layer] = site.reason
            else:
                makers.add(site.memory.layer)
        if refused and (selection.explicit or not makers):
            layer, reason = next(iter(refused.items()))
            fix = f"layers that can: {ranges(sorted(makers))}" if makers else self._advice(reason)
            raise StructureError(owner=self.name, layer=layer, reason=reason, fix=fix, where=self.place("layers"))
        return sorted(makers)

    def _advice(self, reason: str) -> str:
        if reason == ALL_TURN:
            return "use rotated: read, which keeps the values alone"
        return "this pass needs keys and values that come from one projection"


ALL_TURN = "all channels of its keys turn, so that nothing is saved by keeping them beside the values"


@dataclass(frozen=True)
class _Site:
    """A memory whose keys are made of its values.

    ``remake`` are the ops that make keys, before rotation, of values; a gain by a norm's weight where both are normed.
    ``turned`` are the channels of keys that are kept too.
    """

    memory: KeyValues
    remake: tuple[Op, ...]
    gain: Norm | None
    turned: Spans


def site_of(attend: Attend, graph: Graph, kept: bool) -> _Site | Refusal:
    """Return the memory that an attention reads if its keys can be made of its values, or why they cannot."""
    memory = key_values(attend, graph)
    if isinstance(memory, Refusal):
        return memory
    if not isinstance(memory.state, KV):
        return Refusal(f"%{memory.memory.name} keeps rows already")
    if memory.values.after:
        return Refusal("its values are rotated")
    made = _remake(memory.keys.before, memory.values.before)
    if made is None:
        names = (memory.keys.before.name, memory.values.before.name)
        return Refusal("its keys %{} do not come from its values %{}".format(*names))
    rope = memory.keys.rope
    turned = _turned(rope) if rope is not None and kept else ()
    if sum(stop - start for start, stop in turned) == memory.keys.width:
        return Refusal(ALL_TURN)
    return _Site(memory, *made, turned)


def _remake(keys: Value, values: Value) -> tuple[tuple[Op, ...], Norm | None] | None:
    """Return the ops that make keys of values, and a norm whose weight does where both are normed; None without any."""
    chain: list[Op] = []
    at = keys
    while at is not values and isinstance(at.op, Norm | Scale | Temper):
        chain.append(at.op)
        at = at.op.x
    if at is values:
        return tuple(reversed(chain)), None
    norm, other = chain[-1] if chain else None, values.op
    if not isinstance(norm, Norm) or not isinstance(other, Norm) or norm.x is not other.x:
        return None
    alike = (norm.eps, norm.clamp) == (other.eps, other.clamp) and other.weight is None
    return (tuple(reversed(chain[:-1])), norm) if alike else None


def _turned(rope: Rope) -> Spans:
    """Return the channels of a head that a rotation turns."""
    half = rope.channels // 2
    pairs = half if rope.pairs is None else rope.pairs
    if rope.layout == "interleaved":
        return ((0, 2 * pairs),)
    return ((0, pairs), (half, half + pairs)) if pairs < half else ((0, rope.channels),)


@dataclass(frozen=True)
class _KeepValues(Rule[Attend, _Site]):
    op: ClassVar[type[Op]] = Attend
    kept: bool
    makers: frozenset[int]

    def match(self, op: Attend, graph: Graph) -> _Site | Refusal:
        site = site_of(op, graph, self.kept)
        if isinstance(site, _Site) and site.memory.layer not in self.makers:
            return Refusal("not among the layers")
        return site

    def rewrite(self, site: _Site, edit: Editor) -> str:
        memory = site.memory
        before, scope = memory.width, memory.memory.name.rpartition(".")[0]

        def add(op: type[Op], name: str, *values: Value | Sequence[Value], **rest: object) -> Value:
            return edit.add(op, f"{scope}.{name}", *values, before=memory.state, **rest)

        rope, row = memory.keys.rope, memory.values.before
        if site.turned and rope is not None:
            spans = zip(("turned", "turned_2"), site.turned, strict=False)
            parts = [add(Slice, name, rope.out, start=a, stop=b) for name, (a, b) in spans]
            row = add(Concat, "row_heads", [row, *parts])
        row = add(Flatten, "row", row)
        keep_rows(edit, memory, row, _rebuild(site))
        width = row.tensor.shape[-1]
        return f"%{memory.memory.name.removesuffix('_before')} keeps {width} numbers a token instead of {before}"


def _rebuild(site: _Site) -> Callable[[Reading], tuple[Value, Value]]:
    keys, values = site.memory.keys, site.memory.values

    def rebuild(reading: Reading) -> tuple[Value, Value]:
        whole = reading.add(Unflatten, "row_heads_rows", reading.rows, parts=values.heads)
        v = whole
        if site.turned:
            v = reading.add(Slice, "v_rows", whole, start=0, stop=values.width)
        k = v if site.gain is None else _weighted(reading, v, site.gain)
        k = reading.finish(k, site.remake)
        if not site.turned:
            return reading.finish(k, keys.after), v
        return reading.finish(_woven(reading, site, whole, k), keys.after[1:]), v

    return rebuild


def _weighted(reading: Reading, v: Value, norm: Norm) -> Value:
    """Return normed values times what the keys' norm multiplies by."""
    weight = norm.weight
    if weight is None:
        return v
    if norm.offset:
        one = reading.weight(
            Fill, f"{weight.name}.one", shape=weight.tensor.sizes, dtype=weight.tensor.dtype, value=1.0
        )
        weight = reading.weight(Combine, f"{weight.name}.shifted", [weight, one], factors=(1.0, norm.offset))
    return reading.add(Gain, "k_plain_rows", v, weight)


def _woven(reading: Reading, site: _Site, whole: Value, plain: Value) -> Value:
    """Return keys, of which the turned channels come from the rows and the others are made of values."""
    width = site.memory.keys.width
    start = site.memory.values.width
    edges = [0, *(edge for span in site.turned for edge in span), width]
    parts: list[Value] = []
    for number, (a, b) in enumerate(pairwise(edges)):
        if a == b:
            continue
        if number % 2:
            parts.append(reading.add(Slice, "k_turned_rows", whole, start=start, stop=start + b - a))
            start += b - a
        else:
            parts.append(reading.add(Slice, "k_still_rows", plain, start=a, stop=b))
    return reading.add(Concat, "k_rows", parts)
