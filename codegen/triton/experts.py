"""Target ``triton``: calls of ``kernel.route``, ``kernel.experts`` and ``kernel.grouped_experts``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from regraft.codegen.kernels.experts import Experts as ExpertsKernel
from regraft.codegen.kernels.grouped import Grouped
from regraft.codegen.kernels.route import Route as RouteKernel
from regraft.codegen.torch.code import ATOM, Code
from regraft.ir.errors.codegen import MissingEmitterError
from regraft.ir.forms.elements import width
from regraft.ir.forms.experts import (
    ExpertsForm,
    Moved,
    NormedSums,
    RouteForm,
    RouterState,
    SharedExpert,
    experts_form,
    route_form,
)
from regraft.ir.op import Value
from regraft.ir.ops.core import Norm
from regraft.ir.ops.kernels import Kernel as KernelOp
from regraft.ir.ops.moe import Experts

if TYPE_CHECKING:
    from regraft.codegen.torch.body import Body
    from regraft.codegen.triton.target import SharedKernels, StepBody


def emit_route(op: KernelOp, at: StepBody) -> Code:
    """Return the call of a step's router."""
    form = route_form(op.stands_for)
    if form is None:
        raise MissingEmitterError(target="triton", op=op.label, where=op.scope)
    kernel = route_kernel(form)
    name = at.shared.kernel("router", kernel.called)
    code = _call(name, [form.x, *route_operands(form)], op, at)
    alone = form.state is not None and len(op.gives) < 3  # no layer reads the state
    return Code(f"{code.text}[1:]") if alone else code


def route_kernel(form: RouteForm) -> RouteKernel:
    """Return the kernel of a router, which has no name yet."""
    route, linear = form.route, form.linear
    return RouteKernel(
        name="",
        width=width(form.x),
        experts=width(route.logits),
        chosen=route.chosen,
        score=route.score,
        normalize=route.normalize,
        eps=route.eps,
        scale=route.scale,
        groups=route.groups,
        kept=route.kept,
        best=route.best,
        bias=route.bias is not None,
        gain=route.gain is not None,
        table=form.assign is not None,
        given_logits=linear is None,
        weight_bias=linear is not None and linear.bias is not None,
        factor=form.factor,
        **_norm(form.norm),
        **_of_state(form.state),
    )


def _of_state(state: RouterState | None) -> dict[str, Any]:
    """Return a router's constants of its state."""
    if state is None:
        return {}
    norm = _norm(state.norm)
    return {
        "states": width(state.out),
        "into_bias": state.into.bias is not None,
        "carried": state.carried is not None,
        "hidden": tuple(each.bias is not None for each in state.maps),
        "activation": state.activation,
        "state_norm": norm["norm"],
        "state_norm_weight": norm["norm_weight"],
        "state_norm_offset": norm["norm_offset"],
    }


def route_operands(form: RouteForm) -> list[Value]:
    """Return a router's operands after the first, in the kernel's order."""
    return _named(route_kernel(form).arguments(), _routed(form))


def _routed(form: RouteForm) -> dict[str, Value | None]:
    """Return a router's operands after the first by the kernel's names."""
    linear, assign, state = form.linear, form.assign, form.state
    inner: dict[str, Value | None] = {}
    if state is not None:
        inner = {"into": state.into.weight, "into_bias": state.into.bias, "state_norm": state.norm.weight}
        if state.carried is not None:
            inner |= {"carried": state.carried.x, "carried_gain": state.carried.by}
        for number, each in enumerate(state.maps, 1):
            inner |= {f"hidden_{number}": each.weight, f"hidden_{number}_bias": each.bias}
    return inner | {
        "norm_weight": None if form.norm is None else form.norm.weight,
        "weight": None if linear is None else linear.weight,
        "weight_bias": None if linear is None else linear.bias,
        "bias": form.route.bias,
        "gain": form.route.gain,
        "tokens": None if assign is None else assign.tokens,
        "table": None if assign is None else assign.table,
    }


def emit_experts(op: KernelOp, at: StepBody) -> Code:
    """Return the call of a step's mixture of experts."""
    form = experts_form(op.stands_for)
    if form is None:
        raise MissingEmitterError(target="triton", op=op.label, where=op.scope)
    shared = form.shared
    kernel = ExpertsKernel(
        name="",
        **_constants(form.experts),
        shared=0 if shared is None else width(shared.gate.out),
        shared_limit=None if shared is None else shared.limit,
        shared_share=shared is not None and shared.share is not None,
        shared_norm=form.normed is not None,
        residual=_kind_of_residual(form),
        gain=form.normed is not None and form.normed.gain is not None,
        **_norm(form.norm),
    )
    operands = _mixed(form) | _of_shared(shared) | _moves("out", form.out_moved)
    operands |= _moves("residual", form.residual_moved) | _norms(form.normed)
    return _call(at.shared.kernel("experts", kernel.called), _named(kernel.arguments(), operands), op, at)


def emit_grouped(op: KernelOp, at: Body) -> Code:
    """Return the call of a mixture of experts of many tokens."""
    form = experts_form(op.stands_for)
    if form is None or form.out is not form.experts.out or form.norm is not None:
        raise MissingEmitterError(target="triton", op=op.label, where=op.scope)
    kernel = Grouped(name="", **_constants(form.experts))
    operands = [op.outside(value) for value in _named(kernel.arguments(), _mixed(form))]
    codes = [at.of(value) for value in operands if value is not None]
    x = f"{codes[0].within(ATOM)}.contiguous()"
    shared = cast("SharedKernels", at.shared)
    name = shared.kernel("grouped_experts", kernel.called)
    return Code(f"{name}({', '.join([x, *(code.text for code in codes[1:])])})")


def _constants(experts: Experts) -> dict[str, Any]:
    """Return the constants of a mixture, which kernels of few and of many tokens share."""
    number, rows, channels = experts.gate_up.tensor.sizes
    return {
        "width": channels,
        "inner": rows // 2,
        "experts": number,
        "chosen": width(experts.weights),
        "activation": experts.activation,
        "limit": experts.limit,
        "shift": experts.shift,
        "skip": experts.skip,
        "biases": experts.gate_up_bias is not None,
    }


def _mixed(form: ExpertsForm) -> dict[str, Value | None]:
    """Return a mixture's operands by the kernel's names."""
    experts = form.experts
    return {
        "x": form.x,
        "norm_weight": None if form.norm is None else form.norm.weight,
        "weights": experts.weights,
        "experts": experts.chosen,
        "gate_up": experts.gate_up,
        "down": experts.down,
        "gate_up_bias": experts.gate_up_bias,
        "down_bias": experts.down_bias,
        "residual": form.residual,
    }


def _kind_of_residual(form: ExpertsForm) -> str:
    if form.normed is not None:
        return "norms"
    return "none" if form.residual is None else "add" if form.residual_moved is None else "move"


def _norms(normed: NormedSums | None) -> dict[str, Value | None]:
    """Return the weights of the norms behind a mixture and the MLP beside it."""
    if normed is None:
        return {}
    return {
        "shared_norm": normed.shared_norm.weight,
        "out_norm": normed.out.weight,
        "shared_out_norm": normed.shared_out.weight,
        "sum_norm": normed.both.weight,
        "gain": None if normed.gain is None else normed.gain.by,
    }


def _of_shared(shared: SharedExpert | None) -> dict[str, Value | None]:
    if shared is None:
        return {}
    share = None if shared.share is None else shared.share.weight
    maps = {"gate": shared.gate.weight, "up": shared.up.weight, "down": shared.down.weight, "share": share}
    return {f"shared_{name}": weight for name, weight in maps.items()}


def _moves(what: str, moved: Moved | None) -> dict[str, Value | None]:
    return {} if moved is None else {f"{what}_bias": moved.bias.bias, f"{what}_gain": moved.gain.by}


def _norm(norm: Norm | None) -> dict[str, Any]:
    """Return a kernel's constants of the norm before it."""
    if norm is None:
        return {}
    return {"norm": norm.eps, "norm_weight": norm.weight is not None, "norm_offset": norm.offset}


def _named(names: list[str], operands: dict[str, Value | None]) -> list[Value]:
    found = [operands[name] for name in names]
    return [value for value in found if value is not None]


def _call(name: str, inner: list[Value], op: KernelOp, at: StepBody) -> Code:
    """Return the call of a function with operands of a kernel's body."""
    outside = [op.outside(value) for value in inner]
    return Code(f"{name}({', '.join(at.passed(value) for value in outside if value is not None)})")
