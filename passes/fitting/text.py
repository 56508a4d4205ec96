"""Text as windows of tokens, for calibration and evaluation."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from regraft.ir.errors.calibration import TextError, TokenizerError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

SAMPLE = "builtin:sample"
_SAMPLE_FILE = Path(__file__).parents[1] / "data" / "sample.txt"


@dataclass(frozen=True)
class Windows:
    """Windows of tokens ``[N, context]``, each after a begin token where the model has one, and where they are from.

    Args:
        tokens: int64.
        text: The text's name.
        sha256: Its hash.
        seed: What drew the windows.
        length: The text's tokens.
        fresh: How many of them are in a window, so without a begin token.
        starts: Which of them is each window's first.
    """

    tokens: Tensor
    text: str
    sha256: str
    seed: int
    length: int
    fresh: int
    starts: tuple[int, ...]


@dataclass(frozen=True)
class Reading:
    """What a fit read of a text, by its hash: so many ``tokens`` in windows of ``context`` that ``seed`` drew."""

    sha256: str
    tokens: int
    seed: int
    context: int


def text_path(name: str, base: Path | None = None) -> Path:
    """Return the file or folder that a recipe's text names: ``builtin:sample``, or a path relative to ``base``."""
    if name == SAMPLE:
        return _SAMPLE_FILE
    path = Path(name).expanduser()
    return path if path.is_absolute() or base is None else base / path


def load_tokenizer(folder: Path | None) -> Tokenizer:
    """Return the tokenizer of a model folder.

    Raises:
        TokenizerError: The folder has no readable ``tokenizer.json``.
    """
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json" if folder is not None else None
    if path is None or not path.is_file():
        raise TokenizerError(reason="there is no tokenizer.json", where=str(folder or "the model"))
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises a bare Exception
        raise TokenizerError(reason=str(error), where=str(path)) from None


def documents(path: Path) -> Iterator[str]:
    """Yield the texts of a file, of each line of a ``.jsonl`` file (its ``text``), or of a folder's ``.txt`` files.

    Raises:
        TextError: Something cannot be read as UTF-8 text, or there is none.
    """
    try:
        if path.is_dir():
            for file in sorted(p for p in path.rglob("*") if p.suffix in (".txt", ".jsonl", ".md")):
                yield from documents(file)
        elif path.suffix == ".jsonl":
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                yield _jsonl(path, number, line)
        else:
            yield path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TextError(path=path, reason=error) from None


def _jsonl(path: Path, number: int, line: str) -> str:
    try:
        entry: object = json.loads(line)
    except ValueError as error:
        raise TextError(path=f"{path}:{number}", reason=error) from None
    text = cast("dict[str, object]", entry).get("text") if isinstance(entry, dict) else None
    if not isinstance(text, str):
        raise TextError(path=f"{path}:{number}", reason='no "text" in the line')
    return text


def read_windows(
    path: Path,
    tokenizer: Tokenizer,
    vocab: int,
    begin: int | None,
    context: int = 512,
    tokens: int | None = None,
    seed: int = 0,
    spare: bool = False,
) -> Windows:
    """Return windows of a text, in an order that ``seed`` draws.

    Args:
        path: See `documents`.
        tokenizer: The model's.
        vocab: The model's vocabulary; no id may reach it.
        begin: The token before each window, or none.
        context: Tokens in a window, the begin token included.
        tokens: How many in all, in whole windows; all of the text by default.
        seed: Draws the order; with ``tokens``, so also the choice.
        spare: Give the windows beyond ``tokens`` too, after the others.

    Raises:
        TextError: The text is too short for ``tokens``, or for one window; or a window is shorter than two tokens.
        TokenizerError: The tokenizer gives ids that the model does not know.
    """
    import torch

    if context < 2:
        raise TextError(path=path, reason=f"in windows of {context} no token follows another")
    digest = hashlib.sha256()
    ids: list[int] = []
    for text in documents(path):
        digest.update(text.encode())
        if ids and begin is not None:
            ids.append(begin)
        ids.extend(tokenizer.encode(text, add_special_tokens=False).ids)
    if ids and max(ids) >= vocab:
        raise TokenizerError(reason=f"it gives token {max(ids)}, and the model knows {vocab}", where=str(path))
    fresh = context - (begin is not None)
    starts = _starts(len(ids), fresh, seed)
    rows = [ids[start : start + fresh] for start in starts]
    wanted = len(rows) if tokens is None else -(-tokens // context)
    if not rows or wanted > len(rows):
        found = f"{len(rows) * context} tokens in windows of {context}"
        raise TextError(path=path, reason=f"it gives {found}, and {tokens or context} are asked for")
    chosen = torch.tensor(rows if spare else rows[:wanted])
    if begin is not None:
        chosen = torch.cat((torch.full((len(chosen), 1), begin), chosen), 1)
    return Windows(chosen, path.name, digest.hexdigest(), seed, len(ids), fresh, tuple(starts[: len(chosen)]))


def unseen(windows: Windows, readings: Collection[Reading], kept: int = 0) -> Windows:
    """Leave out windows that have a token that one of ``readings`` read, but for the first ``kept``."""
    context = windows.tokens.shape[1]
    read = bytearray(windows.length)
    for reading in readings:
        if reading.sha256 == windows.sha256:
            fresh = reading.context - (context - windows.fresh)
            for start in _starts(windows.length, fresh, reading.seed)[: -(-reading.tokens // reading.context)]:
                read[start : start + fresh] = b"\1" * fresh
    left = [
        row for row, start in enumerate(windows.starts) if row < kept or not any(read[start : start + windows.fresh])
    ]
    return replace(windows, tokens=windows.tokens[left], starts=tuple(windows.starts[row] for row in left))


def _starts(length: int, fresh: int, seed: int) -> list[int]:
    """Return where windows of ``fresh`` tokens start in a text of ``length``, in the order that ``seed`` draws."""
    starts = list(range(0, length - fresh + 1, fresh))
    random.Random(seed).shuffle(starts)
    return starts
