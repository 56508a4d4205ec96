"""What joins the sections of a scene: the stream from layer to layer, and memories from owners to readers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from regraft.ir.kinds import ranges
from regraft.views.drawing.scene import Port, Role, Scene, Section


@dataclass(frozen=True)
class Wire:
    """A value of one section that another takes, and for which layers; sections by their place in the scene.

    ``given`` and ``taken`` are the ids of the ports, or of the node that makes a memory.
    """

    source: int
    given: str
    target: int
    taken: str
    said: str
    memory: bool


def wires(scene: Scene) -> tuple[Wire, ...]:
    """Return what joins the sections, each pair of ports once, in order of layers."""
    return (*_streams(scene), *_memories(scene))


def _streams(scene: Scene) -> list[Wire]:
    """Follow the stream through what stands before the layers, the layers, and what stands after them."""
    chain = [(index, str(layer)) for layer, index in scene.layers]
    first, last = scene.layers[0][1] if scene.layers else -1, scene.layers[-1][1] if scene.layers else -1
    if first > 0 and not scene.sections[first - 1].layers:
        chain.insert(0, (first - 1, ""))
    if scene.layers and last + 1 < len(scene.sections) and not scene.sections[-1].layers:
        chain.append((len(scene.sections) - 1, ""))
    steps: dict[tuple[int, int], list[str]] = {}
    for (one, layer), (other, _) in pairwise(chain):
        steps.setdefault((one, other), []).append(layer)
    found: list[Wire] = []
    for (one, other), layers in steps.items():
        given = _stream_out(scene.sections[one])
        taken = next((port for port in scene.sections[other].inputs if port.role == "stream"), None)
        if given is not None and taken is not None:
            numbers = [int(layer) for layer in layers if layer]
            said = f"after {ranges(numbers)}" if numbers else ""
            found.append(Wire(one, given.id, other, taken.id, said, memory=False))
    return found


def _stream_out(section: Section) -> Port | None:
    roles: tuple[Role, ...] = ("stream", "carried")  # what stands before the layers does not know that it is the stream
    return next((port for role in roles for port in section.outputs if port.role == role), None)


def _memories(scene: Scene) -> list[Wire]:
    section_of = dict(scene.layers)
    found: list[Wire] = []
    for link in scene.links:
        if link.owner is None or link.owner not in section_of:
            continue
        source = section_of[link.owner]
        local = link.memory.name.removeprefix(f"layers.{link.owner}.")
        targets: dict[tuple[int, str], list[int]] = {}
        for reader in link.readers:
            index = section_of.get(reader)
            ports = scene.sections[index].inputs if index is not None else ()
            port = next((p for p in ports if link.memory.name in p.origins), None)
            if index is not None and port is not None:
                targets.setdefault((index, port.id), []).append(reader)
        for (target, port_id), readers in targets.items():
            said = f"layer {link.owner} → {ranges(readers)}"
            found.append(Wire(source, local, target, port_id, said, memory=True))
    return found
