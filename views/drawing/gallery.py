"""The index of a gallery: every model with its layers, one table of all, and their caches side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regraft.ir.graph import Graph
from regraft.views.drawing.cache_chart import Curve, cache_chart, cache_of, in_words
from regraft.views.drawing.markup import SANS, Figure, escaped, tag
from regraft.views.drawing.palette import CURVES, page_roles
from regraft.views.drawing.scene import Scene
from regraft.views.drawing.strip import strip
from regraft.views.facts import Facts
from regraft.views.numbers import context, count, size
from regraft.views.pattern import fold, spelled

STRIP = 540.0  # pixels
LONGEST = 2**20  # tokens that the chart of caches goes up to

_STYLE = f"""
*{{box-sizing:border-box}}
body{{margin:0 auto;max-width:80rem;padding:1.5rem 1rem 3rem;background:var(--panel);color:var(--ink);
font:15px/1.5 {SANS}}}
h1{{font-size:1.6rem;line-height:1.25;margin:0 0 .3rem}}
h2{{font-size:1.15rem;margin:2rem 0 .7rem}}
h3{{font-size:1rem;margin:0}}
p{{margin:.2rem 0}}
a{{color:var(--accent)}}
svg{{display:block}}
.lead,.said{{color:var(--soft)}}
.said{{font-size:13px}}
.cards{{list-style:none;margin:0;padding:0;display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,600px),1fr));
gap:14px}}
.cards li,.sheet{{background:var(--paper);border:1px solid var(--line);border-radius:11px;padding:13px 16px;
min-width:0}}
.wide{{overflow-x:auto;max-width:100%}}
.cards .wide{{margin-top:8px}}
table{{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:14px}}
th,td{{padding:.25rem .9rem .25rem 0;text-align:left;border-bottom:1px solid var(--line);white-space:nowrap}}
thead th{{color:var(--soft);font-weight:600}}
tbody th{{font-weight:600}}
.number{{text-align:right}}
:focus-visible{{outline:2px solid var(--accent);outline-offset:2px}}
@media print{{body{{background:#fff;max-width:none;padding:0;font-size:10pt}}.wide{{overflow:visible}}
.cards{{grid-template-columns:1fr}}.cards li,.sheet{{break-inside:avoid}}svg{{max-width:100%;height:auto}}}}
""".replace("\n", "")


@dataclass(frozen=True)
class Entry:
    """A model of a gallery: its name, what is known of it, and the page that shows it whole."""

    name: str
    graph: Graph
    scene: Scene
    facts: Facts
    link: str


def index(entries: Sequence[Entry], charted: Sequence[str]) -> str:
    """Return the first page of a gallery.

    Args:
        entries: Models, in the order in which they are shown, with facts at the same contexts.
        charted: Names of those whose caches are drawn over the context, at most `regraft.views.drawing.palette.CURVES`.
    """
    curves = [cache_of(each.graph, each.name, LONGEST) for each in entries if each.name in charted][:CURVES]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width,initial-scale=1"),
        tag("title", "Gallery of architectures"),
        tag("style", page_roles() + _STYLE),
    )
    body = tag(
        "main",
        tag("h1", "Gallery of architectures"),
        tag("p", f"{len(entries)} models, read off their configs. Each opens to its operations.", class_="lead"),
        tag("h2", "Layers"),
        tag("ul", *(_card(entry) for entry in entries), class_="cards"),
        tag("h2", "Caches"),
        tag("div", _wide(_chart(curves), "caches over the context"), class_="sheet"),
        tag("h2", "Side by side"),
        tag("div", _wide(_table(entries), "models side by side"), class_="sheet"),
    )
    return f"<!doctype html>\n{tag('html', head, tag('body', body), lang='en')}\n"


def _chart(curves: Sequence[Curve]) -> str:
    drawn = cache_chart(curves, "Cache of one sequence over its context", lead=False)
    return Figure(drawn.width, drawn.height, drawn.body).svg(in_words(curves))


def _wide(inner: str, label: str) -> str:
    return tag("div", inner, class_="wide", tabindex=0, role="region", aria_label=label)


def _card(entry: Entry) -> str:
    known = entry.facts
    last = known.contexts[-1]
    said = [f"{known.layers} layers of {len(known.kinds)} kind{'s' * (len(known.kinds) != 1)}"]
    said.append(f"{count(known.parameters.total)} parameters")
    if known.parameters.active != known.parameters.total:
        said.append(f"{count(known.parameters.active)} active")
    said.append(f"cache at {context(last)} {size(known.cache[last].bytes)}")
    label = f"{entry.name}: {spelled(fold(entry.scene.letters))}"
    drawn = strip(entry.scene, STRIP)
    name = tag("a", escaped(entry.name), href=entry.link)
    return tag(
        "li", tag("h3", name), tag("p", escaped(" · ".join(said)), class_="said"), _wide(drawn.svg(label), label)
    )


def _table(entries: Sequence[Entry]) -> str:
    contexts = entries[0].facts.contexts if entries else ()
    columns = ["model", "family", "layers", "pattern", "parameters", "active", "a further token"]
    columns += [f"cache at {context(n)}" for n in contexts]
    columns += [f"read at {context(n)}" for n in contexts]
    words = {"model", "family", "pattern"}
    head = tag(
        "tr", *(tag("th", escaped(name), scope="col", class_=None if name in words else "number") for name in columns)
    )
    return tag("table", tag("thead", head), tag("tbody", *(_row(entry) for entry in entries)))


def _row(entry: Entry) -> str:
    known = entry.facts
    cells = [
        (known.family, False),
        (str(known.layers), True),
        (spelled(fold(entry.scene.letters)), False),
        (count(known.parameters.total), True),
        (count(known.parameters.active), True),
        (size(known.bytes_per_token), True),
        *((size(known.cache[n].bytes), True) for n in known.contexts),
        *((size(known.decode[n].bytes_read), True) for n in known.contexts),
    ]
    name = tag("th", tag("a", escaped(entry.name), href=entry.link), scope="row")
    return tag("tr", name, *(tag("td", escaped(text), class_="number" if right else None) for text, right in cells))
