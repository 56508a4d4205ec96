"""A reader let onto its donor's memory: what is adapted to it at each level, and the refit of its output.

Source: specs/passes_math.md, section 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from regraft.ir.graph import Graph, layer_of
from regraft.ir.op import Op, Value
from regraft.ir.ops.attn import KV, Attend
from regraft.ir.ops.core import Flatten, Scale
from regraft.ir.ops.fits import AlignValues, Moment, width
from regraft.passes.fitting.align import align_queries
from regraft.passes.fitting.refit import refit_output, undo_refit
from regraft.passes.matching.rewrite import Editor, Rule
from regraft.passes.matching.sites import Output, Refusal, output_of

LEVELS = ("raw", "gauge")


@dataclass(frozen=True)
class Sharing:
    """How readers are let onto other memories: the level, and the refit's target and ridge.

    Attributes:
        level: One of `LEVELS`.
        refit: Whether the output projection is fitted at the end.
        target: See `passes.fitting.refit`.
        ridge: Of all fits, in units of the mean second moment.
    """

    level: str
    refit: bool
    target: str
    ridge: float


@dataclass(frozen=True)
class Site:
    """An attention that is to read ``donor``; ``output`` is its projection if that is adapted."""

    attend: Attend
    donor: Value
    output: Output | None


@dataclass(frozen=True)
class ReadDonor(Rule[Attend, Site]):
    """Points attentions at other memories."""

    op: ClassVar[type[Op]] = Attend
    sharing: Sharing
    memories: Mapping[int, Value]

    def match(self, op: Attend, graph: Graph) -> Site | Refusal:
        """Return the attention of a reader with its donor's memory."""
        layer = layer_of(op.out.name)
        if layer is None or layer not in self.memories:
            return Refusal("not among the readers")
        donor = self.memories[layer]
        if donor is op.memory:
            return Refusal(f"it reads %{donor.name} already")
        output = output_of(op)
        if isinstance(output, Refusal):
            return output if self.sharing.refit else Site(op, donor, None)
        return Site(op, donor, output)

    def rewrite(self, site: Site, edit: Editor) -> str:
        """Adapt queries and output projection, read the donor's memory, and refit."""
        how, done = self.sharing, [f"reads %{site.donor.name}"]
        earlier = None
        if how.level == "gauge":
            done.append(self._align_keys(site, edit))
        if how.level == "gauge" and not how.refit:  # a refit finds the map of values itself
            earlier = undo_refit(edit, site.output) if site.output is not None else None
            done.append(self._align_values(site, edit))
        edit.set_operand(site.attend, "memory", site.donor)
        fit = (how.target, how.ridge) if how.refit else earlier
        if fit is not None and site.output is not None:
            refit_output(edit, site.output, *fit)
            done.append(f"output projection refitted ({fit[0]}, ridge {fit[1]:g})")
        return ", ".join(done)

    def _align_keys(self, site: Site, edit: Editor) -> str:
        refusal = align_queries(edit, site.attend, site.donor, self.sharing.ridge)
        return f"queries as they were ({refusal.reason})" if refusal else "queries turned to its keys"

    def _align_values(self, site: Site, edit: Editor) -> str:
        refusal = align_output(edit, site, self.sharing.ridge)
        return f"output as it was ({refusal.reason})" if refusal else "output turned to its values"


def align_output(edit: Editor, site: Site, ridge: float) -> Refusal | None:
    """Turn an output projection towards the values of the donor, which its attention is about to read.

    Returns:
        Why the projection stays as it is, or None where it was turned.
    """
    output, own, new = site.output, site.attend.memory.op, site.donor.op
    if output is None:
        return Refusal("it has no single output projection")
    if not isinstance(own, KV) or not isinstance(new, KV):
        return Refusal("the values are no memory's own")
    others = [op for op in output.chain if not isinstance(op, Flatten | Scale)]
    if others:
        return Refusal(f"{others[0].label} stands between")
    linear, groups = output.linear, site.attend.groups
    rows, columns = width(new.v.tensor), width(own.v.tensor)
    name = linear.weight.name
    gram = edit.add(Moment, f"{name}.values", a=new.v, b=new.v, rows=rows, columns=rows, before=linear)
    cross = edit.add(
        Moment, f"{name}.own_values", a=new.v, source_b=own.v.name, rows=rows, columns=columns, before=linear
    )

    def make(old: Value, name: str) -> Value:
        rest: dict[str, object] = {"own": groups, "donor": groups, "ridge": ridge}
        return edit.add(AlignValues, f"{name}.aligned", old, gram, cross, before=linear, **rest)

    edit.replace_weight(linear, "weight", make)
    return None
