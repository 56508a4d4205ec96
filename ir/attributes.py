"""Typed attributes of ops: what values they take and how they are spelled in text."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

LARGEST = 2**63 - 1

T_co = TypeVar("T_co", covariant=True)

Plain = int | float | str | bool | tuple[Any, ...] | None


@dataclass(frozen=True)
class Kind(Generic[T_co]):
    """A type of attribute.

    ``coerce`` returns the value in this type, or raises ValueError; it never guesses (2.5 is no integer, 2 is a float).
    """

    name: str
    coerce: Callable[[object], T_co]


def _int(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > LARGEST:
        raise ValueError
    return value


def _float(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError
    try:
        number = float(value)
    except OverflowError:
        raise ValueError from None
    if not math.isfinite(number):
        raise ValueError
    return number + 0.0  # there is one zero: -0.0 would print as a default


def _str(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _bool(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


Item = TypeVar("Item")


def _tuple_of(item: Callable[[object], Item]) -> Callable[[object], tuple[Item, ...]]:
    def coerce(value: object) -> tuple[Item, ...]:
        if not isinstance(value, tuple | list):
            raise ValueError
        return tuple(item(each) for each in cast("tuple[object, ...]", value))

    return coerce


INT = Kind("an integer", _int)
FLOAT = Kind("a finite number", _float)
STR = Kind("a string", _str)
BOOL = Kind("true or false", _bool)
INTS = Kind("a list of integers", _tuple_of(_int))
FLOATS = Kind("a list of finite numbers", _tuple_of(_float))
STRS = Kind("a list of strings", _tuple_of(_str))


def plain(value: object) -> Plain:
    """Return ``value`` as something that text can hold, lists as tuples; raise TypeError where it cannot."""
    match value:
        case None | bool() | str():
            return value
        case int() if abs(value) <= LARGEST:
            return value
        case float() if math.isfinite(value):
            return value
        case tuple() | list():
            return tuple(plain(each) for each in cast("tuple[object, ...]", value))
        case _:
            raise TypeError(f"text cannot hold {type(value).__name__} {shown(value)}")


def shown(value: object) -> str:
    """Return ``value`` as a message shows it: not longer than a line."""
    try:
        text = repr(value)
    except ValueError:  # an integer with more digits than Python writes
        text = "an integer with thousands of digits"
    return text if len(text) <= 60 else f"{text[:57]}..."


def spell(value: object) -> str:
    """Return the text of an attribute's value; ``ir.parse`` reads it back to the same value."""
    match value:
        case None:
            return "none"
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value)
        case tuple() | list():
            return f"[{', '.join(spell(each) for each in cast('tuple[object, ...]', value))}]"
        case _:
            return repr(plain(value))
