"""Dimensions: positive integers, the symbols ``B``, ``T``, ``L`` and ``S``, and simple arithmetic over them.

``B`` is the batch, ``T`` the query tokens of this call, ``L`` the last of them, those whose logits are wanted, and
``S`` the visible context, past included. A dimension such as ``S // 4 - (S - T) // 4`` counts the compressed rows that
this call completes. ``S@NAME`` is the row axis of the memory ``NAME``: as many rows as that memory shows, and no other
value's.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache

from regraft.ir.errors.graph import DimensionError


@dataclass(frozen=True, slots=True)
class Sym:
    """A symbolic dimension, kept as its canonical text."""

    text: str

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"Sym({self.text!r})"

    @property
    def is_sequence(self) -> bool:
        """Whether this is an axis that tokens lie along: ``T``, the last of them, or the rows of a memory."""
        return self.text in ("T", "L") or self.text.startswith("S@")

    @property
    def memory(self) -> str | None:
        """The memory whose rows these are, if that is what they are."""
        return self.text[2:] if self.text.startswith("S@") else None


Dim = int | Sym
Sizes = Mapping[str, int]

B, T, L, S = Sym("B"), Sym("T"), Sym("L"), Sym("S")

_LONGEST = 200  # characters: keeps recursion over an expression shallow
_MEMORY = re.compile(
    r"S@[A-Za-z0-9_][A-Za-z0-9_.\-]*"
    r"|S@(?:[A-Za-z0-9_][A-Za-z0-9_.\-]*\.)?layers\.\*\.[A-Za-z0-9_.\-]+"  # a memory of the layer itself, in a block
)
_PLAIN = re.compile(r"[0-9BTLS+*/() \-]+")
_OPERATORS: dict[type[ast.operator], tuple[str, Callable[[int, int], int]]] = {
    ast.Add: ("+", lambda a, b: a + b),
    ast.Sub: ("-", lambda a, b: a - b),
    ast.Mult: ("*", lambda a, b: a * b),
    ast.FloorDiv: ("//", lambda a, b: a // b),
}


def rows_of(memory: str) -> Sym:
    """Return the row axis of the memory named ``memory``."""
    return Sym(f"S@{memory}")


@cache
def parse_dim(text: str) -> Dim:
    """Return the dimension that ``text`` spells.

    Raises:
        DimensionError: ``text`` is no positive integer, no ``S@memory`` and no arithmetic over the symbols.
    """
    text = text.strip()
    if _MEMORY.fullmatch(text):
        return Sym(text)
    if len(text) > _LONGEST:
        raise DimensionError(text=f"{text[:20]}...")
    tree = _tree(text)
    spelled = _spell(tree, text, 0)
    if any(isinstance(node, ast.Name) for node in ast.walk(tree)):
        return Sym(spelled)
    value = _compiled(spelled)({})
    if value < 1:
        raise DimensionError(text=text)
    return value


def evaluate(dim: Dim, sizes: Sizes) -> int:
    """Return ``dim`` at the given sizes; when not given, a memory's rows, ``S@name``, are ``S``, and ``L`` is ``T``."""
    if isinstance(dim, int):
        return dim
    if dim.text in sizes:
        return sizes[dim.text]
    if dim == L:
        return sizes["T"]
    if dim.text.startswith("S@"):
        return sizes["S"]
    return _compiled(dim.text)(sizes)


def _tree(text: str) -> ast.expr:
    if not _PLAIN.fullmatch(text):
        raise DimensionError(text=text)
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError):
        raise DimensionError(text=text) from None


def _spell(node: ast.expr, text: str, level: int) -> str:
    """Return canonical text: one space round operators, brackets only where precedence needs them."""
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return str(value)
        case ast.Name(id=("B" | "T" | "L" | "S") as name):
            return name
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            sign = _OPERATORS[type(op)][0]
            if sign == "//" and not (isinstance(right, ast.Constant) and right.value):
                raise DimensionError(text=text)  # rates are constants, so that a size can always be computed
            mine = 1 if sign in "+-" else 2
            inner = f"{_spell(left, text, mine)} {sign} {_spell(right, text, mine + 1)}"
            return f"({inner})" if mine < level else inner
        case _:
            raise DimensionError(text=text)


@cache
def _compiled(text: str) -> Callable[[Sizes], int]:
    def build(node: ast.expr) -> Callable[[Sizes], int]:
        match node:
            case ast.Constant(value=int(value)):
                return lambda _: value
            case ast.Name(id=name):
                return lambda sizes: sizes[name]
            case ast.BinOp(left=left, op=op, right=right):
                apply, a, b = _OPERATORS[type(op)][1], build(left), build(right)
                return lambda sizes: apply(a(sizes), b(sizes))
            case _:
                raise DimensionError(text=text)

    return build(_tree(text))
