"""The cut: query heads that stay, in order of the KV heads that they read, and the fit of the output projection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from regraft.ir.graph import Graph, layer_of
from regraft.ir.kinds import ranges
from regraft.ir.op import Op, Value
from regraft.ir.ops.algebra import Fill
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.core import Linear, Unflatten
from regraft.ir.ops.weight import ConcatWeight
from regraft.passes.fitting.refit import refit_output, refit_refusal, refit_text, undo_refit
from regraft.passes.matching.heads import Cut
from regraft.passes.matching.query_heads import QueryHeads, query_heads, take_query_heads
from regraft.passes.matching.rewrite import Editor, Rule
from regraft.passes.matching.sites import Attention, Refusal, mlp_output_of

Keep = Mapping[int, tuple[int, ...]]
Fit = tuple[str, float]


def cut_refusal(attend: Attend, fit: Fit | None) -> Refusal | None:
    """Return why an attention's query heads cannot be cut, or None where they can."""
    site = query_heads(attend)
    if isinstance(site, Refusal):
        return site
    return refit_refusal(site.output) if fit is not None else None


def largest_group(found: Iterable[Attention], keep: Keep) -> int:
    """Return how many query heads the KV head has that is read most, over all layers, once only some heads stay."""
    counts = [0]
    for attention in found:
        groups = attention.attend.groups
        counts += Counter(groups[head] for head in keep.get(attention.layer, range(len(groups)))).values()
    return max(counts)


@dataclass(frozen=True)
class HeadSite:
    """An attention, its heads in their new order, and how many there are before one of zeros is added for padding."""

    heads: QueryHeads
    order: tuple[int, ...]
    before: int


@dataclass(frozen=True)
class CutHeads(Rule[Attend, HeadSite]):
    """Cuts the query heads of some layers.

    Args:
        keep: The heads that stay, by layer.
        fit: Target and ridge of the output projection's fit, or None.
        group: Fill the query heads of each KV head up to so many; None leaves them as they are.
        decided_by: What a choice is made by that is not made yet.
        mlp: Whether the MLP's last projection is fitted too.
    """

    op: ClassVar[type[Op]] = Attend
    keep: Keep
    fit: Fit | None
    group: int | None = None
    decided_by: str = ""
    mlp: bool = False

    def match(self, op: Attend, graph: Graph) -> HeadSite | Refusal:
        """Return a layer's attention with the order of the heads that stay."""
        layer = layer_of(op.out.name)
        heads = len(op.groups)
        kept = None if layer is None else self.keep.get(layer)
        if kept is None:
            return Refusal(f"keeps its {heads} query heads")
        refusal = cut_refusal(op, self.fit)
        site = query_heads(op)
        if refusal is not None or isinstance(site, Refusal):
            return refusal or Refusal("it has no query heads to cut")
        return HeadSite(site, tuple(sorted(kept, key=lambda head: (op.groups[head], head))), heads)

    def rewrite(self, site: HeadSite, edit: Editor) -> str:
        """Cut, pad, and fit."""
        done = f"keeps query heads {ranges(sorted(site.order))} of {site.before}"
        if self.decided_by:
            done = f"keeps {len(site.order)} of {site.before} query heads, decided at apply by {self.decided_by}"
        fit = self.fit
        if self.group is not None:
            fit = fit or undo_refit(edit, site.heads.output)
            site = padded(edit, site, self.group)
            done += f", {len(site.order)} with those of zeros"
        fit = take_query_heads(edit, site.heads, site.order, fit)
        if self.group is not None:
            edit.set_attribute(site.heads.attend, "head_map", None)
        if fit is None:
            return done
        done += f", {refit_text(site.heads.output, *fit)}"
        return f"{done}, {self._refit_mlp(site, edit, fit)}" if self.mlp else done

    def _refit_mlp(self, site: HeadSite, edit: Editor, fit: Fit) -> str:
        output = mlp_output_of(site.heads.output)
        refusal = output if isinstance(output, Refusal) else refit_refusal(output)
        if refusal is not None or isinstance(output, Refusal):
            return f"MLP as it was ({refusal.reason})" if refusal is not None else ""
        refit_output(edit, output, *fit)
        return "MLP too"


def padded(edit: Editor, site: HeadSite, group: int) -> HeadSite:
    """Add a query head of zeros, and put it in as often as KV heads lack readers up to ``group``.

    Its queries are zero, so it attends to all rows alike, and its columns of the output projection are zero until a fit
    finds a use for it.
    """
    attend, heads = site.heads.attend, site.heads
    groups, width = attend.groups, heads.width
    undo_refit(edit, heads.output)
    for cut in (heads.queries, heads.gates):
        _widen(edit, cut, len(groups))
    if attend.sink is not None:
        _append(edit, attend, "sink", 0, 1)
    _append(edit, heads.output.linear, "weight", 1, width)
    edit.set_attribute(attend, "head_map", (*groups, 0))
    edit.retype([attend, *heads.output.chain])
    wider = query_heads(attend)
    assert isinstance(wider, QueryHeads)
    order: list[int] = []
    for kv_head in range(attend.memory.memory.fields[0].shape[0]):
        mine = [head for head in site.order if groups[head] == kv_head]
        order += [*mine, *[len(groups)] * (group - len(mine))]
    return replace(site, heads=wider, order=tuple(order))


def _widen(edit: Editor, cut: Cut, heads: int) -> None:
    """Let what makes heads make one more, of zeros."""
    edit.set_aside_measured(cut.ops)
    for op in cut.ops:
        if isinstance(op, Linear):
            block = int(op.weight.tensor.sizes[0]) // heads
            for slot in ("weight", "bias"):
                if op.slots[slot]:
                    _append(edit, op, slot, 0, block)
        elif isinstance(op, Unflatten):
            edit.set_attribute(op, "parts", heads + 1)
    edit.retype(cut.ops)


def _append(edit: Editor, reader: Op, slot: str, axis: int, size: int) -> None:
    """Let ``reader`` read a weight with ``size`` more rows, or columns, of zeros."""

    def make(old: Value, name: str) -> Value:
        shape: Sequence[int] = [size if at == axis else length for at, length in enumerate(old.tensor.sizes)]
        zeros = edit.add(Fill, f"{name}.zeros", dtype=old.tensor.dtype, shape=tuple(shape), before=reader)
        return edit.add(ConcatWeight, f"{name}.wider", [old, zeros], axis=axis, before=reader)

    edit.replace_weight(reader, slot, make)
