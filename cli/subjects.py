"""What several commands take: a MODEL or a package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from regraft.model import Model


def subject(text: str, allow_keys: Sequence[str]) -> str | Model:
    """Return ``text`` itself where it names a package or ``transformers``, else the lifted model.

    Raises:
        RegraftError: The model cannot be lifted.
    """
    from regraft.model import lift
    from regraft.programs import is_package

    return text if text == "transformers" or is_package(text) else lift(text, allow_keys=allow_keys)
