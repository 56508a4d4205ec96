"""A report as one HTML file that needs nothing else: it reads well in a browser, on paper and to a screen reader."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.views.drawing.markup import MONO, SANS, escaped, tag
from regraft.views.drawing.palette import page_roles
from regraft.views.table import ADDED, CHANGED, REMOVED, Block, Heading, Item, Table

_LOOKS = {ADDED: "added", REMOVED: "removed", CHANGED: "changed"}
_SPOKEN = {ADDED: "added: ", REMOVED: "removed: ", CHANGED: "changed: "}

_STYLE = f"""
body{{margin:0 auto;max-width:72rem;padding:1.5rem 1rem 3rem;background:var(--paper);color:var(--ink);
font:15px/1.5 {SANS}}}
h1{{font-size:1.5rem;line-height:1.25;margin:0 0 .75rem}}
h2{{font-size:1.1rem;margin:1.75rem 0 .5rem}}
h3{{font-size:1rem;margin:1.25rem 0 .4rem}}
p{{margin:.3rem 0}}
.wide{{overflow-x:auto}}
table{{border-collapse:collapse;font-variant-numeric:tabular-nums}}
th,td{{padding:.2rem .9rem .2rem 0;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}}
thead th{{color:var(--soft);font-weight:600}}
tbody th{{font-weight:400}}
.number{{text-align:right;white-space:nowrap}}
ul{{list-style:none;margin:.3rem 0 .9rem;padding:0}}
.item{{font-weight:600;margin:.8rem 0 0}}
.item+ul{{margin-left:1.2rem;font:13px/1.55 {MONO};overflow-wrap:anywhere}}
.sign{{display:inline-block;width:1.1em;font-family:{MONO};font-weight:700;text-decoration:none}}
.added>.sign,.added>th>.sign{{color:var(--added)}}
.removed>.sign,.removed>th>.sign{{color:var(--removed)}}
.changed>.sign,.changed>th>.sign{{color:var(--changed)}}
tr.changed{{background:var(--panel)}}
.spoken{{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}}
footer{{margin-top:2.5rem;color:var(--soft);font-size:.85rem}}
@media print{{body{{max-width:none;padding:0;font-size:10.5pt}}.wide{{overflow:visible}}
h2,h3,.item,thead{{break-after:avoid}}tr,li{{break-inside:avoid}}thead{{display:table-header-group}}
tr.changed{{background:none}}}}
""".replace("\n", "")


def document(title: str, blocks: Sequence[Block], note: str) -> str:
    """Return a report as a page.

    Args:
        title: Of the page, any text.
        blocks: The report.
        note: What the page says of itself at its end.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width,initial-scale=1"),
        tag("title", escaped(title)),
        tag("style", page_roles() + _STYLE),
    )
    body = tag("body", tag("main", *map(_block, blocks)), tag("footer", escaped(note)))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _block(block: Block) -> str:
    match block:
        case Heading():
            return tag(f"h{block.level}", escaped(block.text)) + "\n"
        case Item():
            lines = [_signed("li", line) for line in block.lines]
            return _signed("p", block.title, "item") + (tag("ul", *lines) if lines else "") + "\n"
        case Table():
            return _table(block)
        case str():
            return _signed("p", block) + "\n"


def _signed(element: str, text: str, look: str = "") -> str:
    """Return an element whose sign, if it starts with one, is shown as a sign and read as a word."""
    sign = text[:2] if text[:2] in _LOOKS else ""
    looks = " ".join(part for part in (look, _LOOKS.get(sign, "")) if part)
    return tag(element, _sign(sign), escaped(text[len(sign) :]), class_=looks or None)


def _sign(sign: str) -> str:
    if not sign:
        return ""
    shown = tag("span", escaped(sign.strip()), class_="sign", aria_hidden="true")
    return shown + tag("span", escaped(_SPOKEN[sign]), class_="spoken")


def _table(block: Table) -> str:
    looks = ["number" if i in block.right else None for i in range(len(block.columns))]
    head = ""
    if any(block.columns):
        cells = [
            tag("th", escaped(name), scope="col", class_=look) for name, look in zip(block.columns, looks, strict=True)
        ]
        head = tag("thead", tag("tr", *cells))
    rows: list[str] = []
    for n, row in enumerate(block.rows):
        sign = CHANGED if n in block.marked else ""
        first = tag("th", _sign(sign) or tag("span", class_="sign"), escaped(row[0]), scope="row")
        rest = [tag("td", escaped(cell), class_=look) for cell, look in zip(row[1:], looks[1:], strict=True)]
        rows.append(tag("tr", first, *rest, class_=_LOOKS.get(sign)))
    return (
        tag(
            "div",
            tag("table", head, tag("tbody", *rows)),
            class_="wide",
            tabindex="0",
            role="region",
            aria_label="table",
        )
        + "\n"
    )
