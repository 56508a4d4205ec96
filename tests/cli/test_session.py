"""Streams, colour and progress: what goes where, and what a terminal gets that a pipe does not."""

from __future__ import annotations

import io
import json
import math
import sys

import pytest

from regraft.cli import session as module
from regraft.cli.session import Session
from regraft.views.table import Heading


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def attach(monkeypatch: pytest.MonkeyPatch) -> tuple[Terminal, Terminal]:
    """Let stdout and stderr be terminals, and return them."""
    out, err = Terminal(), Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return out, err


def show(session: Session) -> None:
    session.show(lambda: [Heading("title", 1)], lambda: {"schema": "x/1", "n": math.nan, "list": (1, math.inf)})


def test_a_terminal_gets_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = attach(monkeypatch)
    show(Session())
    Session().warn("careful")
    assert out.getvalue().strip("\n") == "\x1b[1;36mtitle\x1b[0m"
    assert err.getvalue() == "\x1b[33mwarning\x1b[0m: careful\n"


@pytest.mark.parametrize("how", ["option", "environment", "dumb"])
def test_nobody_gets_colour_who_does_not_want_it(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = attach(monkeypatch)
    session = Session(colour=how != "option")
    if how == "environment":
        monkeypatch.setenv("NO_COLOR", "1")
    if how == "dumb":
        monkeypatch.setenv("TERM", "dumb")
    show(session)
    session.warn("careful")
    assert out.getvalue() == "title\n"
    assert err.getvalue() == "warning: careful\n"


def test_json_has_no_numbers_that_json_does_not_have(capsys: pytest.CaptureFixture[str]) -> None:
    show(Session(json=True))
    assert json.loads(capsys.readouterr().out) == {"schema": "x/1", "n": None, "list": [1, None]}


def test_quiet_and_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    for session in (Session(quiet=True), Session(verbose=1)):
        session.warn("careful")
        session.detail("done")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "warning: careful\ndone\n"


def test_a_bar_comes_when_the_work_is_long_and_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = attach(monkeypatch)
    with Session().progress() as progress:
        assert progress is not None
        progress(1, 2, "short")
    assert err.getvalue() == ""
    monkeypatch.setattr(module, "BAR_AFTER", 0.0)
    with Session().progress() as progress:
        assert progress is not None
        progress(1, 2, "a.tensor")
        progress(2, 2, "b.tensor")
    said = err.getvalue()
    assert "b.tensor" in said
    assert said.endswith(("\x1b[2K", "\x1b[?25h"))
    assert out.getvalue() == ""


def test_no_bar_without_a_terminal_or_when_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    attach(monkeypatch)
    with Session(quiet=True).progress() as progress:
        assert progress is None
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with Session().progress() as progress:
        assert progress is None
