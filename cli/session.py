"""What the commands share: where output goes, how loud, in what form."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

    from regraft.views.table import Block

Progress = Callable[[int, int, str], None]

BAR_AFTER = 2.0  # seconds: shorter work shows no bar
DESCRIPTION = 40  # characters of what is being done, the last ones


@dataclass
class Session:
    """One run of the command line. Data goes to stdout, everything else to stderr."""

    quiet: bool = False
    verbose: int = 0
    colour: bool = True
    json: bool = False
    markdown: bool = False
    resume: str = "nothing half-written is left behind; run the command again"

    def set(self, quiet: bool, verbose: int, no_color: bool) -> None:
        """Take what the options say; what was said before the command's name holds too."""
        self.quiet |= quiet
        self.verbose += verbose
        self.colour &= not no_color

    def hush_libraries(self) -> None:
        """Keep the Hugging Face libraries, before they are imported, to what this session shows."""
        if not self.verbose:
            os.environ.setdefault("HF_HUB_VERBOSITY", "error")
            os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        if self.quiet or not sys.stderr.isatty():
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

    def coloured(self, stream: TextIO) -> bool:
        """Whether codes may be written to ``stream``: a terminal, and nobody said no."""
        return self.colour and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb" and stream.isatty()

    def show(self, blocks: Callable[[], Sequence[Block]], payload: Callable[[], Mapping[str, Any]]) -> None:
        """Print a report: as JSON, Markdown, in colour or plain, as this session has it."""
        if self.json:
            self.data(json.dumps(_plain(payload()), indent=1, ensure_ascii=False, allow_nan=False))
            return
        from regraft.views import table

        if self.markdown:
            sys.stdout.write(table.markdown(blocks()))
        elif self.coloured(sys.stdout):
            table.coloured(blocks(), sys.stdout)
        else:
            sys.stdout.write(table.plain(blocks(), shutil.get_terminal_size().columns if sys.stdout.isatty() else None))

    def data(self, text: str) -> None:
        """Print a result."""
        sys.stdout.write(text + "\n")

    def detail(self, text: str) -> None:
        """Tell more, with ``-v``."""
        if self.verbose:
            sys.stderr.write(text + "\n")

    def note(self, text: str) -> None:
        """Tell what is no result and nothing odd, unless quiet."""
        if not self.quiet:
            sys.stderr.write(f"{text}\n")

    def warn(self, text: str) -> None:
        """Print a warning, unless quiet."""
        if not self.quiet:
            mark = "\x1b[33mwarning\x1b[0m" if self.coloured(sys.stderr) else "warning"
            sys.stderr.write(f"{mark}: {text}\n")

    @contextmanager
    def progress(self) -> Generator[Progress | None]:
        """Give a callback that shows a bar on a terminal once the work takes over two seconds, else None."""
        if self.quiet or not sys.stderr.isatty():
            yield None
            return
        bar = _Bar(self.coloured(sys.stderr))
        try:
            yield bar
        finally:
            bar.close()


def _plain(value: Any) -> Any:
    """Return ``value`` with null for numbers that JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in cast("Mapping[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in cast("Sequence[Any]", value)]
    return value


class _Bar:
    """A progress bar on stderr, made when it is due: one line, whatever the work's parts are called."""

    def __init__(self, colour: bool) -> None:
        self._colour = colour
        self._began = time.monotonic()
        self._bar: RichProgress | None = None

    def __call__(self, done: int, total: int, what: str) -> None:
        if self._bar is None and time.monotonic() - self._began < BAR_AFTER:
            return
        bar = self._bar or self._start()
        bar.update(bar.task_ids[0], completed=done, total=total, description=what[-DESCRIPTION:])

    def _start(self) -> RichProgress:
        from rich.console import Console
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(console=Console(stderr=True, no_color=not self._colour), transient=True)
        self._bar.add_task("", total=None)
        self._bar.start()
        return self._bar

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
