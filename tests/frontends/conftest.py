"""Twins are made once: several modules look at the same ones."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.frontends.agreement import Pair, pair
from tests.frontends.cases import CASES

TwinOf = Callable[[str], Pair]


@pytest.fixture(scope="session")
def twin_of(tmp_path_factory: pytest.TempPathFactory) -> TwinOf:
    """Return the twin of a case, by its name."""
    made: dict[str, Pair] = {}

    def of(name: str) -> Pair:
        if name not in made:
            made[name] = pair(CASES[name], tmp_path_factory.mktemp("twin"))
        return made[name]

    return of
