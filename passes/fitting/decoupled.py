"""Attention to a latent and one rotated key that all heads share: the form of multi-head latent attention.

Of the frequencies that turn, some are kept, mixed over KV heads into one shared key; keys are what that leaves, no
longer turned: each query head takes the mean turn that it sees into its own map of the latent. Rows hold the latent and
the shared key, turned at its own position. Where nothing but a projection makes keys and values, the latent is a map of
the layer's input; where they are normed or have a bias, of keys and values as they are before rotation.

Source: specs/passes_math.md, sections 4.2 to 4.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from regraft.ir.op import Op, Value
from regraft.ir.ops.algebra import Eye, MatMul, Permute, Reshape, ScaleWeight
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.core import Concat, Flatten, GroupedLinear, Linear, Repeat, Unflatten
from regraft.ir.ops.fits import Moment, width
from regraft.ir.ops.latents import HeadCosts, HeadMoment, Latent, LatentMetric, Recover
from regraft.ir.ops.layout import Transpose
from regraft.ir.ops.phases import AttentionPhases, PhaseMaps, SharedKeys
from regraft.ir.ops.pos import Rope
from regraft.ir.ops.weight import Cast, Combine, ConcatWeight, SliceWeight, Take
from regraft.passes.fitting.latents import BALANCED, Fit, Shape, module_of, output_weight, spread_of, weighed
from regraft.passes.matching.memories import KeyValues, Reading, joined, keep_rows
from regraft.passes.matching.rewrite import Editor
from regraft.passes.matching.sites import Refusal, output_of


@dataclass(frozen=True)
class Rotation:
    """How an attention's queries and keys are turned, in the same way."""

    attend: Attend
    queries: Rope
    keys: Rope

    @property
    def pairs(self) -> int:
        """Frequencies."""
        return self.keys.channels // 2

    @property
    def angles(self) -> tuple[float, ...]:
        """What a position adds to each pair."""
        return tuple(float(angle) for angle in self.keys.frequencies())


def rotation_of(site: KeyValues) -> Rotation | Refusal:
    """Return the rotation of a memory that one attention reads, or why it cannot be taken apart."""
    if len(site.readers) != 1:
        return Refusal(f"%{site.memory.name} has {len(site.readers)} readers, and only one can ask by its own maps")
    attend, (*before, keys) = site.readers[0], site.keys.after or (None,)
    queries = attend.q.op
    if before or not isinstance(keys, Rope) or not isinstance(queries, Rope) or site.values.after:
        return Refusal(f"queries or keys of {attend.label} do not end in a rotation")
    if keys.attributes != queries.attributes or keys.inverse:
        return Refusal("queries and keys are turned differently")
    found = weighed(site)
    return found if isinstance(found, Refusal) else Rotation(attend, queries, keys)


def decoupled_shape(site: KeyValues) -> Shape:
    """Return how the latent beside a shared key is made: of the input where projections alone make keys and values."""
    sides = (site.keys, site.values)
    alone = all(side.linear is not None and side.linear.bias is None and side.norm is None for side in sides)
    keys, values = (side.linear for side in sides)
    if alone and keys is not None and values is not None and keys is not values and keys.x is values.x:
        return Shape("input", min(width(keys.x.tensor), site.width), 0)
    return Shape("rows", site.width, 0)


@dataclass
class _Work:
    """The rewrite of one memory; names of what is made stand under ``name``."""

    edit: Editor
    site: KeyValues
    turn: Rotation
    name: str

    def add(self, op: type[Op], name: str, *values: Value | Sequence[Value], **rest: object) -> Value:
        """Put an op before the memory."""
        return self.edit.add(op, f"{self.name}.{name}", *values, before=self.site.state, **rest)

    def cut(self, name: str, value: Value, start: int, stop: int) -> Value:
        """Return some rows of a matrix."""
        return self.add(SliceWeight, name, value, start=start, stop=stop)

    @property
    def paired(self) -> dict[str, object]:
        """The channels that turn."""
        return {"channels": self.turn.keys.channels, "layout": self.turn.keys.layout}


def phases_of(site: KeyValues, turn: Rotation) -> AttentionPhases:
    """Return the statistic of an attention's mean turns, an op in no graph yet."""
    attend = turn.attend
    facts: dict[str, object] = {"source": site.memory.name, "groups": attend.groups, "kv_heads": site.keys.heads}
    facts |= {"scale": attend.scale, "window": attend.window, "first": attend.first, "softcap": attend.softcap}
    return AttentionPhases({"q": (attend.q,)}, {**facts, "angles": turn.angles})


def queries_of(turn: Rotation) -> HeadMoment:
    """Return the statistic of an attention's queries before they are turned, an op in no graph yet."""
    x = turn.queries.x
    heads, channels = x.tensor.shape[2:]
    return HeadMoment({"x": (x,)}, {"heads": heads, "width": channels})


def decouple(edit: Editor, site: KeyValues, turn: Rotation, fit: Fit, kept: Sequence[int]) -> None:
    """Keep a latent and a shared rotated key, and let the attention ask for both.

    Args:
        edit: The editor.
        site: The memory, of which ``turn`` is the rotation.
        turn: The rotation.
        fit: How the latent is fitted.
        kept: The frequency of each pair of the shared key.
    """
    attend, state = turn.attend, site.state
    module = module_of(attend)
    work = _Work(edit, site, turn, f"{module}.kv_a_proj.weight")
    shape, dtype = decoupled_shape(site), turn.queries.x.tensor.dtype
    start, targets, gram = _start(work, shape)
    queries = _statistic(work, "queries", queries_of(turn))
    phases = _statistic(work, "phases", phases_of(site, turn))
    maps = work.add(PhaseMaps, "phase_maps", phases, width=site.keys.width, **work.paired)
    spread, output = _statistic(work, "spread", spread_of(site, attend)), _output(work)
    keys = site.keys.heads * site.keys.width
    shared = None
    if kept:
        costs = work.add(HeadCosts, "costs", spread, output)
        asked = work.add(ScaleWeight, "queries.weighed", queries, costs)
        shared = _shared(work, work.cut("targets_of_keys", targets, 0, keys), gram, asked, phases, kept)
        targets = _remaining(work, targets, shared[1], keys)
    metric = _metric(work, queries, maps, spread, output) if fit.method == "metric" else None
    down, up = _fitted(work, targets, gram, metric, fit, keys)
    row = edit.add(Linear, f"{attend.scope}.latent", start, down, before=state)
    if shared is not None:
        turned = _turned_key(work, start, shared[0], kept, f"{module}.k_rope_proj.weight", dtype)
        row = edit.add(Concat, f"{attend.scope}.row", [row, turned], before=state)
        _ask(work, shared[1], kept, f"{module}.q_rope_proj.weight", dtype)
    else:
        edit.set_operand(attend, "q", turn.queries.x)
    _rebuild(work, row, up, maps, fit.rank, keys, module)


def _statistic(work: _Work, name: str, op: Op) -> Value:
    return work.edit.graph.add(op, [work.edit.graph.fresh(f"{work.name}.{name}")], before=work.site.state)[0]


def _start(work: _Work, shape: Shape) -> tuple[Value, Value, Value]:
    """Return what the latent is a map of, the map from it to keys and values, and its second moment."""
    site = work.site
    keys, values = site.keys.linear, site.values.linear
    if shape.start == "input" and keys is not None and values is not None:
        start = keys.x
        parts = [work.add(Cast, f"targets.{n}", w, dtype="f64") for n, w in (("k", keys.weight), ("v", values.weight))]
        targets = work.add(ConcatWeight, "targets", parts)
    else:
        start = joined(work.edit, site)
        targets = work.add(Eye, "targets", dtype="f64", shape=(site.width, site.width))
    size = width(start.tensor)
    return start, targets, work.add(Moment, "gram", a=start, b=start, rows=size, columns=size)


def _shared(
    work: _Work, keys: Value, gram: Value, queries: Value, phases: Value, kept: Sequence[int]
) -> tuple[Value, Value]:
    """Return the map from the start to the shared key, and the maps between it and all heads' keys ``[2, d, K]``."""
    moment = work.add(MatMul, "keys", work.add(MatMul, "keys.half", keys, gram), work.add(Transpose, "keys.t", keys))
    groups = work.turn.attend.groups
    both = work.add(SharedKeys, "shared", moment, queries, phases, groups=groups, kept=tuple(kept), **work.paired)
    size = 2 * len(kept)
    flat = work.add(Reshape, "shared.flat", both, shape=(2 * size, width_of(moment)))
    down = work.add(MatMul, "shared.down", work.cut("shared.to", flat, 0, size), keys)
    return down, flat


def width_of(value: Value) -> int:
    """Return the columns of a matrix."""
    return value.tensor.sizes[-1]


def _remaining(work: _Work, targets: Value, flat: Value, keys: int) -> Value:
    """Return the targets less what the shared key gives back of the keys."""
    size = flat.tensor.sizes[0] // 2
    back = work.add(Transpose, "shared.back", work.cut("shared.from", flat, size, 2 * size))
    given = work.add(MatMul, "shared.given", back, work.cut("shared.kept", flat, 0, size))
    whole = work.add(Eye, "shared.whole", dtype="f64", shape=(keys, keys))
    rest = work.add(Combine, "shared.rest", (whole, given), factors=(1.0, -1.0))
    left = work.add(MatMul, "targets.left", rest, work.cut("targets.keys", targets, 0, keys))
    values = work.cut("targets.values", targets, keys, targets.tensor.sizes[0])
    return work.add(ConcatWeight, "targets.plain", [left, values])


def _output(work: _Work) -> Value:
    """Return the output projection's weight, before the memory."""
    output = output_of(work.turn.attend)
    assert not isinstance(output, Refusal)
    weight = output_weight(output.linear)
    work.edit.hoist(weight, work.site.state)
    return weight


def _fitted(work: _Work, targets: Value, gram: Value, metric: Value | None, fit: Fit, keys: int) -> tuple[Value, Value]:
    """Return the map to the latent, and the map from it to what is left of keys, and to values."""
    moments: dict[str, object] = {} if fit.method == "weight-svd" else {"gram": gram}
    more = moments if metric is None else {**moments, "metric": metric}
    if fit.method != BALANCED and fit.balance is not None:
        more = {**more, "balance": fit.balance}
    fitted = work.add(Latent, "fitted", targets, rank=fit.rank, keys=keys, **more)
    down = work.edit.add(Cast, work.name, fitted, dtype=work.turn.keys.x.tensor.dtype, before=work.site.state)
    return down, work.add(Recover, "back", targets, down, **moments)


def _metric(work: _Work, queries: Value, maps: Value, spread: Value, output: Value) -> Value:
    """Return what errors cost: of keys, as each head sees them turned by its mean."""
    attend, site = work.turn.attend, work.site
    half = work.add(MatMul, "seen.half", queries, maps)
    seen = work.add(MatMul, "seen", work.add(Transpose, "seen.t", maps), half)
    facts: Mapping[str, object] = {"groups": attend.groups, "scale": attend.scale, "kv_heads": site.keys.heads}
    return work.add(LatentMetric, "metric", seen, output, spread=spread, **facts)


def _kept_rope(work: _Work, x: Value, pos: Value, kept: Sequence[int], name: str, before: Op) -> Value:
    """Return what turns by the frequencies that are kept; they are spelled out, whatever rule they came from."""
    rope, channels = work.turn.keys, 2 * len(kept)
    angles = work.turn.angles
    factors = tuple(1 / (angles[f] * rope.base ** (2 * place / channels)) for place, f in enumerate(kept))
    facts: dict[str, object] = {"base": rope.base, "channels": channels, "amplitude": rope.amplitude}
    return work.edit.add(Rope, name, x, pos, before=before, scaling="longrope", factors=factors, **facts)


def _turned_key(work: _Work, start: Value, down: Value, kept: Sequence[int], name: str, dtype: str) -> Value:
    """Return the shared key of each token, turned ``[B, T, d]``."""
    scope, state = work.turn.attend.scope, work.site.state
    weight = work.edit.add(Cast, name, down, dtype=dtype, before=state)
    flat = work.edit.add(Linear, f"{scope}.k_shared", start, weight, before=state)
    heads = work.edit.add(Unflatten, f"{scope}.k_turning", flat, parts=1, before=state)
    turned = _kept_rope(work, heads, work.turn.keys.pos, kept, f"{scope}.k_shared_rope", state)
    return work.edit.add(Flatten, f"{scope}.k_row", turned, before=state)


def _ask(work: _Work, flat: Value, kept: Sequence[int], name: str, dtype: str) -> None:
    """Let queries ask for keys as they are, and by maps of their own for the shared key, turned."""
    site, attend, edit = work.site, work.turn.attend, work.edit
    size, heads = 2 * len(kept), len(attend.groups)
    back = work.cut("asked.rows", flat, size, 2 * size)
    by_head = work.add(Reshape, "asked.heads", back, shape=(size, site.keys.heads, site.keys.width))
    groups = work.add(Permute, "asked.groups", by_head, axes=(1, 0, 2))
    taken = work.add(Take, "asked.taken", groups, block=1, indices=attend.groups)
    joined_rows = work.add(Reshape, "asked", taken, shape=(heads * size, site.keys.width))
    weight = edit.add(Cast, name, joined_rows, dtype=dtype, before=site.state)
    plain = work.turn.queries.x
    turning = edit.add(GroupedLinear, f"{attend.scope}.q_turning", plain, weight, before=attend)
    turned = _kept_rope(work, turning, work.turn.queries.pos, kept, f"{attend.scope}.q_shared_rope", attend)
    edit.set_operand(attend, "q", edit.add(Concat, f"{attend.scope}.q_whole", [plain, turned], before=attend))


def _rebuild(work: _Work, row: Value, up: Value, maps: Value, rank: int, keys: int, module: str) -> None:
    """Keep the rows, and make keys and values by query head of them."""
    site, attend = work.site, work.turn.attend
    heads, dtype = len(attend.groups), row.tensor.dtype
    rows = width(row.tensor)

    def by_head(side: str, start: int, channels: int) -> Value:
        part = work.cut(f"{side}_rows", up, start, start + site.keys.heads * channels)
        split = work.add(Reshape, f"{side}_heads", part, shape=(site.keys.heads, channels, rank))
        taken = work.add(Take, f"{side}_taken", split, block=1, indices=attend.groups)
        seen = work.add(MatMul, f"{side}_seen", maps, taken) if side == "k" else taken
        flat = work.add(Reshape, f"{side}_flat", seen, shape=(heads * channels, rank))
        return work.edit.add(Cast, f"{module}.{side}_b_proj.weight", flat, dtype=dtype, before=site.state)

    weights = by_head("k", 0, site.keys.width), by_head("v", keys, site.values.width)

    def rebuild(reading: Reading) -> tuple[Value, Value]:
        latent = reading.part("row_latent", 0, rank)
        k, v = (
            reading.add(Unflatten, f"{side}_rows", reading.add(Linear, f"{side}_b", latent, weight), parts=heads)
            for side, weight in zip("kv", weights, strict=True)
        )
        if rows > rank:
            shared = reading.add(Repeat, "k_shared_rows", reading.part("row_key", rank, rows), parts=heads)
            k = reading.add(Concat, "k", [k, shared])
        return k, v

    work.edit.set_attribute(attend, "head_map", None)
    keep_rows(work.edit, site, row, rebuild)
    work.edit.retype([attend])
