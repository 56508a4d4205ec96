"""Write the gallery: a page and a picture of every bundled config, and an index with one table of all.

python docs/build_gallery.py [FOLDER]        docs/gallery by default; pages that are there are written anew
"""

from __future__ import annotations

import sys
from pathlib import Path

from regraft.drawing import CONTEXTS
from regraft.frontends.folder import builtin_names
from regraft.ir.files import write_atomic
from regraft.model import lift
from regraft.views.drawing.gallery import Entry, index
from regraft.views.drawing.page import Step, page
from regraft.views.drawing.picture import svg
from regraft.views.drawing.staging import scene
from regraft.views.facts import facts

CHARTED = (
    "Llama-3.1-8B",
    "gemma-4-31B",
    "gemma-4-E2B",
    "gpt-oss-20b",
    "laguna-XS.2",
    "Qwen3-Next-80B-A3B",
    "DeepSeek-V3.2",
    "DeepSeek-V4-Pro",
)


def build(folder: Path, names: tuple[str, ...]) -> None:
    """Write the gallery of bundled configs into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    entries: list[Entry] = []
    for name in names:
        graph = lift(f"builtin:{name}", strict=False).graph
        known = facts(graph, CONTEXTS)
        entries.append(Entry(name, graph, scene(graph), known, f"{name}.html"))
        write_atomic(folder / f"{name}.html", page(name, [Step("as lifted", "", graph)], CONTEXTS))
        write_atomic(folder / f"{name}.svg", svg(name, graph, known))
    write_atomic(folder / "index.html", index(entries, CHARTED))


if __name__ == "__main__":
    build(
        Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent / "gallery", tuple(builtin_names())
    )
