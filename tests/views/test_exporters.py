from __future__ import annotations

import json
import re
from typing import Any
from xml.etree import ElementTree

import pytest

from regraft.frontends.folder import builtin_names, open_model
from regraft.frontends.lift import lift
from regraft.ir.graph import Graph
from regraft.views.drawing.exporters import dot, mermaid, model_explorer
from regraft.views.drawing.page import Step, page
from regraft.views.drawing.picture import svg
from regraft.views.drawing.scene import Scene
from regraft.views.drawing.staging import scene
from regraft.views.drawing.wires import wires
from regraft.views.facts import facts

EVIL = 'a <b>"x"</b> \\ # `y` \x00\nnext'
MODELS = ["gemma-4-E2B", "ZAYA1-8B", "Qwen3-Next-80B-A3B"]
_STRING = r'"(?:[^"\\]|\\.)*"'


def _bundled(name: str) -> Scene:
    return scene(lift(open_model(f"builtin:{name}")).graph)


def test_wires_join_layers_and_memories(tiny: Graph) -> None:
    found = [(w.source, w.given, w.target, w.taken, w.said, w.memory) for w in wires(scene(tiny))]
    assert found == [
        (0, "out:embed", 1, "in:embed", "", False),
        (1, "out:out", 2, "in:x", "after 0", False),
        (2, "out:out", 2, "in:x", "after 1", False),
        (2, "out:out", 3, "in:x", "after 2", False),
        (3, "out:out", 4, "in:layers.3.out", "after 3", False),
        (1, "attn.memory", 3, "in:memory", "layer 0 → 3", True),
    ]


@pytest.mark.parametrize("model", MODELS)
def test_dot_declares_every_node_that_its_edges_name(model: str) -> None:
    shown = _bundled(model)
    text = dot(model, shown)
    declared = set(re.findall(rf"^    ({_STRING}) \[", text, re.MULTILINE))
    edges = re.findall(rf"^ +({_STRING}) -> ({_STRING})", text, re.MULTILINE)
    assert {end for edge in edges for end in edge} <= declared
    assert sum(len(section.nodes) for section in shown.sections) <= len(declared)
    assert text.count("subgraph cluster_") == len(shown.sections)
    assert len(edges) == len(re.findall(" -> ", re.sub(_STRING, "", text)))


def test_dot_keeps_names_in_strings(tiny: Graph) -> None:
    first = dot(EVIL, scene(tiny)).splitlines()[0]
    assert first == 'digraph "a <b>\\"x\\"</b> \\\\ # `y` \ufffd\\nnext" {'


def test_dot_shows_memories_as_cylinders_with_edges_to_other_layers(tiny: Graph) -> None:
    text = dot("tiny", scene(tiny))
    assert '"1/attn.memory" [shape=cylinder' in text
    assert '"1/attn.memory" -> "3/in:memory" [label="layer 0 → 3"' in text


@pytest.mark.parametrize("model", MODELS)
def test_mermaid_declares_what_it_joins_and_stays_small(model: str) -> None:
    text = mermaid(model, _bundled(model))
    assert len(text) < 50_000  # what Mermaid takes by default
    bare = re.sub(r'"[^"]*"', '""', text)
    declared = set(re.findall(r"^ *(?:subgraph )?(s\d+\w*)[\[(]", bare, re.MULTILINE))
    ends = re.findall(r'^ *(s\d+\w*) (?:-->|---|==>)(?:\|""\|)? (s\d+\w*)$', bare, re.MULTILINE)
    assert ends
    assert {end for pair in ends for end in pair} <= declared
    assert bare.count("subgraph") == bare.count("end\n")


def test_mermaid_spells_what_would_be_syntax(tiny: Graph) -> None:
    graph = tiny.copy()
    text = mermaid(EVIL, scene(graph))
    title = next(line for line in text.splitlines() if line.startswith("title: "))
    assert json.loads(title.removeprefix("title: ")) == EVIL.replace("\x00", "\ufffd")
    assert "s1m0 ==>" in text


# -- Model Explorer

NODE = {"id", "label", "namespace", "subgraphIds", "attrs", "incomingEdges", "inputsMetadata", "outputsMetadata"}


@pytest.mark.parametrize("model", MODELS)
def test_model_explorer_gets_graphs_whose_edges_and_subgraphs_are_there(model: str) -> None:
    shown = _bundled(model)
    found: dict[str, Any] = json.loads(model_explorer(model, shown))
    graphs = {graph["id"]: graph["nodes"] for graph in found["graphs"]}
    assert len(graphs) == len(shown.sections) + 1
    for nodes in graphs.values():
        ids = [node["id"] for node in nodes]
        assert len(ids) == len(set(ids))
        for node in nodes:
            assert node.keys() <= NODE
            assert {edge["sourceNodeId"] for edge in node.get("incomingEdges", [])} <= set(ids)
            assert all(isinstance(pair["value"], str) for pair in node["attrs"])
            assert set(node.get("subgraphIds", [])) <= graphs.keys()
    layers = [node for node in graphs["layers"] if node["namespace"] == "layers"]
    assert len(layers) == len(shown.layers)


def test_model_explorer_has_memories_from_owner_to_reader(tiny: Graph) -> None:
    found: dict[str, Any] = json.loads(model_explorer("tiny", scene(tiny)))
    nodes = {node["id"]: node for node in found["graphs"][0]["nodes"]}
    assert [edge["sourceNodeId"] for edge in nodes["layer 3"]["incomingEdges"]] == ["layer 2", "layer 0"]
    assert nodes["before the layers"]["incomingEdges"] == []
    assert [edge["sourceNodeId"] for edge in nodes["after the layers"]["incomingEdges"]] == ["layer 3"]


def test_operations_name_their_weights_and_types(tiny: Graph) -> None:
    found: dict[str, Any] = json.loads(model_explorer(EVIL, scene(tiny)))
    assert found["label"] == EVIL
    node = next(each for each in found["graphs"][2]["nodes"] if each["id"] == "attn.q_proj")
    assert node["label"] == "core.linear"
    assert {"key": "weight weight", "value": "model.layers.*.self_attn.q_proj.weight: bf16[32, 32]"} in node["attrs"]
    assert node["outputsMetadata"][0]["attrs"][1] == {"key": "tensor_shape", "value": "bf16[B, T, 32]"}


@pytest.mark.slow
@pytest.mark.parametrize("model", builtin_names())
def test_every_bundled_model_is_drawn_in_every_format_below_a_megabyte(model: str) -> None:
    graph = lift(open_model(f"builtin:{model}")).graph
    shown, known = scene(graph), facts(graph, (4096, 131072))
    drawn = [
        page(model, [Step("as lifted", "", graph)], (4096, 131072)),
        svg(model, graph, known, operations=True),
        dot(model, shown),
        model_explorer(model, shown),
    ]
    assert max(len(text.encode()) for text in drawn) < 1_000_000
    ElementTree.fromstring(drawn[1])
    assert len(mermaid(model, shown)) < 50_000  # what Mermaid takes by default
