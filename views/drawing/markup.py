"""Markup, as text that is escaped: elements of SVG and HTML, and how wide their words are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape

SANS = '"Inter","Segoe UI",Roboto,"Helvetica Neue",Arial,"DejaVu Sans",sans-serif'
MONO = 'ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace'

_VOID = {"meta", "link", "input", "br", "hr", "img"}
_EMPTY = {"rect", "path", "line", "circle", "ellipse", "use"}
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")  # what XML cannot hold
_NARROW, _WIDE = frozenset("iljtfrI.,:;'|!()[] -/"), frozenset("mwMW@%—")
_MONO_EM = 0.61
_SPACE = re.compile(r"\s+")


def printable(text: object) -> str:
    """Return text with a mark in place of each character that XML cannot hold."""
    return _FORBIDDEN.sub("\ufffd", str(text))


def escaped(text: object) -> str:
    """Return text as it stands between tags and in quoted attributes; what XML cannot hold is replaced."""
    return escape(printable(text))


def tag(name: str, /, *children: str, **attributes: object) -> str:
    """Return an element. Children are markup; attributes are escaped.

    ``class_`` and ``for_`` lose the underscore, others turn it to a dash; None and False leave an attribute out, True
    gives it no value.
    """
    parts = [f"<{name}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        spelled = key.rstrip("_").replace("_", "-")
        parts.append(f" {spelled}" if value is True else f' {spelled}="{_spelled(value)}"')
    inner = "".join(children)
    if name in _VOID:
        return f"{''.join(parts)}>"
    return f"{''.join(parts)}/>" if name in _EMPTY and not inner else f"{''.join(parts)}>{inner}</{name}>"


def _spelled(value: object) -> str:
    return number(value) if isinstance(value, float) else escaped(value)


def number(value: float) -> str:
    """Return a coordinate with one digit after the point, if it needs one."""
    text = f"{value:.1f}"
    return text.removesuffix(".0") if text != "-0.0" else "0"


def words(x: float, y: float, text: object, look: str = "", *, size: float | None = None) -> str:
    """Return a line of text in a picture, at its baseline; ``size`` in pixels where the class does not give it."""
    css = f"font-size:{number(size)}px" if size else None
    return tag("text", escaped(text), x=number(x), y=number(y), class_=look or None, style=css)


def rectangle(x: float, y: float, width: float, height: float, look: str, **attributes: object) -> str:
    """Return a rectangle."""
    return tag("rect", x=number(x), y=number(y), width=number(width), height=number(height), class_=look, **attributes)


def path(d: str, look: str, **attributes: object) -> str:
    """Return a path."""
    return tag("path", d=d, class_=look, **attributes)


def moved(x: float, y: float, *children: str, **attributes: object) -> str:
    """Return a group whose origin is at ``x``, ``y``."""
    return tag("g", *children, transform=f"translate({number(x)} {number(y)})", **attributes)


def width_of(text: str, size: float, *, mono: bool = False, bold: bool = False) -> float:
    """Return about how wide a line of text is, in pixels, rather too wide than too narrow."""
    if mono:
        return len(text) * size * _MONO_EM
    ems = sum(0.36 if c in _NARROW else 0.92 if c in _WIDE else 0.69 if c.isupper() else 0.59 for c in text)
    return ems * size * (1.07 if bold else 1.0)


def cut(text: str, size: float, width: float, *, mono: bool = False) -> str:
    """Return a line of text, its end as an ellipsis where it does not fit."""
    if width_of(text, size, mono=mono) <= width:
        return text
    while text and width_of(f"{text}…", size, mono=mono) > width:
        text = text[:-1]
    return f"{text.rstrip()}…"


def wrapped(text: str, size: float, width: float) -> list[str]:
    """Return text as lines that fit; a word that does not is cut."""
    lines: list[str] = []
    for word in _SPACE.split(text.strip()):
        if lines and width_of(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(cut(word, size, width))
    return lines


@dataclass(frozen=True)
class Figure:
    """A picture without its frame: what is drawn from 0, 0 to ``width``, ``height``, in pixels."""

    width: float
    height: float
    body: str

    def svg(self, label: str, *, role: str = "img", look: str | None = None, least: float = 0.0) -> str:
        """Return the picture for a page, named for those who do not see it; it shrinks to ``least`` of its size."""
        return tag(
            "svg",
            self.body,
            viewBox=f"0 0 {number(self.width)} {number(self.height)}",
            width=number(self.width),
            height=number(self.height),
            role=role,
            aria_label=label,
            class_=look,
            style=f"min-width:{self.width * least:.0f}px" if least else None,
        )
