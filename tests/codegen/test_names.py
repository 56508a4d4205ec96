"""Whatever a config or a checkpoint spells, emitted code has identifiers, literals and comments of ours."""

from __future__ import annotations

import ast
import keyword

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft.codegen.names import (
    MODULE_ATTRIBUTES,
    RESERVED,
    Namespace,
    class_name,
    comment,
    identifier,
    literal,
    suffixes,
)


@given(st.text())
def test_any_text_becomes_an_identifier(text: str) -> None:
    name = identifier(text)
    assert name.isidentifier()
    assert name.isascii()
    assert len(name) < 70
    assert class_name(text).isidentifier()


@given(st.text())
def test_literals_read_back(text: str) -> None:
    spelled = literal(text)
    assert ast.literal_eval(spelled) == text
    assert spelled.isascii()
    assert "\n" not in spelled
    assert spelled.startswith('"')


@given(st.text())
def test_comments_stay_on_their_line_and_close_nothing(text: str) -> None:
    told = comment(text)
    assert len(told) == len(text)
    assert set(told).isdisjoint("\"'\\`\n\r\x0b\x0c\u2028")
    assert told.isascii()


@given(st.lists(st.text(), max_size=30))
def test_no_two_things_share_a_name(texts: list[str]) -> None:
    space = Namespace(["taken"])
    names = [space.give(place, text) for place, text in enumerate(texts)]
    assert len(set(names)) == len(names)
    assert not set(names) & (RESERVED | {"taken"})
    assert [space.give(place, "other") for place in range(len(texts))] == names


@pytest.mark.parametrize("word", ["class", "import", "match", "print", "None", "Lambda"])
def test_reserved_words_are_told_apart(word: str) -> None:
    name = Namespace().give(0, word)
    assert not keyword.iskeyword(name)
    assert name not in RESERVED


def test_module_attributes_are_those_of_torch() -> None:
    torch = pytest.importorskip("torch")
    mine = {name for name in dir(torch.nn.Module) if not name.startswith("_")}
    assert mine <= MODULE_ATTRIBUTES


def test_the_shortest_ending_that_is_free() -> None:
    space = Namespace()
    assert space.give("a", *suffixes("attn.norm")) == "norm"
    assert space.give("b", *suffixes("mlp.norm")) == "mlp_norm"
    assert space.give("c", *suffixes("mlp.norm")) == "mlp_norm_2"
    assert class_name("full_reader_2") == "FullReader2Block"
    assert class_name("block") == "Block"
