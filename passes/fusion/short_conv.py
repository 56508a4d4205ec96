"""Fusion into ``kernel.short_conv``: a layer's convolutions of single channels, with what they keep."""

from __future__ import annotations

from regraft.ir.forms.short_conv import channelwise, short_conv_form
from regraft.ir.op import Op
from regraft.ir.ops.core import Activation
from regraft.ir.ops.kernels import ShortConvStep
from regraft.ir.ops.seq import Conv
from regraft.passes.fusion.groups import Grouping


def group_short_convs(grouping: Grouping) -> None:
    """Deal convolutions of single channels to groups: all of a layer to one, if none depends on another."""
    for ops in grouping.layers.values():
        groups = [convolution(grouping, op) for op in ops if isinstance(op, Conv)]
        groups = [group for group in groups if group]
        if not groups or _take(grouping, [op for group in groups for op in group]):
            continue
        for group in groups:
            _take(grouping, group)


def _take(grouping: Grouping, group: list[Op]) -> bool:
    return short_conv_form(grouping.ordered(group)) is not None and grouping.take(ShortConvStep, group)


def convolution(grouping: Grouping, conv: Conv) -> list[Op]:
    """Return a convolution of single channels with its tail and what alone reads it and is applied to it.

    There is none if it is of another form or in a group already.
    """
    tail = conv.memory.op
    if not channelwise(conv) or not grouping.free(conv) or not grouping.free(tail):
        return []
    users = list(conv.out.users)
    silu = users[0] if len(users) == 1 and conv.out not in grouping.graph.outputs else None
    whole = isinstance(silu, Activation) and silu.kind == "silu" and grouping.free(silu)
    return [op for op in (tail, conv, silu if whole else None) if op is not None and grouping.same_layer(op, conv)]
