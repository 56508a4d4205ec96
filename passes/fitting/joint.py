"""A joint latent: a few numbers of one layer's input, from which that layer and later ones rebuild keys and values.

Each layer's keys and values are fitted to the input by least squares; the latent keeps most of all of them together,
keys weighed so that both cost the same.

Source: specs/passes_math.md, section 5 (joint latent).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from regraft.ir.op import Value
from regraft.ir.ops.algebra import Fill
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.core import Linear, Unflatten
from regraft.ir.ops.fits import Moment, Refit, width
from regraft.ir.ops.latents import Latent, Recover
from regraft.ir.ops.memory import ReadRows, ViewRows
from regraft.ir.ops.weight import Cast, ConcatWeight, SliceWeight
from regraft.passes.matching.memories import KeyValues, Reading, Side, keep_rows, key_values
from regraft.passes.matching.rewrite import Editor
from regraft.passes.matching.sites import Refusal, output_of


def joint_rank(rank: float, site: KeyValues) -> int:
    """Return a latent's numbers a token; a share, which is no integer, is of the donor's keys and values."""
    return rank if isinstance(rank, int) else max(1, int(rank * site.width))


def most_ranks(site: KeyValues) -> int:
    """Return the largest rank of a latent of what a memory's keys are made of."""
    assert site.keys.linear is not None
    return width(site.keys.linear.x.tensor)


def keep_joint(edit: Editor, donor: Attend, readers: Sequence[Attend], rank: float, ridge: float) -> None:
    """Keep a latent instead of a donor's keys and values, and let it and some readers rebuild theirs from it.

    Args:
        edit: The editor.
        donor: The donor's attention; others that read its memory go along.
        readers: Attentions with memories of their own, which they read no longer.
        rank: See `joint_rank`.
        ridge: Of the least-squares maps from the input, in units of the mean second moment.
    """
    site, owns = _key_values(edit, donor), [_key_values(edit, reader) for reader in readers]
    assert site.keys.linear is not None
    x, state = site.keys.linear.x, site.state
    size, sites = width(x.tensor), [site, *owns]
    name = f"{module_of(donor)}.kv_a_proj.weight"
    gram = edit.add(Moment, f"{name}.gram", a=x, b=x, rows=size, columns=size, before=state)
    sides = [*(each.keys for each in sites), *(each.values for each in sites)]
    parts = [_least_squares(edit, site, side, x, gram, f"{name}.of_inputs", ridge) for side in sides]
    targets = edit.add(ConcatWeight, f"{name}.targets", parts, before=state)
    keys = sum(_width(each.keys) for each in sites)
    fit: dict[str, object] = {"gram": gram, "rank": joint_rank(rank, site), "keys": keys}
    fitted = edit.add(Latent, f"{name}.fitted", targets, before=state, **fit)
    down = edit.add(Cast, name, fitted, dtype=x.tensor.dtype, before=state)
    up = edit.add(Recover, f"{name}.back", targets, down, gram=gram, before=state)
    latent = edit.add(Linear, f"{site.memory.name.rpartition('.')[0]}.latent", x, down, before=state)
    rebuild = [_rebuilder(sites, place, up, keys) for place in range(len(sites))]
    memory = keep_rows(edit, site, latent, rebuild[0])
    for attend, made in zip(readers, rebuild[1:], strict=True):
        scope = attend.out.name.rpartition(".")[0]
        rows = edit.add(ReadRows, f"{scope}.rows", memory, before=attend)
        k, v = made(Reading(edit, attend, memory, rows, scope))
        edit.set_operand(attend, "memory", edit.add(ViewRows, f"{scope}.view", memory, k, v=v, before=attend))


def _key_values(edit: Editor, attend: Attend) -> KeyValues:
    found = key_values(attend, edit.graph)
    assert isinstance(found, KeyValues), "checked before"
    return found


def _width(side: Side) -> int:
    return width(side.before.tensor)


def _least_squares(edit: Editor, site: KeyValues, side: Side, x: Value, gram: Value, name: str, ridge: float) -> Value:
    """Return the map from ``x`` to the original's keys or values before rotation, in float64."""
    size, rows = width(x.tensor), _width(side)
    cross = edit.add(Moment, name, a=x, source_b=side.before.name, rows=size, columns=rows, before=site.state)
    zeros = edit.add(Fill, f"{name}.prior", dtype="f64", shape=(rows, size), before=site.state)
    return edit.add(Refit, f"{name}.map", gram, cross, zeros, ridge=ridge, before=site.state)


def _rebuilder(
    sites: Sequence[KeyValues], place: int, up: Value, keys: int
) -> Callable[[Reading], tuple[Value, Value]]:
    """Return what makes the keys and values of one of some layers of the latent's rows."""
    own = sites[place]
    starts = (
        sum(_width(each.keys) for each in sites[:place]),
        keys + sum(_width(each.values) for each in sites[:place]),
    )

    def rebuild(reading: Reading) -> tuple[Value, Value]:
        made: list[Value] = []
        for name, side, start in (("k", own.keys, starts[0]), ("v", own.values, starts[1])):
            stem = f"{module_of(reading.attend)}.{name}_b_proj"
            part = reading.weight(SliceWeight, f"{stem}.rows", up, start=start, stop=start + _width(side))
            weight = reading.weight(Cast, f"{stem}.weight", part, dtype=reading.rows.tensor.dtype)
            flat = reading.add(Linear, f"{name}_b", reading.rows, weight)
            heads = reading.add(Unflatten, f"{name}_rows", flat, parts=side.heads)
            made.append(reading.finish(heads, side.after))
        return made[0], made[1]

    return rebuild


def module_of(attend: Attend) -> str:
    """Return the module that an attention's new weights stand in, as its output projection's name says it."""
    output = output_of(attend)
    if isinstance(output, Refusal) or "." not in output.linear.weight.name:
        return attend.out.name.rpartition(".")[0]
    return output.linear.weight.name.removesuffix(".weight").rpartition(".")[0]
