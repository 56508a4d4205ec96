"""Readers and donors as recipes give them: layers, or groups of them; and whom they read."""

from __future__ import annotations

from collections.abc import Mapping

from regraft.ir.errors.base import nearest
from regraft.ir.errors.recipe import ChoiceError
from regraft.passes.base import OptionKind, read_integer, read_key, type_error
from regraft.passes.located import Node, Plain
from regraft.passes.selection import MOST_LAYERS, Selection, read_selection

Groups = tuple[tuple[int, ...], ...]
Donor = str | int | Mapping[int, int]

CHOSEN = ("measured", "similar")  # by what the calibration text shows
DONOR_FORM = "nearest, measured, similar, a layer, or a map {reader: donor}"


def _read_layers(node: Node, owner: str, name: str) -> Selection | Groups:
    if node.items and node.items[0].items is not None:
        return tuple(_read_group(item, owner, name) for item in node.items)
    return read_selection(node, owner, name)


def _read_group(node: Node, owner: str, name: str) -> tuple[int, ...]:
    if node.items is None or len(node.items) < 2:
        raise type_error(node, owner, name, "a group of two layers or more, such as [0, 1]")
    group = tuple(sorted(read_integer(each, owner, name, 0, MOST_LAYERS) for each in node.items))
    if len(set(group)) < len(group):
        raise type_error(node, owner, name, "a group of different layers")
    return group


def _spell_layers(layers: Selection | Groups) -> Plain:
    return layers.plain if isinstance(layers, Selection) else [list(group) for group in layers]


def _read_donor(node: Node, owner: str, name: str) -> Donor:
    if node.entries is not None:
        return {
            read_key(key, owner, name, MOST_LAYERS): read_integer(value, owner, name, 0, MOST_LAYERS)
            for key, value in node.entries
        }
    if isinstance(node.scalar, int) and not isinstance(node.scalar, bool):
        return read_integer(node, owner, name, 0, MOST_LAYERS)
    if not isinstance(node.scalar, str):
        raise type_error(node, owner, name, DONOR_FORM)
    words = ("nearest", *CHOSEN)
    if node.scalar not in words:
        near = nearest(node.scalar, words)
        raise ChoiceError(owner=owner, name=name, found=node, near=near, legal=DONOR_FORM, where=str(node.place))
    return node.scalar


READERS: OptionKind[Selection | Groups] = OptionKind(
    "layers, or groups such as [[0, 1], [2, 3]]", _read_layers, _spell_layers
)
DONOR: OptionKind[Donor] = OptionKind(DONOR_FORM, _read_donor, lambda d: dict(d) if isinstance(d, Mapping) else d)
