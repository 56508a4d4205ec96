"""Assemble ``passes/data/sample.txt``: 1 MB of mixed text to calibrate on, prose, code and tables.

Its parts and their licences are listed in ``passes/data/README.md``. The result depends on the running Python's patch
version and on the installed time zone tables. The file in the repository was made once, with Python 3.11.7.

    python examples/make_sample.py [OUT]
"""

from __future__ import annotations

import csv
import html.entities
import http
import io
import json
import math
import mimetypes
import pydoc_data.topics
import random
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "passes" / "data" / "sample.txt"
ZONES = Path("/usr/share/zoneinfo")
PROSE, CODE, TABLES = 410_000, 420_000, 190_000  # characters at most

MODULES = [
    "argparse.py",
    "asyncio/streams.py",
    "bisect.py",
    "calendar.py",
    "collections/__init__.py",
    "colorsys.py",
    "contextlib.py",
    "csv.py",
    "dataclasses.py",
    "difflib.py",
    "email/headerregistry.py",
    "fractions.py",
    "functools.py",
    "heapq.py",
    "html/parser.py",
    "http/cookies.py",
    "imaplib.py",
    "json/decoder.py",
    "logging/handlers.py",
    "mailbox.py",
    "random.py",
    "sched.py",
    "shelve.py",
    "statistics.py",
    "string.py",
    "textwrap.py",
    "threading.py",
    "tokenize.py",
    "turtle.py",
    "typing.py",
    "urllib/parse.py",
    "uuid.py",
    "wave.py",
    "zipfile.py",
]
HEADERS = [
    "object.h",
    "abstract.h",
    "unicodeobject.h",
    "datetime.h",
    "dictobject.h",
    "pymem.h",
    "listobject.h",
    "codecs.h",
]


def prose() -> Iterator[str]:
    """Yield the Python language reference, topic by topic."""
    topics: dict[str, str] = pydoc_data.topics.topics
    names = sorted(topics)
    random.Random(0).shuffle(names)
    yield from (topics[name].strip() for name in names)


def code() -> Iterator[str]:
    """Yield modules and headers of CPython, without those that the examples hold out."""
    library = Path(sysconfig.get_paths()["stdlib"])
    include = Path(sysconfig.get_paths()["include"])
    held_out = set((HERE / "text" / "heldout_files.txt").read_text(encoding="utf-8").split())
    files = [library / name for name in MODULES if name not in held_out] + [include / name for name in HEADERS]
    random.Random(1).shuffle(files)
    for file in files:
        text = file.read_text(encoding="utf-8")
        yield text[:24_000].rpartition("\n")[0].strip()


def tables() -> Iterator[str]:
    """Yield tables: time zones, entities, types, and numbers computed here, in the forms in which tables are met."""
    yield (ZONES / "zone1970.tab").read_text(encoding="utf-8").strip()
    yield (ZONES / "iso3166.tab").read_text(encoding="utf-8").strip()
    yield _comma("entity,code point,character", _entities())
    yield _comma("n,square,cube,root,log", _numbers(1, 1300))
    yield _markdown(("x", "sin x", "cos x", "tan x", "exp x"), _angles())
    yield json.dumps(_measurements(random.Random(2), 220), indent=1)
    yield _markdown(("status", "phrase", "description"), ((s.value, s.phrase, s.description) for s in http.HTTPStatus))
    yield _comma("suffix,type", iter(sorted(mimetypes.MimeTypes(()).types_map[True].items())))
    yield _aligned(_primes(20_000))


def _comma(header: str, rows: Iterator[tuple[object, ...]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header.split(","))
    writer.writerows(rows)
    return text.getvalue().strip()


def _markdown(columns: tuple[str, ...], rows: Iterator[tuple[object, ...]]) -> str:
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def _aligned(numbers: list[int]) -> str:
    lines = [numbers[i : i + 12] for i in range(0, len(numbers), 12)]
    return "\n".join("".join(f"{n:8}" for n in line) for line in lines)


def _entities() -> Iterator[tuple[object, ...]]:
    for name, code in sorted(html.entities.name2codepoint.items()):
        yield f"&{name};", f"U+{code:04X}", chr(code)


def _numbers(first: int, stop: int) -> Iterator[tuple[object, ...]]:
    for n in range(first, stop):
        yield n, n**2, n**3, f"{math.sqrt(n):.6f}", f"{math.log(n):.6f}"


def _angles() -> Iterator[tuple[object, ...]]:
    for i in range(900):
        x = i / 100
        yield f"{x:.2f}", *(f"{f(x):.5f}" for f in (math.sin, math.cos, math.tan, math.exp))


def _measurements(rng: random.Random, count: int) -> list[dict[str, object]]:
    places = ("harbour", "station", "market", "school", "library", "mill")
    return [
        {
            "id": i,
            "place": rng.choice(places),
            "day": f"2024-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}",
            "temperature": round(rng.gauss(12, 6), 1),
            "rain_mm": round(max(0.0, rng.gauss(1, 3)), 1),
        }
        for i in range(count)
    ]


def _primes(stop: int) -> list[int]:
    sieve = bytearray([1]) * stop
    for n in range(2, math.isqrt(stop) + 1):
        if sieve[n]:
            sieve[n * n :: n] = bytes(len(range(n * n, stop, n)))
    return [n for n in range(2, stop) if sieve[n]]


def until(parts: Iterator[str], characters: int) -> list[str]:
    """Return parts as long as they fit."""
    taken: list[str] = []
    for part in parts:
        if len(part) <= characters:
            taken.append(part)
            characters -= len(part)
    return taken


def main() -> None:
    """Write the sample."""
    parts = until(prose(), PROSE) + until(code(), CODE) + until(tables(), TABLES)
    random.Random(3).shuffle(parts)
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else OUT
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
