"""Target ``torch``: the code of what works one token at a time: maps, norms, shapes, sums."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from regraft.codegen.names import literal
from regraft.codegen.torch.code import ATOM, PRODUCT, SUM, Code, Scope
from regraft.ir.graph import layer_of
from regraft.ir.op import Op
from regraft.ir.ops.attn import Temper
from regraft.ir.ops.core import (
    Activation,
    Add,
    Bias,
    Clamp,
    Concat,
    Embed,
    Flatten,
    Gain,
    GroupedLinear,
    InverseRMS,
    LayerNorm,
    Linear,
    Mean,
    Mul,
    Norm,
    Repeat,
    Scale,
    Slice,
    Softcap,
    Unflatten,
)
from regraft.ir.ops.precision import CastLike, Widen


def _embed(op: Embed, at: Scope) -> Code:
    module = at.module(op.table, "embedding")
    if module is not None:
        return Code(f"{module}({at.of(op.tokens).text})")
    return Code(f"F.embedding({at.of(op.tokens).text}, {at.of(op.table).text})")


def _linear(op: Linear, at: Scope) -> Code:
    module = at.module(op.weight, "linear")
    if module is not None:
        return Code(f"{module}({at.of(op.x).text})")
    arguments = [at.of(op.x).text, at.of(op.weight).text]
    if op.bias is not None:
        arguments.append(at.of(op.bias).text)
    return Code(f"F.linear({', '.join(arguments)})")


def _norm(op: Norm, at: Scope) -> Code:
    if op.clamp:
        return Code(f"{at.helper('rms_norm_clamped')}({at.of(op.x).text}, {literal(op.eps)})")
    flags = ("plain",) if op.weight is None else ("offset",) if op.offset else ()
    name = {(): "rms_norm", ("plain",): "rms_norm_plain", ("offset",): "rms_norm_offset"}[flags]
    if op.weight is not None and op.cast == "after":
        name += "_wide"
    arguments = [at.of(op.x).text]
    if op.weight is not None:
        arguments.append(at.of(op.weight).text)
    arguments.append(literal(op.eps))
    if op.weight is not None and op.offset:
        arguments.append(literal(op.offset))
    return Code(f"{at.helper(name)}({', '.join(arguments)})")


def _add(op: Add, at: Scope) -> Code:
    return Code(f"{at.of(op.a).within(SUM)} + {at.of(op.b).within(PRODUCT)}", SUM)


def _mul(op: Mul, at: Scope) -> Code:
    return Code(f"{at.of(op.a).within(PRODUCT)} * {at.of(op.b).within(ATOM)}", PRODUCT)


def _bias(op: Bias, at: Scope) -> Code:
    return Code(f"{at.of(op.x).within(SUM)} + {at.of(op.bias).within(PRODUCT)}", SUM)


def _mean(op: Mean, at: Scope) -> Code:
    return Code(f"{at.of(op.x).within(ATOM)}.mean(-2)")


def _temper(op: Temper, at: Scope) -> Code:
    return Code(f"{at.of(op.x).within(PRODUCT)} * {at.of(op.by).within(ATOM)}[:, None]", PRODUCT)


def _gain(op: Gain, at: Scope) -> Code:
    return Code(f"{at.of(op.x).within(PRODUCT)} * {at.of(op.by).within(ATOM)}", PRODUCT)


def _scale(op: Scale, at: Scope) -> Code:
    return Code(f"{at.of(op.x).within(PRODUCT)} * {literal(op.factor)}", PRODUCT)


ACTIVATIONS: Mapping[str, str] = {
    "silu": "F.silu({})",
    "gelu": "F.gelu({})",
    "gelu_tanh": 'F.gelu({}, approximate="tanh")',
    "relu": "F.relu({})",
    "sigmoid": "torch.sigmoid({})",
    "softplus": "F.softplus({})",
    "tanh": "torch.tanh({})",
}


def _activation(op: Activation, at: Scope) -> Code:
    if op.kind == "quick_gelu":
        return Code(f"{at.helper('quick_gelu')}({at.of(op.x).text})")
    return Code(ACTIVATIONS[op.kind].format(at.of(op.x).text))


def _softcap(op: Softcap, at: Scope) -> Code:
    cap = literal(op.cap)
    return Code(f"torch.tanh({at.of(op.x).within(PRODUCT)} / {cap}) * {cap}", PRODUCT)


def _concat(op: Concat, at: Scope) -> Code:
    parts = [at.of(x).text for x in op.xs]
    return Code(f"torch.cat(({', '.join(parts)}{',' if len(parts) == 1 else ''}), -1)")


def _slice(op: Slice, at: Scope) -> Code:
    return Code(f"{at.of(op.x).within(ATOM)}[..., {op.start}:{op.stop}]")


def _unflatten(op: Unflatten, at: Scope) -> Code:
    sizes = op.out.tensor.shape[-2:]
    return Code(f"{at.of(op.x).within(ATOM)}.unflatten(-1, ({sizes[0]}, {sizes[1]}))")


def _flatten(op: Flatten, at: Scope) -> Code:
    return Code(f"{at.of(op.x).within(ATOM)}.flatten(-2)")


def _repeat(op: Repeat, at: Scope) -> Code:
    dims = len(op.x.tensor.shape) - 1
    x = f"{at.of(op.x).within(ATOM)}.unsqueeze(-2)"
    if layer_of(op.out.name) is None:  # what layers take has strides like what they give: they are compiled once
        return Code(f"{x}.repeat({'1, ' * dims}{op.parts}, 1)")
    return Code(f"{x}.expand({'-1, ' * dims}{op.parts}, -1)")


def _inverse_rms(op: InverseRMS, at: Scope) -> Code:
    return Code(f"{at.helper('inverse_rms')}({at.of(op.x).text}, {literal(op.eps)})")


def _layer_norm(op: LayerNorm, at: Scope) -> Code:
    width = op.weight.tensor.sizes[0]
    values = [at.of(op.x).text, f"({width},)", at.of(op.weight).text, at.of(op.bias).text, literal(op.eps)]
    return Code(f"F.layer_norm({', '.join(values)})")


def _widen(op: Widen, at: Scope) -> Code:
    return Code(f"{at.helper('widen')}({at.of(op.x).text})")


def _cast_like(op: CastLike, at: Scope) -> Code:
    return Code(f"{at.of(op.x).within(ATOM)}.to({at.of(op.like).within(ATOM)}.dtype)")


def _clamp(op: Clamp, at: Scope) -> Code:
    bounds = {"min": op.low, "max": op.high}
    given = ", ".join(f"{name}={literal(bound)}" for name, bound in bounds.items() if bound is not None)
    return Code(f"{at.of(op.x).within(ATOM)}.clamp({given})") if given else at.of(op.x)


def _grouped_linear(op: GroupedLinear, at: Scope) -> Code:
    name = at.helper("grouped_linear_back" if op.transposed else "grouped_linear")
    return Code(f"{name}({at.of(op.x).text}, {at.of(op.weight).text})")


CORE: Mapping[type[Op], Callable[[Any, Scope], Code]] = {
    Activation: _activation,
    Add: _add,
    Bias: _bias,
    CastLike: _cast_like,
    Clamp: _clamp,
    Concat: _concat,
    Embed: _embed,
    Flatten: _flatten,
    Gain: _gain,
    GroupedLinear: _grouped_linear,
    InverseRMS: _inverse_rms,
    LayerNorm: _layer_norm,
    Linear: _linear,
    Mean: _mean,
    Mul: _mul,
    Norm: _norm,
    Repeat: _repeat,
    Scale: _scale,
    Slice: _slice,
    Softcap: _softcap,
    Temper: _temper,
    Unflatten: _unflatten,
    Widen: _widen,
}
