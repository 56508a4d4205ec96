"""Typed attributes of ops: what values they take and how they are spelled in text."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

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
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError
    return value


def _float(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError
    return float(value)


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


def spell(value: object) -> str:
    """Return the text of an attribute's value; ``ir.text`` reads it back to the same value."""
    match value:
        case None:
            return "none"
        case bool():
            return "true" if value else "false"
        case str():
            return json.dumps(value)
        case int() | float():
            return repr(value)
        case tuple():
            return f"[{', '.join(spell(each) for each in cast('tuple[object, ...]', value))}]"
        case _:
            raise TypeError(f"no attribute value: {value!r}")
