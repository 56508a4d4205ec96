"""How a form is read from a body: its ops are taken one by one, from a value back to what it is made of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from regraft.ir.op import Op, Value

Found = TypeVar("Found", bound=Op)


class OtherFormError(Exception):
    """A body is not of the form that it is read as; whoever reads it catches this."""


class Taking:
    """Ops of a body, and which of them a form has a place for.

    Args:
        ops: The body's.
    """

    def __init__(self, ops: Iterable[Op]) -> None:
        self.inside = set(ops)
        self.taken: set[Op] = set()

    def made(self, value: Value, kind: type[Found]) -> Found:
        """Take the op that makes a value.

        Raises:
            OtherFormError: It is not in the body or not of that kind.
        """
        found = self.made_perhaps(value, kind)
        if found is None:
            raise OtherFormError
        return found

    def made_perhaps(self, value: Value, kind: type[Found]) -> Found | None:
        """Take the op that makes a value, if it is in the body and of a kind."""
        op = value.op
        if op not in self.inside or not isinstance(op, kind):
            return None
        self.taken.add(op)
        return op

    def check(self, *facts: bool) -> None:
        """Insist on facts.

        Raises:
            OtherFormError: One is not so.
        """
        if not all(facts):
            raise OtherFormError

    def check_whole(self) -> None:
        """Insist that all ops are taken.

        Raises:
            OtherFormError: One is left.
        """
        self.check(self.taken == self.inside)
