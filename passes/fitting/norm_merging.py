"""Merging heads under norms, which let no map of theirs fold into projections: maps after the norms, or a new fit.

Source: specs/passes_math.md, section 1 (last paragraph), 2 and 4.6.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, cast

from regraft.ir.op import Op, Value
from regraft.ir.ops.algebra import Reshape, ScaleWeight
from regraft.ir.ops.attn import PickHeads
from regraft.ir.ops.core import Concat, Flatten, Gain, GroupedLinear, InverseRMS, Linear, Norm, Unflatten
from regraft.ir.ops.fits import Moment, width
from regraft.ir.ops.layout import Transpose
from regraft.ir.ops.merging import InversePower, JointMoment
from regraft.ir.ops.scores import FitScores
from regraft.ir.ops.weight import ConcatWeight, SliceWeight, Take
from regraft.passes.fitting.merging import Maps, Merger, Reader, Shared, head_order, heads_of, turning
from regraft.passes.fitting.refit import undo_refit
from regraft.passes.matching.heads import Cut, apply_cut, group_map
from regraft.passes.matching.memories import KeyValues, Reading, keep_rows, key_values
from regraft.passes.matching.projections import Projection
from regraft.passes.matching.sites import Refusal


class GaugeMerger(Merger):
    """Merges heads after their norms, and turns queries after theirs: these maps are ops of the graph."""

    told: ClassVar[str] = "; merged and turned after the norms"

    def make_keys(self, keys: Maps) -> None:
        """Let the memory keep merged keys."""
        made = self.shared.keys
        if made.norm is None:
            super().make_keys(keys)
        else:
            self._merge_after(made, made.norm, self.made_of(made.norm), self.down(keys, made.norm))

    def make_values(self, values: Maps) -> None:
        """Let the memory keep merged values."""
        made = self.shared.values
        if made.norm is None:
            super().make_values(values)
        else:
            self._merge_after(made, made.norm, made.norm.out, values.down)

    def _merge_after(self, made: Projection, norm: Norm, source: Value, down: Value) -> None:
        """Put a map of the heads ``source`` in the place of what a norm gives."""
        heads, new, order = made.heads, self.merge.heads, self.standing()
        even = len({self.merge.groups.count(group) for group in range(new)}) == 1
        if order != list(range(heads)):
            apply_cut(self.edit, made.cut, heads, order)
        after = self._after(norm, made.cut, self.shared.state)
        name, at = norm.out.name, {"before": after}
        flat = self.edit.add(Flatten, f"{name}.flat", source, **at)
        if even:
            grouped = self.edit.add(Unflatten, f"{name}.groups", flat, parts=new, **at)
            weight = self.rounded(self._blocks(down, order, made, after), made.linear.weight, after)
            merged = self.edit.add(GroupedLinear, f"{name}.merged", grouped, self._named(weight, made, "merge"), **at)
        else:
            weight = self.rounded(down, made.linear.weight, after)
            rows = self.edit.add(Linear, f"{name}.rows", flat, self._named(weight, made, "merge"), **at)
            merged = self.edit.add(Unflatten, f"{name}.merged", rows, parts=new, **at)
        self._read_instead(after, norm.out, merged)
        self.edit.retype(made.cut.ops[made.cut.ops.index(norm) + 1 :])

    def standing(self) -> list[int]:
        """Return the order in which the old heads come to stand: group by group where all have as many."""
        return head_order(self.merge.groups)

    def made_of(self, norm: Norm) -> Value:
        """Return the heads that are merged."""
        return norm.out

    def down(self, keys: Maps, norm: Norm) -> Value:
        """Return the map that merges them."""
        return keys.down

    def _blocks(self, down: Value, order: Sequence[int], made: Projection, before: Op) -> Value:
        """Return the blocks of ``down`` that are not zero, one group below the other, ``[G' D, n D]``."""
        name, width = down.name, made.width
        size = made.heads // self.merge.heads * width
        at = {"before": before}
        if order != list(range(made.heads)):
            down = self.edit.add(Take, f"{name}.sorted", down, axis=1, block=width, indices=order, **at)
        blocks: list[Value] = []
        for group in range(self.merge.heads):
            rows = self.edit.add(SliceWeight, name, down, start=group * width, stop=(group + 1) * width, **at)
            sides = {"axis": 1, "start": group * size, "stop": (group + 1) * size}
            blocks.append(self.edit.add(SliceWeight, name, rows, **sides, **at))
        return self.edit.add(ConcatWeight, name, blocks, **at) if len(blocks) > 1 else blocks[0]

    def _named(self, weight: Value, made: Projection, role: str) -> Value:
        """Call a new parameter after the projection that it goes with."""
        stem = made.linear.weight.name.removesuffix(".weight")
        self.graph.rename(weight, self.graph.fresh(f"{stem}_{role}.weight"))
        return weight

    def _after(self, op: Op, cut: Cut, reader: Op) -> Op:
        """Return what reads the result of an op on the way to ``reader``."""
        place = cut.ops.index(op) + 1
        return cut.ops[place] if place < len(cut.ops) else reader

    def _read_instead(self, reader: Op, old: Value, new: Value) -> None:
        self.graph.replace_uses(old, new, lambda op: op is reader)

    def turn_queries(self, reader: Reader, keys: Maps) -> None:
        """Turn each query head after its norm."""
        made = reader.queries
        if made.norm is None:
            super().turn_queries(reader, keys)
            return
        after = self._after(made.norm, made.cut, reader.attend)
        name, at = made.norm.out.name, {"before": after}
        groups = [reader.groups[head] for head in self.order(reader)]
        up = self.edit.add(Take, f"{name}.up", keys.up, axis=0, block=1, indices=groups, **at)
        turn = self.edit.add(Transpose, f"{name}.turn", up, **at)
        rows = (made.heads * made.width, made.width)
        flat = self.edit.add(Reshape, f"{name}.flat", turn, shape=rows, **at)
        weight = self._named(self.rounded(flat, made.linear.weight, after), made, "turn")
        turned = self.edit.add(GroupedLinear, f"{name}.turned", made.norm.out, weight, **at)
        self._read_instead(after, made.norm.out, turned)


class CarryMerger(GaugeMerger):
    """Merges keys before their norm, whose factor of each old head is kept beside them, a number a token and head.

    Rows hold merged keys, rotated, merged values and the factors; readers take each head's keys back from them. So
    heads whose projections are complex multiples of each other merge exactly. Source: specs/passes_math.md, 4.6.
    """

    told: ClassVar[str] = "; keys merged before their norm, whose factors are kept; queries turned after theirs"

    def weighed(self, keys: JointMoment, readers: Value) -> tuple[JointMoment, Value]:
        """Return the moment of keys before their norm, and readers that weigh them as the norm does on average."""
        shared, name = self.shared, self.shared.keys.linear.weight.name
        norm = shared.keys.norm
        assert norm is not None
        slots, facts = heads_of(shared, self.graph, shared.keys, {"parts": shared.heads})
        raw = {key: value for key, value in slots.items() if key != "norm"}
        power = self.put(InversePower(raw, {**facts, "offset": 0.0}), [f"{name}.power"])[0]
        weighed = ScaleWeight({"x": (readers,), "by": (power,)}, {})
        rest = {key: value for key, value in facts.items() if key not in ("eps", "offset")}
        gained = self._gained(raw["weight"][0], norm)
        if "bias" in raw:
            raw["bias"] = (self._gained(raw["bias"][0], norm),)
        return JointMoment({**raw, "weight": (gained,)}, rest), self.put(weighed, [f"{name}.weighed"])[0]

    def _gained(self, weight: Value, norm: Norm) -> Value:
        """Return a projection, or its bias, with the norm's weight in its rows."""
        if norm.weight is None:
            return weight
        gains = self.put(ConcatWeight({"xs": (norm.weight,) * self.shared.heads}, {}), [f"{norm.weight.name}.heads"])
        op = ScaleWeight({"x": (weight,), "by": gains}, {"offset": norm.offset})
        return self.put(op, [f"{weight.name}.gained"])[0]

    def new_groups(self, reader: Reader) -> list[int]:
        """Return the old heads: readers take keys back by these."""
        return list(reader.groups)

    def order(self, reader: Reader) -> list[int]:
        """Leave query heads where they stand."""
        return list(range(len(reader.groups)))

    def head_map(self, groups: Sequence[int]) -> tuple[int, ...] | None:
        """Return the attribute for the old heads."""
        return group_map(groups, self.shared.heads)

    def run(self) -> None:
        """Merge keys and values, keep rows of them, and let every reader take them back."""
        shared, edit = self.shared, self.edit
        earlier = [undo_refit(edit, reader.output) for reader in shared.readers]
        edit.set_aside_measured(self.changed())
        keys, values = self.key_maps(), self.value_maps()
        norm = shared.keys.norm
        assert norm is not None
        before = norm.x
        self.make_keys(keys)
        self.make_values(values)
        edit.retype([shared.state])
        self._keep(before, norm)
        for reader, fit in zip(shared.readers, earlier, strict=True):
            self.turn_queries(reader, keys)
            self.follow(reader, values, self.merge.refit or fit)

    def made_of(self, norm: Norm) -> Value:
        """Return the heads that are merged: those before the norm."""
        return norm.x

    def down(self, keys: Maps, norm: Norm) -> Value:
        """Return the map of heads before the norm, its weight included."""
        if norm.weight is None:
            return keys.down
        gains = self.put(ConcatWeight({"xs": (norm.weight,) * self.shared.heads}, {}), [f"{norm.weight.name}.heads"])
        op = ScaleWeight({"x": (keys.down,), "by": gains}, {"axis": 1, "offset": norm.offset})
        return self.put(op, [f"{keys.down.name}.gained"])[0]

    def _keep(self, before: Value, norm: Norm) -> None:
        """Keep rows, and rebuild the heads that readers know."""
        shared, edit, state = self.shared, self.edit, self.shared.state
        scope, at = state.out.name.rpartition(".")[0], {"before": state}
        factors = edit.add(InverseRMS, f"{scope}.factors", before, eps=norm.eps, **at)
        flat = [edit.add(Flatten, f"{scope}.{n}_row", v, **at) for n, v in (("k", state.k), ("v", state.v))]
        row = edit.add(Concat, f"{scope}.row", [*flat, factors], **at)
        heads, new = shared.heads, self.merge.heads
        keys, values = new * shared.keys.width, new * shared.values.width
        places = [self.standing().index(head) for head in range(heads)]

        def rebuild(reading: Reading) -> tuple[Value, Value]:
            k = reading.add(Unflatten, "k_merged", reading.part("k_part", 0, keys), parts=new)
            v = reading.add(Unflatten, "v_merged", reading.part("v_part", keys, keys + values), parts=new)
            kept = reading.part("factor_part", keys + values, keys + values + heads)
            factor = reading.add(Unflatten, "factor_rows", kept, parts=heads)
            if places != list(range(heads)):
                factor = reading.add(PickHeads, "factor_heads", factor, heads=places)
            picked = [reading.add(PickHeads, name, x, heads=self.merge.groups) for name, x in (("k", k), ("v", v))]
            return reading.add(Gain, "k_rows", picked[0], factor), picked[1]

        site = key_values(shared.readers[0].attend, self.graph)
        assert isinstance(site, KeyValues)
        keep_rows(edit, site, row, rebuild)


class ScoreMerger(Merger):
    """Merges keys and queries that are normalised, by projections and norm weights fitted to the scores."""

    told: ClassVar[str] = "; projections and norms of keys and queries fitted to the scores"

    def make_keys(self, keys: Maps) -> None:
        """Let projections make what scores as nearly as before, and norms scale it."""
        (reader,), made = self.shared.readers, self.shared.keys
        q, turn = reader.queries, turning(made)
        assert q.norm is not None
        assert made.norm is not None
        size = width(made.linear.x.tensor)
        gram = Moment({"a": (made.linear.x,), "b": (made.linear.x,)}, {"rows": size, "columns": size})
        gains = (q.norm.weight, made.norm.weight)
        slots = {
            "gram": self.put(gram, [f"{made.linear.weight.name}.read"]),
            "queries": (q.linear.weight,),
            "keys": (made.linear.weight,),
            "q_norm": (cast("Value", gains[0]),),
            "k_norm": (cast("Value", gains[1]),),
            "down": (keys.down,),
            "up": (keys.up,),
        }
        facts = {"channels": turn.channels, "pairs": turn.pairs, "layout": turn.layout}
        facts |= {"groups": reader.groups, "merged": self.merge.groups, "eps": q.norm.eps, "offset": q.norm.offset}
        stem = f"{made.linear.weight.name}.scores"
        found = self.put(FitScores(slots, facts), [f"{stem}.{part}" for part in ("q", "k", "q_norm", "k_norm")])
        readers: list[Op] = [q.linear, made.linear, q.norm, made.norm]
        for op, value in zip(readers, found, strict=True):
            self.edit.replace_weight(op, "weight", lambda old, name, value=value: value)
        self.resize(made.cut, self.merge.heads)

    def turn_queries(self, reader: Reader, keys: Maps) -> None:
        """Leave queries as they were fitted."""


def score_refusal(shared: Shared) -> Refusal | None:
    """Return why keys and queries cannot be fitted to scores, or None where they can."""
    if len(shared.readers) > 1:
        return Refusal(f"{len(shared.readers)} layers read its keys, and a fit to scores is for one; norm: gauge works")
    reader, made = next(iter(shared.readers)), shared.keys
    if shared.values.norm is not None:
        return Refusal(f"values go through {shared.values.norm.label}, under which they do not fold; norm: gauge works")
    norms = reader.queries.norm, made.norm
    if any(norm is None or norm.weight is None for norm in norms):
        return Refusal("only where queries and keys both go through norms with weights is there a fit to scores")
    if (reader.queries.linear.bias or made.linear.bias) is not None:
        return Refusal("its queries or keys have a bias, which a fit to scores does not fit; norm: gauge works")
    if len({(norm.eps, norm.offset) for norm in norms if norm is not None}) > 1:
        return Refusal("queries and keys are normalised in different ways; norm: gauge works")
    if made.linear.x is not reader.queries.linear.x:
        return Refusal("queries and keys are projected from different values; norm: gauge works")
    return None
