"""Fusion into ``kernel.embed`` and ``kernel.layer_rows``: what a step begins with."""

from __future__ import annotations

from regraft.ir.forms.embed import embed_form, layer_rows_form
from regraft.ir.op import Op, Value
from regraft.ir.ops.core import Add, Bias, Embed, Flatten, Gain, Norm, Scale
from regraft.ir.ops.hyper import Spread
from regraft.ir.ops.kernels import EmbedStep, LayerRowsStep
from regraft.ir.ops.precision import Widen
from regraft.passes.fusion.groups import Grouping


def group_embed(grouping: Grouping) -> None:
    """Deal the looking up of tokens around the layers to a group, and what is added to the layers' own rows."""
    around = grouping.layers.get(None, [])
    rows = [[op, *_behind(grouping, op.out)] for op in around if isinstance(op, Embed) and grouping.free(op)]
    for number in range(min(len(rows), 2), 0, -1):
        group = [op for row in rows[:number] for op in row]
        if any(_take(grouping, [*group, *more]) for more in (_spread(grouping, group[-1]), [])):
            break
    for op in around:
        if isinstance(op, Norm) and grouping.free(op) and len(op.x.tensor.shape) == 4:
            _layer_rows(grouping, op)


def _take(grouping: Grouping, group: list[Op]) -> bool:
    return embed_form(grouping.ordered(group)) is not None and grouping.take(EmbedStep, group)


def _spread(grouping: Grouping, row: Op) -> list[Op]:
    """Return what prepares a row for several streams."""
    return [op for value in row.results for op in value.users if isinstance(op, Spread) and grouping.free(op)]


def _behind(grouping: Grouping, value: Value) -> list[Op]:
    """Return what is done to a row before others read it, as far as the kernel does it too."""
    found: list[Op] = []
    for kinds in ((Scale,), (Bias,), (Gain,), (Widen,)):
        op = _only(grouping, value, kinds)
        if op is not None and (kinds != (Gain,) or (found and isinstance(found[-1], Bias))):
            found.append(op)
            (value,) = op.results
    return found[:-1] if found and isinstance(found[-1], Bias) else found


def _layer_rows(grouping: Grouping, norm: Norm) -> None:
    ops: list[Op] = [norm]
    for kind in (Flatten, Add, Scale):
        op = _only(grouping, ops[-1].results[0], (kind,))
        if op is not None:
            ops.append(op)
    if layer_rows_form(ops) is not None:
        grouping.take(LayerRowsStep, ops)


def _only(grouping: Grouping, value: Value, kinds: tuple[type[Op], ...]) -> Op | None:
    """Return the one op around the layers that reads a value, if it is of some kinds and in no group."""
    if len(value.users) != 1 or value in grouping.graph.outputs:
        return None
    op = next(iter(value.users))
    return op if isinstance(op, kinds) and grouping.free(op) and op in grouping.layers[None] else None
