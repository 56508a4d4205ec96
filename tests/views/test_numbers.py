from __future__ import annotations

import io

import pytest

from regraft.views import numbers
from regraft.views.table import Heading, coloured, markdown, plain, table


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1024, "1.02 k"), (2_099_840, "2.10 M"), (8_190_735_360, "8.19 B"), (1.6e12, "1.60 T")],
)
def test_count(number: float, text: str) -> None:
    assert numbers.count(number) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (150 * 2**30, "150 GiB")]
)
def test_size(number: float, text: str) -> None:
    assert numbers.size(number) == text


@pytest.mark.parametrize(("number", "text"), [(7, "7 FLOP"), (4_310_000, "4.31 MFLOP"), (16.2e9, "16.2 GFLOP")])
def test_flops(number: float, text: str) -> None:
    assert numbers.flops(number) == text


@pytest.mark.parametrize(
    ("tokens", "text"), [(512, "512"), (4096, "4k"), (131072, "128k"), (2**20, "1M"), (5000, "5000")]
)
def test_context(tokens: int, text: str) -> None:
    assert numbers.context(tokens) == text


@pytest.mark.parametrize(
    ("pair", "text"), [((2, 1), "-50.0 %"), ((2, 2), "same"), ((0, 1), "new"), ((4, 5), "+25.0 %")]
)
def test_change(pair: tuple[float, float], text: str) -> None:
    assert numbers.change(*pair) == text


def test_the_three_ways_to_show_say_the_same() -> None:
    blocks = [Heading("title", 1), "a|line", table(("name", "n"), [("x", "1"), ("longer", "23")])]
    assert plain(blocks) == "title\n  a|line\n  name     n\n  x        1\n  longer  23\n"
    assert markdown(blocks) == "# title\n\na|line\n\n| name | n |\n| --- | ---: |\n| x | 1 |\n| longer | 23 |\n"
    shown = io.StringIO()
    coloured(blocks, shown)
    assert shown.getvalue().split() == plain(blocks).split()
