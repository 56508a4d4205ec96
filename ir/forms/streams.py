"""The form of ``kernel.streams``: what is written to residual streams, what is then read of them, and its router."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regraft.ir.forms.elements import width
from regraft.ir.forms.experts import RouteForm, route_form
from regraft.ir.op import Op, Value
from regraft.ir.ops.core import Gain
from regraft.ir.ops.hyper import Collapse, Read, Write


@dataclass(frozen=True)
class StreamsForm:
    """A body that stands between two sublayers; one of both at least.

    Attributes:
        write: What puts a sublayer's result into the streams.
        read: What makes the next one's input of them, or after the last layer the only stream.
        route: What chooses experts by that input.
        gain: What multiplies the streams that are written, by one number.
    """

    write: Write | None
    read: Read | Collapse | None
    route: RouteForm | None = None
    gain: Gain | None = None

    @property
    def streams(self) -> Value:
        """The streams that are given, ``[B, T, N, M]``."""
        one = self.write or self.read
        assert one is not None
        return one.streams

    @property
    def operands(self) -> tuple[Value, ...]:
        """What a kernel takes, in order: streams, what is written to them and what they are read with; no router's."""
        read = () if self.read is None else (self.read.fn, self.read.base, self.read.scale)
        write = () if self.write is None else (self.write.added, self.write.post, self.write.comb)
        gain = () if self.gain is None else (self.gain.by,)
        return (self.streams, *write, *gain, *read)

    @property
    def results(self) -> tuple[Value, ...]:
        """All that a kernel makes, in order: streams, what is read of them, and the choice of experts."""
        ops = (self.gain or self.write, self.read, None if self.route is None else self.route.route)
        return tuple(value for op in ops if op is not None for value in op.results)


def streams_form(ops: Sequence[Op]) -> StreamsForm | None:
    """Return the form of a body, given in order, or none if it is not of this form."""
    match list(ops):
        case [Write() as write]:
            return StreamsForm(write, None)
        case [Write() as write, Gain() as gain] if gain.x is write.out and gain.by.is_weight and width(gain.by) == 1:
            return StreamsForm(write, None, gain=gain)
        case [Read() | Collapse() as read]:
            return StreamsForm(None, read)
        case [Write() as write, Read() | Collapse() as read] if read.streams is write.out:
            return StreamsForm(write, read)
        case _:
            return _routed(ops)


def _routed(ops: Sequence[Op]) -> StreamsForm | None:
    """Return the form of a body in which a router rides: what reads is one of its ops, and it starts from that."""
    ends = [op for op in ops if isinstance(op, Read | Write)]
    rest = [op for op in ops if not isinstance(op, Read | Write)]
    read = ends[-1] if ends else None
    form = streams_form(ends) if rest and isinstance(read, Read) else None
    route = None if form is None else route_form(rest)
    if form is None or route is None or route.linear is None or route.state is not None:
        return None
    return StreamsForm(form.write, form.read, route) if isinstance(read, Read) and route.x is read.out else None
