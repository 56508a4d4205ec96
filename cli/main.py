"""The command line: finds the command, runs it, and turns whatever goes wrong into one message and an exit code."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from collections.abc import Sequence

import click
from click.formatting import HelpFormatter

from regraft import __version__
from regraft.cli.options import loudness
from regraft.cli.session import Session
from regraft.ir.errors.base import RegraftError, nearest

COMMANDS = {
    "inspect": "Facts card: structure, parameters, memory, compute, limits on a device.",
    "compare": "Models side by side, and what differs between two.",
    "draw": "A picture: page, SVG, PNG; what each pass of a recipe changes.",
    "plot": "A chart: cache over context of several models, quality of several recipes.",
    "passes": "The passes; one pass: options, what it preserves, its source.",
    "plan": "Dry run of a recipe: legality, per-layer choices, predicted change.",
    "apply": "Rewrite a model by a recipe, graph and weights.",
    "opt": "Run a pipeline over a graph, text to text.",
    "build": "Write a program that runs without regraft.",
    "run": "Generate text with an emitted program.",
    "verify": "Check that a model and its programs compute the same.",
    "eval": "Perplexity, KL to the base, agreement, recall.",
    "twin": "The small twin: same structure, tiny dimensions, random weights.",
    "bench": "Speed and memory of a program, predicted beside measured.",
    "doctor": "What this machine has, and what is therefore available.",
}

EPILOG = """\b
MODEL is a folder, a config.json, a Hugging Face id (local cache first),
a graph file x.rg, or builtin:NAME (a bundled config).

\b
Exit codes: 0 fine; 1 a check failed or a difference was found; 2 usage or
bad input; 3 unsupported architecture or op; 4 illegal transformation;
5 verification failed; 6 an optional dependency is missing; 7 not enough
disk or memory; 70 internal error; 130 interrupted.
"""


class Commands(click.Group):
    """The commands by name, each imported when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        if cmd_name not in COMMANDS:
            return None
        return getattr(importlib.import_module(f"regraft.cli.{cmd_name}"), cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or offer the nearest names."""
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"no command is called {args[0]!r}; {nearest(args[0], list(COMMANDS))}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.command(cls=Commands, epilog=EPILOG, params=loudness(), context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="regraft", message="%(prog)s %(version)s")
@click.pass_context
def regraft(ctx: click.Context, quiet: bool, verbose: int, no_color: bool) -> None:
    """Lift a language model into a graph, rewrite graph and weights, emit programs that run alone."""
    ctx.ensure_object(Session).set(quiet, verbose, no_color)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: What follows the program's name; the process's own by default.
    """
    if "_REGRAFT_COMPLETE" in os.environ:
        from click.shell_completion import shell_complete

        return shell_complete(regraft, {}, "regraft", "_REGRAFT_COMPLETE", os.environ["_REGRAFT_COMPLETE"])
    given = list(sys.argv[1:] if arguments is None else arguments)
    session = Session()
    try:
        code = _invoke(list(given), session)  # click takes from its list
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except BrokenPipeError:
        _abandon_stdout()
        code = 141  # as a program that the signal ended
    except (Exception, KeyboardInterrupt) as error:
        coded = _coded(error, given, session)
        sys.stdout.flush()
        sys.stderr.write(f"{coded}\n")
        code = coded.exit_code
    return code


def _invoke(given: list[str], session: Session) -> int:
    try:
        with regraft.make_context("regraft", given, obj=session) as ctx:
            regraft.invoke(ctx)
    except click.exceptions.Exit as done:
        return done.exit_code
    return 0


def _coded(error: BaseException, given: list[str], session: Session) -> RegraftError:
    """Return the error to print for ``error``."""
    from regraft.ir.errors.files import DiskFullError
    from regraft.ir.errors.usage import InternalError, InterruptedRunError, MemoryFullError, is_memory

    if isinstance(error, RegraftError):
        return error
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return InterruptedRunError(how=session.resume)
    if is_memory(error):
        return MemoryFullError(problem=str(error) or "an allocation failed")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(path=error.filename or "the output", needed="more than is free", free="none")
    from regraft.cli.crash import reproducer, write_reproducer

    text = reproducer(error, given)
    file = write_reproducer(text)
    notes = [] if file else text.splitlines()
    return InternalError(problem=f"{type(error).__name__}: {error}", file=file or "these notes", notes=notes)


def _abandon_stdout() -> None:
    """Let nothing more be written to a pipe that nobody reads, at exit either."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(nowhere, stream.fileno())
