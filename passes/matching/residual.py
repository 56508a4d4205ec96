"""The residual stream: from the embedding to the last norm, the sums that blocks join it by."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace

from regraft.ir.graph import Graph, layer_of
from regraft.ir.op import Op, Value
from regraft.ir.ops.core import Add, Bias, Gain, Scale
from regraft.ir.ops.hyper import Collapse, Write
from regraft.passes.matching.sites import Refusal


@dataclass(frozen=True)
class Joint:
    """Where a block joins the stream.

    ``values`` is the stream from the joint before, or the embedding, up to what is added to: what each of ``along``
    gives, which scale or shift it. ``added`` is what the block gives.
    """

    values: tuple[Value, ...]
    along: tuple[Op, ...]
    add: Add
    added: Value

    @property
    def layer(self) -> int | None:
        """The layer of the sum."""
        return layer_of(self.add.out.name)

    def within(self, layers: Container[int | None]) -> Joint:
        """Return the joint without what scales or shifts the stream in layers before ``layers``."""
        outside = [place for place, op in enumerate(self.along) if layer_of(op.results[0].name) not in layers]
        start = max(outside, default=-1) + 1
        return replace(self, values=self.values[start:], along=self.along[start:])


def residual_stream(graph: Graph) -> list[Joint] | Refusal:
    """Return the joints of the stream that the graph's result comes from, in order, or why there is none."""
    end = _end(graph.outputs[0])
    if isinstance(end, Refusal):
        return end
    joints: list[Joint] = []
    add = _above(end)[-1].op
    while isinstance(add, Add):
        found = _joint(add)
        if found is None:
            return Refusal(f"{add.label} adds two values of which neither is made from the other")
        joints.insert(0, found)
        add = found.values[0].op
    return joints


def after(joint: Joint, graph: Graph) -> list[Op]:
    """Return the ops that scale or shift the stream after the last joint, in order."""
    found: list[Op] = []
    value: Value = joint.add.out
    while True:
        users = [op for op in value.users if isinstance(op, Gain | Bias | Scale) and _is_along(op)]
        if len(users) != 1 or layer_of(users[0].out.name) != joint.layer:
            return found
        found.append(users[0])
        value = users[0].out


def _end(value: Value) -> Value | Refusal:
    """Return the last value of the stream: the first sum on the way up from the logits."""
    while not isinstance(value.op, Add):
        op = value.op
        above = [] if op is None else [v for v in op.operands if not v.is_weight]
        if isinstance(op, Collapse | Write):
            return Refusal("it has residual streams side by side")
        if len(above) != 1 or op is None or op.reads_memory:
            return Refusal(f"%{value.name} does not come from one residual stream")
        (value,) = above
    return value


def _is_along(op: Op) -> bool:
    """Whether an op changes each channel of a stream alone, by what is known beforehand."""
    return isinstance(op, Bias | Scale) or (isinstance(op, Gain) and op.by.is_weight)


def _above(value: Value) -> list[Value]:
    """Return ``value`` and the values above it along the stream, up to a sum or what is not along it."""
    found = [value]
    while value.op is not None and _is_along(value.op):
        value = value.op.slots["x"][0]
        found.append(value)
    return found


def _joint(add: Add) -> Joint | None:
    """Return how a sum joins the stream: the one of its sides that the other is made from goes on."""
    sides = [(add.a, add.b), (add.b, add.a)]
    for stream, added in sides if add.a is not add.b else []:
        chain = _above(stream)
        if any(_comes_from(added, value) for value in chain):
            return _cut(chain, add, added)
    for stream, added in sides:
        if isinstance(stream.op, Add) and not isinstance(added.op, Add):
            return _cut([stream], add, added)
    return None


def _cut(chain: Sequence[Value], add: Add, added: Value) -> Joint:
    """Return the joint of a chain, without what scales the embedding before the first layer."""
    values = list(reversed(chain))
    while len(values) > 1 and values[1].op is not None and not isinstance(values[0].op, Add):
        if layer_of(values[1].name) is not None:
            break
        values.pop(0)
    return Joint(tuple(values), tuple(value.op for value in values[1:] if value.op is not None), add, added)


def _comes_from(value: Value, source: Value) -> bool:
    """Whether ``value`` is computed from ``source``."""
    stack, seen = [value], set[Value]()
    while stack:
        at = stack.pop()
        if at is source:
            return True
        if at in seen or at.op is None or at.op.weight_time:
            continue
        seen.add(at)
        stack.extend(at.op.operands)
    return False
