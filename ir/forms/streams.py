"""The form of ``kernel.streams``: what is written to residual streams, and what is then read of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regraft.ir.op import Op, Value
from regraft.ir.ops.hyper import Collapse, Read, Write


@dataclass(frozen=True)
class StreamsForm:
    """A body that stands between two sublayers; one of both at least.

    Attributes:
        write: What puts a sublayer's result into the streams.
        read: What makes the next one's input of them, or after the last layer the only stream.
    """

    write: Write | None
    read: Read | Collapse | None

    @property
    def streams(self) -> Value:
        """The streams that are given, ``[B, T, N, M]``."""
        one = self.write or self.read
        assert one is not None
        return one.streams

    @property
    def operands(self) -> tuple[Value, ...]:
        """All that a kernel takes, in order: streams, what is written to them, and what they are read with."""
        read = () if self.read is None else (self.read.fn, self.read.base, self.read.scale)
        write = () if self.write is None else (self.write.added, self.write.post, self.write.comb)
        return (self.streams, *write, *read)

    @property
    def results(self) -> tuple[Value, ...]:
        """All that a kernel makes, in order: streams, and what is read of them."""
        return tuple(value for op in (self.write, self.read) if op is not None for value in op.results)


def streams_form(ops: Sequence[Op]) -> StreamsForm | None:
    """Return the form of a body, given in order, or none if it is not of this form."""
    match list(ops):
        case [Write() as write]:
            return StreamsForm(write, None)
        case [Read() | Collapse() as read]:
            return StreamsForm(None, read)
        case [Write() as write, Read() | Collapse() as read] if read.streams is write.out:
            return StreamsForm(write, read)
        case _:
            return None
