"""What a page knows of each operation, as compact JSON: every text once, everything else by its number."""

from __future__ import annotations

from typing import Any

from regraft.ir.op import op_class
from regraft.views.drawing.opgraph import verb
from regraft.views.drawing.scene import Node, Section


class Records:
    """The sections of a page, equal ones once."""

    def __init__(self) -> None:
        self._texts: dict[str, int] = {}
        self._known: dict[object, int] = {}
        self._sections: list[list[Any]] = []
        self._about: dict[str, str] = {}

    def add(self, section: Section) -> int:
        """Return the number of a section, which is that of an earlier one with the same operations."""
        same = (section.key, section.name, section.nodes)
        if same not in self._known:
            self._known[same] = len(self._sections)
            nodes = [self._node(node) for node in section.nodes]
            self._sections.append([self._text(section.key), self._text(section.name), nodes])
        return self._known[same]

    def data(self) -> dict[str, Any]:
        """Return the JSON: ``texts``, ``about`` the operations, and ``sections`` as numbers of texts."""
        about = {str(self._text(opname)): words for opname, words in self._about.items()}
        return {"about": about, "sections": self._sections, "texts": list(self._texts)}

    def _text(self, text: str) -> int:
        return self._texts.setdefault(text, len(self._texts))

    def _node(self, node: Node) -> list[Any]:
        """Return id, operation, verb, results, operands, weights, attributes, cost and how many it stands for."""
        if node.opname not in self._about:
            doc = (op_class(node.opname).__doc__ or "").strip().partition("\n\n")[0]
            self._about[node.opname] = " ".join(doc.replace("``", "").split())
        t, cost = self._text, node.cost
        return [
            t(node.id),
            t(node.opname),
            t(verb(node)),
            [[t(name), t(type)] for name, type in node.results],
            [[t(each.slot), t(each.name), t(each.type)] for each in node.operands],
            [[t(w.slot), t(w.name), t(w.type), w.elements, w.bytes, t(", ".join(w.made))] for w in node.weights],
            [[t(key), t(value)] for key, value in node.attributes],
            [cost.flops, cost.weights, cost.cache_read, cost.cache],
            node.times,
        ]
