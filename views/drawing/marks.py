"""How a pass's changes show in pictures: the state of each kind, and of each operation in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from regraft.views.diff import Diff, OpDiff
from regraft.views.drawing.scene import Scene


@dataclass(frozen=True)
class Marks:
    """What to mark, by the name of a section: its own state, its operations', and those that are gone from it.

    ``layers`` has the numbers of the layers that changed.
    """

    layers: frozenset[int]
    sections: Mapping[str, str]
    ops: Mapping[str, Mapping[str, str]]
    removed: Mapping[str, tuple[str, ...]]

    def of(self, section: str) -> Callable[[str], str]:
        """Return what gives the state of an operation of a section by its id, empty where nothing changed."""
        found = self.ops.get(section, {})
        return lambda id: found.get(id, "")


def no_marks(scene: Scene) -> Marks:
    """Return that nothing changed."""
    return Marks(frozenset(), {}, {}, {})


def marks_of(changed: Diff, scene: Scene) -> Marks:
    """Return what a pass changed in a scene, which shows the graph after it."""
    layers = {layer for each in changed.rewired for layer in each.layers}
    sections: dict[str, str] = {}
    ops: dict[str, dict[str, str]] = {}
    removed: dict[str, dict[str, None]] = {}

    def note(section: str, differing: tuple[OpDiff, ...]) -> None:
        for each in differing:
            if each.status == "removed":
                removed.setdefault(section, {})[each.name] = None
            else:
                ops.setdefault(section, {})[each.name] = each.status

    for kind in changed.kinds:
        if kind.after is None:
            continue
        note(kind.after, kind.ops)
        if kind.status != "same":
            sections[kind.after] = "added" if kind.before is None else "changed"
            layers.update(kind.layers_after)
    for section in scene.sections:
        if not section.layers:
            ids = {node.id for node in section.nodes}
            note(section.name, tuple(each for each in changed.outside if each.name in ids))
            if section.name in ops:
                sections[section.name] = "changed"
    return Marks(frozenset(layers), sections, ops, {name: tuple(gone) for name, gone in removed.items()})
