"""Target ``torch``: a graph as one readable ``model.py``.

Every choice is made here; the templates hold the code that does not depend on the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from textwrap import wrap
from typing import Any

from regraft.codegen.names import Namespace, class_name, comment, literal, suffixes
from regraft.codegen.torch.body import RUN_LOCALS, WIDTH, Body, Shared
from regraft.codegen.torch.code import ATOM
from regraft.codegen.torch.forms import StepForm, either
from regraft.codegen.torch.last import write_cut
from regraft.codegen.torch.ops import stays_wide
from regraft.codegen.torch.text import (
    angles,
    branches,
    broken,
    empty,
    fold,
    head_list,
    keeps_lines,
    keeps_table,
    signature,
    turn,
    wide_lines,
)
from regraft.codegen.wiring import GLOBAL, OWNED, STREAM, WEIGHT, Feed, Place, Wiring, local_value, run_time
from regraft.ir.dims import L
from regraft.ir.errors.codegen import WiringError
from regraft.ir.graph import Graph
from regraft.ir.kinds import Kind, Layer, ranges
from regraft.ir.op import Op, Value
from regraft.ir.ops.attn import KV, Attend
from regraft.ir.ops.core import Slice
from regraft.ir.ops.final import Last
from regraft.ir.ops.pos import Rope
from regraft.ir.ops.seq import Delta
from regraft.ir.types import FLOATS, MemoryType, TensorType


@dataclass(frozen=True)
class Class:
    """A block kind as a class: what the template needs of it."""

    name: str
    doc: str
    keeps: tuple[str, ...]
    setup: tuple[str, ...]
    signature: str
    lines: tuple[str, ...]


@dataclass
class Written:
    """A block's body and the arguments that its calls pass."""

    body: Body
    arguments: list[tuple[str, str]]  # name and type
    feeds: list[Feed]  # those that become arguments, in the same order
    results: list[str]
    forms: int = 1  # more where a single token is computed in a form of its own


@dataclass
class Program:
    """A graph, written for torch.

    Attributes:
        model_py: The text of ``model.py``.
        layers: The layer table of ``config.json``: each layer's class, and which layers it reads what from.
        tensors: Each parameter's name in the state dict, and the graph's parameter.
    """

    model_py: str
    layers: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    tensors: dict[str, Value] = field(default_factory=dict[str, Value])


class TorchTarget:
    """Writes one graph.

    Args:
        graph: A verified graph.
        header: Lines for the top of ``model.py``: each a key and a text.
        title: The first line of its docstring.
        step: The same graph with other ops in its layers, for calls of one token; its parameters and memories are those
            of ``graph``, by name.

    Raises:
        MissingEmitterError: The target lacks an op of the graph.
        WiringError: The layers are fed in ways that one loop cannot spell.
    """

    called = "layer"  # how the model calls a layer

    def __init__(self, graph: Graph, header: list[tuple[str, str]], title: str, step: Graph | None = None) -> None:
        self.graph, self.header, self.title = graph, header, title
        self.wiring = Wiring(graph)
        self.step = None if step is None else StepForm(step, self.wiring)
        self.many: StepForm | None = None  # what is written for calls of many tokens, if that is not the graph itself
        dtype = graph.outputs[0].tensor.dtype
        self.wide = {value: stays_wide(value, dtype) for value in self.wiring.places}
        self.shared = Shared()
        self.classes = _class_names(self.wiring.kinds)

    def program(self) -> Program:
        """Return the program's text and tables."""
        model = self.written()
        table = [
            {"kind": self.classes[self.wiring.kind_of[layer.number].name], "reads": self._reads(layer)}
            for layer in self.wiring.layers
        ]
        tensors = {place.state_name: value for value, place in self.wiring.places.items()}
        return Program(self._render(model), table, tensors)

    def written(self) -> Body:
        """Write all bodies, and return that of the model."""
        self._write()
        return self._write()  # once more: now no variable is called as a view or a rotation is

    def _write(self) -> Body:
        self.blocks = {kind.name: self._block(kind) for kind in self.wiring.kinds}
        return self._model()

    def new_body(
        self, places: dict[Value, Place], owner: int | None, local: Callable[[str], str], names: Namespace, width: int
    ) -> Body:
        """Return an empty body of a layer, or of the model if ``owner`` is None."""
        return Body(self.shared, places, owner, local, names, width)

    # -- blocks

    def _block(self, kind: Kind) -> Written:
        layer = kind.layers[0]
        feeds = [f for f in self.wiring.feeds[kind.name] if not self._only_turns(layer, f.value)]
        results = self.wiring.results(kind)
        given = [layer.inputs[feed.place] for feed in feeds]
        places = self.wiring.places
        if self.many is not None:
            layer, given, places = self.many.layers[layer.number], self.many.same(given), self.many.places
        body, arguments = self._body(layer, feeds, given, results, places)
        step, forms = None, 1
        if self.step is not None:
            values = self.step.same(given)
            step, _ = self._body(self.step.layers[layer.number], feeds, values, results, self.step.places)
            body.used |= step.used
            assert step.buffers.items() <= body.buffers.items(), "both forms map heads in the same way"
        first = arguments[0][0]
        arguments += [(name, self.shared.type_of(name)) for name in body.used]
        arguments += [(name, "Memory | None") for name in body.pasts.values()]
        self._give_back(body, kind, layer, results, first)
        if step is not None and self.step is not None:
            self._give_back(step, kind, self.step.layers[layer.number], results, first)
            forms = 1 if step.lines == body.lines else 2
            body.lines = either(f"{first}.shape[1] == 1", step.lines, body.lines)
        return Written(body, arguments, feeds, results, forms)

    def _body(
        self, layer: Layer, feeds: list[Feed], given: list[Value], results: list[str], places: dict[Value, Place]
    ) -> tuple[Body, list[tuple[str, str]]]:
        """Return the body of a layer, its results still to be given back, and the arguments that ``feeds`` pass."""
        names = Namespace(self.shared.reserved())
        arguments = [self._argument(value, feed, names) for feed, value in zip(feeds, given, strict=True)]
        width = WIDTH if self.step is None else WIDTH - 4
        body = self.new_body(places, self.wiring.index[layer.number], layer.local, names, width)
        kept = {local_value(layer, name): name for name in results}
        for value, name in kept.items():
            names.give(value, *suffixes(name))
        for op in run_time(layer.ops):
            body.write(op, set(kept))
        return body, arguments

    def _only_turns(self, layer: Layer, value: Value) -> bool:
        """Return whether a layer reads a value only to rotate by it; it is given cosine and sine instead."""
        made = value.op.x if isinstance(value.op, Last) else value
        if made.op is not None or made.name != "pos":
            return False
        return all(isinstance(op, Rope) for op in run_time(layer.ops) if value in op.operands)

    def _argument(self, value: Value, feed: Feed, names: Namespace) -> tuple[str, str]:
        if isinstance(value.type, MemoryType):
            return names.give(value, "memory"), "Memory"
        if feed.how in (WEIGHT, OWNED):
            return names.give(value, *suffixes(value.name.removesuffix(".weight"))), "Tensor"
        stem = feed.local or value.name
        wanted = ("x", *suffixes(stem)) if value.type.dtype in FLOATS else suffixes(stem)
        return names.give(value, *wanted), "Tensor"

    def _give_back(self, body: Body, kind: Kind, layer: Layer, results: list[str], first: str) -> None:
        values = [local_value(layer, name) for name in results]
        tensors = [body.names[v] for v in values if isinstance(v.type, TensorType)]
        memories = [v for v in values if isinstance(v.type, MemoryType)]
        if len(memories) > 1:
            raise WiringError(kind=kind.name, layers=ranges(kind.numbers), name="more than one memory of a layer")
        if not memories:
            body.assign("", f"return {', '.join(tensors)}" if tensors else "return None")
            return
        past = body.past_of(memories[0])
        if past is not None:  # what is made of kept rows is in no cache
            body.assign("", f"if {past} is not None and {first}.shape[1] == 1:")
            body.assign("", f"    return ({', '.join(tensors)},)", "the memory is in the cache, for other layers too")
        body.assign("", f"return {', '.join([*tensors, f'*{body.names[memories[0]]}'])}")

    def _class(self, kind: Kind) -> Class:
        written = self.blocks[kind.name]
        values = [local_value(kind.layers[0], name) for name in written.results]
        if any(isinstance(v.type, MemoryType) for v in values):
            gives = "tuple[Tensor, ...]"
        else:
            gives = (
                "Tensor" if len(values) == 1 else f"tuple[{', '.join(['Tensor'] * len(values))}]" if values else "None"
            )
        arguments = [f"{name}: {type}" for name, type in written.arguments]
        return Class(
            name=self.classes[kind.name],
            doc=self._doc(kind),
            keeps=tuple(keeps_lines(self.wiring.memories(kind)) + self._wide_lines(kind.layers[0])),
            setup=tuple(self._setup(written.body, self.wiring.index[kind.layers[0].number], kind.layers[0])),
            signature=signature("forward", arguments, gives),
            lines=tuple(written.body.lines),
        )

    def _doc(self, kind: Kind) -> str:
        layer = kind.layers[0]
        attends = [op for op in layer.ops if isinstance(op, Attend)]
        facts: list[str] = []
        for op in attends:
            sight = "all tokens" if op.window is None else f"the last {op.window} tokens"
            own = op.memory.op in layer.ops
            pooled = "" if op.entries is None else f" and to rows of {op.entries.memory.rate} tokens"
            facts.append(f"attends to {sight}{pooled}" + ("" if own else " in the memory of an earlier layer"))
        if any(isinstance(op, Delta) for op in layer.ops):
            facts.append("mixes tokens by the delta rule")
        if any(op.opname == "moe.experts" for op in layer.ops):
            facts.append("chooses among experts")
        if self.blocks[kind.name].forms > 1:
            facts.append("has a form of fewer operations for a single token")
        which = ranges(kind.numbers)
        if len(which) > 60:
            which = f"{len(kind.numbers)} layers, {kind.numbers[0]} the first and {kind.numbers[-1]} the last"
        else:
            which = f"Layers {which}" if len(kind.numbers) > 1 else f"Layer {which}"
        origin = f"block kind {kind.name} of {comment(self.graph.name)}"
        facts = facts or ["mixes no tokens"]
        told = f"{which}: {' and '.join(facts)}; {origin}."
        if len(told) <= WIDTH - 10:
            return told
        more = wrap(f"Each {' and '.join(facts)}; it is {origin}.", WIDTH - 4)
        return "\n    ".join([f"{which}.\n", *more, ""])

    def _setup(self, body: Body, owner: int | None, layer: Layer | None) -> list[str]:
        """Return the statements that declare a module's own parameters and buffers."""
        mine = [(v, p) for v, p in self.wiring.places.items() if p.owner == owner]
        lines: list[str] = []
        for value, place in mine:
            if place.part == "bias":
                continue
            told = comment(value.name if layer is None else layer.local(value.name))
            line = f"self.{place.attribute} = {self._constructor(value, place, mine)}"
            if place.module == "buffer":
                line = f'self.register_buffer("{place.attribute}", {empty(value.tensor)})'
            lines.append(f"{line}  # {told}" if len(line) + len(told) + 12 <= WIDTH else line)
        for heads, name in body.buffers.items():
            lines.append(f'self.register_buffer("{name}", {head_list(heads)}, persistent=False)')
        return lines

    def _wide_lines(self, layer: Layer | None) -> list[str]:
        """Return a class's statement of its wide tensors; nothing where no class has any."""
        if not any(self.wide.values()):
            return []
        owner = None if layer is None else self.wiring.index[layer.number]
        return wide_lines([p.path for v, p in self.wiring.places.items() if p.owner == owner and self.wide[v]])

    def _constructor(self, value: Value, place: Place, mine: list[tuple[Value, Place]]) -> str:
        sizes = value.tensor.sizes
        if place.module == "linear":
            biased = any(p.attribute == place.attribute and p.part == "bias" for _, p in mine)
            return f"nn.Linear({sizes[1]}, {sizes[0]}" + (")" if biased else ", bias=False)")
        if place.module == "embedding":
            return f"nn.Embedding({sizes[0]}, {sizes[1]})"
        return f"nn.Parameter({empty(value.tensor)})"

    # -- the model

    def _model(self) -> Body:
        """Return the body of ``Model.run``."""
        names = Namespace([*self.shared.reserved(), *RUN_LOCALS])
        body = self.new_body(self.wiring.places, None, lambda name: name, names, WIDTH)
        self.stream_names = self._stream_names(names)
        self.kept_names = {name: names.give(("kept", name), f"kept {name}") for name in self.wiring.kept}
        for value in self.graph.inputs:
            if value.name in ("tokens", "pos"):
                names.alias(value, value.name)
            else:
                names.alias(value, "(pos < (start + count)[:, None])")
        self.each_names = {name: names.give(("each", name), *suffixes(name)) for name in self.wiring.each}
        spread = {op for values in self.wiring.each.values() if _pieces(values) for op in self._only_pieces(values)}
        stacks = [item for item in self.wiring.stacks() if not isinstance(item, Op) or item not in spread]
        after = _last_mixing(stacks)
        cuts = [item for item in stacks if isinstance(item, Last)]
        for place, item in enumerate(stacks):
            if isinstance(item, Last):
                if item is cuts[0]:
                    write_cut(body, self.graph, cuts, self._used(stacks[place + 1 :]))
            elif isinstance(item, Op):
                beyond = stacks[after + 1 :] if after is not None and place <= after else []
                body.write(item, self._needed(item, stacks[place + 1 :], beyond))
            else:
                self._stack(body, item)
            if place == after:
                self._last_rows(body, stacks[: place + 1], stacks[place + 1 :])
        if after is None:
            self._last_rows(body, stacks, [])
        body.assign("", f"return {body.of(self.graph.outputs[0]).text}")
        return body

    def _used(self, later: Sequence[Op | list[Layer]]) -> dict[str, None]:
        """Return the rotations, views and facts of the call that layers are given, by name."""
        layers = [layer for item in later if not isinstance(item, Op) for layer in item]
        kinds = {self.wiring.kind_of[layer.number].name: None for layer in layers}
        return {name: None for kind in kinds for name in self.blocks[kind].body.used}

    def _needed(self, op: Op, later: Sequence[Op | list[Layer]], beyond: Sequence[Op | list[Layer]]) -> set[Value]:
        """Return which of an op's results are needed by name: by layers, as results, or ``beyond`` the last mixing."""
        outside = {v for item in later if not isinstance(item, Op) for layer in item for v in layer.inputs}
        outside |= {v for item in beyond if isinstance(item, Op) for v in item.operands}
        outside |= {item.x for item in later if isinstance(item, Last)}
        return {v for v in op.results if v in outside or v in self.graph.outputs}

    def _only_pieces(self, values: dict[int, Value]) -> list[Op]:
        """Return the ops of those values that no layer takes by name."""
        named = {
            v for kind in self.wiring.kinds for f in self.wiring.feeds[kind.name] if f.how == GLOBAL for v in [f.value]
        }
        return [v.op for v in values.values() if v.op is not None and v not in named and v not in self.graph.outputs]

    def _spread(self, body: Body, layers: list[Layer]) -> None:
        """Write the tables of what each of some layers is given of its own."""
        here = {self.wiring.index[layer.number] for layer in layers}
        for name, values in self.wiring.each.items():
            if not here & values.keys():
                continue
            table = self.each_names[name]
            if any(line.startswith(f"{table} = ") for line in body.lines):
                continue
            pieces = _pieces(values)
            if pieces is not None:
                source, width = pieces
                body.assign(table, f"{body.of(source).within(ATOM)}.split({width}, -1)", f"%{name}.*, by layer")
            else:
                body.assign(table, f"{{{', '.join(f'{i}: {body.of(v).text}' for i, v in values.items())}}}")

    def _stream_names(self, names: Namespace) -> dict[str, str]:
        given: dict[str, str] = {}
        for name in self.wiring.streams:
            given[name] = names.give(("stream", name), *(("x",) if not given else ()), *suffixes(name))
        # what enters the first layer is called as what leaves it, where nobody else reads it
        for item in self.wiring.stacks():
            if isinstance(item, Op):
                continue
            for value, name in (self._entering(item[0]) or self._entering_alone(item[0])).items():
                users = {self.wiring.made_in(v) for user in value.users for v in user.results}
                here = self.wiring.index[item[0].number]
                if value.op is not None and all(made is not None and made[0] == here for made in users):
                    names.alias(value, given[name])
        return given

    def _entering(self, layer: Layer) -> dict[Value, str]:
        """Return the values from outside that a run's first layer reads as streams, and which."""
        feeds = self.wiring.feeds[self.wiring.kind_of[layer.number].name]
        streams = {layer.inputs[f.place]: f.local for f in feeds if f.how == STREAM}
        return {value: name for value, name in streams.items() if self.wiring.made_in(value) is None}

    def _entering_alone(self, layer: Layer) -> dict[Value, str]:
        """Return what a first layer reads that is of a kind of its own, where the model has a single stream."""
        feeds = self.wiring.feeds[self.wiring.kind_of[layer.number].name]
        tensors = [f.value for f in feeds if f.how == GLOBAL and isinstance(f.value.type, TensorType)]
        floats = [value for value in tensors if value.tensor.dtype in FLOATS]
        (name, *more) = self.wiring.streams or [""]
        return {floats[0]: name} if name and not more and len(floats) == 1 else {}

    def _stack(self, body: Body, layers: list[Layer]) -> None:
        """Write the loop over a run of layers."""
        self._spread(body, layers)
        for value, name in self._entering(layers[0]).items():
            if body.of(value).text != self.stream_names[name]:
                body.assign(self.stream_names[name], body.of(value).text)
        kinds = list(
            {self.wiring.kind_of[layer.number].name: self.wiring.kind_of[layer.number] for layer in layers}.values()
        )
        for name in [n for kind in kinds for n in self.blocks[kind.name].results if n in self.kept_names]:
            if f"{self.kept_names[name]} = {{}}" not in (line.partition("  #")[0] for line in body.lines):
                body.assign(self.kept_names[name], "{}", f"%layers.*.{name}, by layer")
        calls = [self._call(body, kind) for kind in kinds]
        counted = any("[i]" in line for call in calls for line in call)
        first, last = (self.wiring.index[layer.number] for layer in (layers[0], layers[-1]))
        if (first, last) == (0, len(self.wiring.layers) - 1):
            body.lines.append("for i, layer in enumerate(self.layers):" if counted else "for layer in self.layers:")
        else:
            body.lines += [f"for i in range({first}, {last + 1}):", "    layer = self.layers[i]"]
        body.lines += [f"    {line}" for line in branches([self.classes[kind.name] for kind in kinds], calls)]
        for layer in layers[-1:]:
            for name in self.blocks[self.wiring.kind_of[layer.number].name].results:
                if name in self.stream_names:
                    value = next(v for op in layer.ops for v in op.results if layer.local(v.name) == name)
                    body.names.alias(value, self.stream_names[name])
        for layer in layers:
            for op in run_time(layer.ops):
                for value in op.results:
                    local = layer.local(value.name)
                    if value not in body.names and local in self.kept_names:
                        index = self.wiring.index[layer.number]
                        body.names.alias(value, f"{self.kept_names[local]}[{index}]")

    def _call(self, body: Body, kind: Kind) -> list[str]:
        """Return the statements that call a layer of ``kind`` and put its results where others find them."""
        written = self.blocks[kind.name]
        passed: list[str] = []
        for feed in written.feeds:
            match feed.how:
                case "stream":
                    passed.append(self.stream_names[feed.local])
                case "each":
                    passed.append(f"{self.each_names[feed.local]}[i]")
                case "kept":
                    key = literal(kind.params[feed.place])
                    passed.append(f"{self.kept_names[feed.local]}[self.reads[i][{key}]]")
                case "owned":
                    owner = f"self.layers[self.reads[i][{literal(kind.params[feed.place])}]]"
                    passed.append(f"{owner}.{self.wiring.places[feed.value].path}")
                case _:
                    passed.append(body.of(feed.value).text)
        passed += written.body.used
        if written.body.pasts:
            passed.append("*pasts[i]")
        values = {name: local_value(kind.layers[0], name) for name in written.results}
        found = [self._target(name, value) for name, value in values.items()]
        targets = sorted((target for target in found if target), key=lambda t: t[0] == "*")
        call = f"{self.called}({', '.join(passed)})"
        lines = [f"{', '.join(targets)} = {call}" if targets else call]
        for name, value in values.items():
            if name not in self.kept_names:
                continue
            if isinstance(value.type, MemoryType):
                lines.append(f"{self.kept_names[name]}[i] = {self._kept_memory(kind, value)}")
            else:
                lines.append(f"{self.kept_names[name]}[i] = {self._target(name, value)}")
        return [part for line in lines for part in fold(line, WIDTH - 16)]

    def _kept_memory(self, kind: Kind, value: Value) -> str:
        """Return the memory that a layer leaves for later ones."""
        states = self.wiring.memories(kind)
        return "tuple(memory)" + (f" or pasts[i][{states.index(value.op)}]" if value.op in states else "")

    def _target(self, name: str, value: Value) -> str:
        """Return the variable that takes a layer's result; none where the cache has it."""
        if isinstance(value.type, MemoryType):
            return "*memory"
        return self.stream_names.get(name) or f"{self.kept_names[name]}_here"

    def _last_rows(self, body: Body, before: list[Op | list[Layer]], after: list[Op | list[Layer]]) -> None:
        """Leave, of what later ops read, the rows that the caller wants logits of."""
        reads = dict.fromkeys(v for op in after if isinstance(op, Op) for v in op.operands)
        made = {v for op in after if isinstance(op, Op) for v in op.results}
        live = [v for v in [*reads, *self.graph.outputs] if not v.is_weight and v not in made]
        names = dict.fromkeys(
            body.of(v).text for v in dict.fromkeys(live) if isinstance(v.type, TensorType) and v.type.sequence != L
        )
        if not names:
            return
        body.lines.append("if last is not None:")
        body.lines += [f"    {name} = {body.helper('last_rows')}({name}, count, last)" for name in names]

    def _reads(self, layer: Layer) -> dict[str, int]:
        return self.wiring.reads(layer)

    # -- the file

    def _render(self, model: Body) -> str:
        return self.rendered(model)

    def rendered(self, model: Body, **more: object) -> str:
        """Return the file's text, given the model's body and what the template needs beyond this target."""
        from regraft import __version__
        from regraft.codegen.render import render

        plain = [(kept, seen) for kept, seen in self.shared.views if not kept.first]
        own = [op for op in self.wiring.items if isinstance(op, Op) and op.is_state]
        return render(
            "model.py.j2",
            version=__version__,
            header=[(key, comment(text)) for key, text in self.header],
            title=comment(self.title),
            **{"fused": None, "in_blocks": False, "unmasked": set[str](), **more},
            helpers={name: sorted(flags) for name, flags in self.shared.helpers.items()},
            scalings={key[3] for key in self.shared.ropes},
            turned_up=any(key[-1] != 1.0 for key in self.shared.ropes),
            broken=broken,
            ropes=[(name, angles(key), turn(key), key[-1]) for key, name in self.shared.ropes.items()],
            everies=[(name, far) for far, name in self.shared.everies.items()],
            apart=any(far.window is not None for far in self.shared.everies),
            row_ropes=self._row_ropes(),
            turned_entries=any(key[1] for key in self.shared.row_ropes),
            turned_rows=any(key[1] is None and not key[2].first for key in self.shared.row_ropes),
            turned_anchored=any(key[2].first for key in self.shared.row_ropes),
            rotaries={turn(key) for key in self.shared.ropes},
            views=[(name, kept, seen) for (kept, seen), name in self.shared.views.items()],
            plain=bool(plain),
            anchored=len(plain) < len(self.shared.views),
            lasting="last_view" in self.shared.helpers,
            windowed=any(sight.window is not None for pair in plain for sight in pair),
            narrower=any(kept != seen._replace(rate=1) for kept, seen in plain),
            blocked=any(seen.rate > 1 for _, seen in self.shared.views),
            blocks=[self._class(kind) for kind in self.wiring.kinds],
            keeps=keeps_table(own),
            wide=self._wide_lines(None),
            fixed=any(memory.memory.fixed for memory in self.graph.memories()),
            pooled=any(memory.memory.rate for memory in self.graph.memories()),
            setup=self._setup(model, None, None),
            lines=model.lines,
            reads=bool(self.wiring.kept) and any(map(self._reads, self.wiring.layers)),
            pasts=list(model.pasts.values()),
            dtype=f"self.{self.wiring.places[self.graph.parameters()[0]].path}.dtype",
            vocabulary=self.graph.outputs[0].tensor.shape[-1],
        )

    def _row_ropes(self) -> list[tuple[str, str, str, object, str]]:
        """Return, for each rotation of rows, its name, whose angles it has, its function, amplitude, and positions."""
        keys = {name: key for key, name in self.shared.ropes.items()}
        found: list[tuple[str, str, str, object, str]] = []
        for (of, rate, kept, offset), name in self.shared.row_ropes.items():
            slots = "context" if kept.window is None else f"min({kept.window + kept.first}, context)"
            where = f"window_starts(pos, {rate})" if rate else f"rows_at(pos, {slots}, alone)"
            where = f"anchored_rows_at(pos, {slots}, {kept.first}, alone)" if kept.first else where
            where += f" + {literal(offset)}" if offset else ""
            found.append((name, of, turn(keys[of]), keys[of][-1], where))
        return found


def _class_names(kinds: list[Kind]) -> dict[str, str]:
    """Return each kind's class; kinds that would be called alike are numbered."""
    names: dict[str, str] = {}
    for kind in kinds:
        wanted, number = class_name(kind.name), 1
        while wanted in names.values():
            number += 1
            wanted = f"{class_name(kind.name)}{number}"
        names[kind.name] = wanted
    return names


def _last_mixing(stacks: list[Op | list[Layer]]) -> int | None:
    """Return the place of the last item that looks at more than one token; None if logits follow it at once."""
    mixing = [
        place
        for place, item in enumerate(stacks)
        if not isinstance(item, Op) or isinstance(item, KV | Attend | Rope) or item.is_state or item.reads_memory
    ]
    return mixing[-1] if mixing else None


def _pieces(values: dict[int, Value]) -> tuple[Value, int] | None:
    """Return the value and the width of which the values are consecutive pieces, each of its layer's place."""
    found: set[tuple[Value, int]] = set()
    for place, value in values.items():
        op = value.op
        if not isinstance(op, Slice) or op.start != place * (op.stop - op.start):
            return None
        found.add((op.x, op.stop - op.start))
    return found.pop() if len(found) == 1 else None
