"""Numbers as people read them."""

from __future__ import annotations


def count(number: float) -> str:
    """Return a count in decimal steps: ``2.10 M``, ``8.19 B``, ``1.60 T``."""
    for step, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= step:
            return f"{_three(number / step)} {unit}"
    return f"{number:.0f}"


def flops(number: float) -> str:
    """Return operations in decimal steps: ``4.31 MFLOP``, ``16.2 GFLOP``."""
    for step, unit in ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= step:
            return f"{_three(number / step)} {unit}FLOP"
    return f"{number:.0f} FLOP"


def size(number: float) -> str:
    """Return bytes in binary steps: ``256 B``, ``8.00 KiB``, ``18.0 GiB``."""
    for power, unit in ((6, "EiB"), (5, "PiB"), (4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if abs(number) >= 1024**power:
            return f"{_three(number / 1024**power)} {unit}"
    return f"{number:.0f} B"


def context(tokens: int) -> str:
    """Return a context as the command line takes it: 4096 is ``4k``, 2**20 is ``1M``."""
    for step, unit in ((2**20, "M"), (2**10, "k")):
        if tokens >= step and tokens % step == 0:
            return f"{tokens // step}{unit}"
    return str(tokens)


def seconds(number: float) -> str:
    """Return a time: ``850 µs``, ``17.0 ms``, ``1.51 s``, ``3.20 min``, ``2.00 h``, ``1.00 years``."""
    for step, unit in (
        (31557600.0, "years"),
        (86400.0, "days"),
        (3600.0, "h"),
        (60.0, "min"),
        (1.0, "s"),
        (1e-3, "ms"),
    ):
        if number >= step:
            return f"{_three(number / step)} {unit}"
    return f"{_three(number * 1e6)} µs"


def rate(number: float) -> str:
    """Return a number of things a second: ``1,036``, ``4.26``, ``0.0031``."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def share(part: float, whole: float) -> str:
    """Return a part of a whole: ``12.5 %``, ``< 0.1 %``, and a dash for nothing."""
    if not part or not whole:
        return "-"
    return "< 0.1 %" if part / whole < 0.0005 else f"{part / whole * 100:.1f} %"


def plural(number: int, word: str) -> str:
    """Return a number of things: ``1 layer``, ``1,024 layers``."""
    return f"{number:,} {word if number == 1 else f'{word}s'}"


def change(before: float, after: float) -> str:
    """Return a relative change: ``-50.0 %``, ``+1.2 %``, ``same``."""
    if before == after:
        return "same"
    if not before:
        return "new"
    return f"{(after / before - 1) * 100:+.1f} %"


def _three(number: float) -> str:
    """Return three significant digits, without an exponent."""
    whole = len(str(int(abs(number))))
    return f"{number:.{max(0, 3 - whole)}f}"
