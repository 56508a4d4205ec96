from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from regraft.frontends.folder import open_model
from regraft.frontends.lift import lift
from regraft.ir.graph import Graph
from regraft.views.drawing.markup import escaped, tag, width_of, wrapped
from regraft.views.drawing.opgraph import op_graph
from regraft.views.drawing.palette import KINDS, ROLES, hatching, kind_style
from regraft.views.drawing.picture import svg
from regraft.views.drawing.staging import scene
from regraft.views.drawing.strands import strands
from regraft.views.facts import facts

EVIL = "<script>alert('x')</script> & \"quotes\" \x00\x1b \ud800"
SPACE = "{http://www.w3.org/2000/svg}"


def _bundled(name: str) -> Graph:
    return lift(open_model(f"builtin:{name}")).graph


def _texts(picture: str) -> list[str]:
    return [each.text or "" for each in ElementTree.fromstring(picture).iter(f"{SPACE}text")]


@pytest.mark.parametrize("operations", [False, True])
def test_the_picture_is_xml_that_names_every_kind(tiny: Graph, operations: bool) -> None:
    picture = svg("tiny", tiny, facts(tiny, (64,)), operations=operations)
    said = _texts(picture)
    assert "tiny" in said
    assert {"full ×1", "sliding ×2", "full reader ×1"} <= {re.sub(" +", " ", text) for text in said}
    assert ("q_proj" in said) is operations
    root = ElementTree.fromstring(picture)
    assert [root.findtext(f"{SPACE}{name}", "")[:5] for name in ("title", "desc")] == ["tiny:", "tiny:"]
    assert root.get("role") == "img"


def test_a_name_that_is_markup_stays_text(tiny: Graph) -> None:
    picture = svg(EVIL, tiny, facts(tiny, (64,)))
    assert "<script" not in picture
    assert any("<script>alert('x')</script> & \"quotes\"" in text for text in _texts(picture))


def test_equal_graphs_give_equal_bytes(tiny: Graph) -> None:
    first, second = (svg("tiny", g, facts(g, (64,)), operations=True) for g in (tiny, tiny.copy()))
    assert first == second


def test_shared_memories_have_a_rail_and_a_label(tiny: Graph) -> None:
    assert "KV memory of layer 0, read by 3" in svg("tiny", tiny, facts(tiny, (64,)))


@pytest.mark.parametrize("model", ["DeepSeek-V4-Pro", "ZAYA1-8B", "Qwen3-Next-80B-A3B", "gemma-4-E2B"])
def test_every_operation_is_drawn_once_and_nothing_outside_of_the_frame(model: str) -> None:
    for section in scene(_bundled(model)).sections:
        figure = op_graph(section, interactive=True)
        drawn = [int(n) for n in re.findall(r'data-op="(\d+)"', figure.body)]
        assert sorted(drawn) == list(range(len(section.nodes)))
        root = ElementTree.fromstring(f"<g>{figure.body}</g>")
        for each in root.iter("rect"):
            if each.get("class") == "panel":
                assert float(each.get("x", 0)) >= 0
                assert float(each.get("x", 0)) + float(each.get("width", 0)) <= figure.width
                assert float(each.get("y", 0)) + float(each.get("height", 0)) <= figure.height


def test_strands_keep_the_order_and_memories_stand_alone() -> None:
    kind = next(kind for kind in scene(_bundled("DeepSeek-V4-Pro")).kinds if kind.key == "D")
    found = strands([node for node in kind.nodes if node.id in kind.branches[0].nodes])
    assert sorted(node.id for strand in found for node in strand) == sorted(kind.branches[0].nodes)
    assert all(len(strand) == 1 for strand in found if strand[0].memory is not None)
    whole = [node.id for node in next(strand for strand in found if strand[0].id == "attn.q_proj")]
    assert whole == [f"attn.q{end}" for end in ("_proj", "", "_norm", "_turning", "_rope", "_plain", "_whole")]


def test_changes_are_marked_with_a_sign_and_in_words(tiny: Graph) -> None:
    section = scene(tiny).kinds[0]
    states = {"attn.q_proj": "changed", "attn.memory": "added"}
    body = op_graph(section, interactive=True, mark=lambda id: states.get(id, "")).body
    assert body.count(">~</text>") == 1
    assert body.count(">+</text>") == 1 + 2  # beside the two sums of the stream
    assert "attn.q_proj: linear, 32, changed" in body


# -- colours and markup


def _luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one: str, other: str) -> float:
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1])
def test_text_can_be_read_on_every_ground(theme: int) -> None:
    """Return at least what WCAG 2.2 asks for: 4.5 for text, 3 for lines that carry meaning."""
    for ground in ("paper", "panel", "raised"):
        for text in ("ink", "soft", "accent", "added", "removed", "changed"):
            assert _contrast(ROLES[text][theme], ROLES[ground][theme]) >= 4.5, (text, ground)
        for line in ("stream", "memory", "edge"):
            assert _contrast(ROLES[line][theme], ROLES[ground][theme]) >= 3, (line, ground)


def test_more_kinds_than_colours_are_hatched() -> None:
    looks = [(kind_style(i), hatching(i)) for i in range(4 * len(KINDS))]
    assert len(set(looks)) == len(looks)


def test_markup_is_escaped_and_void_elements_close() -> None:
    assert (
        tag("p", escaped("<b>&"), class_='a"b', hidden=True, id=None) == '<p class="a&quot;b" hidden>&lt;b&gt;&amp;</p>'
    )
    assert tag("rect", x=1) == '<rect x="1"/>'
    assert tag("meta", name="a") == '<meta name="a">'
    assert escaped("\x00\ud800") == "\ufffd\ufffd"


def test_wrapped_lines_fit() -> None:
    text = "128 query heads of 512 over 1 KV heads made from rows of 512, and averyveryverylongwordthatdoesnotfitatall"
    lines = wrapped(text, 12, 150)
    assert all(width_of(line, 12) <= 150 for line in lines)
    assert lines[-1].endswith("…")
