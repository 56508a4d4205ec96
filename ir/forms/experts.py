"""The forms of ``kernel.route`` and ``kernel.experts``: a mixture of experts of one token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from regraft.ir.forms.elements import of_token, width
from regraft.ir.forms.taking import Found, Taking
from regraft.ir.op import Op, Value
from regraft.ir.ops.core import Activation, Add, Bias, Clamp, Gain, Linear, Mul, Norm, Scale
from regraft.ir.ops.moe import Assign, Experts, Route
from regraft.ir.ops.precision import CastLike, Widen


@dataclass(frozen=True)
class RouterState:
    """What a router computes before its logits.

    Attributes:
        into: The map of the token's vector that gives its state.
        carried: The factor for each channel of a state of an earlier layer that is added, if one is.
        out: The state.
        norm: Its norm.
        maps: Maps of it, one after another, each with an activation behind.
        activation: That.
    """

    into: Linear
    carried: Gain | None
    out: Value
    norm: Norm
    maps: tuple[Linear, ...]
    activation: str


@dataclass(frozen=True)
class RouteForm:
    """A body that chooses experts.

    Attributes:
        route: The choice.
        x: The vector that it starts from: of the token, or the logits where there is no map.
        linear: The map that gives the logits, if the body has it.
        norm: The norm before it.
        factor: Multiplies what is mapped.
        assign: Where experts are looked up, by token.
        state: What is computed between the norm and the map that gives the logits.
    """

    route: Route
    x: Value
    linear: Linear | None = None
    norm: Norm | None = None
    factor: float = 1.0
    assign: Assign | None = None
    state: RouterState | None = None


@dataclass(frozen=True)
class SharedExpert:
    """A gated MLP that every token takes.

    Attributes:
        gate: The gate's map.
        up: The map beside it.
        down: The map back.
        activation: Of the gate.
        limit: Cuts the gate above it and the other at both sides.
        share: The map whose sigmoid multiplies what it gives.
    """

    gate: Linear
    up: Linear
    down: Linear
    activation: str
    limit: float | None = None
    share: Linear | None = None


@dataclass(frozen=True)
class Moved:
    """A bias and then a factor for each channel."""

    bias: Bias
    gain: Gain


@dataclass(frozen=True)
class NormedSums:
    """What is done to two sums that are normed before they are added to the residual stream, normed once more.

    Attributes:
        shared_norm: The norm before the expert that every token takes.
        out: The norm of the chosen experts' sum.
        shared_out: That of what the other one gives.
        both: That of both together.
        gain: A number that multiplies the result.
    """

    shared_norm: Norm
    out: Norm
    shared_out: Norm
    both: Norm
    gain: Gain | None


@dataclass(frozen=True)
class ExpertsForm:
    """A body that mixes experts.

    Attributes:
        experts: The mixture.
        x: The vector that the experts take, or that is normed for them.
        norm: The norm before them.
        shared: The expert that every token takes.
        residual: What is added to the sum.
        out_moved: What is done to the sum before that.
        residual_moved: What is done to the residual.
        out: The result.
        normed: How sums are normed before the residual is added, if they are.
    """

    experts: Experts
    x: Value
    norm: Norm | None
    shared: SharedExpert | None
    residual: Value | None
    out_moved: Moved | None
    residual_moved: Moved | None
    out: Value
    normed: NormedSums | None = None


def route_form(ops: Sequence[Op]) -> RouteForm | None:
    """Return the form of a body, given in order, or none if it is not of this form."""
    body = _Body(ops)
    routes = [op for op in ops if isinstance(op, Route)]
    if len(routes) != 1:
        return None
    route = routes[0]
    body.taken.add(route)
    assign = None
    if route.given is not None:
        assign = body.made_perhaps(route.given, Assign)
        if assign is None:
            return None
    linear = body.made_perhaps(route.logits, Linear)
    if linear is None:
        return RouteForm(route, route.logits, assign=assign) if body.whole and of_token(route.logits) else None
    state = _router_state(body, linear.x)
    start = linear.x if state is None else state.into.x
    scale = None if state is not None else body.made_perhaps(start, Scale)
    norm, x = body.normed(start if scale is None else scale.x)
    if not body.whole or not of_token(x) or not linear.weight.is_weight:
        return None
    return RouteForm(route, x, linear, norm, 1.0 if scale is None else scale.factor, assign, state)


def _router_state(body: _Body, value: Value) -> RouterState | None:
    """Return what a router computes on the way to ``value`` from its state; none if the body has no such state."""
    maps: list[Linear] = []
    kinds: list[str] = []
    while (act := body.made_perhaps(value, Activation)) is not None:
        linear = body.made_perhaps(act.x, Linear)
        if linear is None or linear.weight.tensor.sizes[0] != linear.weight.tensor.sizes[1]:
            return None
        maps.insert(0, linear)
        kinds.append(act.kind)
        value = linear.x
    norm = body.made_perhaps(value, Norm) if maps else None
    if norm is None or norm.clamp or len(set(kinds)) > 1:
        return None
    total = body.made_perhaps(norm.x, Add)
    carried = None if total is None else body.made_perhaps(total.b, Gain)
    if total is not None and (carried is None or carried.x.op in body.inside or not carried.by.is_weight):
        return None
    into = body.made_perhaps(norm.x if total is None else total.a, Linear)
    if into is None or not into.weight.is_weight:
        return None
    return RouterState(into, carried, norm.x, norm, tuple(maps), kinds[0])


def experts_form(ops: Sequence[Op]) -> ExpertsForm | None:
    """Return the form of a body, given in order, or none if it is not of this form."""
    body = _Body(ops)
    found = [op for op in ops if isinstance(op, Experts)]
    if len(found) != 1 or (found[0].gate_up_bias is None) != (found[0].down_bias is None):
        return None
    experts = found[0]
    body.taken.add(experts)
    norm, x = body.normed(experts.x)
    if norm is not None and experts.skip == "identity":
        return None
    if norm is not None and isinstance(body.reader(experts.out), Norm):
        return _normed_form(body, experts, norm, x)
    y, shared, residual = experts.out, None, None
    out_moved = residual_moved = None
    while (op := body.reader(y)) is not None:
        if isinstance(op, Add) and residual_moved is None:
            other = op.b if op.a is y else op.a
            beside = None if shared is not None else _shared(body, other, experts, experts.x)
            if beside is not None:
                shared = beside
            elif residual is None:
                residual_moved, residual = body.moved(other)
                if residual.op in body.inside:
                    return None
            else:
                return None
            body.taken.add(op)
            y = op.out
        elif isinstance(op, Bias) and out_moved is None and residual is None:
            gain = body.reader(op.out)
            if not isinstance(gain, Gain) or gain.x is not op.out or not gain.by.is_weight:
                return None
            out_moved, y = Moved(op, gain), gain.out
            body.taken.update((op, gain))
            wide = body.reader(y)
            if isinstance(wide, Widen):
                body.taken.add(wide)
                y = wide.out
        else:
            return None
    if (out_moved is None) != (residual_moved is None) or not body.whole:
        return None
    return ExpertsForm(experts, x, norm, shared, residual, out_moved, residual_moved, y)


def _normed_form(body: _Body, experts: Experts, norm: Norm, x: Value) -> ExpertsForm | None:
    """Return the form of a body in which the experts' sum and an MLP beside them are normed, and so is their sum."""
    out = body.next(experts.out, Norm)
    total = None if out is None else body.next(out.out, Add)
    if out is None or total is None:
        return None
    shared_out = body.made_perhaps(total.b if total.a is out.out else total.a, Norm)
    shared = None if shared_out is None else _shared(body, shared_out.x, experts, None)
    if shared_out is None or shared is None or shared.share is not None:
        return None
    shared_norm, same = body.normed(shared.gate.x)
    both = body.next(total.out, Norm)
    added = None if both is None else body.next(both.out, Add)
    if shared_norm is None or same is not x or both is None or added is None:
        return None
    residual = added.b if added.a is both.out else added.a
    gain = body.next(added.out, Gain)
    if gain is not None and (not gain.by.is_weight or width(gain.by) != 1):
        return None
    norms = (norm, shared_norm, out, shared_out, both)
    alike = all(each.eps == norm.eps and each.offset == norm.offset and not each.clamp for each in norms)
    if not alike or any(each.weight is None for each in norms) or experts.gate_up_bias is not None:
        return None
    if not body.whole or residual.op in body.inside:
        return None
    normed = NormedSums(shared_norm, out, shared_out, both, gain)
    last = added.out if gain is None else gain.out
    return ExpertsForm(experts, x, norm, shared, residual, None, None, last, normed)


def _shared(body: _Body, value: Value, experts: Experts, x: Value | None) -> SharedExpert | None:
    """Return the expert that gives a value, of the vector ``x`` if it is told; none if the body has none there."""
    share = None
    made = value.op
    if isinstance(made, Gain) and made in body.inside:
        sigmoid = body.made_perhaps(made.by, Activation)
        share = None if sigmoid is None or sigmoid.kind != "sigmoid" else body.made_perhaps(sigmoid.x, Linear)
        if share is None or share.bias is not None or width(share.out) != 1 or share.x is not x:
            return None
        body.taken.add(made)
        value = made.x
    down = body.made_perhaps(value, Linear)
    hidden = None if down is None or down.bias is not None else body.made_perhaps(down.x, Mul)
    act = None if hidden is None else body.made_perhaps(hidden.a, Activation)
    if down is None or hidden is None or act is None or act.kind != experts.activation:
        return None
    high, low = body.made_perhaps(act.x, Clamp), body.made_perhaps(hidden.b, Clamp)
    limit = None if high is None else high.high
    if (high is None) != (low is None) or (high is not None and high.low is not None):
        return None
    if low is not None and (limit is None or low.high != limit or low.low != -limit):
        return None
    gate = body.made_perhaps(act.x if high is None else high.x, Linear)
    up = body.made_perhaps(hidden.b if low is None else low.x, Linear)
    if gate is None or up is None or gate.bias is not None or up.bias is not None:
        return None
    if up.x is not gate.x or (x is not None and gate.x is not x):
        return None
    return SharedExpert(gate, up, down, act.kind, limit, share)


class _Body(Taking):
    """Ops of a body, taken one by one, back from a value or on to what reads it."""

    @property
    def whole(self) -> bool:
        """Whether all are taken."""
        return self.taken == self.inside

    def reader(self, value: Value) -> Op | None:
        """Return the op that reads a value, the only one."""
        users = [user for user in value.users if user in self.inside]
        return users[0] if len(users) == 1 else None

    def next(self, value: Value, kind: type[Found]) -> Found | None:
        """Take the op that reads a value, the only one, if it is of a kind."""
        op = self.reader(value)
        if not isinstance(op, kind):
            return None
        self.taken.add(op)
        return op

    def normed(self, value: Value) -> tuple[Norm | None, Value]:
        """Take the norm that makes a value, and return it with what it norms."""
        norm = value.op
        if norm not in self.inside or not isinstance(norm, Norm) or norm.clamp:
            return None, value
        self.taken.add(norm)
        narrow = self.made_perhaps(norm.x, CastLike)
        return norm, norm.x if narrow is None else narrow.x

    def moved(self, value: Value) -> tuple[Moved | None, Value]:
        """Take a bias and a factor for each channel that make a value, and return them with what they are done to."""
        gain = value.op
        if gain not in self.inside or not isinstance(gain, Gain) or not gain.by.is_weight:
            return None, value
        bias = gain.x.op
        if bias not in self.inside or not isinstance(bias, Bias):
            return None, value
        self.taken.update((gain, bias))
        return Moved(bias, gain), bias.x
