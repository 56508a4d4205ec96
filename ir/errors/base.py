"""The base of every error: a code, a message template, a place, notes and the next thing to try."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import ClassVar


class RegraftError(Exception):
    """An error that the user can cause, printed as a coded message and never as a traceback.

    Subclasses set ``code`` (``RGnnn``, unique), ``message`` and ``hint`` as templates over the keyword fields, and
    ``exit_code`` as the command line documents it.

    Args:
        where: The place: an op's scope, ``file:line:column``, a tensor or a config key.
        excerpt: Lines of source to show under the place, the last of them usually a marker.
        notes: Further facts, one line each.
        fields: What the templates need.
    """

    code: ClassVar[str] = "RG000"
    exit_code: ClassVar[int] = 70
    message: ClassVar[str] = "internal error"
    hint: ClassVar[str] = ""

    def __init__(
        self, *, where: str = "", excerpt: Sequence[str] = (), notes: Sequence[str] = (), **fields: object
    ) -> None:
        self.where = where
        self.excerpt = tuple(excerpt)
        self.notes = list(notes)
        self.fields = fields
        super().__init__(self.text)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "code" not in cls.__dict__:
            return  # an abstract family of errors
        other = _CATALOGUE.setdefault(cls.code, cls)
        if other is not cls and other.__qualname__ != cls.__qualname__:
            raise TypeError(f"{cls.code} is both {other.__qualname__} and {cls.__qualname__}")

    @property
    def text(self) -> str:
        """The message alone, on one line."""
        return self.message.format(**self.fields)

    def __str__(self) -> str:
        lines = [f"error[{self.code}]: {self.text}"]
        if self.where:
            lines.append(f"  --> {self.where}")
        lines += [f"    {line}" for line in self.excerpt]
        lines += [f"  = note: {note}" for note in self.notes]
        if self.hint:
            lines.append(f"  = help: {self.hint.format(**self.fields)}")
        return "\n".join(lines)


_CATALOGUE: dict[str, type[RegraftError]] = {}


def catalogue() -> dict[str, type[RegraftError]]:
    """Return every error class by code, in order."""
    import importlib
    import pkgutil

    import regraft.ir.errors as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return dict(sorted(_CATALOGUE.items()))


def nearest(name: str, legal: Sequence[str]) -> str:
    """Return a phrase that offers the closest legal names, or lists them all."""
    close = get_close_matches(name, legal, n=3)
    if close:
        return f"did you mean {' or '.join(close)}?"
    listed = ", ".join(sorted(legal)[:30]) or "none"
    return f"legal: {listed}" if len(legal) <= 30 else f"legal: {listed} and {len(legal) - 30} more"
