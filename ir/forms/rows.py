"""The form of ``kernel.rows``: maps of one vector, what leads to it, and what follows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeGuard

from regraft.ir.forms.elements import GATHERED, elementwise, of_token, reduced
from regraft.ir.op import Op, Value
from regraft.ir.ops.core import GroupedLinear, Linear, Norm


@dataclass(frozen=True)
class HeadEnd:
    """What is done to each head of a value once all of it is there.

    Attributes:
        x: The value.
        norm: Its heads' norm, if there is one.
        maps: Maps of each head, normed, by rows of a parameter of its own.
    """

    x: Value
    norm: Norm | None
    maps: tuple[GroupedLinear, ...]

    @property
    def ops(self) -> tuple[Op, ...]:
        """All of this."""
        return self.maps if self.norm is None else (self.norm, *self.maps)


@dataclass(frozen=True)
class RowsForm:
    """A body, by what is done when.

    Attributes:
        x: The vector that the maps read.
        before: Ops on the way to it, computed anew by every program that needs them.
        linears: The maps; or one map of each head's channels by rows of its own.
        after: Ops of which an element needs single elements of the maps' results.
        ends: What is done to whole heads of these, by the program that finishes a head last.
        last: Ops that need all of these, computed once, by the program that finishes last.
    """

    x: Value
    before: tuple[Op, ...]
    linears: tuple[Linear | GroupedLinear, ...]
    after: tuple[Op, ...]
    ends: tuple[HeadEnd, ...]
    last: tuple[Op, ...]


def maps(op: Op) -> TypeGuard[Linear | GroupedLinear]:
    """Return whether an op is a map of a token's vector, or of each of its heads, by rows of a parameter."""
    if isinstance(op, GroupedLinear):
        return not op.transposed and _maps_heads(op)
    return isinstance(op, Linear) and op.weight.is_weight and of_token(op.x) and len(op.x.tensor.shape) == 3


def of_heads(op: Op) -> TypeGuard[GroupedLinear | Norm]:
    """Return whether an op needs one head for each head that it makes."""
    if isinstance(op, GroupedLinear):
        return _maps_heads(op)
    return isinstance(op, Norm) and of_token(op.x) and len(op.x.tensor.shape) == 4 and not op.clamp


def _maps_heads(op: GroupedLinear) -> bool:
    return op.weight.is_weight and of_token(op.x) and len(op.x.tensor.shape) == 4


def _ends(ops: Iterable[GroupedLinear | Norm], made: set[Value]) -> tuple[HeadEnd, ...] | None:
    """Return what is done to heads that are made; none if to others."""
    norms: dict[Value, Norm] = {}
    maps: dict[Value, list[GroupedLinear]] = {}
    normed: dict[Value, Value] = {}
    for op in ops:
        x = normed.get(op.x, op.x) if isinstance(op, GroupedLinear) else op.x
        if x not in made or (isinstance(op, Norm) and (x in norms or x in maps)) or (x is op.x and x in norms):
            return None
        if isinstance(op, Norm):
            norms[x], normed[op.out] = op, x
        else:
            maps.setdefault(x, []).append(op)
    return tuple(HeadEnd(x, norms.get(x), tuple(maps.get(x, ()))) for x in dict.fromkeys([*norms, *maps]))


def rows_form(ops: Sequence[Op]) -> RowsForm | None:
    """Return the form of a body, given in order, or none if it is not of this form."""
    linears = [op for op in ops if isinstance(op, Linear) and maps(op)] or [op for op in ops if maps(op)]
    if not linears or len({op.x for op in linears}) != 1:
        return None
    if len(linears) > 1 and any(isinstance(op, GroupedLinear) for op in linears):
        return None
    heads = [op for op in ops if of_heads(op) and op not in linears]
    others = [op for op in ops if op not in linears and op not in heads]
    if not all(elementwise(op) or reduced(op) for op in others):
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
    x, ends = linears[0].x, _ends(heads, made)
    if ends is None or x in made | whole or any(not set(others).isdisjoint(op.out.users) for op in heads):
        return None
    return RowsForm(x, tuple(before), tuple(linears), tuple(after), ends, tuple(last))


def needed(values: Iterable[Value], ops: Iterable[Op]) -> list[Op]:
    """Return those of ``ops``, in their order, on which ``values`` depend."""
    wanted = set(values)
    found: list[Op] = []
    for op in reversed(list(ops)):
        if wanted.intersection(op.results):
            found.append(op)
            wanted.update(op.operands)
    return found[::-1]
