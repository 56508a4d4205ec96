"""Fusion into ``kernel.route`` and ``kernel.experts``: mixtures, with the norm before and the sum behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from regraft.ir.forms.experts import experts_form, route_form
from regraft.ir.op import Op, Value
from regraft.ir.ops.core import Activation, Add, Bias, Clamp, Gain, Linear, Mul, Norm, Scale
from regraft.ir.ops.kernels import ExpertsStep, RouteStep
from regraft.ir.ops.moe import Assign, Experts, Route
from regraft.ir.ops.precision import CastLike, Widen
from regraft.passes.fusion.groups import Grouping

_SHARED = (Activation, Bias, Clamp, Gain, Linear, Mul)


def group_experts(grouping: Grouping) -> None:
    """Deal mixtures of experts and their routers to groups."""
    for ops in grouping.layers.values():
        for op in ops:
            if isinstance(op, Route) and grouping.free(op):
                _route(grouping, op)
            if isinstance(op, Experts) and grouping.free(op):
                _mix(grouping, op)


def choice_ops(route: Route) -> list[Op]:
    """Return a choice, with what looks its experts up."""
    given = None if route.given is None else route.given.op
    return [route, given] if isinstance(given, Assign) else [route]


def _route(grouping: Grouping, route: Route) -> None:
    """Take as much of what leads to a choice as there is a kernel for."""
    ops = choice_ops(route)
    linear = route.logits.op
    found = [(ops, route.logits)]
    if isinstance(linear, Linear) and grouping.free(linear):
        found.insert(0, ([*ops, linear], linear.x))
        scale = linear.x.op
        if isinstance(scale, Scale) and grouping.free(scale):
            found.insert(0, ([*ops, linear, scale], scale.x))
        chain = _state(grouping, linear.x)
        if chain and isinstance(chain[-1], Linear):
            found.insert(0, ([*ops, linear, *chain], chain[-1].x))
    for candidate, start in found:
        again = norm_ops(grouping, start) if candidate is not ops else []
        form = route_form(grouping.ordered([*again, *candidate]))
        if form is None or not inside(
            grouping, candidate, route, *(() if form.state is None else (form.state.out.op,))
        ):
            continue
        if grouping.take(RouteStep, candidate, again):
            return


def _state(grouping: Grouping, value: Value) -> list[Op]:
    """Return what a router computes from its state to the vector that it maps, the map that gives the state last."""
    chain: list[Op] = []
    while isinstance(op := value.op, Activation | Linear) and grouping.free(op):
        chain.append(op)
        value = op.x
    norm = value.op
    if not chain or not isinstance(norm, Norm) or not grouping.free(norm):
        return []
    into, total = norm.x.op, norm.x.op
    chain.append(norm)
    if isinstance(total, Add) and isinstance(total.b.op, Gain):
        chain += [total, total.b.op]
        into = total.a.op
    return [*chain, into] if isinstance(into, Linear) and all(map(grouping.free, [*chain, into])) else []


def _mix(grouping: Grouping, experts: Experts) -> None:
    """Take as much of what is around a mixture as there is a kernel for."""
    norm = norm_ops(grouping, experts.x)
    if _mix_normed(grouping, experts, norm):
        return
    steps = [{experts: None}, *_behind(grouping, experts)]
    for number in range(len(steps), 0, -1):
        ops = [op for step in steps[:number] for op in step]
        for again in (norm, []) if norm else ([],):
            form = experts_form(grouping.ordered([*again, *ops]))
            if form is None or form.out.op is None or not inside(grouping, ops, form.out.op):
                continue
            if grouping.take(ExpertsStep, ops, again):
                return


def _mix_normed(grouping: Grouping, experts: Experts, norm: list[Op]) -> bool:
    """Take a mixture with the MLP beside it, if both are normed before they are added; return whether."""
    ops: dict[Op, None] = {experts: None}
    y = experts.out
    beside: Linear | None = None
    for kind in (Norm, Add, Norm, Add, Gain):
        op = next(iter(y.users)) if len(y.users) == 1 else None
        if op is None or not isinstance(op, kind):
            break
        ops[op] = None
        if isinstance(op, Add) and beside is None:
            other = op.b.op if op.a is y else op.a.op
            down = other.x.op if isinstance(other, Norm) else None
            if other is None or not isinstance(down, Linear):
                return False
            ops[other] = None
            beside = down
        y = op.results[0]
    if beside is None:
        return False
    start: Value | None = None
    stack: list[Op | None] = [beside]
    while stack:
        op = stack.pop()
        if isinstance(op, Activation | Clamp | Linear | Mul):
            ops[op] = None
            stack.extend(v.op for v in op.operands if not v.is_weight)
        elif isinstance(op, Norm):
            start = op.out
    again = [] if start is None else [*norm, *(op for op in norm_ops(grouping, start) if op not in norm)]
    form = experts_form(grouping.ordered([*again, *ops]))
    if form is None or form.out.op is None or not inside(grouping, ops, form.out.op):
        return False
    return grouping.take(ExpertsStep, ops, again)


def _behind(grouping: Grouping, experts: Experts) -> Iterator[dict[Op, None]]:
    """Yield what is done to a mixture's sum, step by step, each with what leads to its other operand."""
    y = experts.out
    while len(y.users) == 1:
        op = next(iter(y.users))
        if (
            not isinstance(op, Add | Bias | Gain | Widen)
            or not grouping.free(op)
            or not grouping.same_layer(op, experts)
        ):
            return
        other = None if not isinstance(op, Add) else op.b if op.a is y else op.a
        yield {**dict.fromkeys(() if other is None else _beside(grouping, other, experts)), op: None}
        y = op.out


def _beside(grouping: Grouping, value: Value, experts: Experts) -> list[Op]:
    """Return what leads from the experts' vector to a value, or moves a residual."""
    gain = value.op
    if isinstance(gain, Gain) and isinstance(gain.x.op, Bias) and grouping.free(gain) and grouping.free(gain.x.op):
        return [gain.x.op, gain]
    found: dict[Op, None] = {}
    stack = [value]
    while stack:
        v = stack.pop()
        op = v.op
        if v is experts.x or op in found:
            continue
        if op is None or not isinstance(op, _SHARED) or not grouping.free(op) or not grouping.same_layer(op, experts):
            return []
        found[op] = None
        stack.extend(operand for operand in op.operands if not operand.is_weight)
    return list(found)


def norm_ops(grouping: Grouping, x: Value) -> list[Op]:
    """Return the norm that makes a vector, and what narrows the residual stream before it."""
    norm = x.op
    if not isinstance(norm, Norm) or norm in grouping.of or norm.clamp:
        return []
    narrow = norm.x.op
    return [narrow, norm] if isinstance(narrow, CastLike) and narrow not in grouping.of else [norm]


def inside(grouping: Grouping, ops: Iterable[Op], *given: Op | None) -> bool:
    """Return whether what ops make, all but those whose results are given, is read by them alone."""
    found = set(ops)
    made = [value for op in found if op not in given for value in op.results]
    return all(found.issuperset(value.users) and value not in grouping.graph.outputs for value in made)
