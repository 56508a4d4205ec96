"""Colours of pictures, light and dark, and the style sheets that have them.

Kinds have the colours of Okabe and Ito 2008, "Color Universal Design", which people with any colour vision can tell
apart; each also has a letter, and where colours repeat a hatching.
"""

from __future__ import annotations

from typing import Literal

from regraft.views.drawing.markup import MONO, SANS

Theme = Literal["light", "dark"]

KINDS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442")
_ON_KIND = ("#ffffff", *(6 * ("#15181c",)))

ROLES: dict[str, tuple[str, str]] = {
    "paper": ("#ffffff", "#14171b"),
    "panel": ("#f5f6f8", "#1d2126"),
    "raised": ("#ffffff", "#252a31"),
    "ink": ("#1a1d21", "#e9ecef"),
    "soft": ("#58616d", "#a7b0bc"),
    "line": ("#cfd4db", "#3d4550"),
    "edge": ("#848d99", "#8a94a1"),
    "stream": ("#39424e", "#c6cdd6"),
    "memory": ("#00694d", "#3ecf9f"),
    "memory-fill": ("#d9f2e8", "#12392c"),
    "accent": ("#0060a0", "#6cbcf5"),
    "added": ("#00694d", "#3ecf9f"),
    "removed": ("#b04a00", "#ff9a5c"),
    "changed": ("#8a3d6b", "#e3a1c8"),
    "curve-0": ("#0060a0", "#6cbcf5"),
    "curve-1": ("#b04a00", "#ff9a5c"),
    "curve-2": ("#00694d", "#3ecf9f"),
    "curve-3": ("#8a3d6b", "#e3a1c8"),
}

CURVES = 8  # curves that look different
_DASHES = ("", "7 4", "2 3", "8 3 2 3", "12 3", "4 2", "1 4", "10 3 3 3 3 3")

OPS = {  # the bar at an operation's left, by what the operation does
    "map": ("#0072B2", "#56B4E9"),
    "mix": ("#D55E00", "#ff8a3c"),
    "keep": ("#009E73", "#3ecf9f"),
    "norm": ("#8a93a0", "#8a93a0"),
    "turn": ("#CC79A7", "#d893b8"),
    "pick": ("#b98500", "#E69F00"),
    "plain": ("#cfd4db", "#4a535f"),
}

_RULES = """
text{{font-family:{sans};font-size:12px;fill:{ink}}}
.mono{{font-family:{mono};font-size:11px}}
.title{{font-size:13px;font-weight:600}}
.big{{font-size:20px;font-weight:700}}
.small{{font-size:11px}}
.soft{{fill:{soft}}}
.mid{{text-anchor:middle}}
.end{{text-anchor:end}}
.bold{{font-weight:600}}
.halo{{paint-order:stroke;stroke:{paper};stroke-width:3px;stroke-linejoin:round}}
.plus{{fill:none;stroke:{stream};stroke-width:1.8}}
.read{{fill:{accent}}}
.work{{fill:{line};stroke:{edge}}}
.stripe{{fill:none;stroke:{edge}}}
.paper{{fill:{paper}}}
.panel{{fill:{panel};stroke:{line}}}
.box{{fill:{raised};stroke:{line}}}
.line{{fill:none;stroke:{line}}}
.edge{{fill:none;stroke:{edge};stroke-width:1.3}}
.tip{{fill:{edge}}}
.stream{{fill:none;stroke:{stream};stroke-width:2.6}}
.streamtip{{fill:{stream}}}
.node{{fill:{raised};stroke:{stream};stroke-width:1.8}}
.carry{{fill:none;stroke:{memory};stroke-width:2}}
.carrytip{{fill:{memory}}}
.glyph{{fill:{memory_fill};stroke:{memory};stroke-width:1.3}}
.stroke{{fill:none;stroke:{memory};stroke-width:1.3}}
.full{{fill:{memory}}}
.other{{stroke-dasharray:3 2}}
.added{{fill:{added}}}
.removed{{fill:{removed}}}
.changed{{fill:{changed}}}
.hatch{{fill:none;stroke:#15181c;stroke-opacity:.45}}
"""


def page_roles() -> str:
    """Return the style sheet that names the colours for a page: light, dark by the reader's system, or as chosen."""
    sheets = [_variables(theme) for theme in (0, 1)]
    return (
        f":root{{color-scheme:light dark;{sheets[0]}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{sheets[1]}}}}}"
        f"@media screen{{:root[data-theme=dark]{{color-scheme:dark;{sheets[1]}}}}}"
        ":root[data-theme=light]{color-scheme:light}"
        + _sheet({role: f"var(--{role})" for role in ROLES}, {name: f"var(--op-{name})" for name in OPS})
    )


def picture_style(*, themes: bool) -> str:
    """Return the style sheet of a picture that stands alone; with ``themes`` it follows the reader's system."""
    light = _themed(0)
    return light + (f"@media (prefers-color-scheme:dark){{{_themed(1)}}}" if themes else "")


def kind_style(index: int) -> str:
    """Return the class of a kind's colour."""
    return f"k{index % len(KINDS)}"


def hatching(index: int) -> int:
    """Return the hatching of a kind, 0 for none: another each time that the colours begin anew."""
    return index // len(KINDS) % 4


def _variables(theme: int) -> str:
    roles = "".join(f"--{role}:{colours[theme]};" for role, colours in ROLES.items())
    return roles + "".join(f"--op-{name}:{colours[theme]};" for name, colours in OPS.items())


def _themed(theme: int) -> str:
    return _sheet(
        {role: colours[theme] for role, colours in ROLES.items()}, {name: each[theme] for name, each in OPS.items()}
    )


def _sheet(roles: dict[str, str], ops: dict[str, str]) -> str:
    named = {role.replace("-", "_"): colour for role, colour in roles.items()}
    rules = _RULES.format(sans=SANS, mono=MONO, **named).replace("\n", "")
    for i, dash in enumerate(_DASHES):
        colour = roles[f"curve-{i % 4}"]
        dashed = f";stroke-dasharray:{dash}" if dash else ""
        rules += f".c{i}{{fill:none;stroke:{colour};stroke-width:{1.8 if i else 2.6}{dashed}}}"
        rules += f".m{i}{{fill:{roles['paper'] if i >= 4 else colour};stroke:{colour};stroke-width:1.3}}"
    rules += "".join(f".op-{name}{{fill:{colour}}}.bar-{name}{{border-color:{colour}}}" for name, colour in ops.items())
    for i, (fill, ink) in enumerate(zip(KINDS, _ON_KIND, strict=True)):
        rules += f".k{i}{{fill:{fill}}}.on-k{i}{{fill:{ink}}}.bg-k{i}{{background:{fill};color:{ink}}}"
    return rules
