"""The residual stream of a layer: the values from its input to its output, each the last one with something added."""

from __future__ import annotations

from regraft.ir.kinds import Layer
from regraft.ir.op import Op, Value
from regraft.ir.ops.core import Add, Bias, Gain, Scale
from regraft.ir.ops.hyper import Write


def stream_values(layer: Layer) -> tuple[Value, ...]:
    """Return the stream's values in order, the layer's input first; none where nothing joins input and output so."""
    if not layer.outputs:
        return ()
    end = layer.outputs[-1]
    first = next((v for v in layer.inputs if v.type == end.type and not v.is_weight), None)
    if first is None:
        return ()
    ahead = {first}
    for op in layer.ops:
        if any(value in ahead for value in _carried(op)):
            ahead.update(op.results)
    if end not in ahead:
        return ()
    chain, value = [end], end
    while value is not first and value.op is not None:
        value = next(v for v in _carried(value.op) if v in ahead)
        chain.append(value)
    return tuple(reversed(chain))


def _carried(op: Op) -> tuple[Value, ...]:
    """Return the operands that an op passes on with something added, or scaled."""
    match op:
        case Add():
            return (op.a, op.b)
        case Bias() | Gain() | Scale():
            return (op.x,)
        case Write():
            return (op.streams,)
        case _:
            return ()
