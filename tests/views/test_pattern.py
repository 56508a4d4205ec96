from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft.views.pattern import Repeat, fold, spelled


@pytest.mark.parametrize(
    ("layers", "pattern"),
    [
        ("", ""),
        ("A", "A"),
        (32 * "A", "A×32"),
        ("A" + 39 * "B", "A B×39"),
        (12 * "AAAB", "(A×3 B)×12"),
        ("AAB" + 29 * "CD", "A×2 B (C D)×29"),
        ("A" + 9 * "BBBC" + "BBB", "A (B×3 C)×9 B×3"),
        (3 * "AAAAB" + 4 * "CCCCD", "(A×4 B)×3 (C×4 D)×4"),
        (2 * ("AB" * 2 + "C"), "((A B)×2 C)×2"),
        ("ABCDEFGH", "A B C D E F G H"),
        ("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "A B C D E F G H … T U V W X Y Z"),
    ],
)
def test_patterns(layers: str, pattern: str) -> None:
    assert spelled(fold(layers)) == pattern


def _unfolded(items: tuple[Repeat, ...]) -> str:
    return "".join(
        (each.items if isinstance(each.items, str) else _unfolded(each.items)) * each.count for each in items
    )


@given(st.text("ABC", max_size=40))
def test_a_pattern_unfolds_to_the_layers(layers: str) -> None:
    folded = fold(layers)
    assert _unfolded(folded) == layers
    assert sum(each.layers for each in folded) == len(layers)
