"""The form of ``kernel.rows``: maps of one vector, what leads to it, and what follows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from regraft.ir.forms.elements import GATHERED, elementwise, of_token, reduced
from regraft.ir.op import Op, Value
from regraft.ir.ops.core import Linear


@dataclass(frozen=True)
class RowsForm:
    """A body, by what is done when.

    Attributes:
        x: The vector that the maps read.
        before: Ops on the way to it, computed anew by every program that needs them.
        linears: The maps.
        after: Ops of which an element needs single elements of the maps' results.
        last: Ops that need all of these, computed once, by the program that finishes last.
    """

    x: Value
    before: tuple[Op, ...]
    linears: tuple[Linear, ...]
    after: tuple[Op, ...]
    last: tuple[Op, ...]


def maps(op: Op) -> bool:
    """Return whether an op is a map of a token's vector by a parameter."""
    return isinstance(op, Linear) and op.weight.is_weight and of_token(op.x) and len(op.x.tensor.shape) == 3


def rows_form(ops: Sequence[Op]) -> RowsForm | None:
    """Return the form of a body, given in order, or none if it is not of this form."""
    linears = tuple(op for op in ops if isinstance(op, Linear) and maps(op))
    others = [op for op in ops if op not in linears]
    if len({op.x for op in linears}) != 1 or not all(elementwise(op) or reduced(op) for op in others):
        return None
    made: set[Value] = {op.out for op in linears}
    whole: set[Value] = set()  # of these, what is there when all is
    before, after, last = list[Op](), list[Op](), list[Op]()
    for op in others:
        reads = set(op.operands)
        if not reads & (made | whole):
            before.append(op)
        elif reads & whole or reduced(op) or isinstance(op, GATHERED):
            last.append(op)
            whole.update(op.results)
        else:
            after.append(op)
            made.update(op.results)
    x = linears[0].x
    return None if x in made | whole else RowsForm(x, tuple(before), linears, tuple(after), tuple(last))


def needed(values: Iterable[Value], ops: Iterable[Op]) -> list[Op]:
    """Return those of ``ops``, in their order, on which ``values`` depend."""
    wanted = set(values)
    found: list[Op] = []
    for op in reversed(list(ops)):
        if wanted.intersection(op.results):
            found.append(op)
            wanted.update(op.operands)
    return found[::-1]
