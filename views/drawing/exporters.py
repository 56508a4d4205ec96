"""Scenes in the formats of others: DOT for Graphviz, Mermaid, and the JSON of Google's Model Explorer.

Each shows a kind of layer once, and layers as far as the format has a place for them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from regraft.views.drawing import glyphs
from regraft.views.drawing.markup import printable
from regraft.views.drawing.opgraph import shape, verb
from regraft.views.drawing.scene import Node, Port, Scene, Section
from regraft.views.drawing.strands import sources
from regraft.views.drawing.wires import wires
from regraft.views.facts import layers_text

_ENTITIES = str.maketrans({"#": "#35;", "&": "#amp;", "<": "#lt;", ">": "#gt;", '"': "#quot;", "`": "#96;"})
_SHAPES = {"memory": "cylinder", "tokens": "plaintext", "stream": "plaintext", "carried": "plaintext"}


def title(section: Section) -> str:
    """Return a section's name and layers in a line."""
    if not section.layers:
        return section.name
    several = "s" * (len(section.layers) > 1)
    name = section.name.replace("_", " ")
    return f"{section.key}: {name} ×{len(section.layers)}, layer{several} {layers_text(section.layers, counted=False)}"


def _drawn(section: Section) -> tuple[Port, ...]:
    """Return the ports that pictures draw: positions are left out."""
    return tuple(port for port in (*section.inputs, *section.outputs) if port.role != "positions")


# -- DOT


def dot(name: str, scene: Scene) -> str:
    """Return every operation of every kind for Graphviz, a cluster for each kind, memories as cylinders."""
    lines = [
        f"digraph {_quoted(name)} {{",
        '  graph [rankdir=TB, compound=true, fontname="Helvetica", labeljust=l];',
        '  node [shape=box, style="rounded,filled", fillcolor=white, fontname="Helvetica", fontsize=10];',
        '  edge [fontname="Helvetica", fontsize=8, color="#848d99"];',
    ]
    for i, section in enumerate(scene.sections):
        lines += [f"  subgraph cluster_{i} {{", f"    label={_quoted(title(section))};", '    bgcolor="#f5f6f8";']
        lines += [f"    {_quoted(f'{i}/{port.id}')} {_dot_port(port)};" for port in _drawn(section)]
        lines += [f"    {_quoted(f'{i}/{node.id}')} {_dot_node(node)};" for node in section.nodes]
        lines += [f"    {edge};" for node in section.nodes for edge in _dot_edges(i, node)]
        given = [port for port in section.outputs if port.role != "positions"]
        lines += [f"    {_quoted(f'{i}/{port.source}')} -> {_quoted(f'{i}/{port.id}')};" for port in given]
        lines.append("  }")
    for wire in wires(scene):
        ends = f"{_quoted(f'{wire.source}/{wire.given}')} -> {_quoted(f'{wire.target}/{wire.taken}')}"
        look = 'color="#00694d", penwidth=2' if wire.memory else 'color="#39424e", penwidth=2, style=dashed'
        lines.append(f"  {ends} [label={_quoted(wire.said)}, {look}, constraint=false];")
    return "\n".join([*lines, "}", ""])


def _dot_node(node: Node) -> str:
    kept = node.memory
    if kept is not None:
        return f'[shape=cylinder, fillcolor="#d9f2e8", label={_quoted(f"{node.id}{chr(10)}{glyphs.said(kept)}")}]'
    times = f" ×{node.times}" if node.times > 1 else ""
    bold = ", penwidth=2" if node.stream else ""
    return f"[label={_quoted(f'{node.id}{times}{chr(10)}{verb(node)}  {shape(node.results[0][1])}')}{bold}]"


def _dot_port(port: Port) -> str:
    said = f"{port.name}{chr(10)}{glyphs.said(port.memory) if port.memory is not None else shape(port.type)}"
    return f"[shape={_SHAPES.get(port.role, 'plaintext')}, style=dashed, label={_quoted(said)}]"


def _dot_edges(i: int, node: Node) -> list[str]:
    seen = set(sources(node))
    found: dict[str, None] = {}
    for operand in node.operands:
        if operand.source in seen:
            label = f" [label={_quoted(operand.slot)}]" if len(seen) > 1 and len(operand.slot) > 2 else ""
            found[f"{_quoted(f'{i}/{operand.source}')} -> {_quoted(f'{i}/{node.id}')}{label}"] = None
    return list(found)


def _quoted(text: str) -> str:
    """Return text as a string of DOT, whose only escapes are of quotes, of backslashes and of line ends."""
    plain = printable(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{plain}"'


# -- Mermaid


def mermaid(name: str, scene: Scene) -> str:
    """Return the kinds at a glance as a Mermaid flowchart, small enough for a README: branches, sums and memories."""
    lines = ["---", f"title: {json.dumps(printable(name), ensure_ascii=False)}", "---", "flowchart TB"]
    memories: dict[tuple[int, str], str] = {}
    for i, section in enumerate(scene.sections):
        lines.append(f"  subgraph s{i}[{_label(title(section))}]")
        lines += [f"    {line}" for line in _mermaid_section(i, section, memories)]
        lines.append("  end")
    for wire in wires(scene):
        if wire.memory:
            source = memories.get((wire.source, wire.given), f"s{wire.source}")
            lines.append(
                f"  {source} ==>|{_label(wire.said)}| {memories.get((wire.target, wire.taken), f's{wire.target}')}"
            )
        else:
            label = f"|{_label(wire.said)}|" if wire.said else ""
            lines.append(f"  s{wire.source} -->{label} s{wire.target}")
    return "\n".join([*lines, ""])


def _mermaid_section(i: int, section: Section, memories: dict[tuple[int, str], str]) -> list[str]:
    nodes = {node.id: node for node in section.nodes}
    lines: list[str] = []
    before = f"s{i}in"
    if section.layers:
        lines.append(f"{before}([{_label('residual stream')}])")
    for j, branch in enumerate(section.branches):
        said = "\n".join((branch.title or section.name, *branch.lines))
        lines.append(f"s{i}b{j}[{_label(said)}]")
        for id in branch.nodes:
            kept = nodes[id].memory
            if kept is not None:
                memories[i, id] = f"s{i}m{len(memories)}"
                lines += [f"{memories[i, id]}[({_label(glyphs.said(kept))})]", f"{memories[i, id]} --- s{i}b{j}"]
        read = {operand.source for id in branch.nodes for operand in nodes[id].operands}
        for port in section.inputs:
            if port.memory is not None and port.id in read:
                memories[i, port.id] = f"s{i}m{len(memories)}"
                shown = memories[i, port.id]
                lines += [f"{shown}[({_label(f'another layer: {glyphs.said(port.memory)}')})]", f"{shown} --- s{i}b{j}"]
        if section.layers:
            lines += [f"s{i}p{j}((+))", f"{before} --> s{i}b{j}", f"s{i}b{j} --> s{i}p{j}", f"{before} --> s{i}p{j}"]
            before = f"s{i}p{j}"
    return lines or [f"s{i}b0[{_label(', '.join(dict.fromkeys(node.opname for node in section.nodes)))}]"]


def _label(text: str) -> str:
    """Return text as a quoted label of Mermaid, which has entities as ``#name;`` and ``<br/>`` at line ends."""
    coded = printable(text).translate(_ENTITIES)
    return '"' + coded.replace("\n", "<br/>") + '"'


# -- Model Explorer


def model_explorer(name: str, scene: Scene) -> str:
    """Return JSON for Google's Model Explorer: a graph of layers, each of which leads to the graph of its kind.

    The format is that of ``ai-edge-model-explorer`` 0.1: a label and graphs of nodes, whose edges are their operands'.
    """
    graphs = [_layers_graph(scene), *(_section_graph(section) for section in scene.sections)]
    return json.dumps({"label": name, "graphs": graphs}, indent=None, separators=(",", ":"), ensure_ascii=False) + "\n"


def _graph_id(section: Section) -> str:
    return f"{section.key} {section.name}".strip()


def _layers_graph(scene: Scene) -> dict[str, Any]:
    """Return the graph of layers: the stream from one to the next, and memories to those who read them."""
    nodes: list[dict[str, Any]] = []
    before = ""
    inside = [("", i) for i, section in enumerate(scene.sections) if not section.layers]
    order = [*inside[:1], *((str(layer), i) for layer, i in scene.layers), *inside[1:]]
    for layer, index in order:
        section = scene.sections[index]
        edges = [{"sourceNodeId": before, "sourceNodeOutputId": "0", "targetNodeInputId": "0"}] if before else []
        for link in scene.links:
            if layer and int(layer) in link.readers and link.owner is not None:
                owner = f"layer {link.owner}"
                edges.append({"sourceNodeId": owner, "sourceNodeOutputId": "memory", "targetNodeInputId": "memory"})
        before = f"layer {layer}" if layer else section.name
        facts = {"kind": _graph_id(section), "made of": section.words, "parameters": f"{section.parameters:,}"}
        facts["memories"] = "; ".join(glyphs.said(memory) for memory in section.memories)
        nodes.append(
            {
                "id": before,
                "label": f"{layer}  {section.key}" if layer else section.name,
                "namespace": "layers" if layer else "",
                "subgraphIds": [_graph_id(section)],
                "attrs": _pairs({key: value for key, value in facts.items() if value}),
                "incomingEdges": edges,
            }
        )
    return {"id": "layers", "nodes": nodes}


def _section_graph(section: Section) -> dict[str, Any]:
    nodes = [
        {"id": port.id, "label": port.name, "namespace": "", "attrs": _pairs({"type": port.type, "role": port.role})}
        for port in section.inputs
    ]
    places = {name: str(i) for node in section.nodes for i, (name, _) in enumerate(node.results)}
    nodes += [_explorer_node(node, places) for node in section.nodes]
    for port in section.outputs:
        edge = {"sourceNodeId": port.source, "sourceNodeOutputId": "0", "targetNodeInputId": "0"}
        about = _pairs({"type": port.type, "role": port.role})
        nodes.append({"id": port.id, "label": port.name, "namespace": "", "attrs": about, "incomingEdges": [edge]})
    return {"id": _graph_id(section), "nodes": nodes}


def _explorer_node(node: Node, places: Mapping[str, str]) -> dict[str, Any]:
    """Return a node; ``places`` has the number of each value among the results of the node that gives it."""
    about = dict(node.attributes)
    about |= {f"weight {w.slot}": f"{w.name}: {w.type}" for w in node.weights}
    if node.memory is not None:
        about["memory"] = glyphs.said(node.memory)
    cost = node.cost
    about |= {key: f"{value:,}" for key, value in (("FLOPs", cost.flops), ("bytes read", cost.bytes_read)) if value}
    path = node.id.split(".")[:-1]
    return {
        "id": node.id,
        "label": node.opname,
        "namespace": "/".join(path),
        "attrs": _pairs(about),
        "incomingEdges": [
            {
                "sourceNodeId": operand.source,
                "sourceNodeOutputId": places.get(operand.name, "0"),
                "targetNodeInputId": str(i),
            }
            for i, operand in enumerate(node.operands)
        ],
        "inputsMetadata": [
            {"id": str(i), "attrs": _pairs({"__tensor_tag": operand.slot})} for i, operand in enumerate(node.operands)
        ],
        "outputsMetadata": [
            {"id": str(i), "attrs": _pairs({"__tensor_tag": name, "tensor_shape": type})}
            for i, (name, type) in enumerate(node.results)
        ],
    }


def _pairs(found: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in found.items()]
