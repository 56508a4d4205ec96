"""A pass as data: what ``regraft passes`` prints."""

from __future__ import annotations

import inspect
from typing import Any

from regraft.passes.base import Pass


def describe(cls: type[Pass]) -> dict[str, Any]:
    """Return a pass's name, summary, text, what it preserves, its source, and its options with types and defaults."""
    text = inspect.cleandoc(cls.__doc__ or "")
    return {
        "name": cls.name,
        "preserves": cls.preserves,
        "summary": cls.summary(),
        "text": text.partition("\n")[2].strip(),
        "source": cls.source,
        "options": [
            {"name": each.name, "type": each.kind.name, "default": each.default_text, "text": each.text}
            for each in cls.declared()
        ],
    }
