"""Layer selections: ranges, lists and predicates, as recipes write them.

    "all"    3    "4..7"    "0..2, 5"    [0, "4..7"]    "kind == full and layer >= 4"

Ranges include both ends. A predicate compares ``layer``, ``kind`` (full or sliding), ``heads``, ``kv_heads`` and
``window`` (``none`` where there is none), joined by ``and``, ``or``, ``not`` and brackets; it chooses among the layers
that have attention.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from regraft.ir.errors.base import nearest
from regraft.ir.errors.recipe import EmptySelectionError, LayerMissingError, SelectionError, StructureError
from regraft.ir.kinds import ranges
from regraft.passes.base import OptionKind, read_integer, type_error
from regraft.passes.located import Node, Plain
from regraft.passes.matching.sites import Attention

MOST_LAYERS = 100_000
LONGEST = 400
Test = Callable[[Attention], bool]
Part = int | tuple[int, int]


@dataclass(frozen=True)
class Selection:
    """Layers as a recipe names them: ``parts`` are numbers and inclusive ranges, ``predicate`` a condition or "all"."""

    parts: tuple[Part, ...] = ()
    predicate: str = ""

    @classmethod
    def of(cls, layers: Iterable[int]) -> Selection:
        """Return the selection of just these layers."""
        return _numbers(ranges(sorted(set(layers))))

    @property
    def plain(self) -> Plain:
        """The selection as a recipe holds it."""
        if self.predicate:
            return self.predicate
        if len(self.parts) == 1 and isinstance(self.parts[0], int):
            return self.parts[0]
        return str(self)

    def __str__(self) -> str:
        return self.predicate or ", ".join(str(p) if isinstance(p, int) else f"{p[0]}..{p[1]}" for p in self.parts)

    @property
    def explicit(self) -> bool:
        """Whether layers are named by number, so that each of them must be there and fit."""
        return not self.predicate

    def resolve(self, attentions: Mapping[int, Attention], count: int, owner: str, where: str) -> list[int]:
        """Return the layers of a model, in order.

        Args:
            attentions: The model's attentions by layer.
            count: The model's number of layers.
            owner: The pass that asks, for messages.
            where: The option's place, for messages.

        Raises:
            LayerMissingError: A layer's number is too high.
            StructureError: A layer that is named has no attention.
            EmptySelectionError: No layer satisfies the predicate.
        """
        if self.predicate:
            test = _always if self.predicate == "all" else _Parser(self.predicate, owner).read()
            found = [layer for layer, attention in attentions.items() if test(attention)]
            if not found:
                legal = describe_kinds(attentions)
                raise EmptySelectionError(owner=owner, text=self.predicate, legal=legal, where=where)
            return found
        spans = [(part, part) if isinstance(part, int) else part for part in self.parts]
        for _, last in spans:
            if last >= count:
                legal = f"0 to {count - 1}" if count else "none"
                raise LayerMissingError(owner=owner, layer=last, legal=legal, where=where)
        named = sorted({layer for first, last in spans for layer in range(first, last + 1)})
        for layer in named:
            if layer not in attentions:
                raise StructureError(
                    owner=owner,
                    layer=layer,
                    reason="it has no attention",
                    fix=f"the layers with attention are {describe_kinds(attentions)}",
                    where=where,
                )
        return named


def describe_kinds(attentions: Mapping[int, Attention]) -> str:
    """Return what layers there are, by kind: ``sliding, window 512 (0..4, 6); full (5)``."""
    kinds: dict[str, list[int]] = {}
    for layer, attention in attentions.items():
        kinds.setdefault(attention.described, []).append(layer)
    return "; ".join(f"{kind} ({ranges(layers)})" for kind, layers in kinds.items()) or "none"


# -- reading

_NUMBERS = re.compile(r"\d{1,6}(\s*\.\.\s*\d{1,6})?(\s*,\s*\d{1,6}(\s*\.\.\s*\d{1,6})?)*")


def _numbers(text: str) -> Selection:
    parts: list[Part] = []
    for piece in text.split(","):
        first, dots, last = piece.partition("..")
        if not dots or int(first) == int(last):
            parts.append(int(first))
        else:
            parts.append((int(first), int(last)))
    return Selection(tuple(parts))


def read_selection(node: Node, owner: str, name: str) -> Selection:
    """Return the selection at ``node``.

    Raises:
        SelectionError: A string is no selection.
        OptionTypeError: It is neither number, string nor list of these.
    """
    if node.items is not None:
        if not node.items:
            raise type_error(node, owner, name, "at least one layer")
        parts = [read_selection(item, owner, name) for item in node.items if _is_part(item, owner, name)]
        for part, item in zip(parts, node.items, strict=True):
            if part.predicate:
                raise type_error(item, owner, name, "a number or a range, within a list")
        return Selection(tuple(p for part in parts for p in part.parts))
    if isinstance(node.scalar, int) and not isinstance(node.scalar, bool):
        return Selection((read_integer(node, owner, name, 0, MOST_LAYERS),))
    if not isinstance(node.scalar, str):
        raise type_error(node, owner, name, "layers")
    text = " ".join(node.scalar.split())
    where = str(node.place)
    if _NUMBERS.fullmatch(text):
        selection = _numbers(text)
        for part in selection.parts:
            if isinstance(part, tuple) and part[0] > part[1]:
                problem = f"the range {part[0]}..{part[1]} runs backwards"
                raise SelectionError(owner=owner, text=text, problem=problem, where=where)
        return selection
    if text == "all":
        return Selection(predicate="all")
    try:
        return Selection(predicate=_Parser(text, owner).normal())
    except SelectionError as error:
        error.where = where
        raise


def _is_part(node: Node, owner: str, name: str) -> bool:
    if not node.is_scalar:
        raise type_error(node, owner, name, "a number or a range, within a list")
    return True


LAYERS: OptionKind[Selection] = OptionKind("layers", read_selection, lambda selection: selection.plain)


# -- predicates

_TOKEN = re.compile(r"\s*(==|!=|<=|>=|<|>|\(|\)|[A-Za-z_]\w*|\d{1,9}|\S)")
_COMPARE: dict[str, Callable[[int, int], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_FACTS: dict[str, Callable[[Attention], int | str | None]] = {
    "layer": lambda a: a.layer,
    "kind": lambda a: a.kind,
    "heads": lambda a: a.heads,
    "kv_heads": lambda a: a.kv_heads,
    "window": lambda a: a.window,
}


def _always(attention: Attention) -> bool:
    return True


class _Parser:
    """Reads ``kind == full and layer >= 4``; ``or`` binds least, ``not`` most."""

    def __init__(self, text: str, owner: str) -> None:
        self.text, self.owner = text, owner
        if len(text) > LONGEST:
            raise self.error(f"it has more than {LONGEST} characters")
        self.tokens: list[str] = _TOKEN.findall(text)
        self.at = 0

    def error(self, problem: str) -> SelectionError:
        return SelectionError(owner=self.owner, text=self.text[:80], problem=problem)

    @property
    def next(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self) -> str:
        token = self.next
        self.at += 1
        return token

    def normal(self) -> str:
        """Return the predicate with single spaces, checked."""
        self.read()
        return " ".join(self.tokens).replace("( ", "(").replace(" )", ")")

    def read(self) -> Test:
        test = self.either()
        if self.next:
            raise self.error(f"{self.next!r} follows where `and`, `or` or the end is expected")
        return test

    def either(self) -> Test:
        tests = [self.both()]
        while self.next == "or":
            self.take()
            tests.append(self.both())
        return tests[0] if len(tests) == 1 else lambda a: any(test(a) for test in tests)

    def both(self) -> Test:
        tests = [self.one()]
        while self.next == "and":
            self.take()
            tests.append(self.one())
        return tests[0] if len(tests) == 1 else lambda a: all(test(a) for test in tests)

    def one(self) -> Test:
        if self.next == "not":
            self.take()
            inner = self.one()
            return lambda a: not inner(a)
        if self.next == "(":
            self.take()
            inner = self.either()
            if self.take() != ")":
                raise self.error("a bracket is not closed")
            return inner
        return self.comparison()

    def comparison(self) -> Test:
        name = self.take()
        if name not in _FACTS:
            raise self.error(f"unknown {name!r}; {nearest(name, list(_FACTS))}" if name else "it ends too early")
        sign = self.take()
        if sign not in _COMPARE:
            raise self.error(f"{name} is followed by {sign or 'nothing'!r}, not by one of {', '.join(_COMPARE)}")
        fact, compare, value = _FACTS[name], _COMPARE[sign], self.take()
        if name == "kind" or value == "none":
            legal: Sequence[str] = ("full", "sliding") if name == "kind" else ("none",) if name == "window" else ()
            if value not in legal or sign not in ("==", "!="):
                raise self.error(f"{name} {sign} {value or 'nothing'}; kind is == or != full or sliding, window none")
            wanted = None if value == "none" else value
            return lambda a: (fact(a) == wanted) is (sign == "==")
        if not value.isdecimal():
            raise self.error(f"{name} is compared with {value or 'nothing'!r}, not with a number")
        number = int(value)

        def test(attention: Attention) -> bool:
            found = fact(attention)
            # a layer without a window satisfies no comparison of its window with a number but !=
            return compare(found, number) if isinstance(found, int) else sign == "!="

        return test
