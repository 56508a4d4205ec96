"""Target ``torch``: what emitters of ops work with: pieces of code, and what the place they write for offers."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from regraft.ir.errors.codegen import MissingEmitterError
from regraft.ir.op import Op, Value
from regraft.ir.ops.attn import Attend, Windowed
from regraft.ir.ops.pos import Rope

SUM, PRODUCT, ATOM = 1, 2, 3


class Code(NamedTuple):
    """Source of an expression, and how tightly its outermost operator binds."""

    text: str
    binds: int = ATOM

    def within(self, binds: int) -> str:
        """Return the text as an operand of an operator that binds that tightly."""
        return f"({self.text})" if self.binds < binds else self.text


class Sight(NamedTuple):
    """What is kept or seen of a memory: the last ``window`` rows, or all, and beside a window the ``first`` ones.

    With a ``rate`` what is seen starts at the start of a block of as many.
    """

    window: int | None = None
    first: int = 0
    rate: int = 1

    @classmethod
    def of(cls, op: Attend | Windowed) -> Sight:
        """Return what an attention sees, or a state keeps."""
        entries = op.entries if isinstance(op, Attend) and op.disjoint else None
        return cls(op.window, op.first, 1 if entries is None else entries.memory.rate or 1)

    @property
    def name(self) -> str:
        """The stem of variables: ``full``, ``window_512``, ``window_512_first_4`` or ``window_512_by_8``."""
        near = "full" if self.window is None else f"window_{self.window}"
        near += f"_first_{self.first}" if self.first else ""
        return f"{near}_by_{self.rate}" if self.rate > 1 else near


class Far(NamedTuple):
    """Which rows of ``rate`` tokens are seen: all, or with a window those before what it shows and after the first."""

    rate: int
    window: int | None = None
    first: int = 0

    @property
    def name(self) -> str:
        """The stem of variables: ``every_4``, or ``every_4_before_512``."""
        return f"every_{self.rate}" + ("" if self.window is None else f"_before_{self.window}")


class Scope(Protocol):
    """What an emitter may ask of the place it writes for: a block, or the model itself."""

    def of(self, value: Value) -> Code:
        """Return the code of a value: a variable, an expression, or a parameter."""
        ...

    def module(self, value: Value, kind: str) -> str | None:
        """Return the module of that ``kind`` that holds a parameter, such as ``self.q_proj``, if one does."""
        ...

    def helper(self, name: str, *flags: str) -> str:
        """Return the name of a function of the emitted file, which is then written, in the forms ``flags``."""
        ...

    def rope(self, op: Rope) -> str:
        """Return the variable that holds cosine and sine for an op."""
        ...

    def view(self, kept: Sight, seen: Sight) -> str:
        """Return the variable that says what a query with a sight of ``seen`` sees of a memory that keeps ``kept``."""
        ...

    def every(self, far: Far) -> str:
        """Return the variable that says what a query sees of rows that are made of several tokens each."""
        ...

    def past(self, op: Op) -> str:
        """Return the variable that holds a memory's rows of earlier calls."""
        ...

    def readers(self, memory: Value) -> list[Op]:
        """Return the ops that read a memory, those that kernels stand for among them."""
        ...

    def call(self, name: str) -> str:
        """Return the variable of a fact of the call: ``start`` and ``count``, the tokens before it and of it [B]."""
        ...

    def head_map(self, heads: tuple[int, ...]) -> str:
        """Return the buffer that holds the key/value head of each query head."""
        ...


def lacking(op: Op, what: str) -> MissingEmitterError:
    """Return the error that the target lacks a form of an op."""
    return MissingEmitterError(target="torch", op=f"{op.label} {what}", where=op.scope)
