"""`add-hyper-connections`: several residual streams side by side, read and written by maps that can be learned."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from regraft.ir.errors.recipe import StructureError
from regraft.ir.graph import Graph, layer_of
from regraft.ir.kinds import ranges
from regraft.ir.op import Op, Value
from regraft.ir.ops.algebra import Eye, Reshape
from regraft.ir.ops.core import Norm, Repeat
from regraft.ir.ops.hyper import Collapse, Read, Write
from regraft.ir.ops.weight import Combine, ConcatWeight
from regraft.passes.base import (
    Constraints,
    Measurements,
    Note,
    Pass,
    Preserves,
    Report,
    integer,
    option,
    optional_option,
)
from regraft.passes.matching.growth import Start, free_module, layer_module
from regraft.passes.matching.residual import Joint, after, residual_stream
from regraft.passes.matching.rewrite import Editor
from regraft.passes.matching.sites import Refusal, attentions
from regraft.passes.selection import LAYERS, Selection

SPREAD = 0.1  # by how much of its share a stream is read more than others, at most twice as much less
WRITTEN = math.log(1.5)  # 2 sigmoid of it is 1.2, of its negative 0.8
STAYS = 0.9  # of a stream that stays in it


@dataclass(frozen=True)
class AddHyperConnections(Pass):
    """Carry several residual streams instead of one, as DeepSeek V4 does.

    A block reads a mix of the streams and writes to each its share; between, streams are mixed by a doubly stochastic
    map. At the start the maps are the same for all tokens, since their projection ``fn`` is zero, and compute what one
    stream did. Let ``a_i`` hold how much of block ``i``'s result each stream carries. Blocks must read ``p · a_i = 1``:

    - ``p = (1 + e) / n`` with ``e = (s, s, -2 s, 0, ...)``, which a sigmoid reaches; so must the last collapse;
    - what is written, ``1 + q`` with ``q = (0.2, -0.2, 0, ...)``, is twice the sigmoid of ``b, -b, 0, ...``;
    - the map between is a softmax of ``c`` times the identity: symmetric, its rows and columns sum to 1, and it only
      shrinks what sums to 0, such as ``e`` and ``q``. Turns of normalisation leave it as it is, with a floor of 0.

    So ``a_i = 1 + r q`` for some ``r``, and ``p · a_i = 1 + r (e · q) / n = 1``, as ``e · q = 0``. Streams differ, so
    that maps between them matter, and are read differently, so that it matters which one carries what: all rows of
    ``fn`` and ``base`` get gradients from the first step on. ``scale`` multiplies ``fn``, which is zero, and gets its
    own from the second step on. Of two streams ``e`` is 0, and how they mix hardly learns before the second step.
    (Before the first block all streams are alike, as in DeepSeek V4.)
    """

    name: ClassVar[str] = "add-hyper-connections"
    preserves: ClassVar[Preserves] = "exact"
    source: ClassVar[str] = "Zhu et al. 2024, Hyper-Connections; specs/deepseek_v4.md, section 4"

    layers: Selection | None = optional_option(LAYERS, "from the first of these layers to the last; by default all")
    streams: int = option(integer(2, 64), 4, "how many")
    iterations: int = option(integer(1, 1000), 20, "turns of normalisation of the map between streams")

    def decide(self, graph: Graph, measurements: Measurements | None, constraints: Constraints) -> AddHyperConnections:
        """Return the pass as it is.

        Raises:
            IllegalPassError: The model has no single residual stream through these layers.
        """
        found = self._joints(graph)
        if isinstance(found, Refusal):
            fix, where = "this pass needs one stream that blocks add to", self.place("layers")
            raise StructureError(owner=self.name, layer=0, reason=found.reason, fix=fix, where=where)
        return self

    def rewrite(self, graph: Graph) -> Report:
        """Replace the stream, joint by joint."""
        joints = self._joints(graph)
        assert not isinstance(joints, Refusal), "decide comes first"
        tail = after(joints[-1], graph)
        streams = _Streams(self, Editor(graph), joints)
        notes: list[Note] = []
        for joint in joints:
            done = streams.join(joint)
            where = f"layer {joint.layer}" if joint.layer is not None else joint.add.label
            notes.append(Note(where, True, done, joint.layer))
        streams.end(joints[-1], tail)
        return Report(tuple(notes))

    def _joints(self, graph: Graph) -> list[Joint] | Refusal:
        joints = residual_stream(graph)
        if isinstance(joints, Refusal) or self.layers is None:
            return joints
        wanted = self.layers.resolve(attentions(graph), graph.layer_count(), self.name, self.place("layers"))
        span = range(wanted[0], wanted[-1] + 1)
        inside = [joint for joint in joints if joint.layer in span]
        if not inside:
            return Refusal(f"no block of layers {ranges(wanted)} adds to the stream")
        return [inside[0].within(span), *inside[1:]]


class _Streams:
    """The streams, from joint to joint."""

    def __init__(self, options: AddHyperConnections, edit: Editor, joints: Sequence[Joint]) -> None:
        self.options, self.edit, self.graph = options, edit, edit.graph
        self.entering, self.layers = joints[0].values[0], {joint.layer for joint in joints} - {None}
        self.count, self.width = options.streams, self.entering.tensor.shape[-1]
        norm = next((op for op in self.graph.ops if isinstance(op, Norm)), None)
        self.eps = 1e-6 if norm is None else norm.eps
        self.dtype = "f64" if self.entering.tensor.dtype == "f64" else "f32"
        self.at = self.entering
        before = self._following(self.entering)
        self.now = edit.add(Repeat, "streams", self.entering, parts=self.count, before=before)

    def _earliest(self, ops: Sequence[Op]) -> Op:
        return min(ops, key=self.graph.ops.index)

    def _following(self, value: Value) -> Op:
        """Return the op after the one that makes a value: where nothing of the next layer stands before."""
        assert value.op is not None
        return self.graph.ops[self.graph.ops.index(value.op) + 1]

    def join(self, joint: Joint) -> str:
        """Let a block read a mix of the streams and write to all of them."""
        graph, add, scope = self.graph, joint.add, joint.added.name.rpartition(".")[0]
        name = add.out.name
        post, comb = self._carry(joint, scope)
        graph.rename(add.out, graph.fresh(f"{name}_alone"))
        slots = {"streams": (self.now,), "added": (joint.added,), "post": (post,), "comb": (comb,)}
        (self.now,) = graph.add(Write(slots, {}), [name], before=add)
        self.at = add.out
        return f"%{name} writes to {self.count} streams"

    def _carry(self, joint: Joint, scope: str) -> tuple[Value, Value]:
        """Take the streams along what scales them, and let the block read them where it read the one."""
        maps: tuple[Value, Value] | None = None
        following: list[Op] = [*joint.along, joint.add]
        for op in following:
            readers = [user for user in self.at.users if user is not op and self._is_inside(user)]
            if readers or (maps is None and op is joint.add):
                maps = self._read(readers, self._earliest([*readers, op]), joint, scope)
            if op is not joint.add:
                self._along(op)
        assert maps is not None
        return maps

    def _is_inside(self, user: Op) -> bool:
        """Whether an op that reads the stream belongs to the blocks, not to what else is made of what enters them."""
        return self.at is not self.entering or layer_of(user.results[0].name) in self.layers

    def _along(self, op: Op) -> None:
        """Let what scaled or shifted the one stream do so with all; whoever read its result goes on to read that."""
        self.edit.set_operand(op, "x", self.now)
        self.edit.retype([op])
        self.at = self.now = op.results[0]

    def _read(self, readers: Sequence[Op], before: Op, joint: Joint, scope: str) -> tuple[Value, Value]:
        graph, count = self.graph, self.count
        rows = (2 + count) * count
        layer, kind = joint.layer, scope.rpartition(".")[2] or "block"
        module = free_module(graph, f"{'model' if layer is None else layer_module(graph, layer)}.{kind}_hc")
        start = Start(self.edit, self.dtype, before)
        weights = {
            "fn": start.fill(f"{module}.fn", (rows, count * self._model)),
            "base": self._base(start, f"{module}.base", maps=True),
            "scale": start.fill(f"{module}.scale", (3,), 1.0),
        }
        slots = {"streams": (self.now,), **{key: (value,) for key, value in weights.items()}}
        options = {"eps": self.eps, "floor": 0.0, "iterations": self.options.iterations}
        names = [graph.fresh(f"{scope}.{each}" if scope else each) for each in ("input", "post", "comb")]
        mixed, post, comb = graph.add(Read(slots, options), names, before=before)
        graph.replace_uses(self.at, mixed, lambda op: op in readers)
        return post, comb

    @property
    def _model(self) -> int:
        assert isinstance(self.width, int)
        return self.width

    def _base(self, start: Start, name: str, *, maps: bool) -> Value:
        """Return the logits of what is read of each stream, and with ``maps`` of what is written and how they mix."""
        count, edit, before = self.count, self.edit, start.before
        parts = [start.fill(f"{name}.read", (size,), value) for size, value in _read_logits(count)]
        if maps:
            parts += [start.fill(f"{name}.written", (1,), value) for value in (WRITTEN, -WRITTEN)]
            parts += [start.fill(f"{name}.written", (count - 2,))] if count > 2 else []
            one = edit.add(Eye, f"{name}.one", before=before, dtype=self.dtype, shape=(count, count))
            logit = math.log(STAYS / (1 - STAYS) * (count - 1))
            square = edit.add(Combine, f"{name}.stays", [one], factors=(logit,), before=before)
            parts.append(edit.add(Reshape, f"{name}.mixed", square, shape=(count * count,), before=before))
        return edit.add(ConcatWeight, name, parts, axis=0, before=before)

    def end(self, last: Joint, tail: Sequence[Op]) -> None:
        """Collapse the streams for all that reads the stream after the last joint, and tidy up."""
        for op in tail:
            self._along(op)
        graph = self.graph
        following = self._following(self.now)
        layer = last.layer
        root = "model" if layer is None else layer_module(graph, layer).rpartition(".layers.")[0] or "model"
        module = free_module(graph, f"{root}.hc_head")
        start = Start(self.edit, self.dtype, following)
        weights = [
            start.fill(f"{module}.fn", (self.count, self.count * self._model)),
            self._base(start, f"{module}.base", maps=False),
            start.fill(f"{module}.scale", (1,), 1.0),
        ]
        options = {"eps": self.eps, "floor": 0.0}
        collapsed = self.edit.add(Collapse, "collapsed", self.now, *weights, before=following, **options)
        graph.replace_uses(self.at, collapsed)


def _read_logits(count: int) -> list[tuple[int, float]]:
    """Return how many streams are read by each share, and the logit at which a sigmoid gives it."""
    spread = SPREAD if count > 2 else 0.0
    shares = [(2, 1 + spread), (1, 1 - 2 * spread), (count - 3, 1.0)][: min(count - 1, 3)]
    return [(size, math.log(share / (count - share))) for size, share in shares]
