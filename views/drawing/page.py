"""The page: one HTML file that needs nothing else, for a model or for what each pass of a recipe made of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from regraft.ir.graph import Graph
from regraft.views.compare import diff
from regraft.views.diff import Diff
from regraft.views.drawing import glyphs
from regraft.views.drawing.boxes import glance
from regraft.views.drawing.cache_chart import cache_chart, curves, in_words
from regraft.views.drawing.changes import changes
from regraft.views.drawing.marks import Marks, marks_of, no_marks
from regraft.views.drawing.markup import Figure, escaped, tag
from regraft.views.drawing.opgraph import op_graph
from regraft.views.drawing.palette import KINDS, page_roles
from regraft.views.drawing.parts_chart import parts_chart
from regraft.views.drawing.picture import outside_words
from regraft.views.drawing.records import Records
from regraft.views.drawing.scene import Form, Scene, Section
from regraft.views.drawing.staging import scene
from regraft.views.drawing.strip import strip
from regraft.views.drawing.tiles import tiles
from regraft.views.facts import Facts, facts, layers_text
from regraft.views.numbers import count, size
from regraft.views.parts import PARTS
from regraft.views.pattern import fold, spelled

STRIP = 1160.0  # pixels that the strip may take
_LEAST = 0.74  # to which the picture of a kind's operations may shrink, before it scrolls


@dataclass(frozen=True)
class Step:
    """A graph that a page shows: what it is called, such as a pass, and what there is to say of it.

    ``since`` is the number of the step that it is compared with, none for none.
    """

    label: str
    note: str
    graph: Graph
    since: int | None = None


@dataclass(frozen=True)
class _Shown:
    """A step with all that is drawn of it."""

    step: Step
    scene: Scene
    facts: Facts
    changed: Diff | None


def page(name: str, steps: Sequence[Step], contexts: Sequence[int]) -> str:
    """Return the page of a model, or of its graphs before the first and after each pass of a recipe.

    Args:
        name: The model's name, any text.
        steps: One graph or more; the page opens at the last.
        contexts: Tokens at which cache and work are given, rising.
    """
    return _Page(name, _shown(steps, contexts)).html()


def _shown(steps: Sequence[Step], contexts: Sequence[int]) -> list[_Shown]:
    found: list[_Shown] = []
    for step in steps:
        same = next((each for each in found if each.step.graph is step.graph), None)
        known = facts(step.graph, contexts) if same is None else same.facts
        before = found[step.since] if step.since is not None else None
        changed = None if before is None else diff(before.step.graph, step.graph, (before.facts, known))
        found.append(_Shown(step, scene(step.graph) if same is None else same.scene, known, changed))
    return found


class _Page:
    def __init__(self, name: str, steps: Sequence[_Shown]) -> None:
        self.name = name
        self.steps = steps
        self.records = Records()
        self.drawn: dict[str, int] = {}  # pictures of operations that stand in the page already

    def html(self) -> str:
        """Put the page together."""
        last = len(self.steps) - 1
        main = "".join(self._step(i, shown, hidden=i != last) for i, shown in enumerate(self.steps))
        data = json.dumps(self.records.data(), separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c")
        head = (
            tag("meta", charset="utf-8")
            + tag("meta", name="viewport", content="width=device-width,initial-scale=1")
            + tag("meta", name="generator", content="regraft")
            + tag("title", escaped(f"{self.name} · architecture"))
            + tag("style", page_roles() + _asset("page.css"))
        )
        body = (
            self._bar()
            + tag("main", main, id="main")
            + _panel()
            + tag("script", data, type="application/json", id="data")
            + tag("script", _asset("page.js"))
        )
        return f'<!doctype html>\n<html lang="en"><head>{head}</head><body>{body}</body></html>\n'

    # -- the bar at the top

    def _bar(self) -> str:
        title = tag("h1", escaped(self.name))
        box = tag(
            "div",
            tag(
                "input",
                id="search",
                type="search",
                placeholder="Search operations and weights  /",
                aria_label="Search operations and weights",
                autocomplete="off",
                role="combobox",
                aria_expanded="false",
                aria_controls="found",
            ),
            tag("ul", id="found", role="listbox", aria_label="Found", hidden=True),
            class_="search",
        )
        buttons = tag("button", "Open all", id="fold", type="button", aria_pressed="false")
        buttons += tag("button", "Dark", id="theme", type="button")
        buttons += tag("button", "Keys", id="help", type="button", aria_expanded="false", aria_controls="keys")
        bar = title + box + tag("div", buttons, class_="buttons")
        return tag("header", bar + (self._slider() if len(self.steps) > 1 else ""), class_="bar") + _keys()

    def _slider(self) -> str:
        last = len(self.steps) - 1
        labels = "".join(tag("option", value=str(i), label=shown.step.label) for i, shown in enumerate(self.steps))
        said = "".join(
            tag(
                "button",
                escaped(f"{i}  {shown.step.label}"),
                type="button",
                data_go=i,
                title=shown.step.label,
                aria_current="step" if i == last else None,
            )
            for i, shown in enumerate(self.steps)
        )
        return tag(
            "div",
            tag("label", "Passes", for_="step"),
            tag(
                "input",
                id="step",
                type="range",
                min=0,
                max=last,
                value=last,
                step=1,
                list="steps",
                aria_valuetext=self.steps[last].step.label,
            ),
            tag("datalist", labels, id="steps"),
            tag("div", said, class_="stops"),
            class_="slider",
        )

    # -- a step

    def _step(self, i: int, shown: _Shown, *, hidden: bool) -> str:
        found = marks_of(shown.changed, shown.scene) if shown.changed is not None else no_marks(shown.scene)
        parts = [self._head(shown)]
        if shown.changed is not None:
            whole = shown.step.since != i - 1
            parts.append(changes(shown.changed, f"What {'the whole recipe' if whole else 'this pass'} changed"))
        parts.append(self._layers(i, shown, found))
        parts.append(self._cards(i, shown, found))
        parts.append(self._charts(shown))
        parts.append(_legend(shown.scene, marked=shown.changed is not None))
        return tag("div", *parts, class_="step", data_step=i, hidden=hidden)

    def _head(self, shown: _Shown) -> str:
        known = shown.facts
        said = [
            known.family,
            f"{known.layers} layers",
            f"{len(known.kinds)} kind{'s' * (len(known.kinds) != 1)} of layer",
            known.dtype,
        ]
        if known.trained_context:
            said.append(f"trained context {known.trained_context:,}")
        if known.vocabulary:
            said.append(f"vocabulary {known.vocabulary:,}")
        before = shown.changed.before if shown.changed is not None else None
        note = tag("p", escaped(shown.step.note), class_="note") if shown.step.note else ""
        return tag("p", escaped(" · ".join(filter(None, said))), class_="lead") + note + tiles(known, before)

    def _layers(self, i: int, shown: _Shown, marks: Marks) -> str:
        if not shown.scene.layers:
            return ""
        drawn = strip(shown.scene, STRIP, anchor=f"s{i}-kind-", changed=marks.layers)
        pattern = spelled(fold(shown.scene.letters))
        label = f"{len(shown.scene.layers)} layers, pattern {pattern}"
        readers = {reader for link in shown.scene.links for reader in link.readers}
        shared = f"{len(readers)} layers read another layer's memory"
        return tag(
            "section",
            tag("h2", "Layers"),
            tag("p", escaped(f"{pattern}{'; ' + shared if shown.scene.links else ''}"), class_="pattern"),
            _scroll(drawn.svg(label, role="group", look="strip"), label),
            class_="layers",
        )

    def _cards(self, i: int, shown: _Shown, marks: Marks) -> str:
        known = {kind.name: kind for kind in shown.facts.kinds}
        cards = "".join(self._card(f"s{i}-", shown, section, marks, known) for section in shown.scene.sections)
        title = "Kinds of layer" if shown.scene.kinds else "Operations"
        return tag("section", tag("h2", title), tag("div", cards, class_="cards"), class_="kinds")

    def _card(self, prefix: str, shown: _Shown, section: Section, marks: Marks, known: Mapping[str, object]) -> str:
        order = shown.scene.kinds.index(section) if section.layers else -1
        state = marks.sections.get(section.name, "")
        badge = tag("b", escaped(section.key), class_=f"badge bg-k{order % len(KINDS)}") if section.layers else ""
        title = section.name.replace("_", " ") if section.layers else section.name
        times = tag("span", f"×{len(section.layers)}", class_="times") if section.layers else ""
        flag = tag("span", escaped(state), class_=f"flag {state}") if state else ""
        head = tag("h3", badge + escaped(title) + times + flag)
        each = " each" if len(section.layers) > 1 else ""
        amount = len(section.layers)
        where = (
            f"layer{'s' * (amount > 1)} {layers_text(section.layers, counted=False)} · "
            if section.layers
            else f"{outside_words(section)} · "
        )
        said = f"{where}{count(section.parameters)} parameters{each}"
        lost = marks.removed.get(section.name, ())
        gone = tag("p", escaped(f"− gone: {', '.join(lost)}"), class_="gone") if lost else ""
        picture = glance(section).svg(f"{section.name}: {section.words}", look="glance") if section.layers else ""
        number = self.records.add(section)
        details = tag(
            "details",
            tag("summary", f"{len(section.nodes)} operation{'s' * (len(section.nodes) > 1)}"),
            self._graph(section, number, marks),
            open=len(shown.scene.kinds) == 1 and bool(section.layers),
        )
        return tag(
            "article",
            head,
            tag("p", escaped(said), class_="said"),
            gone,
            tag("div", picture, details, class_="inside"),
            class_="card" if section.layers else "card wide",
            id=f"{prefix}kind-{section.key}" if section.layers else None,
            data_section=number,
            data_key=section.key or section.name,
        )

    def _graph(self, section: Section, number: int, marks: Marks) -> str:
        figure = op_graph(section, interactive=True, mark=marks.of(section.name))
        label = f"Operations of {section.name}: arrow keys move, Enter opens one"
        svg = figure.svg(label, role="group", look="ops", least=_LEAST)
        if svg in self.drawn:
            return tag("div", class_="scroll", data_same=self.drawn[svg])
        self.drawn[svg] = len(self.drawn)
        return _scroll(svg, label, data_graph=self.drawn[svg])

    def _charts(self, shown: _Shown) -> str:
        before = self.steps[0].step.graph if shown.step.since is not None else None
        known = shown.facts
        drawn = curves(shown.step.graph, max(known.contexts[-1], known.trained_context or 0), before)
        charts = "".join(
            tag("figure", _scroll(chart.svg(words), words))
            for chart, words in ((cache_chart(drawn), in_words(drawn)), (parts_chart(known), _parts_said(known)))
        )
        return tag("section", tag("h2", "What it costs"), tag("div", charts, class_="charts"), class_="costs")


def _parts_said(found: Facts) -> str:
    """Return the chart of parts in words."""
    step = found.decode[found.contexts[-1]]
    parts = (f"{PARTS.get(part, part)} {size(work.bytes_read)} read" for part, work in step.by_part.items())
    return f"A token at {found.contexts[-1]:,} tokens of context, part by part: {', '.join(parts)}"


def _scroll(inner: str, label: str, **attributes: object) -> str:
    """Return something wide that scrolls by itself, also with the keyboard."""
    return tag("div", inner, class_="scroll", tabindex=0, role="region", aria_label=label, **attributes)


def _panel() -> str:
    close = tag("button", "×", id="close", type="button", aria_label="Close")
    return tag("aside", close, tag("div", id="about"), id="panel", aria_label="Operation", tabindex=-1, hidden=True)


def _keys() -> str:
    rows = [
        ("/", "search"),
        ("Enter", "open the operation"),
        ("arrows", "move among operations, or among layers"),
        ("o", "open or close all kinds"),
        ("t", "light or dark"),
        ("[ ]", "the pass before, the pass after"),
        ("Esc", "close"),
        ("?", "this list"),
    ]
    listed = "".join(tag("dt", tag("kbd", escaped(key))) + tag("dd", escaped(what)) for key, what in rows)
    return tag("dl", listed, id="keys", hidden=True)


def _legend(found: Scene, *, marked: bool) -> str:
    owned = [memory for section in found.sections for memory in section.memories]
    forms: dict[Form, None] = dict.fromkeys(memory.form for memory in (*owned, *(link.memory for link in found.links)))
    rows = "".join(
        tag("li", Figure(glyphs.WIDTH, glyphs.HEIGHT, glyphs.glyph(form, 0, 0)).svg(form), escaped(glyphs.WORDS[form]))
        for form in forms
    )
    bars = "".join(
        tag("li", tag("i", class_=f"bar-{name}"), escaped(what))
        for name, what in (
            ("map", "multiplies by weights"),
            ("mix", "mixes tokens or streams"),
            ("keep", "reads a memory's rows"),
            ("norm", "normalises"),
            ("turn", "rotates by position"),
            ("pick", "chooses experts or rows"),
            ("plain", "all else"),
        )
    )
    if marked:
        signs = (("+", "added"), ("~", "changed"), ("−", "removed"))
        bars += "".join(tag("li", tag("b", sign, class_=f"sign {state}"), state) for sign, state in signs)
    return tag("section", tag("h2", "Signs"), tag("ul", rows, bars, class_="legend"), class_="signs")


def _asset(name: str) -> str:
    return files("regraft.views.drawing.templates").joinpath(name).read_text("utf-8")
