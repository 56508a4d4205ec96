"""The pattern of a stack of layers: what repeats, folded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_LONGEST = 16  # items of a pattern that a line spells out


@dataclass(frozen=True)
class Repeat:
    """Something that stands ``count`` times in a row: one key, or several in turn."""

    items: tuple[Repeat, ...] | str
    count: int

    @property
    def layers(self) -> int:
        """How many layers it spans."""
        return self.count if isinstance(self.items, str) else self.count * sum(each.layers for each in self.items)

    def __str__(self) -> str:
        times = f"×{self.count}" if self.count > 1 else ""
        if isinstance(self.items, str):
            return f"{self.items}{times}"
        return f"({spelled(self.items)}){times}"


def spelled(pattern: Sequence[Repeat]) -> str:
    """Return a pattern as a line: ``A×2 B (C D)×29``; of one that hardly repeats the beginning and the end."""
    if len(pattern) > _LONGEST:
        return f"{spelled(pattern[: _LONGEST // 2])} … {spelled(pattern[-_LONGEST // 2 + 1 :])}"
    return " ".join(map(str, pattern))


def fold(keys: Sequence[str]) -> tuple[Repeat, ...]:
    """Return the pattern of ``keys``: runs as one, then the repetitions that save most, from the inside out."""
    runs: list[Repeat] = []
    for key in keys:
        if runs and runs[-1].items == key:
            runs[-1] = Repeat(key, runs[-1].count + 1)
        else:
            runs.append(Repeat(key, 1))
    return _fold(runs)


def _fold(runs: list[Repeat]) -> tuple[Repeat, ...]:
    saved, start, period, times = max(_repetitions(runs), default=(0, 0, 0, 0))
    if not saved:
        return tuple(runs)
    start, period = -start, -period  # of equal ones the first, and of those the shortest
    inner = Repeat(_fold(runs[start : start + period]), times)
    end = start + period * times
    return (*_fold(runs[:start]), inner, *_fold(runs[end:]))


def _repetitions(runs: list[Repeat]) -> list[tuple[int, int, int, int]]:
    """Return what stands twice or more in a row: what folding it saves, its start and period negated, how often."""
    found: list[tuple[int, int, int, int]] = []
    for period in range(2, len(runs) // 2 + 1):
        same = [runs[i] == runs[i + period] for i in range(len(runs) - period)]
        equal = 0  # places in a row, up to the end, that agree with those one period on
        for start in range(len(same) - 1, -1, -1):
            equal = equal + 1 if same[start] else 0
            if times := equal // period:
                found.append((period * times, -start, -period, times + 1))
    return found


def letter(index: int) -> str:
    """Return the key of a kind: A to Z, then AA, AB and so on."""
    return (letter(index // 26 - 1) if index >= 26 else "") + chr(ord("A") + index % 26)
