"""The form of ``kernel.convolved``: what stands between the latent projections and the attention of CCA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regraft.ir.forms.attend import turns_alike, turns_by_position
from regraft.ir.forms.elements import of_token, width
from regraft.ir.forms.taking import OtherFormError, Taking
from regraft.ir.op import Op, Value
from regraft.ir.ops.attn import KV, Temper
from regraft.ir.ops.core import Add, Concat, Flatten, Mean, Norm, Repeat, Scale, Slice, Unflatten
from regraft.ir.ops.pos import Rope
from regraft.ir.ops.seq import Conv, Shift, Tail


@dataclass(frozen=True)
class ConvolvedForm:
    """A body of convolutions, coupling, norm and rotation: specs/zaya_cca.md, section 3.

    Attributes:
        queries: Queries before the convolutions.
        keys: Keys before them.
        now: Values of this token.
        later: Values for the next token.
        convs: The convolutions, channel by channel and then head by head; the latter alone where it does what both did.
        tails: What is kept of their operands and of late values.
        norm: The norm of queries; that of keys is like it.
        temper: The keys' factors.
        rope: The rotation of queries; that of keys is like it.
        state: What makes the memory.
        q: Queries as they attend.
        heads: Their number.
        kv_heads: That of keys and values.
    """

    queries: Value
    keys: Value
    now: Value
    later: Value
    convs: tuple[Conv, ...]
    tails: tuple[Tail, ...]
    norm: Norm
    temper: Temper
    rope: Rope
    state: KV
    q: Value
    heads: int
    kv_heads: int

    @property
    def taps(self) -> tuple[int, int]:
        """Lengths of the convolutions; 0 of one that there is not."""
        *first, second = (conv.weight.tensor.sizes[2] for conv in self.convs)
        return sum(first), second


def convolved_form(ops: Sequence[Op]) -> ConvolvedForm | None:
    """Return the form of a body, given in order, or none if it is not of this form."""
    states = [op for op in ops if isinstance(op, KV)]
    turned = [op for op in ops if isinstance(op, Rope) and not any(op.out in state.operands for state in states)]
    if len(states) != 1 or len(turned) != 1:
        return None
    try:
        return _read(Taking(ops), states[0], turned[0])
    except OtherFormError:
        return None


def _read(body: Taking, state: KV, rope: Rope) -> ConvolvedForm:
    body.taken.update((state, rope))
    turned = body.made(state.k, Rope)
    temper = body.made(turned.x, Temper)
    norms = body.made(rope.x, Norm), body.made(temper.x, Norm)
    body.check(turns_alike(rope, turned), turns_by_position(rope), rope.layout == "halves", rope.pairs is None)
    body.check(temper.by.is_weight)
    body.check(all(norm.clamp and norm.weight is None for norm in norms), norms[0].eps == norms[1].eps)
    parts = body.made(norms[0].x, Unflatten), body.made(norms[1].x, Unflatten)
    slices = body.made(parts[0].x, Slice), body.made(parts[1].x, Slice)
    heads, kv_heads = parts[0].parts, parts[1].parts
    body.check(slices[0].x is slices[1].x, slices[0].start == 0, slices[0].stop == slices[1].start)
    coupled = body.made(slices[0].x, Add)
    convs, tails, queries, keys = _convolved(body, coupled.a, heads + kv_heads)
    body.check(slices[1].stop == width(coupled.out), width(queries) == slices[0].stop, heads % kv_heads == 0)
    _check_means(body, coupled.b, queries, keys, heads, kv_heads)
    now, later, tail = _values(body, state.v, kv_heads)
    body.check_whole()
    tails = (*tails, tail)
    return ConvolvedForm(
        queries, keys, now, later, convs, tails, norms[0], temper, rope, state, rope.out, heads, kv_heads
    )


def _convolved(body: Taking, value: Value, groups: int) -> tuple[tuple[Conv, ...], tuple[Tail, ...], Value, Value]:
    """Take both convolutions, or the one that does what they did, and their tails.

    Before the start the second one sees what the first gives for zeros.
    """
    last = body.made(value, Conv)
    tail = body.made(last.memory, Tail)
    first = body.made_perhaps(tail.x, Conv)
    before = None if first is None else body.made(first.memory, Tail)
    packed = body.made(tail.x if before is None else before.x, Concat)
    body.check(len(packed.xs) == 2, all(map(of_token, packed.xs)), last.groups == groups)
    body.check(first is None or first.groups == width(packed.out), width(last.out) == width(packed.out))
    body.check(tail.initial is (None if first is None else first.bias), before is None or before.initial is None)
    convs = tuple(conv for conv in (first, last) if conv is not None)
    tails = tuple(each for each in (before, tail) if each is not None)
    body.check(all(conv.bias is not None and conv.weight.is_weight for conv in convs))
    body.check(all(conv.weight.tensor.sizes[2] - 1 == of.rows for conv, of in zip(convs, tails, strict=True)))
    return convs, tails, packed.xs[0], packed.xs[1]


def _check_means(body: Taking, value: Value, queries: Value, keys: Value, heads: int, kv_heads: int) -> None:
    """Take what gives each query's mean with its group's key, and the mean of these for each key."""
    means = body.made(value, Concat)
    body.check(len(means.xs) == 2)
    groups = body.made(body.made(means.xs[0], Flatten).x, Flatten)
    mean = body.made(body.made(means.xs[1], Flatten).x, Mean)
    half = body.made(groups.x, Scale)
    both = body.made(half.x, Add)
    of_queries, of_keys = body.made(both.a, Unflatten), body.made(both.b, Repeat)
    by_key, apart = body.made(of_queries.x, Unflatten), body.made(of_keys.x, Unflatten)
    body.check(mean.x is half.out, half.factor == 0.5, by_key.x is queries, apart.x is keys)
    body.check(by_key.parts == apart.parts == kv_heads, of_queries.parts == of_keys.parts == heads // kv_heads)


def _values(body: Taking, value: Value, kv_heads: int) -> tuple[Value, Value, Tail]:
    """Take what joins the values of this token with those that the last one left for it."""
    parts = body.made(value, Unflatten)
    rows = body.made(parts.x, Concat)
    body.check(len(rows.xs) == 2, parts.parts == kv_heads)
    shift = body.made(rows.xs[1], Shift)
    tail = body.made(shift.memory, Tail)
    body.check(tail.rows == 1, width(rows.xs[0]) == width(tail.x), of_token(rows.xs[0]), of_token(tail.x))
    return rows.xs[0], tail.x, tail
