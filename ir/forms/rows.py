"""The form of ``kernel.rows``: maps of one vector, what leads to it, and what follows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from regraft.ir.forms.elements import GATHERED, elementwise, of_token, reduced
from regraft.ir.op import Op, Value
from regraft.ir.ops.core import GroupedLinear, Linear


@dataclass(frozen=True)
class RowsForm:
    """A body, by what is done when.

    Attributes:
        x: The vector that the maps read.
        before: Ops on the way to it, computed anew by every program that needs them.
        linears: The maps; or one map of each head's channels by rows of its own.
        after: Ops of which an element needs single elements of the maps' results.
        heads: A map of each head of these back by its rows, computed by the program that finishes the head last.
        last: Ops that need all of these, computed once, by the program that finishes last.
    """

    x: Value
    before: tuple[Op, ...]
    linears: tuple[Linear | GroupedLinear, ...]
    after: tuple[Op, ...]
    heads: GroupedLinear | None
    last: tuple[Op, ...]


def maps(op: Op) -> TypeGuard[Linear | GroupedLinear]:
    """Return whether an op is a map of a token's vector, or of each of its heads, by rows of a parameter."""
    if isinstance(op, GroupedLinear):
        return not op.transposed and _maps_heads(op)
    return isinstance(op, Linear) and op.weight.is_weight and of_token(op.x) and len(op.x.tensor.shape) == 3


def maps_back(op: Op) -> TypeGuard[GroupedLinear]:
    """Return whether an op adds up rows of a parameter, each times its channel of a head."""
    return isinstance(op, GroupedLinear) and op.transposed and _maps_heads(op)


def _maps_heads(op: GroupedLinear) -> bool:
    return op.weight.is_weight and of_token(op.x) and len(op.x.tensor.shape) == 4


def rows_form(ops: Sequence[Op]) -> RowsForm | None:
    """Return the form of a body, given in order, or none if it is not of this form."""
    linears = [op for op in ops if maps(op)]
    heads = [op for op in ops if maps_back(op)]
    others = [op for op in ops if op not in linears and op not in heads]
    if not linears or len({op.x for op in linears}) != 1 or not all(elementwise(op) or reduced(op) for op in others):
        return None
    if len(heads) > 1 or (len(linears) > 1 and any(isinstance(op, GroupedLinear) for op in linears)):
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
    if x in made | whole or any(op.x not in made or not set(others).isdisjoint(op.out.users) for op in heads):
        return None
    return RowsForm(x, tuple(before), tuple(linears), tuple(after), heads[0] if heads else None, tuple(last))


def needed(values: Iterable[Value], ops: Iterable[Op]) -> list[Op]:
    """Return those of ``ops``, in their order, on which ``values`` depend."""
    wanted = set(values)
    found: list[Op] = []
    for op in reversed(list(ops)):
        if wanted.intersection(op.results):
            found.append(op)
            wanted.update(op.operands)
    return found[::-1]
