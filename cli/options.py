"""Options and parameter types that several commands take."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from regraft.cli.session import Session

F = TypeVar("F", bound=Callable[..., Any])

_SIZE = re.compile(r"(\d+)([kKmM]?)")
_STEPS = {"": 1, "k": 2**10, "m": 2**20}


class Size(click.ParamType[int]):
    """A number of tokens: ``512``, ``4k`` (4096), ``1M`` (2**20)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number, or refuse the text."""
        if isinstance(value, int):
            return value
        found = _SIZE.fullmatch(str(value).strip())
        number = int(found[1]) * _STEPS[found[2].lower()] if found else 0
        if not 0 < number <= 2**40:
            self.fail(f"{value!r} is no number of tokens; examples: 512, 4k (4096), 1M (1048576)", param, ctx)
        return number


class Sizes(click.ParamType[tuple[int, ...]]):
    """Several sizes with commas between them."""

    name = "sizes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Return the numbers, each once, in the order given."""
        if isinstance(value, tuple):
            return value
        return tuple(dict.fromkeys(Size().convert(part, param, ctx) for part in str(value).split(",")))


def loudness() -> list[click.Parameter]:
    """Return ``-q``, ``-v`` and ``--no-color``, which stand before or after the command's name."""
    return [
        click.Option(["-q", "--quiet"], is_flag=True, help="Only results and errors."),
        click.Option(["-v", "--verbose"], count=True, help="Say what is done."),
        click.Option(["--no-color"], is_flag=True, help="No colour; so does NO_COLOR in the environment."),
    ]


def command(
    name: str, *, report: bool = True, markdown: bool = False, **settings: Any
) -> Callable[[Callable[..., None]], click.Command]:
    """Declare a command: its function takes the session first. ``report`` adds ``--json``, ``markdown`` ``--md``."""

    def declare(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def run(quiet: bool, verbose: int, no_color: bool, json: bool = False, md: bool = False, **rest: Any) -> None:
            session = click.get_current_context().ensure_object(Session)
            session.set(quiet, verbose, no_color)
            session.json, session.markdown = json, md
            session.hush_libraries()
            function(session, **rest)

        made = click.command(name, context_settings={"help_option_names": ["-h", "--help"]}, **settings)(run)
        if markdown:
            made.params.append(click.Option(["--md"], is_flag=True, help="Markdown."))
        if report:
            made.params.append(click.Option(["--json"], is_flag=True, help="JSON on stdout, with a schema field."))
        made.params += loudness()
        return made

    return declare


def model_argument(function: F) -> F:
    """Add the argument MODEL."""
    return click.argument("model", metavar="MODEL")(function)


def recipe_option(function: F) -> F:
    """Add ``-r RECIPE``."""
    text = "A recipe (YAML), a lock file that apply wrote, or a pipeline such as share-kv{layers=4..7}."
    return click.option("-r", "--recipe", required=True, type=click.Path(), metavar="RECIPE", help=text)(function)


def out_option(what: str) -> Callable[[F], F]:
    """Add ``-o OUT``, where ``what`` is written."""
    return click.option("-o", "--out", required=True, type=click.Path(), metavar="PATH", help=what)


def allow_key_option(function: F) -> F:
    """Add ``--allow-key NAME``, which may be given several times."""
    text = "Accept a config key that the family does not know; may be repeated."
    return click.option("--allow-key", "allow_keys", multiple=True, metavar="NAME", help=text)(function)


def sizes_option(flag: str, default: str, text: str) -> Callable[[F], F]:
    """Add an option of several token counts."""
    return click.option(flag, type=Sizes(), default=default, show_default=True, metavar="N,...", help=text)


def device_option(function: F) -> F:
    """Add ``--device NAME|FILE``."""
    text = "Device for limits: a name, a JSON file that describes one, or none."
    return click.option("--device", default="h200-sxm", show_default=True, metavar="NAME|FILE", help=text)(function)


def batch_option(function: F) -> F:
    """Add ``--batch N``."""
    text = "Sequences at a time."
    return click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help=text)(function)
