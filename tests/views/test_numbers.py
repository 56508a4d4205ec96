from __future__ import annotations

import io

import pytest

from regraft.views import numbers
from regraft.views.table import ADDED, REMOVED, Heading, Item, coloured, markdown, plain, table


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


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (2e-6, "2.00 µs"),
        (0.017, "17.0 ms"),
        (1.508, "1.51 s"),
        (192.0, "3.20 min"),
        (7200.0, "2.00 h"),
        (1e9, "31.7 years"),
    ],
)
def test_seconds(number: float, text: str) -> None:
    assert numbers.seconds(number) == text


@pytest.mark.parametrize(("pair", "text"), [((1, 8), "12.5 %"), ((0, 8), "-"), ((1, 0), "-"), ((1, 10_000), "< 0.1 %")])
def test_share(pair: tuple[float, float], text: str) -> None:
    assert numbers.share(*pair) == text


def test_rate() -> None:
    assert [numbers.rate(n) for n in (1036.4, 99.54, 4.263, 0.00312)] == ["1,036", "99.5", "4.26", "0.00312"]


def test_plural() -> None:
    assert [numbers.plural(n, "layer") for n in (1, 0, 1024)] == ["1 layer", "0 layers", "1,024 layers"]


def test_the_three_ways_to_show_say_the_same() -> None:
    blocks = [Heading("title", 1), "a|line", table(("name", "n"), [("x", "1"), ("longer", "23")])]
    assert plain(blocks) == "title\n  a|line\n  name     n\n  x        1\n  longer  23\n"
    assert markdown(blocks) == "# title\n\na|line\n\n| name | n |\n| --- | ---: |\n| x | 1 |\n| longer | 23 |\n"
    shown = io.StringIO()
    coloured(blocks, shown)
    assert shown.getvalue().split() == plain(blocks).split()


def test_lines_end_where_the_terminal_does() -> None:
    long = "a word and another " * 6
    blocks = [Item("title of an item", (long,)), long, table(("name", "n"), [(long, "1")])]
    for width in (30, 80):
        lines = plain(blocks, width).splitlines()
        assert max(map(len, lines)) <= width
        assert " ".join(plain(blocks, width).split()).count("another") == 18
    assert len(plain(blocks).splitlines()) == 5


def test_columns_that_do_not_fit_stand_below_beside_the_first() -> None:
    wide = table(["", *(f"model-{n}" for n in range(6))], [["layers", *map(str, range(6))]])
    lines = plain([wide], 40).splitlines()
    assert max(map(len, lines)) <= 40
    assert [line.split()[0] for line in lines if "layers" in line] == ["layers"] * 2
    assert "model-5" in lines[-2]


def test_rows_that_differ_are_marked_and_changes_coloured() -> None:
    blocks = [
        table(("", "a", "b"), [("x", "1", "2"), ("y", "1", "1")], marked=[0]),
        Item(f"{ADDED}new", (f"{REMOVED}old",)),
    ]
    assert plain(blocks) == "       a  b\n  ~ x  1  2\n    y  1  1\n  + new\n      - old\n"
    assert "| ~ x | 1 | 2 |" in markdown(blocks)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown = Terminal()
    coloured(blocks, shown)
    assert "\x1b[32m+ new" in shown.getvalue()
    assert "\x1b[31m- old" in shown.getvalue()
    assert "\x1b[33m" in shown.getvalue()


def test_markdown_finds_no_marks_in_names() -> None:
    text = markdown([Heading("<b>*x*</b>", 1), Item("[a](b)", ("`c`",)), table(("a|b",), [("<i>",)])])
    assert text == "# \\<b>\\*x\\*\\</b>\n\n- **\\[a](b)**\n  - \\`c\\`\n\n| a\\|b |\n| --- |\n| \\<i> |\n"
