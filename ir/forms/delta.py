"""The form of ``kernel.delta``: the gated delta rule for one token, from queries, keys and values side by side.

These may come out of a convolution of single channels, which the body then holds too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regraft.ir.forms.elements import of_token, width
from regraft.ir.forms.short_conv import ShortConvForm, short_conv_form
from regraft.ir.forms.taking import OtherFormError, Taking
from regraft.ir.op import Op, Value
from regraft.ir.ops.core import Activation, Mul, Norm, Scale, Slice, Unflatten
from regraft.ir.ops.seq import Conv, Decay, Delta, Tail


@dataclass(frozen=True)
class DeltaHeads:
    """Queries, keys or values of all heads, as channels of one value.

    Attributes:
        x: The value.
        start: The first of its channels.
        norm: The norm of each head, if there is one; without a weight.
        factor: What heads are multiplied by then.
    """

    x: Value
    start: int
    norm: Norm | None = None
    factor: float = 1.0


@dataclass(frozen=True)
class DeltaForm:
    """A body of one step of the rule.

    Attributes:
        delta: The rule.
        decay: What its decay is made of.
        q: Its queries.
        k: Its keys.
        v: Its values.
        norm: The norm of what each head reads, if the body has it.
        gate: What that is multiplied by then, if anything.
        conv: What makes queries, keys and values, if the body does that.
        out: What leaves.
    """

    delta: Delta
    decay: Decay
    q: DeltaHeads
    k: DeltaHeads
    v: DeltaHeads
    norm: Norm | None
    gate: Value | None
    conv: ShortConvForm | None
    out: Value

    @property
    def x(self) -> Value:
        """Queries, keys and values side by side, before the convolution if the body has it."""
        return self.q.x if self.conv is None else self.conv.tail.x


def delta_form(ops: Sequence[Op]) -> DeltaForm | None:
    """Return the form of a body, given in order, or none if it is not of this form."""
    rules = [op for op in ops if isinstance(op, Delta)]
    try:
        return _read(Taking(ops), rules[0], ops[-1].results[0]) if len(rules) == 1 else None
    except OtherFormError:
        return None


def _read(body: Taking, delta: Delta, out: Value) -> DeltaForm:
    body.taken.add(delta)
    decay = body.made(delta.g, Decay)
    q, k, v = _heads(body, delta.q), _heads(body, delta.k), _channels(body, delta.v)
    out = delta.out if out is delta.matrix else out
    norm, gate = _after(body, delta, out)
    conv = _convolution(body, q.x)
    body.check(conv is None or _all_channels(delta, q, k, v))
    form = DeltaForm(delta, decay, q, k, v, norm, gate, conv, out)
    body.check_whole()
    given = (form.x, decay.a, delta.beta, *(() if gate is None else (gate,)))
    body.check(k.x is q.x, v.x is q.x, decay.a_log.is_weight, decay.dt_bias.is_weight)
    body.check(*(of_token(value) and value.op not in body.inside for value in given))
    body.check(all(len(value.tensor.shape) == 3 for value in given[:3]))
    return form


def _heads(body: Taking, value: Value) -> DeltaHeads:
    scale = body.made_perhaps(value, Scale)
    value = value if scale is None else scale.x
    norm = body.made_perhaps(value, Norm)
    plain = _channels(body, value if norm is None else norm.x)
    body.check(norm is None or (norm.weight is None and not norm.clamp))
    return DeltaHeads(plain.x, plain.start, norm, 1.0 if scale is None else scale.factor)


def _channels(body: Taking, value: Value) -> DeltaHeads:
    rows = body.made(body.made(value, Unflatten).x, Slice)
    return DeltaHeads(rows.x, rows.start)


def _convolution(body: Taking, value: Value) -> ShortConvForm | None:
    """Return what makes a value of a token's channels and those before, if the body does."""
    silu = body.made_perhaps(value, Activation)
    conv = body.made_perhaps(value if silu is None else silu.x, Conv)
    if silu is None and conv is None:
        return None
    if conv is None:
        raise OtherFormError
    ops = [body.made(conv.memory, Tail), conv, *(() if silu is None else (silu,))]
    forms = short_conv_form(ops)
    if forms is None:
        raise OtherFormError
    return forms[0]


def _all_channels(delta: Delta, *parts: DeltaHeads) -> bool:
    """Return whether queries, keys and values are all channels of what they are slices of, each once."""
    at = 0
    for part, value in sorted(zip(parts, (delta.q, delta.k, delta.v), strict=True), key=lambda pair: pair[0].start):
        if part.start != at:
            return False
        at += width(value)
    return at == width(parts[0].x)


def _after(body: Taking, delta: Delta, out: Value) -> tuple[Norm | None, Value | None]:
    """Return what follows the rule: a norm of each head, and a gate."""
    gated = body.made_perhaps(out, Mul)
    norms = [op for op in delta.out.users if op in body.inside and isinstance(op, Norm)]
    norm = norms[0] if norms else None
    if norm is not None:
        body.taken.add(norm)
        body.check(not norm.clamp, norm.weight is None or norm.weight.is_weight)
    before = delta.out if norm is None else norm.out
    if gated is None:
        body.check(out is before)
        return norm, None
    body.check((gated.a is before) != (gated.b is before))
    return norm, gated.b if gated.a is before else gated.a
