"""Which layers may read whose memory, and whose memory they read in the end."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from regraft.passes.matching.sites import Attention, key_rotation, rotation_text


def misfit(reader: Attention, donor: Attention | None, mapped: bool = False) -> str | None:
    """Return why ``reader`` cannot read the donor's memory, empty where the kinds say it already; None where it can.

    Where rows are ``mapped`` to the reader's keys and values, their heads and their rotation need not be the same.
    """
    if donor is None:
        return "the donor has no attention"
    if donor.layer >= reader.layer:
        return f"layer {donor.layer} does not come before layer {reader.layer}"
    if donor.kind != reader.kind:
        return ""
    if reader.attend.entries is not None:
        return "the reader attends to pooled rows too, of its own keys and values"
    if reader.window is not None and donor.window is not None and reader.window > donor.window:
        return f"the reader looks back {reader.window} rows, the donor keeps {donor.window}"
    if mapped:
        return None
    mine, theirs = reader.memory.memory.with_window(None), donor.memory.memory.with_window(None)
    if mine != theirs:
        return f"their rows differ: {mine} and {theirs}"
    mine, theirs = key_rotation(reader.memory), key_rotation(donor.memory)
    if (mine and mine.attributes) != (theirs and theirs.attributes):
        return f"their keys are rotated differently: {rotation_text(mine)} and {rotation_text(theirs)}"
    return None


def legal_donors(
    found: Mapping[int, Attention], reader: int, readers: Iterable[int], mapped: bool = False
) -> list[int]:
    """Return the earlier layers whose memory ``reader`` may read: those that make one and are no readers themselves."""
    taken = set(readers)
    return [
        layer
        for layer, attention in found.items()
        if layer not in taken and attention.owner == layer and misfit(found[reader], attention, mapped) is None
    ]


def collapsed(pairs: Mapping[int, int], found: Mapping[int, Attention]) -> dict[int, int]:
    """Follow each donor to the layer that makes the memory, and take along who read a reader's memory before."""
    wide = {**{a.layer: a.owner for a in found.values() if a.owner in pairs}, **pairs}

    def root(layer: int) -> int:
        while True:
            above = wide.get(layer, found[layer].owner if layer in found else layer)
            if above == layer:
                return layer
            layer = above

    return {reader: root(donor) for reader, donor in sorted(wide.items()) if reader != donor}


def groups_of_kind(found: Mapping[int, Attention], layers: Sequence[int], size: int) -> list[Sequence[int]]:
    """Return layers in groups of ``size``, in order, each of layers whose memories are alike."""
    kinds: dict[object, list[int]] = {}
    for layer in layers:
        rotation = key_rotation(found[layer].memory)
        memory = found[layer].memory.memory.with_window(None)
        kinds.setdefault((found[layer].window, memory, str(rotation and rotation.attributes)), []).append(layer)
    return [alike[start : start + size] for alike in kinds.values() for start in range(0, len(alike), size)]
