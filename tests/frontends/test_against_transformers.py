"""Every family's small twin, every parameter randomised: interpreter and emitted program against transformers.

Prefill, single tokens, chunks of 7 and of 64, and a ragged batch are each held to the original's prefill, and the first
of these splits to what the original says through its own cache.
"""

from __future__ import annotations

import pytest
import torch

from tests.frontends.agreement import SPLITS, Pair, check_text
from tests.frontends.cases import CASES
from tests.frontends.conftest import TwinOf


@pytest.fixture(scope="session", params=CASES)
def twin(request: pytest.FixtureRequest, twin_of: TwinOf) -> Pair:
    return twin_of(request.param)


def test_the_interpreter_agrees(twin: Pair) -> None:
    assert twin.logits.std() >= 1
    check_text(twin.graph)
    twin.check_all(twin.interpreter)


def test_the_emitted_program_agrees(twin: Pair) -> None:
    twin.check_all(twin.program)


def test_decoding_agrees_with_the_originals_own(twin: Pair) -> None:
    assert twin.decoded is not None
    cache = twin.interpreter.new_cache(2)
    found = [twin.interpreter(part, cache) for part in twin.tokens.split(SPLITS[0], 1)]
    twin.check(torch.cat(found, 1), twin.decoded)
