"""Strict JSON: what is refused, and where the message points."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regraft.ir.errors import RegraftError
from regraft.ir.errors.checkpoint import JsonSizeError, JsonSyntaxError
from regraft.ir.errors.files import InputMissingError
from regraft.ir.json_files import parse_object, read_object


def test_reads_an_object(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"a": [1, 2.5, null], "b": {"c": "\\u00e9"}}', encoding="utf-8")
    assert read_object(path) == {"a": [1, 2.5, None], "b": {"c": "é"}}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": NaN}', "NaN is no JSON number"),
        ('{"a": -Infinity}', "-Infinity is no JSON number"),
        ('{"a": 1e999}', "the number 1e999 is too large"),
        ('{"a": ' + "9" * 5000 + "}", "is too long"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' stands twice in one object"),
        ("[1]", "a single value or a list"),
        ("7", "a single value or a list"),
        ("", "expecting value"),
        ('{"a": 1', "expecting ',' delimiter"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_refuses(text: str, problem: str) -> None:
    with pytest.raises(JsonSyntaxError) as caught:
        parse_object(text.encode(), "x.json")
    assert problem in caught.value.text
    assert caught.value.exit_code == 2


def test_points_at_the_place() -> None:
    with pytest.raises(JsonSyntaxError) as caught:
        parse_object(b'{\n  "hidden_size": 64,\n  "layers": 08\n}', "config.json")
    assert str(caught.value).splitlines() == [
        "error[RG320]: config.json is no sound JSON: expecting ',' delimiter",
        "  --> config.json:3:14",
        '      "layers": 08',
        "                 ^",
        "  = help: correct the file, or fetch it again",
    ]


def test_refuses_bytes_that_are_no_text() -> None:
    with pytest.raises(JsonSyntaxError, match="byte 6 is not UTF-8"):
        parse_object(b'{"a": \xff}', "x.json")


def test_refuses_what_is_too_large_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text("{}" + " " * 99)
    with pytest.raises(JsonSizeError, match="101 bytes, more than the 100"):
        read_object(path, limit=100)
    with pytest.raises(InputMissingError, match="No such file"):
        read_object(tmp_path / "y.json")
    with pytest.raises(InputMissingError, match="Is a directory"):
        read_object(tmp_path)


@given(st.binary(max_size=60) | st.text(alphabet='{}[]":,0123eE.-ntf \n\\u', max_size=60).map(str.encode))
def test_anything_is_an_object_or_a_coded_error(data: bytes) -> None:
    try:
        assert type(parse_object(data, "x.json")) is dict
    except RegraftError as error:
        assert str(error).startswith("error[RG320]")
