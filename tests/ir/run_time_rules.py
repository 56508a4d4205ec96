"""Property-test rules of the run-time ops. Importing this module registers them."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from regraft.ir.dims import B, T, parse_dim
from regraft.ir.op import REGISTRY, Value, op_class
from regraft.ir.ops.core import ACTIVATIONS
from regraft.ir.ops.kernels import Kernel
from regraft.ir.types import ITEM_BITS
from tests.ir.making import FLOAT_TYPES, NAMES, NUMBERS, POSITIVE, RULES, SMALL, Making, Rule, rule


def _channels(m: Making, *last: int) -> tuple[str, Value]:
    """A floating-point value with these last axes."""
    dtype = m.draw(FLOAT_TYPES)
    return dtype, m.input(dtype, *m.leading(), *last)


@rule("core.embed")
def embed(m: Making) -> Sequence[Value]:
    tokens = m.input(m.draw(st.sampled_from(["i64", "i32", "u8"])), *m.leading())
    return m.add("core.embed", tokens, m.weight(m.draw(FLOAT_TYPES), m.size(), m.size()))


@rule("core.linear")
def linear(m: Making) -> Sequence[Value]:
    of, out = m.size(), m.size()
    dtype, x = _channels(m, of)
    bias = {"bias": m.weight(dtype, out)} if m.draw(st.booleans()) else {}
    return m.add("core.linear", x, m.weight(dtype, out, of), **bias)


@rule("core.norm")
def norm(m: Making) -> Sequence[Value]:
    width = m.size()
    dtype, x = _channels(m, width)
    weight = {"weight": m.weight(dtype, width)} if m.draw(st.booleans()) else {}
    cast = m.draw(st.sampled_from(["before", "after"]))
    clamp = not weight and m.draw(st.booleans())
    return m.add("core.norm", x, **weight, eps=m.draw(POSITIVE), offset=m.draw(NUMBERS), cast=cast, clamp=clamp)


@rule("core.inverse_rms")
def inverse_rms(m: Making) -> Sequence[Value]:
    return m.add("core.inverse_rms", _channels(m, m.size())[1], eps=m.draw(POSITIVE))


@rule("core.bias")
def bias(m: Making) -> Sequence[Value]:
    width = m.size()
    dtype, x = _channels(m, width)
    return m.add("core.bias", x, m.weight(dtype, width))


@rule("core.mean")
def mean(m: Making) -> Sequence[Value]:
    return m.add("core.mean", _channels(m, m.size(), m.size())[1])


@rule("attn.temper")
def temper(m: Making) -> Sequence[Value]:
    dtype, heads = m.draw(FLOAT_TYPES), m.size()
    return m.add("attn.temper", m.input(dtype, B, T, heads, m.size()), m.weight(dtype, heads))


def _two(opname: str) -> Rule:
    def made(m: Making) -> Sequence[Value]:
        dtype, shape = m.draw(FLOAT_TYPES), (*m.leading(), m.size())
        a = m.input(dtype, *shape)
        b = a if m.draw(st.booleans()) else m.input(dtype, *shape)
        return m.add(opname, a, b)

    return made


RULES["core.add"], RULES["core.mul"] = _two("core.add"), _two("core.mul")


@rule("core.scale")
def scale(m: Making) -> Sequence[Value]:
    return m.add("core.scale", _channels(m)[1], factor=m.draw(NUMBERS))


@rule("core.gain")
def gain(m: Making) -> Sequence[Value]:
    shape = (B, T, *m.draw(st.lists(SMALL, min_size=1, max_size=2)))
    dtype, x = "f32", m.input("f32", *shape)
    by = [1 if m.draw(st.booleans()) else size for size in shape[m.draw(st.integers(0, len(shape) - 1)) :]]
    if all(isinstance(size, int) for size in by) and m.draw(st.booleans()):
        return m.add("core.gain", x, m.weight("bf16", *[size for size in by if isinstance(size, int)]))
    return m.add("core.gain", x, m.input(dtype, *by))


@rule("core.activation")
def activation(m: Making) -> Sequence[Value]:
    return m.add("core.activation", _channels(m, m.size())[1], kind=m.draw(st.sampled_from(ACTIVATIONS)))


@rule("core.softcap")
def softcap(m: Making) -> Sequence[Value]:
    return m.add("core.softcap", _channels(m)[1], cap=m.draw(POSITIVE))


@rule("core.concat")
def concat(m: Making) -> Sequence[Value]:
    dtype, leading = m.draw(st.sampled_from(list(ITEM_BITS))), m.leading()
    return m.add("core.concat", [m.input(dtype, *leading, m.size()) for _ in range(m.size())])


@rule("core.slice")
def slice_(m: Making) -> Sequence[Value]:
    width = m.size()
    start = m.draw(st.integers(0, width - 1))
    return m.add("core.slice", _channels(m, width)[1], start=start, stop=m.draw(st.integers(start + 1, width)))


@rule("core.unflatten")
def unflatten(m: Making) -> Sequence[Value]:
    parts = m.size()
    return m.add("core.unflatten", _channels(m, parts * m.size())[1], parts=parts)


@rule("core.flatten")
def flatten(m: Making) -> Sequence[Value]:
    return m.add("core.flatten", _channels(m, m.size(), m.size())[1])


@rule("pos.rope")
def rope(m: Making) -> Sequence[Value]:
    half = m.size()
    rows = m.draw(st.sampled_from([T, parse_dim("S@m.x")]))
    x = m.input(m.draw(FLOAT_TYPES), B, rows, m.size(), 2 * half + m.size() - 1)
    options: dict[str, object] = {"base": m.draw(st.floats(1.5, 1e7)), "channels": 2 * half}
    if m.draw(st.booleans()):
        options |= {"layout": m.draw(st.sampled_from(["halves", "interleaved"])), "amplitude": m.draw(POSITIVE)}
        options |= {"scaling": m.draw(st.sampled_from(["linear", "llama3", "yarn"])), "factor": m.draw(POSITIVE)}
        low = m.draw(st.floats(0.1, 10))
        options |= {"original": m.draw(st.integers(1, 10**6)), "low": low, "high": low + m.draw(st.floats(0.1, 9))}
        options |= {"truncate": m.draw(st.booleans()), "pairs": m.draw(st.none() | st.integers(1, half))}
    return m.add("pos.rope", x, m.input("i64", B, rows), **options)


WINDOWS = st.none() | st.integers(1, 2**40)


def _sight(m: Making) -> dict[str, int | None]:
    """A window and the first rows that it does not hide, or neither."""
    window = m.draw(WINDOWS)
    return {"window": window, "first": 0 if window is None else m.draw(st.integers(0, 9))}


def _memory(m: Making, heads: int, width: int, value_width: int, dtype: str, sight: dict[str, int | None]) -> Value:
    k, v = m.input(dtype, B, T, heads, width), m.input(dtype, B, T, heads, value_width)
    return m.add("state.kv", k, v, **sight)[0]


@rule("state.kv")
def kv(m: Making) -> Sequence[Value]:
    return [_memory(m, m.size(), m.size(), m.size(), m.draw(FLOAT_TYPES), _sight(m))]


@rule("attn.attend")
def attend(m: Making) -> Sequence[Value]:
    kv_heads, width, value_width = m.size(), m.size(), m.size()
    groups: tuple[int, ...] | None = None
    if m.draw(st.booleans()):
        groups = tuple(m.draw(st.lists(st.integers(0, kv_heads - 1), min_size=1, max_size=6)))
    heads = len(groups) if groups else kv_heads * m.size()
    kept = sight = _sight(m)
    if isinstance(kept["window"], int) and isinstance(kept["first"], int):
        sight = {"window": m.draw(st.integers(1, kept["window"])), "first": m.draw(st.integers(0, kept["first"]))}
    dtype = m.draw(FLOAT_TYPES)
    memory = _memory(m, kv_heads, width, value_width, dtype, kept)
    q = m.input(dtype, B, T, heads, width)
    sink = {"sink": m.weight(m.draw(FLOAT_TYPES), heads)} if m.draw(st.booleans()) else {}
    cap = m.draw(st.none() | POSITIVE)
    return m.add("attn.attend", q, memory, **sink, scale=m.draw(NUMBERS), **sight, head_map=groups, softcap=cap)


@rule("core.widen")
def widen(m: Making) -> Sequence[Value]:
    return m.add("core.widen", _channels(m, m.size())[1])


@rule("core.cast_like")
def cast_like(m: Making) -> Sequence[Value]:
    return m.add("core.cast_like", _channels(m, m.size())[1], m.weight(m.draw(FLOAT_TYPES), m.size()))


@rule("attn.pick")
def pick(m: Making) -> Sequence[Value]:
    heads = m.size()
    chosen = m.draw(st.lists(st.integers(0, heads - 1), min_size=1, max_size=6))
    return m.add("attn.pick", m.input(m.draw(FLOAT_TYPES), B, T, heads, m.size()), heads=chosen)


@rule("weight.beyond_window")
def beyond_window(m: Making) -> Sequence[Value]:
    heads, kv_heads, width = m.size(), m.size(), m.size()
    dtype = m.draw(FLOAT_TYPES)
    memory = _memory(m, kv_heads, width, m.size(), dtype, _sight(m))
    groups = [m.draw(st.integers(0, kv_heads - 1)) for _ in range(heads)]
    options: dict[str, object] = {"scale": m.draw(NUMBERS), "window": m.draw(st.integers(1, 99)), "groups": groups}
    return m.add("weight.beyond_window", m.input(dtype, B, T, heads, width), memory, **options)


def _tail(m: Making, dtype: str, channels: int, rows: int) -> Value:
    first = {"initial": m.weight(dtype, channels)} if m.draw(st.booleans()) else {}
    return m.add("state.tail", m.input(dtype, B, T, channels), **first, rows=rows)[0]


@rule("state.tail")
def tail(m: Making) -> Sequence[Value]:
    return [_tail(m, m.draw(FLOAT_TYPES), m.size(), m.size())]


@rule("seq.conv")
def conv(m: Making) -> Sequence[Value]:
    groups, of, out, taps, dtype = m.size(), m.size(), m.size(), m.size(), m.draw(FLOAT_TYPES)
    memory = _tail(m, dtype, groups * of, taps - 1 + m.draw(st.integers(taps == 1, 2)))
    bias = {"bias": m.weight(dtype, groups * out)} if m.draw(st.booleans()) else {}
    return m.add("seq.conv", memory, m.weight(dtype, groups * out, of, taps), **bias, groups=groups)


@rule("seq.shift")
def shift(m: Making) -> Sequence[Value]:
    return m.add("seq.shift", _tail(m, m.draw(FLOAT_TYPES), m.size(), m.size()))


@rule("seq.decay")
def decay(m: Making) -> Sequence[Value]:
    heads = m.size()
    _, a = _channels(m, heads)
    return m.add("seq.decay", a, m.weight(m.draw(FLOAT_TYPES), heads), m.weight("f32", heads))


@rule("state.delta")
def delta(m: Making) -> Sequence[Value]:
    heads, width, value_width, dtype = m.size(), m.size(), m.size(), m.draw(FLOAT_TYPES)
    value_heads = heads * m.size()
    q, k = (m.input(dtype, B, T, heads, width) for _ in range(2))
    v = m.input(dtype, B, T, value_heads, value_width)
    g, beta = (m.input(m.draw(FLOAT_TYPES), B, T, value_heads) for _ in range(2))
    return m.add("state.delta", q, k, v, g, beta)


@rule("moe.route")
def route(m: Making) -> Sequence[Value]:
    groups, size = m.size(), m.size()
    kept, best = m.draw(st.integers(1, groups)), m.draw(st.integers(1, size))
    options: dict[str, object] = {"chosen": m.draw(st.integers(1, kept * size)), "normalize": m.draw(st.booleans())}
    if m.draw(st.booleans()):
        options |= {"groups": groups, "kept": kept, "best": best, "scale": m.draw(NUMBERS)}
        options |= {"score": m.draw(st.sampled_from(["softmax", "sigmoid"])), "eps": m.draw(st.floats(0, 1))}
    for name in ("bias", "gain"):
        if m.draw(st.booleans()):
            options[name] = m.weight(m.draw(FLOAT_TYPES), groups * size)
    return m.add("moe.route", _channels(m, groups * size)[1], **options)


@rule("moe.experts")
def experts(m: Making) -> Sequence[Value]:
    leading, dtype = (B, T), m.draw(FLOAT_TYPES)
    width, hidden, count = m.size(), m.size(), m.size()
    chosen = m.draw(st.integers(1, count))
    x, shares = m.input(dtype, *leading, width), m.input(dtype, *leading, chosen)
    gate_up, down = m.weight(dtype, count, 2 * hidden, width), m.weight(dtype, count, width, hidden)
    options: dict[str, object] = {"activation": m.draw(st.sampled_from(ACTIVATIONS))}
    if m.draw(st.booleans()):
        options |= {"gate_up_bias": m.weight(dtype, count, 2 * hidden), "down_bias": m.weight(dtype, count, width)}
        options |= {"limit": m.draw(st.floats(1e-2, 100)), "shift": m.draw(st.floats(-9, 9))}
    return m.add("moe.experts", x, shares, m.input("i64", *leading, chosen), gate_up, down, **options)


def _rows(m: Making, dtype: str, width: int) -> Value:
    return m.add("state.rows", m.input(dtype, B, T, width))[0]


@rule("state.rows")
def state_rows(m: Making) -> Sequence[Value]:
    return m.add("state.rows", m.input(m.draw(FLOAT_TYPES), B, T, m.size()), **_sight(m))


@rule("mem.read")
def read(m: Making) -> Sequence[Value]:
    dtype = m.draw(FLOAT_TYPES)
    if m.draw(st.booleans()):
        return m.add("mem.read", _rows(m, dtype, m.size()))
    kept = _memory(m, m.size(), m.size(), m.size(), dtype, _sight(m))
    return m.add("mem.read", kept, field=m.draw(st.sampled_from(["k", "v"])))


@rule("mem.pos")
def row_positions(m: Making) -> Sequence[Value]:
    return m.add("mem.pos", _rows(m, m.draw(FLOAT_TYPES), m.size()))


@rule("mem.view")
def view(m: Making) -> Sequence[Value]:
    heads, kept = m.size(), _rows(m, m.draw(FLOAT_TYPES), m.size())
    (rows,) = m.add("mem.read", kept)
    k, v = (m.add("core.repeat", rows, parts=heads)[0] for _ in range(2))
    return m.add("mem.view", kept, k, **({"v": v} if m.draw(st.booleans()) else {}))


@rule("seq.index")
def index(m: Making) -> Sequence[Value]:
    heads, width, dtype = m.size(), m.size(), m.draw(FLOAT_TYPES)
    q, weight = m.input(dtype, B, T, heads, width), m.input(dtype, B, T, heads)
    return m.add("seq.index", q, weight, _rows(m, dtype, width), scale=m.draw(NUMBERS), chosen=m.size())


@rule("core.layer_norm")
def layer_norm(m: Making) -> Sequence[Value]:
    width = m.size()
    dtype, x = _channels(m, width)
    return m.add("core.layer_norm", x, m.weight(dtype, width), m.weight(dtype, width), eps=m.draw(POSITIVE))


@rule("core.repeat")
def repeat(m: Making) -> Sequence[Value]:
    return m.add("core.repeat", _channels(m, m.size())[1], parts=m.size())


@rule("core.clamp")
def clamp(m: Making) -> Sequence[Value]:
    low, high = m.draw(st.none() | st.floats(-9, 0)), m.draw(st.none() | st.floats(0, 9))
    return m.add("core.clamp", _channels(m, m.size())[1], low=low, high=high)


@rule("core.grouped_linear")
def grouped_linear(m: Making) -> Sequence[Value]:
    groups, of, rows, transposed = m.size(), m.size(), m.size(), m.draw(st.booleans())
    dtype, x = _channels(m, groups, rows if transposed else of)
    return m.add("core.grouped_linear", x, m.weight(dtype, groups * rows, of), transposed=transposed)


@rule("moe.assign")
def assign(m: Making) -> Sequence[Value]:
    tokens = m.input("i64", *m.leading())
    return m.add("moe.assign", tokens, m.weight(m.draw(st.sampled_from(["i64", "i32"])), m.size(), m.size()))


def _streams(m: Making, rows: int, streams: int, width: int, factors: int) -> list[Value]:
    fn, base, scale = (m.weight("f32", *shape) for shape in ((rows, streams * width), (rows,), (factors,)))
    return [_channels(m, streams, width)[1], fn, base, scale]


@rule("hyper.spread")
def hyper_spread(m: Making) -> Sequence[Value]:
    return m.add("hyper.spread", m.input(m.draw(FLOAT_TYPES), *m.leading(), m.size()), count=m.size())


@rule("hyper.read")
def hyper_read(m: Making) -> Sequence[Value]:
    streams, width = m.size(), m.size()
    values = _streams(m, (2 + streams) * streams, streams, width, 3)
    return m.add("hyper.read", *values, eps=m.draw(POSITIVE), floor=m.draw(st.floats(0, 1)), iterations=m.size())


@rule("hyper.write")
def hyper_write(m: Making) -> Sequence[Value]:
    streams, width, leading, dtype = m.size(), m.size(), m.leading(), m.draw(FLOAT_TYPES)
    x, y = m.input(dtype, *leading, streams, width), m.input(dtype, *leading, width)
    wide = m.draw(FLOAT_TYPES)
    post, comb = m.input(wide, *leading, streams), m.input(wide, *leading, streams, streams)
    return m.add("hyper.write", x, y, post, comb)


@rule("hyper.collapse")
def hyper_collapse(m: Making) -> Sequence[Value]:
    streams = m.size()
    values = _streams(m, streams, streams, m.size(), 1)
    return m.add("hyper.collapse", *values, eps=m.draw(POSITIVE), floor=m.draw(st.floats(0, 1)))


@rule("state.compressed")
def compressed(m: Making) -> Sequence[Value]:
    rate, overlap, dtype = m.draw(st.integers(1, 3)), m.draw(st.booleans()), m.draw(FLOAT_TYPES)
    width = m.size() * (2 if overlap else 1)
    values = m.input(dtype, B, T, width)
    gates = {"gates": m.input(dtype, B, T, width)} if m.draw(st.booleans()) else {}
    bias = m.weight(m.draw(FLOAT_TYPES), rate, width)
    return m.add("state.compressed", values, bias, **gates, rate=rate, overlap=overlap)


@rule("seq.last")
def last(m: Making) -> Sequence[Value]:
    return m.add("seq.last", m.input(m.draw(FLOAT_TYPES), B, T, *m.draw(st.sampled_from([(), (3,), (2, 3)]))))


def _kernel(opname: str) -> None:
    @rule(opname)
    def kernel(m: Making) -> Sequence[Value]:
        width, out = m.size(), m.size()
        dtype = m.draw(FLOAT_TYPES)
        values = [m.input(dtype, *m.leading(), width), m.weight(dtype, out, width)]
        x, y = values[0].tensor, values[0].tensor.with_shape(*values[0].tensor.shape[:-1], out)
        factor = float(m.draw(NUMBERS))
        body = [f"%h = core.scale %x {{factor = {factor!r}}} : {x}", f"%y = core.linear %h, %w : {y}"]
        gives = m.draw(st.sampled_from([["y"], ["h", "y"]]))
        op = op_class(opname)({"inputs": values}, {"takes": ["x", "w"], "gives": gives, "body": body})
        names = [m.name(m.draw(NAMES)) for _ in gives]
        return m.graph.add(op, [name + "x" * place for place, name in enumerate(names)])


for each in [name for name, cls in REGISTRY.items() if issubclass(cls, Kernel)]:
    _kernel(each)
