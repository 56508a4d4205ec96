"""Numbers of heads as recipes give them: a count, a share, a list with one entry a layer, or a map by kind or layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from regraft.ir.errors.recipe import (
    EmptySelectionError,
    HeadListError,
    LayerMissingError,
    OptionRangeError,
    StructureError,
)
from regraft.ir.kinds import ranges
from regraft.passes.base import OptionKind, read_integer, read_key, type_error
from regraft.passes.choosing import leave_out
from regraft.passes.located import Node, Plain
from regraft.passes.matching.sites import Attention
from regraft.passes.selection import MOST_LAYERS, Selection, describe_kinds

Count = int | float  # a number of heads, or a share of them from 0 to 1
Heads = Count | tuple[Count, ...] | Mapping[str | int, Count]

MOST_HEADS = 65536
HEADS_FORM = (
    "a count, a share such as 0.5, a list with one entry a layer, or a map by kind {full: 6, sliding: 8} or layer"
)


def _read_count(node: Node, owner: str, name: str, form: str = HEADS_FORM) -> Count:
    value = node.scalar
    if isinstance(value, float):
        if not 0 < value <= 1:
            legal = "above 0 and up to 1 as a share; a count is an integer"
            raise OptionRangeError(owner=owner, name=name, found=node, legal=legal, where=str(node.place))
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise type_error(node, owner, name, form)
    return read_integer(node, owner, name, 1, MOST_HEADS)


COUNT_FORM = "a count, or a share such as 0.5"
COUNT: OptionKind[Count] = OptionKind(COUNT_FORM, lambda node, owner, name: _read_count(node, owner, name, COUNT_FORM))


def _read_heads(node: Node, owner: str, name: str) -> Heads:
    if node.items:
        return tuple(_read_count(each, owner, name) for each in node.items)
    if not node.entries:
        return _read_count(node, owner, name)
    found: dict[str | int, Count] = {}
    for key, value in node.entries:
        if key.scalar not in ("full", "sliding"):
            found[read_key(key, owner, name, MOST_LAYERS)] = _read_count(value, owner, name)
        else:
            found[str(key.scalar)] = _read_count(value, owner, name)
    return found


def _spell_heads(heads: Heads) -> Plain:
    if isinstance(heads, Mapping):
        return dict(heads)
    return list(heads) if isinstance(heads, tuple) else heads


HEADS: OptionKind[Heads] = OptionKind(HEADS_FORM, _read_heads, _spell_heads)


def counts_by_layer(
    heads: Heads, selected: Sequence[int], found: Mapping[int, Attention], layers: int, owner: str, where: str
) -> dict[int, Count]:
    """Return what ``heads`` asks for in each layer that it speaks of.

    Args:
        heads: As a recipe gives it.
        selected: The layers that the recipe selects.
        found: The model's attentions.
        layers: How many layers the model has.
        owner: The pass, for messages.
        where: The place of the option, for messages.

    Raises:
        HeadListError, EmptySelectionError, LayerMissingError: It speaks of other layers than there are.
        StructureError: It counts heads of a layer where some attend in one way and others in another.
    """
    wanted = _wanted(heads, selected, found, layers, owner, where)
    for layer in wanted:
        if found[layer].split:
            reason = f"some heads attend in one way ({found[layer].described}) and others in another"
            fix = "let this pass come before the one that parts them, or "
            fix += leave_out(wanted, [at for at in found if not found[at].split])
            raise StructureError(owner=owner, layer=layer, reason=reason, fix=fix, where=where)
    return wanted


def _wanted(
    heads: Heads, selected: Sequence[int], found: Mapping[int, Attention], layers: int, owner: str, where: str
) -> dict[int, Count]:
    if isinstance(heads, tuple):
        if len(heads) != len(selected):
            expected, legal = len(selected), ranges(selected)
            raise HeadListError(owner=owner, found=len(heads), expected=expected, legal=legal, where=where)
        return dict(zip(selected, heads, strict=True))
    if not isinstance(heads, Mapping):
        return dict.fromkeys(selected, heads)
    wanted: dict[int, Count] = {}
    for key, count in heads.items():
        if isinstance(key, int):
            Selection((key,)).resolve(found, layers, owner, where)
            if key not in selected:
                raise LayerMissingError(owner=owner, layer=key, legal=f"{ranges(selected)} selected", where=where)
            wanted[key] = count
            continue
        if not any(found[layer].kind == key for layer in selected):
            raise EmptySelectionError(owner=owner, text=f"kind == {key}", legal=describe_kinds(found), where=where)
        of_kind = [layer for layer in selected if found[layer].kind == key and layer not in heads]
        wanted |= dict.fromkeys(of_kind, count)
    return wanted
