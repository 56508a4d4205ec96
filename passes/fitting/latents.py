"""Latents for keys and values: few numbers a token, and the maps there and back.

Three ways to make them, all linear:

- from the layer's input, where projections make keys and values of it: the maps' products with these are the new
  projections. A norm's weight goes into the map back; what the norm divides by is no linear map, so one over it is kept
  beside the latent, a number for each KV head, and multiplies the rebuilt head: exact at full rank.
- from what one projection makes that serves for keys and values both, in the same way.
- from keys and values as they are before rotation, whatever makes them.

Source: specs/passes_math.md, sections 4.3 and 4.6.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from regraft.ir.op import Value
from regraft.ir.ops.algebra import Eye, ScaleWeight
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.core import Concat, Gain, InverseRMS, Linear, Unflatten
from regraft.ir.ops.fits import Moment, Refit, width
from regraft.ir.ops.latents import AttentionSpread, HeadMoment, Latent, LatentMetric, Recover
from regraft.ir.ops.weight import Cast, Combine, ConcatWeight, SliceWeight
from regraft.passes.matching.memories import KeyValues, Reading, Side, joined, keep_rows, keep_whole_rows
from regraft.passes.matching.rewrite import Editor
from regraft.passes.matching.sites import Refusal, output_of

BALANCED = "balanced-pca"
METHODS = ("metric", BALANCED, "activation-pca", "weight-svd")
Scales = Mapping[object, Value]


@dataclass(frozen=True)
class Shape:
    """How a memory's latent is made, and how large it may be.

    Attributes:
        start: ``input``, ``shared`` (one projection makes keys and values) or ``rows``.
        full: The largest rank; the latent is then exact.
        carried: Numbers that are kept beside the latent.
    """

    start: str
    full: int
    carried: int


@dataclass(frozen=True)
class Fit:
    """How a latent is fitted.

    Attributes:
        rank: Numbers a token, without what is carried.
        method: One of `METHODS`.
        balance: How much more keys weigh than values; None so that both cost the same in all.
    """

    rank: int
    method: str
    balance: float | None


def shape_of(site: KeyValues, inside: bool) -> Shape:
    """Return how a memory's latent is made; with ``inside`` normed keys are compressed as they are."""
    keys, values = site.keys, site.values
    normed = [side for side in (keys, values) if side.norm is not None]
    if keys.linear is None or values.linear is None or (inside and normed):
        return Shape("rows", site.width, 0)
    carried = sum({_divisor(side): side.heads for side in normed}.values())
    if keys.linear is values.linear:
        return Shape("shared", width(keys.linear.out.tensor), carried)
    if keys.linear.x is values.linear.x:
        return Shape("input", min(width(keys.linear.x.tensor), site.width), carried)
    return Shape("rows", site.width, 0)


def stored(site: KeyValues, shape: Shape, rank: int) -> int:
    """Return the numbers that a token takes; at the rank of keys and values these are kept themselves."""
    return rank + (0 if rank == site.width else shape.carried)


def _divisor(side: Side) -> object:
    """Return what two sides share whose norms divide by the same numbers."""
    assert side.norm is not None
    return side.norm.x, side.norm.eps


def latent_refusal(site: KeyValues, method: str) -> Refusal | None:
    """Return why a memory's latent cannot be fitted by a method, or None where it can."""
    if method != "metric":
        return None
    found = weighed(site)
    return found if isinstance(found, Refusal) else None


def weighed(site: KeyValues) -> list[tuple[Attend, Linear]] | Refusal:
    """Return the attentions of the memory's own layer, whose scores and outputs weigh errors."""
    here = site.memory.name.rpartition(".")[0]
    found: list[tuple[Attend, Linear]] = []
    for attend in site.readers:
        if attend.out.name.rpartition(".")[0] != here:
            continue
        output = output_of(attend)
        if isinstance(output, Refusal):
            return output
        if width(output.merged.tensor) != width(attend.out.tensor):
            return Refusal(f"{output.linear.label} does not read the channels of the heads")
        found.append((attend, output.linear))
    return found or Refusal(f"no attention of its own layer reads %{site.memory.name}")


# -- rewriting


def keep_latent(edit: Editor, site: KeyValues, shape: Shape, fit: Fit) -> None:
    """Keep a latent of a memory's keys and values, and rebuild both for each reader."""
    if fit.rank == site.width and shape.start != "shared":
        keep_whole_rows(edit, site)
        return
    scope = site.memory.name.rpartition(".")[0]
    start = _start(edit, site, shape)
    scales = {} if shape.start == "rows" else _scales(edit, site)
    targets = _targets(edit, site, shape, start)
    latent, up = start, targets
    if fit.rank < width(start.tensor):
        down, up = _fitted(edit, site, start, targets, scales, fit)
        latent = edit.add(Linear, f"{scope}.latent", start, down, before=site.state)
    row = latent
    if scales:
        row = edit.add(Concat, f"{scope}.row", [latent, *scales.values()], before=site.state)
    keep_rows(edit, site, row, _rebuilder(site, shape, up, fit.rank, scales))


def _start(edit: Editor, site: KeyValues, shape: Shape) -> Value:
    """Return what the latent is a map of ``[B, T, Z]``."""
    linear = site.keys.linear
    if shape.start == "rows" or linear is None:
        return joined(edit, site)
    return linear.out if shape.start == "shared" else linear.x


def _scales(edit: Editor, site: KeyValues) -> dict[object, Value]:
    """Return one over what each norm divides by ``[B, T, Hkv]``, by what it is of."""
    found: dict[object, Value] = {}
    scope = site.memory.name.rpartition(".")[0]
    for name, side in (("k", site.keys), ("v", site.values)):
        if side.norm is not None and _divisor(side) not in found:
            norm = side.norm
            made = edit.add(InverseRMS, f"{scope}.{name}_scale", norm.x, eps=norm.eps, before=site.state)
            found[_divisor(side)] = made
    return found


def _targets(edit: Editor, site: KeyValues, shape: Shape, start: Value) -> Value:
    """Return the map from the start to keys and values, norms' weights in it and what they divide by not."""
    scope, size = site.memory.name.rpartition(".")[0], width(start.tensor)
    if shape.start == "rows":
        return edit.add(Eye, f"{scope}.targets", before=site.state, dtype="f64", shape=(size, size))
    parts: list[Value] = []
    for name, side in (("k", site.keys), ("v", site.values)):
        if shape.start == "shared":
            part = edit.add(Eye, f"{scope}.{name}_targets", before=site.state, dtype="f64", shape=(size, size))
        else:
            assert side.linear is not None
            part = edit.add(Cast, f"{scope}.{name}_targets", side.linear.weight, dtype="f64", before=site.state)
        parts.append(_normed(edit, site, side, part, f"{scope}.{name}_targets_normed"))
    return edit.add(ConcatWeight, f"{scope}.targets", parts, before=site.state)


def _normed(edit: Editor, site: KeyValues, side: Side, weight: Value, name: str) -> Value:
    """Return rows times the weight of a side's norm, head by head."""
    if side.norm is None or side.norm.weight is None:
        return weight
    gains = edit.add(ConcatWeight, f"{name}_by", [side.norm.weight] * side.heads, before=site.state)
    return edit.add(ScaleWeight, name, weight, gains, offset=side.norm.offset, before=site.state)


def _fitted(
    edit: Editor, site: KeyValues, start: Value, targets: Value, scales: Scales, fit: Fit
) -> tuple[Value, Value]:
    """Return the map to the latent, and the map from it to the targets, in float64."""
    size, keys = width(start.tensor), site.keys.heads * site.keys.width
    name = f"{module_of(site.readers[0])}.kv_a_proj.weight"
    moments: dict[str, Value] = {}
    if fit.method != "weight-svd":
        gram = edit.add(Moment, f"{name}.gram", a=start, b=start, rows=size, columns=size, before=site.state)
        moments["gram"] = gram
    more: dict[str, object] = dict(moments)
    if fit.method == "metric":
        more["metric"] = _metric(edit, site, scales, name)
    if fit.method != BALANCED and fit.balance is not None:
        more["balance"] = fit.balance
    fitted = edit.add(Latent, f"{name}.fitted", targets, rank=fit.rank, keys=keys, before=site.state, **more)
    down = edit.add(Cast, name, fitted, dtype=start.tensor.dtype, before=site.state)
    up = edit.add(Recover, f"{name}.back", targets, down, before=site.state, **moments)
    return down, up


def _metric(edit: Editor, site: KeyValues, scales: Scales, name: str) -> Value:
    """Return what errors of keys and values cost the attentions of the memory's own layer."""
    state, rope = site.state, site.keys.rope
    readers = weighed(site)
    assert not isinstance(readers, Refusal)
    gains: dict[str, Value] = {}
    for slot, side in (("key_gains", site.keys), ("value_gains", site.values)):
        scale = scales.get(_divisor(side)) if side.norm is not None else None
        if scale is not None:
            sizes = {"rows": side.heads, "columns": side.heads}
            gains[slot] = edit.add(Moment, f"{name}.{slot}", a=scale, b=scale, before=state, **sizes)
    turning: dict[str, object] = {} if rope is None else {"channels": rope.channels, "layout": rope.layout}
    found: list[Value] = []
    for attend, linear in readers:
        heads, channels = len(attend.groups), site.keys.width
        moment = edit.add(HeadMoment, f"{name}.queries", attend.q, heads=heads, width=channels, before=state)
        fresh = [edit.graph.fresh(f"{name}.spread")]
        (spread,) = edit.graph.add(spread_of(site, attend), fresh, before=state)
        output = output_weight(linear)
        edit.hoist(output, state)
        facts: dict[str, object] = {"groups": attend.groups, "scale": attend.scale, "kv_heads": site.keys.heads}
        facts |= {**gains, **turning, "spread": spread}
        found.append(edit.add(LatentMetric, f"{name}.metric", moment, output, before=state, **facts))
    if len(found) == 1:
        return found[0]
    return edit.add(Combine, f"{name}.metrics", found, factors=(1.0,) * len(found), before=state)


def spread_of(site: KeyValues, attend: Attend) -> AttentionSpread:
    """Return the statistic of what errors of keys and values come to for an attention, an op in no graph yet."""
    facts: dict[str, object] = {"source": site.memory.name, "groups": attend.groups, "width": site.values.width}
    facts |= {"kv_heads": site.keys.heads}
    facts |= {"scale": attend.scale, "window": attend.window, "first": attend.first, "softcap": attend.softcap}
    return AttentionSpread({"q": (attend.q,)}, facts)


def output_weight(linear: Linear) -> Value:
    """Return an output projection's weight as it was before a refit."""
    return linear.weight.op.prior if isinstance(linear.weight.op, Refit) else linear.weight


def _rebuilder(
    site: KeyValues, shape: Shape, up: Value, rank: int, scales: Scales
) -> Callable[[Reading], tuple[Value, Value]]:
    """Return what makes keys and values of a reader's rows."""
    offsets: dict[object, int] = {}
    for key, scale in scales.items():
        offsets[key] = rank + sum(width(other.tensor) for other in list(scales.values())[: len(offsets)])
        assert width(scale.tensor) > 0
    keys = site.keys.heads * site.keys.width

    def rebuild(reading: Reading) -> tuple[Value, Value]:
        latent = reading.part("row_latent", 0, rank)
        made: list[Value] = []
        for name, side, start in (("k", site.keys, 0), ("v", site.values, keys)):
            stem = f"{module_of(reading.attend)}.{name}_b_proj"
            rows = side.heads * side.width
            part = reading.weight(SliceWeight, f"{stem}.rows", up, start=start, stop=start + rows)
            weight = reading.weight(Cast, f"{stem}.weight", part, dtype=latent.tensor.dtype)
            bias = _bias(reading, site, side, f"{stem}.bias") if shape.start == "input" else None
            more = {} if bias is None else {"bias": bias}
            flat = reading.add(Linear, f"{name}_b", latent, weight, **more)
            heads = reading.add(Unflatten, f"{name}_rows", flat, parts=side.heads)
            if side.norm is not None and _divisor(side) in offsets:
                first = offsets[_divisor(side)]
                by = reading.part(f"{name}_row_scale", first, first + side.heads)
                by = reading.add(Unflatten, f"{name}_row_scales", by, parts=side.heads)
                heads = reading.add(Gain, f"{name}_rows_scaled", heads, by)
            made.append(reading.finish(heads, side.after))
        return made[0], made[1]

    return rebuild


def _bias(reading: Reading, site: KeyValues, side: Side, name: str) -> Value | None:
    """Return a projection's bias, as it is added to rebuilt heads."""
    if side.linear is None or side.linear.bias is None:
        return None
    bias = side.linear.bias
    normed = _normed(reading.edit, site, side, bias, f"{name}.normed")
    return reading.weight(Cast, name, normed, dtype=bias.tensor.dtype)


def module_of(attend: Attend) -> str:
    """Return the module that a reader's new weights stand in, as their names say it."""
    output = output_of(attend)
    if isinstance(output, Refusal) or "." not in output.linear.weight.name:
        return attend.out.name.rpartition(".")[0]
    return output.linear.weight.name.removesuffix(".weight").rpartition(".")[0]
