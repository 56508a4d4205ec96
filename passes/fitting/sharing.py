"""A reader let onto what an earlier layer keeps or reads: what is adapted at each level, and the refit of its output.

- ``raw``: the donor's memory as it is.
- ``gauge``: the same, with queries turned towards its keys and the output projection towards its values.
- ``cross``: the same keys and values, to all heads of which each of the reader's attends at once.
- ``map``: the donor keeps its keys before rotation; the reader maps each row to its own keys and values, by matrices
  that it stores, and rotates the keys at the rows' own positions.
- ``input``: keys and values of its own, made of what the donor makes its own of.
- ``latent``: a latent of what the donor makes its keys and values of, from which both rebuild theirs.

Source: specs/passes_math.md, section 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from regraft.ir.graph import Graph, layer_of
from regraft.ir.op import Op, Value
from regraft.ir.ops.algebra import Eye, Fill
from regraft.ir.ops.attn import KV, Attend
from regraft.ir.ops.core import Flatten, Linear, Scale, Unflatten
from regraft.ir.ops.fits import AlignValues, Moment, Refit, width
from regraft.ir.ops.memory import ReadRows, StateRows, ViewRows
from regraft.ir.ops.weight import SliceWeight
from regraft.passes.fitting.align import align_queries
from regraft.passes.fitting.crossing import across_refusal, read_across
from regraft.passes.fitting.joint import keep_joint, module_of
from regraft.passes.fitting.refit import refit_output, refit_refusal, refit_text, undo_refit
from regraft.passes.matching.memories import KeyValues, Reading, keep_whole_rows, key_values
from regraft.passes.matching.rewrite import Editor, Rule
from regraft.passes.matching.sites import Output, Refusal, attentions, output_of

LEVELS = ("raw", "gauge", "cross", "map", "input", "latent")


@dataclass(frozen=True)
class Sharing:
    """How readers are let onto other memories: the level, and the refit's target and ridge.

    Attributes:
        level: One of `LEVELS`.
        refit: Whether the output projection is fitted at the end.
        target: See `passes.fitting.refit`.
        ridge: Of all fits, in units of the mean second moment.
        rank: Numbers a token of a joint latent, or a share of the donor's.
    """

    level: str
    refit: bool
    target: str
    ridge: float
    rank: float | None = None


@dataclass(frozen=True)
class Site:
    """An attention that is to read what ``donor`` has; ``output`` is its projection if that is adapted."""

    attend: Attend
    donor: Attend
    output: Output | None


def level_refusal(level: str, graph: Graph, reader: Attend, donor: Attend) -> Refusal | None:
    """Return why a reader cannot be let onto a donor at a level, or None where it can."""
    if level in ("raw", "gauge"):
        return None
    if level == "cross":
        return across_refusal(graph, reader, donor)
    own, other = key_values(reader, graph), key_values(donor, graph)
    for found in (own, other):
        if isinstance(found, Refusal):
            return found
    assert isinstance(own, KeyValues)
    assert isinstance(other, KeyValues)
    if level == "map":
        return None
    if level == "latent":
        plain = other.keys.linear is not None and isinstance(other.state, KV)
        return None if plain else Refusal(f"%{other.memory.name} is made by no projection")
    if len(own.readers) > 1 or own.layer != layer_of(reader.out.name):
        return Refusal(f"%{own.memory.name} has other readers")
    return _input_refusal(own, other)


def _input_refusal(own: KeyValues, other: KeyValues) -> Refusal | None:
    for site, side in ((own, own.keys), (own, own.values), (other, other.keys)):
        if side.linear is None:
            return Refusal(f"%{site.memory.name} is made by no projection, or by one for heads of another kind")
    linears = [own.keys.linear, own.values.linear]
    entering = other.keys.linear.x if other.keys.linear is not None else None
    for linear in linears:
        if linear is None or entering is None or linear.bias is not None:
            return Refusal("its projections have biases, which the fit does not fit")
        if linear.x.type != entering.type:
            return Refusal(f"%{linear.x.name} and %{entering.name} differ: {linear.x.type} and {entering.type}")
    return None


@dataclass(frozen=True)
class ReadDonor(Rule[Attend, Site]):
    """Lets readers onto their donors, which are given by layer."""

    op: ClassVar[type[Op]] = Attend
    sharing: Sharing
    donors: Mapping[int, int]

    def match(self, op: Attend, graph: Graph) -> Site | Refusal:
        """Return the attention of a reader with its donor's."""
        layer = layer_of(op.out.name)
        if layer is None or layer not in self.donors:
            return Refusal("not among the readers")
        donor = attentions(graph)[self.donors[layer]].attend
        if donor.memory is op.memory:
            return Refusal(f"it reads %{donor.memory.name} already")
        if not self._joined(op, donor):
            refusal = level_refusal(self.sharing.level, graph, op, donor)
            if refusal is not None:
                return refusal
        output = output_of(op)
        if isinstance(output, Refusal):
            return output if self.sharing.refit else Site(op, donor, None)
        return Site(op, donor, output)

    def _joined(self, reader: Attend, donor: Attend) -> bool:
        """Whether a reader rebuilds its keys and values from the donor's latent already, as all its readers do."""
        mine, theirs = reader.memory.op, donor.memory.op
        both = isinstance(mine, ViewRows) and isinstance(theirs, ViewRows) and mine.memory is theirs.memory
        return both and self.sharing.level == "latent"

    def _join(self, site: Site, edit: Editor) -> str:
        how, found = self.sharing, attentions(edit.graph)
        assert how.rank is not None
        if not self._joined(site.attend, site.donor):
            layer = layer_of(site.donor.out.name)
            readers = [found[reader].attend for reader, donor in self.donors.items() if donor == layer]
            shared = [each for each in attentions(edit.graph).values() if each.memory is site.donor.memory]
            keep_joint(edit, site.donor, readers, how.rank, how.ridge)
            for each in shared if how.refit else ():
                output = output_of(each.attend)
                if isinstance(output, Output) and refit_refusal(output) is None:
                    refit_output(edit, output, how.target, how.ridge)
        view = site.attend.memory.op
        assert isinstance(view, ViewRows)
        return f"rebuilds its keys and values from %{view.memory.name}, a latent for both"

    def rewrite(self, site: Site, edit: Editor) -> str:
        """Adapt the reader to what it is about to read, let it read that, and refit."""
        how, earlier = self.sharing, None
        if how.level == "map":
            done = [map_rows(edit, site, how.ridge)]
        elif how.level == "cross":
            done = [read_across(edit, site.attend, site.donor, how.ridge)]
        elif how.level == "latent":
            done = [self._join(site, edit)]
        elif how.level == "input":
            done = [make_of_input(edit, site, how.ridge)]
        else:
            done = [f"reads %{site.donor.memory.name}"]
            if how.level == "gauge":
                done.append(self._align_keys(site, edit))
            if how.level == "gauge" and not how.refit:  # a refit finds the map of values itself
                earlier = undo_refit(edit, site.output) if site.output is not None else None
                done.append(self._align_values(site, edit))
            edit.set_operand(site.attend, "memory", site.donor.memory)
        fit = (how.target, how.ridge) if how.refit else earlier
        if fit is not None and site.output is not None:
            refit_output(edit, site.output, *fit)
            done.append(refit_text(site.output, *fit))
        return ", ".join(done)

    def _align_keys(self, site: Site, edit: Editor) -> str:
        refusal = align_queries(edit, site.attend, site.donor.memory, self.sharing.ridge)
        return f"queries as they were ({refusal.reason})" if refusal else "queries turned to its keys"

    def _align_values(self, site: Site, edit: Editor) -> str:
        refusal = align_output(edit, site, self.sharing.ridge)
        return f"output as it was ({refusal.reason})" if refusal else "output turned to its values"


def align_output(edit: Editor, site: Site, ridge: float) -> Refusal | None:
    """Turn an output projection towards the values of the donor, whose memory its attention is about to read.

    Returns:
        Why the projection stays as it is, or None where it was turned.
    """
    output, own, new = site.output, site.attend.memory.op, site.donor.memory.op
    if output is None:
        return Refusal("it has no single output projection")
    if not isinstance(own, KV) or not isinstance(new, KV):
        return Refusal("values are rebuilt from rows")
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


def map_rows(edit: Editor, site: Site, ridge: float) -> str:
    """Let a reader rebuild its keys and values from the donor's rows, by linear maps that are fitted to its own.

    The maps are drawn to the donor's own keys and values where these are as wide, and to zero otherwise.
    """
    attend, own = site.attend, key_values(site.attend, edit.graph)
    assert isinstance(own, KeyValues)
    memory = _rows_of(edit, site.donor)
    state = memory.op
    assert isinstance(state, StateRows)
    scope = attend.out.name.rpartition(".")[0]
    reading = Reading(edit, attend, memory, edit.add(ReadRows, f"{scope}.rows", memory, before=attend), scope)
    size = width(state.x.tensor)
    stem = module_of(attend)
    gram = reading.weight(Moment, f"{stem}.rows", a=state.x, b=state.x, rows=size, columns=size)
    made: list[Value] = []
    start = 0
    for name, side in (("k", own.keys), ("v", own.values)):
        columns, dtype = width(side.before.tensor), side.before.tensor.dtype
        weight = f"{stem}.{name}_map.weight"
        cross = reading.weight(
            Moment, f"{weight}.wanted", a=state.x, source_b=side.before.name, rows=size, columns=columns
        )
        if size == own.width:
            whole = reading.weight(Eye, f"{weight}.whole", dtype=dtype, shape=(size, size))
            prior = reading.weight(SliceWeight, f"{weight}.prior", whole, start=start, stop=start + columns)
        else:
            prior = reading.weight(Fill, f"{weight}.prior", dtype=dtype, shape=(columns, size))
        fitted = reading.weight(Refit, weight, gram, cross, prior, ridge=ridge)
        flat = reading.add(Linear, f"{name}_map", reading.rows, fitted)
        heads = reading.add(Unflatten, f"{name}_rows", flat, parts=side.heads)
        made.append(reading.finish(heads, side.after))
        start += columns
    view = edit.add(ViewRows, f"{scope}.view", memory, made[0], v=made[1], before=attend)
    edit.set_operand(attend, "memory", view)
    return f"maps the rows of %{memory.name} to its keys and values"


def _rows_of(edit: Editor, donor: Attend) -> Value:
    """Return the donor's memory as rows, which it keeps from now on if it did not."""
    if not isinstance(donor.memory.op, ViewRows):
        found = key_values(donor, edit.graph)
        assert isinstance(found, KeyValues)
        return keep_whole_rows(edit, found)
    return donor.memory.op.memory


def make_of_input(edit: Editor, site: Site, ridge: float) -> str:
    """Let a reader make its keys and values of what the donor makes its own of, by projections fitted to its own."""
    own, other = (key_values(attend, edit.graph) for attend in (site.attend, site.donor))
    assert isinstance(own, KeyValues)
    assert isinstance(other, KeyValues)
    assert other.keys.linear is not None
    x = other.keys.linear.x
    size = width(x.tensor)
    for linear in {linear: None for linear in (own.keys.linear, own.values.linear) if linear is not None}:
        columns, out = width(linear.out.tensor), linear.out.name

        def make(old: Value, name: str, linear: Linear = linear, columns: int = columns, out: str = out) -> Value:
            gram = edit.add(Moment, f"{name}.inputs", a=x, b=x, rows=size, columns=size, before=linear)
            cross = edit.add(Moment, f"{name}.wanted", a=x, source_b=out, rows=size, columns=columns, before=linear)
            return edit.add(Refit, f"{name}.fitted", gram, cross, old, ridge=ridge, before=linear)

        edit.set_operand(linear, "x", x)
        edit.replace_weight(linear, "weight", make)
    return f"makes its keys and values of %{x.name}, projections fitted"
