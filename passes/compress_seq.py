"""`compress-seq`: layers that see a window of tokens as they are, and what is before it as one row for several."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from regraft.ir.errors.recipe import OptionRangeError, StructureError
from regraft.ir.graph import Graph, layer_of
from regraft.ir.kinds import ranges
from regraft.ir.op import Op, Value
from regraft.ir.ops.algebra import Fill, Random
from regraft.ir.ops.attn import KV, Attend
from regraft.ir.ops.compress import Compressed
from regraft.ir.ops.core import Concat, Flatten, Linear, Slice, Unflatten
from regraft.ir.ops.index import Index
from regraft.ir.ops.memory import ReadRows, RowPositions, ViewRows
from regraft.ir.ops.pos import Rope
from regraft.ir.ops.weight import ConcatWeight
from regraft.passes.base import (
    BOOL,
    Constraints,
    Measurements,
    Pass,
    Preserves,
    Report,
    choice,
    integer,
    number,
    option,
    optional_option,
)
from regraft.passes.choosing import check_choose, least_damage, leave_out, never_outrun
from regraft.passes.fitting.refit import RIDGE, RIDGES, TARGET, refit_output, refit_refusal, refit_text
from regraft.passes.matching.memories import Side, key_values
from regraft.passes.matching.rewrite import Editor, Rule, drive
from regraft.passes.matching.sites import Attention, Output, Refusal, attentions, output_of, run_time_users
from regraft.passes.selection import LAYERS, MOST_LAYERS, Selection

MOST_ROWS = 1 << 40
SHUT = -40.0  # a gate whose share of a softmax is less than float64 tells from nothing


@dataclass(frozen=True)
class CompressSeq(Pass):
    """Let layers see the last tokens as they are, and those before as rows that are pooled of several.

    After the compressed attention of DeepSeek V4, CSA (small rates, an overlap, an index) and HCA (large ones), with
    keys and values by head. Every token counts once: the window shows what follows the last block that lies before it,
    and pooled rows stand for the blocks before. A row is the mean of its tokens' keys and values, and its score is
    raised by the logarithm of the rate: so blocks of equal tokens are exact, and so is everything up to ``window`` +
    ``rate`` - 1 tokens. Beyond, the model is another one and needs training; ``gates`` are what is then learned, and
    start as the mean. Judge it at contexts several times the window.
    """

    name: ClassVar[str] = "compress-seq"
    preserves: ClassVar[Preserves] = "structural"
    source: ClassVar[str] = (
        "DeepSeek-AI 2026, DeepSeek-V4 (arXiv 2606.19348), as in specs/deepseek_v4.md; specs/passes_math.md, sections "
        "6.2 to 6.4"
    )

    rate: int | None = optional_option(integer(2, 65536), "how many tokens make a pooled row", required=True)
    window: int | None = optional_option(
        integer(1, MOST_ROWS), "how many of the last tokens each query sees as they are, at least", required=True
    )
    layers: Selection | None = optional_option(LAYERS, "which layers; by default all that see everything and can")
    choose: int | None = optional_option(integer(1, MOST_LAYERS), "only so many of the layers, by measured KL")
    sinks: int = option(integer(0, 65536), 0, "how many of the first tokens stay as they are, a multiple of the rate")
    keys: str = option(
        choice("rotated", "middle"),
        "rotated",
        "rotated: the mean of rotated keys; middle: pooled before rotation, turned to the middle of their tokens",
    )
    mass: bool = option(BOOL, True, "raise a pooled row's score by the logarithm of the rate")
    gates: bool = option(BOOL, False, "learned gates weigh a row's tokens, channel by channel; zero at the start")
    overlap: bool = option(BOOL, False, "a row is also made of the block before, at gates of its own")
    shut: float = option(
        number(SHUT, 0.0),
        SHUT,
        "where these gates start: shut, or nearer to 0, where gradients reach them",
        needs="overlap: true",
    )
    chosen: int | None = optional_option(integer(1, MOST_ROWS), "each query sees only so many pooled rows")
    index: str = option(
        choice("keys", "light"),
        "keys",
        "what chooses: the attention's own queries and pooled keys, or light heads with keys of their own, at random",
        needs="chosen",
    )
    index_heads: int = option(integer(1, 65536), 8, "heads of the index", needs="index: light")
    index_width: int = option(integer(1, 65536), 32, "channels of the index's key", needs="index: light")
    refit: bool = option(BOOL, True, "fit the output projection in closed form")
    target: str = option(
        TARGET, "drift", "what the refit aims at; drift makes up for earlier layers too", needs="refit: true"
    )
    ridge: float = option(RIDGES, RIDGE, "how strongly the refit is drawn to the old weight", needs="refit: true")

    @property
    def needs_data(self) -> bool:
        """While layers are still to be chosen."""
        return self.choose is not None

    @property
    def open_choice(self) -> tuple[str, str]:
        """Measured divergence chooses."""
        return "measured KL", "layers"

    @property
    def needs_text(self) -> str:
        """The refit needs text, and so does the choice."""
        return "the choice by measured KL" if self.needs_data else "the output refit" if self.refit else ""

    @property
    def shortest_context(self) -> int:
        """Calibration text in windows as long as the attention's shows nothing of what is pooled."""
        return self.reach + 1 + self.sinks

    @property
    def reach(self) -> int:
        """How many of the last tokens are kept as they are: of these a query sees all that no finished row holds."""
        assert self.window is not None
        assert self.rate is not None
        return self.window + self.rate - 1

    # -- decide

    def decide(self, graph: Graph, measurements: Measurements | None, constraints: Constraints) -> CompressSeq:
        """Return the pass with its layers listed.

        Raises:
            OptionRangeError: The first tokens are no multiple of the rate, or fewer layers can be chosen.
            IllegalPassError: A layer has no attention that can be compressed.
        """
        assert self.rate is not None
        if self.sinks % self.rate:
            legal, where = f"in multiples of {self.rate}, the rate", self.place("sinks")
            raise OptionRangeError(owner=self.name, name="sinks", found=self.sinks, legal=legal, where=where)
        found = attentions(graph)
        layers = self._selected(found, graph)
        for layer in layers:
            site = self.site(found[layer].attend, graph)
            if isinstance(site, Refusal):
                fix = leave_out(
                    layers, [at for at in found if not isinstance(self.site(found[at].attend, graph), Refusal)]
                )
                fix += ", or use refit: false" if "output projection" in site.reason else ""
                where = self.place("layers")
                raise StructureError(owner=self.name, layer=layer, reason=site.reason, fix=fix, where=where)
        decided = replace(self, layers=Selection.of(layers), choose=check_choose(self, self.choose, layers))
        if measurements is None or decided.choose is None:
            return decided
        alone = replace(decided, choose=None)
        chosen = least_damage(
            measurements, graph, layers, decided.choose, lambda at: replace(alone, layers=Selection.of([at]))
        )
        return replace(alone, layers=Selection.of(chosen))

    def assume(self, graph: Graph) -> CompressSeq:
        """Return the pass with the last layers: right in number, not in choice."""
        layers = self._listed(graph)
        return replace(self, layers=Selection.of(layers[-(self.choose or 0) :]), choose=None)

    def _listed(self, graph: Graph) -> list[int]:
        assert self.layers is not None, "decide comes first"
        return self.layers.resolve(attentions(graph), graph.layer_count(), self.name, self.place("layers"))

    def _selected(self, found: Mapping[int, Attention], graph: Graph) -> list[int]:
        """Return the layers that are named, or all that can be compressed, or all if none can."""
        if self.layers is None:
            able = self._able(found, graph)
            if able:
                return able
        selection = self.layers or Selection(predicate="all")
        return selection.resolve(found, graph.layer_count(), self.name, self.place("layers"))

    def _able(self, found: Mapping[int, Attention], graph: Graph) -> list[int]:
        return [at for at, each in found.items() if not isinstance(self.site(each.attend, graph), Refusal)]

    # -- match

    def site(self, attend: Attend, graph: Graph) -> Site | Refusal:
        """Return what there is to compress at an attention, or why there is nothing."""
        state = attend.memory.op
        if attend.entries is not None or attend.chosen is not None:
            return Refusal("it attends to pooled or chosen rows already")
        if attend.window is not None:
            return Refusal(f"it looks back {attend.window} tokens, and what is before them is not seen")
        if not isinstance(state, KV) or attend.memory in graph.outputs:
            return Refusal(f"%{attend.memory.name} is no memory of keys and values by head")
        readers = sorted({layer_of(op.results[0].name) or 0 for op in run_time_users(attend.memory)})
        if len(run_time_users(attend.memory)) > 1 or layer_of(attend.memory.name) != layer_of(attend.out.name):
            return Refusal(f"%{attend.memory.name} is read by layers {ranges(readers)} together")
        sides = key_values(attend, graph)
        if isinstance(sides, Refusal):
            if self.keys == "middle":
                return sides
            return self._with_output(Site(attend, state, None, None))
        return self._with_output(Site(attend, state, sides.keys, sides.keys.linear or sides.values.linear))

    def _with_output(self, site: Site) -> Site | Refusal:
        if site.maker is None and (self.gates or self.chosen is not None):
            return Refusal("its keys and values come of no projection, whose input gates and an index would read")
        if self.chosen is not None and self.index == "keys" and site.attend.head_map is not None:
            return Refusal("its query heads read KV heads by a map, and an index of them would not")
        if not self.refit:
            return site
        output = output_of(site.attend)
        refusal = output if isinstance(output, Refusal) else refit_refusal(output)
        return refusal or replace(site, output=output if isinstance(output, Output) else None)

    # -- rewrite

    def rewrite(self, graph: Graph) -> Report:
        """Give each layer its pooled rows, its window and its refit."""
        return drive(graph, _Compress(self, frozenset(self._listed(graph))))


@dataclass(frozen=True)
class Site:
    """An attention to compress: its memory, how its keys come about, and the projection whose input gates read."""

    attend: Attend
    state: KV
    keys: Side | None
    maker: Linear | None
    output: Output | None = None


@dataclass(frozen=True)
class _Compress(Rule[Attend, Site]):
    op: ClassVar[type[Op]] = Attend
    options: CompressSeq
    layers: frozenset[int]

    def match(self, op: Attend, graph: Graph) -> Site | Refusal:
        if layer_of(op.out.name) not in self.layers:
            return Refusal("not among the layers")
        return self.options.site(op, graph)

    def rewrite(self, site: Site, edit: Editor) -> str:
        options = self.options
        assert options.rate is not None
        _Branch(options, site, edit).add_entries()
        done = f"sees {options.window} tokens at least, and before them a row for every {options.rate}"
        if options.sinks:
            done += f", and the first {options.sinks} as they are"
        if options.chosen is not None:
            done += f", of which an index chooses {options.chosen}"
        if site.output is not None:
            refit_output(edit, site.output, options.target, options.ridge)
            done += f", {refit_text(site.output, options.target, options.ridge)}"
        return done + never_outrun(edit.graph, options.reach + options.sinks)


@dataclass
class _Branch:
    """The ops that a layer gets: pooled rows, what chooses among them, and where its attention reads both."""

    options: CompressSeq
    site: Site
    edit: Editor

    @property
    def scope(self) -> str:
        return self.site.attend.out.name.rpartition(".")[0]

    def add(self, op: type[Op], name: str, *values: Value | list[Value], **rest: object) -> Value:
        return self.edit.add(op, f"{self.scope}.{name}", *values, before=self.site.attend, **rest)

    def weight(self, op: type[Op], name: str, *shape: int, **rest: object) -> Value:
        """Make a parameter of the new branch, called as the checkpoint calls those of the layer."""
        maker = self.site.maker
        module = maker.weight.name.rpartition(".")[0].rpartition(".")[0] if maker is not None else self.scope
        dtype = self.site.attend.q.tensor.dtype
        name = f"{module}.compressor.{name}"
        return self.edit.add(op, name, before=self.site.attend, dtype=dtype, shape=shape, **rest)

    def add_entries(self) -> None:
        """Let the attention read pooled rows beside its window."""
        options, attend, edit = self.options, self.site.attend, self.edit
        assert options.rate is not None
        view = self._entries()
        if options.chosen is not None:
            keys = view if options.index == "keys" else self._light_keys()
            edit.set_operand(attend, "chosen", self._index(keys))
        edit.set_operand(attend, "entries", view)
        edit.set_attribute(attend, "window", options.reach)
        edit.set_attribute(attend, "first", options.sinks)
        edit.set_attribute(attend, "disjoint", True)
        edit.set_attribute(attend, "entries_bias", math.log(options.rate) if options.mass else 0.0)

    def _entries(self) -> Value:
        """Return the pooled rows as keys and values by head."""
        state, keys = self.site.state, self.site.keys
        middle = self.options.keys == "middle" and keys is not None
        k = keys.before if middle and keys is not None else state.k
        flat = [self.add(Flatten, f"{name}_flat", value) for name, value in (("k", k), ("v", state.v))]
        widths = [value.tensor.shape[-1] for value in flat]
        memory = self._pooled("entries", self.add(Concat, "row", flat))
        rows = self.add(ReadRows, "entries_rows", memory)
        parts: list[Value] = []
        start = 0
        for name, value, width in zip("kv", (k, state.v), widths, strict=True):
            assert isinstance(width, int)
            part = self.add(Slice, f"entries_{name}_part", rows, start=start, stop=start + width)
            parts.append(self.add(Unflatten, f"entries_{name}", part, parts=value.tensor.shape[2]))
            start += width
        if middle and keys is not None and keys.after:
            parts[0] = self._turned(parts[0], memory, keys.after)
        return self.add(ViewRows, "entries_view", memory, parts[0], v=parts[1])

    def _turned(self, keys: Value, memory: Value, after: tuple[Op, ...]) -> Value:
        """Return pooled keys after the ops that follow in a token's, turned to the middle of their tokens."""
        assert self.options.rate is not None
        graph = self.edit.graph
        for op in after:
            slots, attributes = dict(op.slots), dict(op.attributes)
            slots["x"] = (keys,)
            if isinstance(op, Rope):
                slots["pos"] = (self.add(RowPositions, "entries_at", memory),)
                attributes["offset"] = op.offset + (self.options.rate - 1) / 2
            name = graph.fresh(f"{self.scope}.entries_{op.results[0].name.rpartition('.')[2]}")
            keys = graph.add(type(op)(slots, attributes), [name], before=self.site.attend)[0]
        return keys

    def _pooled(self, name: str, values: Value, module: str = "") -> Value:
        """Return a memory of pooled values: their mean at the start."""
        rate, width = self.options.rate, values.tensor.shape[-1]
        assert isinstance(width, int)
        assert rate is not None
        if self.options.overlap:
            values = self.add(Concat, f"{name}_both", [values, values])
            parts = [
                self.weight(Fill, f"{module}position_{of}", rate, width, value=value)
                for of, value in (("previous", self.options.shut), ("own", 0.0))
            ]
            joined = f"{parts[1].name.removesuffix('own')}bias"
            place = self.edit.add(ConcatWeight, joined, parts, axis=1, before=self.site.attend)
            width *= 2
        else:
            place = self.weight(Fill, f"{module}position_bias", rate, width)
        rest: dict[str, object] = {}
        if self.options.gates:
            rest["gates"] = self._linear(f"{name}_gates", f"{module}gate_proj.weight", Fill, width)
        return self.add(Compressed, name, values, place, **rest, rate=rate, overlap=self.options.overlap)

    def _linear(self, name: str, tensor: str, made: type[Op], rows: int, **rest: object) -> Value:
        """Return a new linear map of what keys and values are made of."""
        assert self.site.maker is not None
        x = self.site.maker.x
        width = x.tensor.shape[-1]
        assert isinstance(width, int)
        given = {"std": width**-0.5, "seed": rows} if made is Random else {}
        return self.add(Linear, name, x, self.weight(made, tensor, rows, width, **given), **rest)

    def _light_keys(self) -> Value:
        """Return the pooled keys of a light index."""
        keys = self._linear("index_keys", "indexer.k_proj.weight", Random, self.options.index_width)
        memory = self._pooled("index_entries", keys, "indexer.")
        rows = self.add(Unflatten, "index_entries_k", self.add(ReadRows, "index_entries_rows", memory), parts=1)
        return self.add(ViewRows, "index_entries_view", memory, rows)

    def _index(self, keys: Value) -> Value:
        """Return the numbers of the rows that each query sees."""
        options, attend = self.options, self.site.attend
        q, heads, scale = attend.q, len(attend.groups), attend.scale
        if options.index == "light":
            heads, scale = options.index_heads, options.index_width**-0.5
            flat = self._linear("index_q_proj", "indexer.q_proj.weight", Random, heads * options.index_width)
            q = self.add(Unflatten, "index_q", flat, parts=heads)
        ones = self.weight(Fill, "indexer.weights_proj.bias", heads, value=1.0)
        weights = self._linear("index_weights", "indexer.weights_proj.weight", Fill, heads, bias=ones)
        sight = {"window": options.reach, "first": options.sinks}
        return self.add(Index, "index_best", q, weights, keys, scale=scale, chosen=options.chosen, **sight)
