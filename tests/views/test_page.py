from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from regraft.frontends.folder import open_model
from regraft.frontends.lift import lift
from regraft.ir.graph import Graph
from regraft.ir.ops.attn import Attend
from regraft.views.drawing.page import Step, page

EVIL = "<script>alert(1)</script>"
VOID = {"meta", "input"}


class Outline(HTMLParser):
    """What an HTML file is made of: elements that are all closed in turn, and their text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def where(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]


def _data(outline: Outline) -> dict[str, Any]:
    return json.loads(next(text for tag, text in outline.texts if tag == "script" and text.startswith("{")))


def _shared(graph: Graph) -> Graph:
    """Return the graph with layer 2 reading layer 1's memory."""
    after = graph.copy()
    for op in after.in_layer(2, Attend):
        after.set_operand(op, "memory", after["layers.1.attn.memory"])
    after.drop_dead()
    after.verify()
    return after


def test_the_page_is_whole_and_needs_nothing_else(tiny: Graph) -> None:
    text = page("tiny", [Step("as lifted", "", tiny)], (64,))
    outline = Outline(text)
    links = [a.get("src") or a.get("href") or "" for tag, a in outline.elements if tag not in ("a",)]
    assert not any(links)
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)
    assert all(a["href"] and a["href"].startswith("#s0-kind-") for a in outline.where("a"))
    anchors = {a["id"] for _, a in outline.elements if "id" in a}
    assert {(a["href"] or "")[1:] for a in outline.where("a")} <= anchors


def test_ids_are_unique_and_pictures_have_names(tiny: Graph) -> None:
    outline = Outline(page("tiny", [Step("as lifted", "", tiny), Step("shared", "", _shared(tiny), 0)], (64,)))
    ids = [a["id"] for _, a in outline.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert all(a.get("aria-label") and a.get("role") in ("img", "group") for a in outline.where("svg"))
    assert all(a.get("width") and a.get("height") for a in outline.where("svg"))  # nothing moves while the page loads


def test_the_data_has_every_operation_of_every_section(tiny: Graph) -> None:
    data = _data(Outline(page("tiny", [Step("as lifted", "", tiny)], (64,))))
    texts = data["texts"]
    names = {texts[node[0]] for section in data["sections"] for node in section[2]}
    assert {"embed", "attn.q_proj", "attn.memory", "mlp.hidden", "logits"} <= names


def test_text_of_a_config_stays_text(tiny: Graph) -> None:
    graph = tiny.copy()
    graph.meta["family"] = EVIL
    text = page(EVIL, [Step(EVIL, EVIL, graph), Step(f"{EVIL}2", EVIL, _shared(graph), 0)], (64,))
    outline = Outline(text)
    assert len(outline.where("script")) == 2
    assert EVIL not in text
    assert ("h1", EVIL) in outline.texts


def test_equal_graphs_give_equal_pages(tiny: Graph) -> None:
    one, other = (page("tiny", [Step("as lifted", "", graph)], (64,)) for graph in (tiny, tiny.copy()))
    assert one == other


def test_a_pass_shows_what_it_changed(tiny: Graph) -> None:
    outline = Outline(page("tiny", [Step("as lifted", "", tiny), Step("share-kv", "", _shared(tiny), 0)], (64,)))
    said = [text for _, text in outline.texts]
    assert any(text.startswith("− gone: attn.k_proj, attn.k, ") for text in said)
    assert "changed" in said
    assert "What this pass changed" in said
    assert "− layer 2 keeps no attn.memory any more" in said
    assert "~ attn.memory: layer 2 reads that of layer 1 in place of its own" in said
    stops = [a for a in outline.where("button") if "data-go" in a]
    assert [a["data-go"] for a in stops] == ["0", "1"]
    steps = [a for a in outline.where("div") if "data-step" in a]
    assert ["hidden" in a for a in steps] == [True, False]


def test_layers_that_read_equally_far_back_are_told_in_one_line() -> None:
    before = lift(open_model("builtin:Qwen3-0.6B")).graph
    after = before.copy()
    for layer in (1, 3, 5, 9, 10):
        for op in after.in_layer(layer, Attend):
            after.set_operand(op, "memory", after[f"layers.{8 if layer > 8 else layer - 1}.attn.memory"])
    after.drop_dead()
    said = [text for _, text in Outline(page("x", [Step("a", "", before), Step("b", "", after, 0)], (64,))).texts]
    assert "~ attn.memory: layers 1, 3, 5 read that of the layer before in place of their own" in said
    assert "~ attn.memory: layers 9..10 read that of layer 8 in place of their own" in said


def test_pictures_that_stand_already_are_not_repeated(tiny: Graph) -> None:
    once = page("tiny", [Step("as lifted", "", tiny)], (64,))
    twice = page("tiny", [Step("as lifted", "", tiny), Step("nothing", "", tiny.copy(), 0)], (64,))
    assert twice.count('class="op"') == once.count('class="op"')
    assert "No operation, no memory and no figure differs." in twice


@pytest.mark.parametrize("model", ["DeepSeek-V4-Pro", "OpenELM-3B", "gemma-4-E2B"])
def test_pages_of_bundled_models_stay_below_a_megabyte(model: str) -> None:
    text = page(model, [Step("as lifted", "", lift(open_model(f"builtin:{model}")).graph)], (4096, 131072))
    assert len(text.encode()) < 1_000_000
    Outline(text)
