"""Golden tests in text: ``*.rg`` beside this file, a pipeline over a graph, one behaviour a block.

``// RUN:`` names the pipeline, for all blocks or, within one, for that block. ``// CHECK:`` lines must stand in the
result in this order, ``// CHECK-NOT:`` nowhere; ``// REFUSED:`` is a note of the pass, ``// ERROR:`` a line of the
error. Blocks are split by ``// -----``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from regraft.ir.errors import RegraftError
from regraft.ir.parse import parse_graph
from regraft.ir.text import print_graph
from regraft.passes.pipeline import run_pipeline
from regraft.passes.recipe import parse_pipeline

HERE = Path(__file__).parent
_DIRECTIVE = re.compile(r"^// (RUN|CHECK|CHECK-NOT|REFUSED|ERROR): (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Case:
    name: str
    pipeline: str
    graph: str
    wanted: tuple[tuple[str, str], ...]


def cases(path: Path) -> Iterator[Case]:
    common = ""
    for number, block in enumerate(re.split(r"^// -----.*$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)):
        found = [(kind, text.strip()) for kind, text in _DIRECTIVE.findall(block)]
        runs = [text for kind, text in found if kind == "RUN"]
        if number == 0:
            common = runs[0]
        title = re.search(r"graph @([\w\-]+)", block)
        assert title, f"{path.name}: block {number} has no graph"
        wanted = tuple(each for each in found if each[0] != "RUN")
        assert wanted, f"{path.name}: {title[1]} checks nothing"
        yield Case(f"{path.stem}-{title[1]}", runs[0] if runs else common, block, wanted)


CASES = [case for path in sorted(HERE.glob("*.rg")) for case in cases(path)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case: Case) -> None:
    graph = parse_graph(case.graph)
    errors = [text for kind, text in case.wanted if kind == "ERROR"]
    if errors:
        with pytest.raises(RegraftError) as caught:
            run_pipeline(graph, parse_pipeline(case.pipeline))
        lines = [line.strip() for line in str(caught.value).splitlines()]
        assert [text for text in errors if text not in lines] == [], lines
        return
    result = run_pipeline(graph, parse_pipeline(case.pipeline))
    text = print_graph(result.graph)
    assert parse_graph(text).equals(result.graph)
    notes = [str(note) for step in result.steps for note in step.report.refused]
    rest = [line.strip() for line in text.splitlines()]
    for kind, wanted in case.wanted:
        if kind == "REFUSED":
            assert wanted in notes
        elif kind == "CHECK-NOT":
            assert not any(wanted in line for line in text.splitlines())
        else:
            assert wanted in rest, f"{wanted!r} is not in, or not after what was checked before:\n{text}"
            rest = rest[rest.index(wanted) + 1 :]
