"""Target ``torch``: the code of each op, one entry in `EMITTERS` for each class that the target can write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, NamedTuple, Protocol

from regraft.codegen.names import literal
from regraft.ir.errors.codegen import MissingEmitterError
from regraft.ir.op import REGISTRY, Op, Value
from regraft.ir.ops.attn import KV, Attend, Temper
from regraft.ir.ops.core import (
    Activation,
    Add,
    Bias,
    Concat,
    Embed,
    Flatten,
    Gain,
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
from regraft.ir.ops.index import Index
from regraft.ir.ops.memory import ReadRows, StateRows, ViewRows
from regraft.ir.ops.moe import Experts, Route
from regraft.ir.ops.pos import Rope
from regraft.ir.ops.seq import Conv, Decay, Delta, Shift, Tail

SUM, PRODUCT, ATOM = 1, 2, 3


class Code(NamedTuple):
    """Source of an expression, and how tightly its outermost operator binds."""

    text: str
    binds: int = ATOM

    def within(self, binds: int) -> str:
        """Return the text as an operand of an operator that binds that tightly."""
        return f"({self.text})" if self.binds < binds else self.text


class Scope(Protocol):
    """What an emitter may ask of the place it writes for: a block, or the model itself."""

    def of(self, value: Value) -> Code:
        """Return the code of a value: a variable, an expression, or a parameter."""
        ...

    def module(self, value: Value, kind: str) -> str | None:
        """Return the module of that ``kind`` that holds a parameter, such as ``self.q_proj``, if one does."""
        ...

    def helper(self, name: str, *flags: str) -> str:
        """Return the name of a function of the emitted file, which is then written, in the forms ``flags``."""
        ...

    def rope(self, op: Rope) -> str:
        """Return the variable that holds cosine and sine for an op."""
        ...

    def view(self, kept: int | None, window: int | None) -> str:
        """Return the variable that says what a query sees of a memory that keeps ``kept`` rows."""
        ...

    def past(self, op: Op) -> str:
        """Return the variable that holds a memory's rows of earlier calls."""
        ...

    def call(self, name: str) -> str:
        """Return the variable of a fact of the call: ``start`` and ``count``, the tokens before it and of it [B]."""
        ...

    def head_map(self, heads: tuple[int, ...]) -> str:
        """Return the buffer that holds the key/value head of each query head."""
        ...


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
    leading = "-1, " * (len(op.x.tensor.shape) - 1)
    return Code(f"{at.of(op.x).within(ATOM)}.unsqueeze(-2).expand({leading}{op.parts}, -1)")


def _layer_norm(op: LayerNorm, at: Scope) -> Code:
    width = op.weight.tensor.sizes[0]
    values = [at.of(op.x).text, f"({width},)", at.of(op.weight).text, at.of(op.bias).text, literal(op.eps)]
    return Code(f"F.layer_norm({', '.join(values)})")


def _form(op: Op, what: str) -> MissingEmitterError:
    """Return the error that the target lacks a form of an op."""
    return MissingEmitterError(target="torch", op=f"{op.label} {what}", where=op.scope)


def _rope(op: Rope, at: Scope) -> Code:
    if op.pos.op is not None or op.pos.name != "pos":
        raise _form(op, "at positions other than this call's")
    if op.inverse:
        raise _form(op, "turning back")
    name = "rotate" if op.layout == "halves" else "rotate_pairs"
    flags = () if op.channels == op.out.tensor.shape[-1] else ("part",)
    return Code(f"{at.helper(name, *flags)}({at.of(op.x).text}, {at.rope(op)})")


def _kv(op: KV, at: Scope) -> Code:
    view = at.view(op.window, _owner_window(op))
    return Code(f"{at.helper('keep')}({at.past(op)}, ({at.of(op.k).text}, {at.of(op.v).text}), {view})")


def _rows(op: StateRows, at: Scope) -> Code:
    return Code(f"{at.helper('keep')}({at.past(op)}, ({at.of(op.x).text},), {at.view(op.window, op.window)})")


def _read(op: ReadRows, at: Scope) -> Code:
    number = [each.name for each in op.memory.memory.fields].index(op.field)
    return Code(f"{at.of(op.memory).within(ATOM)}[{number}]")


def _view(op: ViewRows, at: Scope) -> Code:
    keys = at.of(op.k).text
    return Code(f"({keys}, {keys if op.v is None else at.of(op.v).text})")


def _index(op: Index, at: Scope) -> Code:
    values = [at.of(v).text for v in (op.q, op.weight, op.memory)]
    more = [at.view(None, None), literal(op.scale), literal(op.chosen)]
    return Code(f"{at.helper('best_rows')}({', '.join(values + more)})")


def _owner_window(op: KV) -> int | None:
    """Return the window of a reader beside the memory, so that both use one view; that of the memory if there is none.

    A view's slots depend on what the memory keeps only.
    """
    windows = [user.window for user in op.out.users if isinstance(user, Attend)]
    return op.window if op.window in windows or not windows else windows[0]


def _attend(op: Attend, at: Scope) -> Code:
    if op.entries is not None:
        raise _form(op, "to two memories")
    memory = at.of(op.memory).text
    heads, kv_heads = op.out.tensor.shape[2], op.memory.memory.field("k").shape[0]
    flags = ("grouped",) if heads != kv_heads and op.head_map is None else ()
    if op.head_map is not None:
        memory = f"{at.helper('by_head')}({memory}, {at.head_map(op.head_map)})"
    view = at.view(op.memory.memory.window, op.window)
    if op.chosen is not None:
        view = f"{at.helper('among')}({view}, {at.of(op.chosen).text}, {at.of(op.memory).text}[0])"
    if op.sink is not None or op.softcap is not None:
        more = ([] if op.sink is None else [f"sink={at.of(op.sink).text}"]) + (
            [] if op.softcap is None else [f"cap={literal(op.softcap)}"]
        )
        values = [at.of(op.q).text, memory, view, literal(op.scale), *more]
        return Code(f"{at.helper('attend_by_scores')}({', '.join(values)})")
    return Code(f"{at.helper('attend', *flags)}({at.of(op.q).text}, {memory}, {view}, {literal(op.scale)})")


def _tail(op: Tail, at: Scope) -> Code:
    arguments = [at.past(op), at.of(op.x).text, literal(op.rows), at.call("count")]
    if op.initial is not None:
        arguments += [at.call("start"), at.of(op.initial).text]
    return Code(f"{at.helper('with_tail', *(['initial'] if op.initial is not None else []))}({', '.join(arguments)})")


def _conv(op: Conv, at: Scope) -> Code:
    rows, taps = _kept_rows(op.memory), op.weight.tensor.sizes[2]
    x = at.of(op.memory).within(ATOM) + (f"[:, {rows - taps + 1}:]" if rows >= taps else "")
    bias = "None" if op.bias is None else at.of(op.bias).text
    return Code(f"{at.helper('convolve')}({x}, {at.of(op.weight).text}, {bias}, {op.groups})")


def _shift(op: Shift, at: Scope) -> Code:
    rows = _kept_rows(op.memory)
    return Code(f"{at.of(op.memory).within(ATOM)}[:, {rows - 1 or ''}:-1]")


def _kept_rows(tail: Value) -> int:
    rows = tail.memory.fixed
    assert rows is not None
    return rows


def _decay(op: Decay, at: Scope) -> Code:
    return Code(f"{at.helper('log_decay')}({', '.join(at.of(v).text for v in (op.a, op.a_log, op.dt_bias))})")


def _delta(op: Delta, at: Scope) -> Code:
    values = [at.of(v).text for v in (op.q, op.k, op.v, op.g, op.beta)]
    return Code(f"{at.helper('delta_rule')}({', '.join([at.past(op), *values, at.call('count')])})")


def _route(op: Route, at: Scope) -> Code:
    bare = all(table is None for table in (op.bias, op.gain, op.given))
    plain = bare and op.score == "softmax" and op.scale == 1.0 and not op.eps
    if not plain or op.groups > 1:
        return _route_by(op, at)
    name = at.helper("route_normalized" if op.normalize else "route")
    return Code(f"{name}({at.of(op.logits).text}, {op.chosen})")


def _route_by(op: Route, at: Scope) -> Code:
    if op.given is not None or op.score == "sqrt_softplus":
        raise _form(op, "of given experts, or by roots of softplus")
    scores = "torch.sigmoid" if op.score == "sigmoid" else at.helper("softmax")
    values = [at.of(op.logits).text, literal(op.chosen), scores, literal(op.normalize)]
    values += [f"bias={at.of(op.bias).text}"] if op.bias is not None else []
    values += [f"gain={at.of(op.gain).text}"] if op.gain is not None else []
    values += [f"scale={literal(op.scale)}"] if op.scale != 1.0 else []
    values += [f"eps={literal(op.eps)}"] if op.eps else []
    if op.kept < op.groups:
        at.helper("best_groups")
        values.append(f"groups=({op.groups}, {op.kept}, {op.best})")
    return Code(f"{at.helper('route_by', *(['groups'] if op.kept < op.groups else []))}({', '.join(values)})")


def _experts(op: Experts, at: Scope) -> Code:
    values = [op.x, op.weights, op.chosen, op.gate_up, op.down]
    function = {"silu": "F.silu", "gelu": "F.gelu", "relu": "F.relu", "softplus": "F.softplus"}.get(op.activation)
    if function is None:
        own = op.activation in ("gelu_tanh", "quick_gelu")
        function = at.helper(op.activation) if own else f"torch.{op.activation}"
    arguments = [*(at.of(v).text for v in values), function]
    biases = {"gate_up_bias": op.gate_up_bias, "down_bias": op.down_bias}
    more = [f"{name}={at.of(bias).text}" for name, bias in biases.items() if bias is not None]
    more += [f"limit={literal(op.limit)}"] if op.limit is not None else []
    more += [f"shift={literal(op.shift)}"] if op.shift else []
    if op.skip != "none":
        more.append(f"skip={literal(op.skip)}")
        at.helper("mix_experts", "skip")
    return Code(f"{at.helper('mix_experts', *(['told'] if more else []))}({', '.join(arguments + more)})")


EMITTERS: Mapping[type[Op], Callable[[Any, Scope], Code]] = {
    Activation: _activation,
    Add: _add,
    Attend: _attend,
    Bias: _bias,
    Concat: _concat,
    Conv: _conv,
    Decay: _decay,
    Delta: _delta,
    Embed: _embed,
    Experts: _experts,
    Flatten: _flatten,
    Gain: _gain,
    Index: _index,
    KV: _kv,
    LayerNorm: _layer_norm,
    Linear: _linear,
    Mean: _mean,
    Mul: _mul,
    Norm: _norm,
    ReadRows: _read,
    Repeat: _repeat,
    Rope: _rope,
    Route: _route,
    Scale: _scale,
    Shift: _shift,
    Slice: _slice,
    Softcap: _softcap,
    StateRows: _rows,
    Tail: _tail,
    Temper: _temper,
    Unflatten: _unflatten,
    ViewRows: _view,
}

# What is written onto its operand's expression, or into its user's, where it is the only use: one line for one thought.
CHAINS = (Unflatten, Flatten, Slice)
TERMS = (Linear, Activation, Experts)
INTO_TERMS = (Add, Mul, Gain, Activation)


def absorbs(user: Op, made: Op) -> bool:
    """Return whether ``user`` may be written around the expression of ``made``."""
    if isinstance(user, CHAINS):
        return not isinstance(made, KV | Route | StateRows)
    return (isinstance(user, INTO_TERMS) and isinstance(made, TERMS)) or isinstance(made, Flatten)


def emit_op(op: Op, at: Scope) -> Code:
    """Return the code of an op.

    Raises:
        MissingEmitterError: The target has none.
    """
    emitter = EMITTERS.get(type(op))
    if emitter is None:
        raise MissingEmitterError(target="torch", op=op.label, where=op.scope)
    return emitter(op, at)


def missing_ops() -> list[str]:
    """Return the names of the run-time ops that this target cannot write."""
    import_module("regraft.ir.ops")  # registers every op
    return sorted(name for name, cls in REGISTRY.items() if not cls.weight_time and cls not in EMITTERS)
