"""Property-test rules of the ``weight`` ops. Importing this module registers them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from hypothesis import strategies as st

from regraft.ir.dims import B, T
from regraft.ir.op import Value
from regraft.ir.types import ITEM_BITS
from tests.ir.making import FLOAT_TYPES, NUMBERS, SMALL, STRINGS, Making, rule

SHAPES = st.lists(SMALL, min_size=1, max_size=3)
RIDGES = st.floats(0.0, 1e12) | st.just(0.0)
TENSOR_NAMES = st.none() | STRINGS.filter(bool)


@rule("weight.load")
def load(m: Making) -> Sequence[Value]:
    dtype, shape = m.draw(st.sampled_from(list(ITEM_BITS))), m.draw(st.lists(SMALL, max_size=4))
    return m.add("weight.load", dtype=dtype, shape=shape, tensor=m.draw(TENSOR_NAMES), buffer=m.draw(st.booleans()))


@rule("weight.load_each")
def load_each(m: Making) -> Sequence[Value]:
    plain = STRINGS.filter(lambda text: "{" not in text and "}" not in text)
    name = m.draw(plain) + "{}" + m.draw(plain)
    return m.add("weight.load_each", dtype=m.draw(FLOAT_TYPES), shape=m.draw(SHAPES), tensors=name)


@rule("weight.slice")
def slice_weight(m: Making) -> Sequence[Value]:
    shape = m.draw(SHAPES)
    axis = m.draw(st.integers(0, len(shape) - 1))
    start = m.draw(st.integers(0, shape[axis] - 1))
    stop = m.draw(st.integers(start + 1, shape[axis]))
    return m.add("weight.slice", m.weight("f32", *shape), axis=axis, start=start, stop=stop)


@rule("weight.take")
def take(m: Making) -> Sequence[Value]:
    shape = m.draw(SHAPES)
    axis = m.draw(st.integers(0, len(shape) - 1))
    block = m.draw(st.integers(1, shape[axis]))
    indices = m.draw(st.lists(st.integers(0, shape[axis] // block - 1), min_size=1, max_size=5))
    return m.add("weight.take", m.weight("bf16", *shape), axis=axis, block=block, indices=indices)


@rule("weight.concat")
def concat_weight(m: Making) -> Sequence[Value]:
    shape = m.draw(SHAPES)
    axis = m.draw(st.integers(0, len(shape) - 1))
    parts = [m.weight("i8", *shape[:axis], m.size(), *shape[axis + 1 :]) for _ in range(m.size())]
    return m.add("weight.concat", parts, axis=axis)


@rule("weight.stack")
def stack(m: Making) -> Sequence[Value]:
    shape = m.draw(SHAPES)
    return m.add("weight.stack", [m.weight("f16", *shape) for _ in range(m.size())])


@rule("weight.cast")
def cast(m: Making) -> Sequence[Value]:
    return m.add("weight.cast", m.weight(m.draw(FLOAT_TYPES), *m.draw(SHAPES)), dtype=m.draw(FLOAT_TYPES))


@rule("weight.combine")
def combine(m: Making) -> Sequence[Value]:
    factors, shape, dtype = m.draw(st.lists(NUMBERS, min_size=1, max_size=4)), m.draw(SHAPES), m.draw(FLOAT_TYPES)
    return m.add("weight.combine", [m.weight(dtype, *shape) for _ in factors], factors=factors)


@rule("weight.moment")
def moment(m: Making) -> Sequence[Value]:
    sides: dict[str, object] = {}
    sizes: list[int] = []
    for side in "ab":
        shape = m.draw(SHAPES)
        sizes.append(math.prod(shape))
        if m.draw(st.booleans()):
            sides[side] = m.input(m.draw(FLOAT_TYPES), B, T, *shape)
        else:
            sides[f"source_{side}"] = m.draw(STRINGS)
    return m.add("weight.moment", **sides, rows=sizes[0], columns=sizes[1])


@rule("weight.refit")
def refit(m: Making) -> Sequence[Value]:
    of, out = m.size(), m.size()
    gram, cross = m.weight("f64", of, of), m.weight("f64", of, out)
    ridge = m.draw(RIDGES)
    return m.add("weight.refit", gram, cross, m.weight(m.draw(FLOAT_TYPES), out, of), ridge=ridge)


@rule("weight.align")
def align(m: Making) -> Sequence[Value]:
    heads, half, new, old = m.size(), m.size(), m.size(), m.size()
    width, dtype = 2 * half + m.size() - 1, m.draw(FLOAT_TYPES)
    weight = m.weight(dtype, heads * width, *m.draw(st.lists(SMALL, max_size=1)))
    gram, cross = m.weight("f64", new * width, new * width), m.weight("f64", new * width, old * width)
    norm = {"norm": m.weight(dtype, width)} if m.draw(st.booleans()) else {}
    groups = [tuple(m.draw(st.integers(0, count - 1)) for _ in range(heads)) for count in (old, new)]
    layout = m.draw(st.sampled_from(["halves", "interleaved"]))
    options = {"channels": 2 * half, "layout": layout, "offset": m.draw(NUMBERS), "ridge": m.draw(RIDGES)}
    return m.add("weight.align", weight, gram, cross, **norm, own=groups[0], donor=groups[1], **options)


@rule("weight.align_values")
def align_values(m: Making) -> Sequence[Value]:
    heads, width, new, old = m.size(), m.size(), m.size(), m.size()
    weight = m.weight(m.draw(FLOAT_TYPES), m.size(), heads * width)
    gram, cross = m.weight("f64", new * width, new * width), m.weight("f64", new * width, old * width)
    own, donor = (tuple(m.draw(st.integers(0, count - 1)) for _ in range(heads)) for count in (old, new))
    return m.add("weight.align_values", weight, gram, cross, own=own, donor=donor, ridge=m.draw(RIDGES))


@rule("weight.align_across")
def align_across(m: Making) -> Sequence[Value]:
    half, new, old = m.size(), m.size(), m.size()
    width, layout = 2 * half + m.size() - 1, m.draw(st.sampled_from(["halves", "interleaved"]))
    gram, cross = m.weight("f64", new * width, new * width), m.weight("f64", new * width, old * width)
    options = {"width": width, "channels": 2 * half, "layout": layout, "ridge": m.draw(RIDGES)}
    return m.add("weight.align_across", gram, cross, **options)


@rule("weight.dequantize")
def dequantize(m: Making) -> Sequence[Value]:
    block, blocks = (m.size(), m.size()), (m.size(), m.size())
    sizes = [side * count - m.draw(st.integers(0, side - 1)) for side, count in zip(block, blocks, strict=True)]
    leading = m.draw(st.lists(SMALL, max_size=1))
    packed = m.weight(m.draw(st.sampled_from(["f8e4m3", "i8", "bf16"])), *leading, *sizes)
    scales = m.weight(m.draw(FLOAT_TYPES), *leading, *blocks)
    return m.add("weight.dequantize", packed, scales, block=block, dtype=m.draw(FLOAT_TYPES))


@rule("weight.slice_each")
def slice_each(m: Making) -> Sequence[Value]:
    parts, rows = m.size(), m.size()
    start = m.draw(st.integers(0, rows - 1))
    x = m.weight(m.draw(FLOAT_TYPES), parts * rows, *m.draw(st.lists(SMALL, max_size=2)))
    return m.add("weight.slice_each", x, parts=parts, start=start, stop=m.draw(st.integers(start + 1, rows)))


@rule("weight.transpose")
def transpose(m: Making) -> Sequence[Value]:
    return m.add("weight.transpose", m.weight(m.draw(FLOAT_TYPES), *m.draw(SHAPES), m.size()))


@rule("weight.deinterleave")
def deinterleave(m: Making) -> Sequence[Value]:
    shape = m.draw(SHAPES)
    axis = m.draw(st.integers(0, len(shape) - 1))
    shape[axis] *= 2
    return m.add("weight.deinterleave", m.weight(m.draw(FLOAT_TYPES), *shape), axis=axis)


@rule("weight.mxfp4")
def mxfp4(m: Making) -> Sequence[Value]:
    shape = m.draw(SHAPES)
    blocks, scales = m.weight("u8", *shape, 16), m.weight("u8", *shape)
    return m.add("weight.mxfp4", blocks, scales, dtype=m.draw(FLOAT_TYPES))


@rule("weight.fp4")
def fp4(m: Making) -> Sequence[Value]:
    groups, leading = m.size(), m.draw(st.lists(SMALL, max_size=2))
    codes, scales = m.weight("i8", *leading, groups * m.size()), m.weight("f8e8m0", *leading, groups)
    return m.add("weight.fp4", codes, scales, dtype=m.draw(FLOAT_TYPES))


@rule("weight.matmul")
def matmul(m: Making) -> Sequence[Value]:
    leading, (rows, inner, columns) = m.draw(st.lists(SMALL, max_size=1)), (m.size(), m.size(), m.size())
    a = m.weight(m.draw(FLOAT_TYPES), *leading, rows, inner)
    return m.add("weight.matmul", a, m.weight(m.draw(FLOAT_TYPES), *leading, inner, columns))


@rule("weight.scale")
def scale_weight(m: Making) -> Sequence[Value]:
    shape = m.draw(SHAPES)
    axis = m.draw(st.integers(0, len(shape) - 1))
    by = m.weight(m.draw(FLOAT_TYPES), shape[axis])
    return m.add("weight.scale", m.weight(m.draw(FLOAT_TYPES), *shape), by, axis=axis, offset=m.draw(NUMBERS))


@rule("weight.log")
def log(m: Making) -> Sequence[Value]:
    return m.add("weight.log", m.weight(m.draw(FLOAT_TYPES), *m.draw(SHAPES)))


@rule("weight.reshape")
def reshape(m: Making) -> Sequence[Value]:
    shape = m.draw(SHAPES)
    return m.add("weight.reshape", m.weight(m.draw(FLOAT_TYPES), *shape), shape=m.draw(st.permutations([1, *shape])))


@rule("weight.permute")
def permute(m: Making) -> Sequence[Value]:
    shape = m.draw(SHAPES)
    axes = m.draw(st.permutations(range(len(shape))))
    return m.add("weight.permute", m.weight(m.draw(FLOAT_TYPES), *shape), axes=axes)


@rule("weight.fill")
def fill(m: Making) -> Sequence[Value]:
    return m.add("weight.fill", dtype=m.draw(FLOAT_TYPES), shape=m.draw(SHAPES), value=m.draw(st.floats(-9, 9)))


@rule("weight.eye")
def eye(m: Making) -> Sequence[Value]:
    return m.add("weight.eye", dtype=m.draw(FLOAT_TYPES), shape=[*m.draw(SHAPES), m.size()])


@rule("weight.random")
def random(m: Making) -> Sequence[Value]:
    drawn = {"std": m.draw(st.floats(0, 10)), "seed": m.draw(st.integers(0, 2**31))}
    return m.add("weight.random", dtype=m.draw(FLOAT_TYPES), shape=m.draw(SHAPES), **drawn)


def _projection(m: Making, heads: int) -> tuple[Value, dict[str, object]]:
    """Return a weight that makes heads, and what goes with it in a statistic of them."""
    width, inner = m.size(), m.size()
    rest: dict[str, object] = {}
    if m.draw(st.booleans()):
        rest["x"] = m.input(m.draw(FLOAT_TYPES), B, T, inner)
    else:
        rest["source"] = m.draw(STRINGS)
    if m.draw(st.booleans()):
        rest["bias"] = m.weight(m.draw(FLOAT_TYPES), heads * width)
    if m.draw(st.booleans()):
        rest |= {"norm": m.weight(m.draw(FLOAT_TYPES), width), "eps": 1e-6, "offset": m.draw(NUMBERS)}
    return m.weight(m.draw(FLOAT_TYPES), heads * width, inner), rest


@rule("weight.joint_moment")
def joint_moment(m: Making) -> Sequence[Value]:
    heads = m.size()
    weight, rest = _projection(m, heads)
    return m.add("weight.joint_moment", weight, **rest, parts=heads)


@rule("weight.group_moments")
def group_moments(m: Making) -> Sequence[Value]:
    parts = m.size()
    groups = m.draw(st.lists(st.integers(0, parts - 1), min_size=1, max_size=6))
    weight, rest = _projection(m, len(groups))
    return m.add("weight.group_moments", weight, **rest, groups=groups, parts=parts)


@rule("weight.inverse_power")
def inverse_power(m: Making) -> Sequence[Value]:
    heads = m.size()
    weight, rest = _projection(m, heads)
    return m.add(
        "weight.inverse_power", weight, **{k: v for k, v in rest.items() if k != "norm"} | {"eps": 1e-6}, parts=heads
    )


@rule("weight.group_gram")
def group_gram(m: Making) -> Sequence[Value]:
    parts = m.size()
    groups = m.draw(st.lists(st.integers(0, parts - 1), min_size=1, max_size=6))
    weight = m.weight(m.draw(FLOAT_TYPES), m.size(), len(groups) * m.size())
    return m.add("weight.group_gram", weight, groups=groups, parts=parts)


@rule("weight.merge_heads")
def merge_heads(m: Making) -> Sequence[Value]:
    groups = m.draw(st.permutations([*range(m.size()), 0]))
    heads, half = len(groups), m.size()
    width = 2 * half + m.size() - 1
    layout = m.draw(st.sampled_from(["halves", "interleaved"]))
    options = {"channels": 2 * half, "pairs": m.draw(st.integers(0, half)), "layout": layout}
    options |= {"mixing": m.draw(st.booleans()), "method": m.draw(st.sampled_from(["mean", "procrustes", "pca"]))}
    gram = m.weight("f64", heads * width, heads * width)
    return m.add("weight.merge_heads", gram, m.weight("f64", heads, width, width), groups=groups, **options)


@rule("weight.head_moment")
def head_moment(m: Making) -> Sequence[Value]:
    heads, width = m.size(), m.size()
    return m.add("weight.head_moment", m.input(m.draw(FLOAT_TYPES), B, T, heads, width), heads=heads, width=width)


def _attention(m: Making, opname: str, **more: object) -> Sequence[Value]:
    """A statistic of how queries share their attention."""
    heads, kv_heads = m.size(), m.size()
    options: dict[str, object] = {"groups": [m.draw(st.integers(0, kv_heads - 1)) for _ in range(heads)]}
    options |= {"kv_heads": kv_heads, "source": m.draw(STRINGS), "scale": m.draw(NUMBERS), "softcap": m.draw(NUMBERS)}
    options |= {"window": m.draw(st.none() | SMALL), "first": m.draw(st.integers(0, 4)), **more}
    return m.add(opname, m.input(m.draw(FLOAT_TYPES), B, T, heads, m.size()), **options)


@rule("weight.attention_spread")
def attention_spread(m: Making) -> Sequence[Value]:
    return _attention(m, "weight.attention_spread", width=m.size())


@rule("weight.attention_phases")
def attention_phases(m: Making) -> Sequence[Value]:
    return _attention(m, "weight.attention_phases", angles=m.draw(st.lists(NUMBERS, min_size=1, max_size=4)))


@rule("weight.phase_maps")
def phase_maps(m: Making) -> Sequence[Value]:
    half, layout = m.size(), m.draw(st.sampled_from(["halves", "interleaved"]))
    width, phases = 2 * half + m.size() - 1, m.weight("f64", m.size(), half, 2)
    return m.add("weight.phase_maps", phases, width=width, channels=2 * half, layout=layout)


@rule("weight.shared_keys")
def shared_keys(m: Making) -> Sequence[Value]:
    heads, kv_heads, half = m.size(), m.size(), m.size()
    width = 2 * half + m.size() - 1
    given = m.weight("f64", kv_heads * width, kv_heads * width), m.weight("f64", heads, width, width)
    options: dict[str, object] = {"groups": [m.draw(st.integers(0, kv_heads - 1)) for _ in range(heads)]}
    options |= {"kept": m.draw(st.lists(st.integers(0, half - 1), min_size=1, max_size=half, unique=True))}
    options |= {"channels": 2 * half, "layout": m.draw(st.sampled_from(["halves", "interleaved"]))}
    return m.add("weight.shared_keys", *given, m.weight("f64", heads, half, 2), **options)


@rule("weight.head_costs")
def head_costs(m: Making) -> Sequence[Value]:
    heads, channels = m.size(), m.size()
    spread = m.weight("f64", heads, channels + 1, channels + 1)
    return m.add("weight.head_costs", spread, m.weight(m.draw(FLOAT_TYPES), m.size(), heads * channels))


@rule("weight.latent_metric")
def latent_metric(m: Making) -> Sequence[Value]:
    heads, kv_heads, half = m.size(), m.size(), m.size()
    width = 2 * half + m.size() - 1
    given = [m.weight("f64", heads, width, width), m.weight(m.draw(FLOAT_TYPES), m.size(), heads * m.size())]
    gains = {f"{side}_gains": m.weight("f64", kv_heads, kv_heads) for side in ("key", "value") if m.draw(st.booleans())}
    if m.draw(st.booleans()):
        channels = given[1].tensor.sizes[1] // heads + 1
        gains["spread"] = m.weight("f64", heads, channels, channels)
    options: dict[str, object] = {"groups": [m.draw(st.integers(0, kv_heads - 1)) for _ in range(heads)]}
    options |= {"scale": m.draw(NUMBERS), "kv_heads": kv_heads, "channels": 2 * half}
    layout = m.draw(st.sampled_from(["halves", "interleaved"]))
    return m.add("weight.latent_metric", *given, **gains, **options, layout=layout)


def _moments(m: Making, targets: int, rows: int) -> dict[str, object]:
    """Second moments of the rows and a metric of the targets, where they are given."""
    given = {"gram": m.weight("f64", rows, rows)} if m.draw(st.booleans()) else {}
    return {**given, **({"metric": m.weight("f64", targets, targets)} if m.draw(st.booleans()) else {})}


@rule("weight.latent")
def latent(m: Making) -> Sequence[Value]:
    targets, rows = m.size(), m.size()
    options: dict[str, object] = {"rank": m.draw(st.integers(1, min(targets, rows)))}
    options |= {"keys": m.draw(st.integers(1, targets)), "balance": m.draw(st.none() | st.floats(0.01, 100.0))}
    made = _moments(m, targets, rows)
    return m.add("weight.latent", m.weight(m.draw(FLOAT_TYPES), targets, rows), **made, **options)


@rule("weight.recover")
def recover(m: Making) -> Sequence[Value]:
    targets, rows = m.size(), m.size()
    made = {key: value for key, value in _moments(m, targets, rows).items() if key == "gram"}
    down = m.weight(m.draw(FLOAT_TYPES), m.size(), rows)
    return m.add("weight.recover", m.weight(m.draw(FLOAT_TYPES), targets, rows), down, **made)


@rule("weight.fit_scores")
def fit_scores(m: Making) -> Sequence[Value]:
    merged = m.draw(st.permutations([*range(m.size()), 0]))
    groups = m.draw(st.lists(st.integers(0, len(merged) - 1), min_size=1, max_size=6))
    half, inner = m.size(), m.size()
    width = 2 * half + m.size() - 1
    queries, keys = (m.weight(m.draw(FLOAT_TYPES), count * width, inner) for count in (len(groups), len(merged)))
    norms = [m.weight(m.draw(FLOAT_TYPES), width) for _ in range(2)]
    down = m.weight("f64", (max(merged) + 1) * width, len(merged) * width)
    maps = [down, m.weight("f64", len(merged), width, width)]
    options = {"channels": 2 * half, "pairs": m.draw(st.integers(0, half)), "offset": m.draw(NUMBERS), "eps": 1e-6}
    options |= {"layout": m.draw(st.sampled_from(["halves", "interleaved"])), "steps": m.size(), "seed": m.size()}
    gram = m.weight("f64", inner, inner)
    return m.add("weight.fit_scores", gram, queries, keys, *norms, *maps, groups=groups, merged=merged, **options)


@rule("weight.join_convs")
def join_convs(m: Making) -> Sequence[Value]:
    of, groups = m.size(), m.size()
    first = m.weight("bf16", of * groups, 1, m.size())
    second = m.weight("bf16", m.size() * groups, of, m.size())
    biases = {"first_bias": m.weight("bf16", of * groups)} if m.draw(st.booleans()) else {}
    if m.draw(st.booleans()):
        biases["second_bias"] = m.weight("bf16", second.tensor.sizes[0])
    return m.add("weight.join_convs", first, second, **biases)
