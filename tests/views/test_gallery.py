from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from regraft.frontends.folder import open_model
from regraft.frontends.lift import lift
from regraft.ir.graph import Graph
from regraft.views.drawing.gallery import Entry, index
from regraft.views.drawing.staging import scene
from regraft.views.facts import facts

EVIL = "<script>alert(1)</script>"


class Texts(HTMLParser):
    """The text of an HTML file, piece by piece, and the addresses that it links to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for name, value in attrs if name in ("href", "src") and value]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def _entry(name: str, graph: Graph) -> Entry:
    return Entry(name, graph, scene(graph), facts(graph, (4096, 131072)), f"{name}.html")


@pytest.fixture
def found() -> Texts:
    """Return the index of two bundled models."""
    names = ("gemma-4-E2B", "Llama-3.1-8B")
    entries = [_entry(name, lift(open_model(f"builtin:{name}")).graph) for name in names]
    return Texts(index(entries, names))


def test_the_index_has_every_model_with_its_figures(found: Texts) -> None:
    assert found.links == 2 * ["gemma-4-E2B.html", "Llama-3.1-8B.html"]
    for figure in ("(A×4 B)×3 (C×4 D)×4", "A×32", "8.03 B", "16.0 GiB", "774 MiB", "128 KiB"):
        assert figure in found.texts


def test_caches_are_drawn_over_the_context(found: Texts) -> None:
    start = found.texts.index("Cache of one sequence over its context")
    assert {"gemma-4-E2B", "Llama-3.1-8B", "1M"} <= set(found.texts[start:])


def test_a_name_that_is_markup_stays_text(tiny: Graph) -> None:
    text = index([_entry(EVIL, tiny)], (EVIL,))
    assert "<script" not in text
    assert EVIL in Texts(text).texts


def test_the_index_needs_nothing_else(tiny: Graph) -> None:
    assert not re.search(r"https?://|<script|<link|@import|url\(", index([_entry("tiny", tiny)], ()))
