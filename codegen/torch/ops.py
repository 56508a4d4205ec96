"""Target ``torch``: the code of each op, one entry in `EMITTERS` for each class that the target can write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from regraft.codegen.names import literal
from regraft.codegen.torch.code import ATOM, Code, Scope, lacking
from regraft.codegen.torch.core import CORE
from regraft.codegen.torch.memories import MEMORIES
from regraft.ir.errors.codegen import MissingEmitterError
from regraft.ir.op import REGISTRY, Op, Value
from regraft.ir.ops.attn import KV, Attend
from regraft.ir.ops.compress import Compressed
from regraft.ir.ops.core import Activation, Add, Clamp, Concat, Flatten, Gain, Linear, Mul, Slice, Unflatten
from regraft.ir.ops.final import Last
from regraft.ir.ops.hyper import Collapse, Read, Spread, Write
from regraft.ir.ops.kernels import Kernel
from regraft.ir.ops.memory import StateRows
from regraft.ir.ops.moe import Assign, Experts, Route
from regraft.ir.ops.pos import Rope
from regraft.ir.ops.seq import Conv, Decay, Delta, Shift, Tail
from regraft.ir.types import FLOATS, ITEM_BITS


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
    scores = "torch.sigmoid" if op.score == "sigmoid" else at.helper(op.score)
    values = [at.of(op.logits).text, literal(op.chosen), scores, literal(op.normalize)]
    values += [f"bias={at.of(op.bias).text}"] if op.bias is not None else []
    values += [f"gain={at.of(op.gain).text}"] if op.gain is not None else []
    values += [f"given={at.of(op.given).text}"] if op.given is not None else []
    values += [f"scale={literal(op.scale)}"] if op.scale != 1.0 else []
    values += [f"eps={literal(op.eps)}"] if op.eps else []
    flags = ["given"] if op.given is not None else []
    if op.kept < op.groups:
        at.helper("best_groups")
        values.append(f"groups=({op.groups}, {op.kept}, {op.best})")
        flags.append("groups")
    return Code(f"{at.helper('route_by', *flags)}({', '.join(values)})")


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


def _last(op: Last, at: Scope) -> Code:
    """Refuse to keep the last tokens within a layer: elsewhere the model's own body does."""
    raise lacking(op, "within a layer")


def _assign(op: Assign, at: Scope) -> Code:
    return Code(f"{at.of(op.table).within(ATOM)}[{at.of(op.tokens).text}]")


def _spread_streams(op: Spread, at: Scope) -> Code:
    return Code(f"{at.helper('spread_streams')}({at.of(op.x).text}, {literal(op.count)})")


def _read_streams(op: Read, at: Scope) -> Code:
    values = [at.of(v).text for v in (op.streams, op.fn, op.base, op.scale)]
    more = [literal(op.eps), literal(op.floor), literal(op.iterations)]
    return Code(f"{at.helper('read_streams')}({', '.join(values + more)})")


def _write_streams(op: Write, at: Scope) -> Code:
    values = [at.of(v).text for v in (op.streams, op.added, op.post, op.comb)]
    return Code(f"{at.helper('write_streams')}({', '.join(values)})")


def _collapse_streams(op: Collapse, at: Scope) -> Code:
    values = [at.of(v).text for v in (op.streams, op.fn, op.base, op.scale)]
    return Code(f"{at.helper('collapse_streams')}({', '.join([*values, literal(op.eps), literal(op.floor)])})")


EMITTERS: Mapping[type[Op], Callable[[Any, Scope], Code]] = {
    **CORE,
    **MEMORIES,
    Assign: _assign,
    Collapse: _collapse_streams,
    Conv: _conv,
    Decay: _decay,
    Delta: _delta,
    Experts: _experts,
    Last: _last,
    Read: _read_streams,
    Route: _route,
    Shift: _shift,
    Spread: _spread_streams,
    Tail: _tail,
    Write: _write_streams,
}

# Operands that are read in float32 at least: a parameter that is stored so may stay so, whatever the model's dtype.
WIDE: Mapping[type[Op], tuple[str, ...]] = {
    Attend: ("sink",),
    Collapse: ("fn", "base", "scale"),
    Compressed: ("bias",),
    Decay: ("a_log", "dt_bias"),
    Read: ("fn", "base", "scale"),
    Route: ("bias", "gain"),
}

# What is written onto its operand's expression, or into its user's, where it is the only use: one line for one thought.
CHAINS = (Unflatten, Flatten, Slice, Clamp)
TERMS = (Linear, Activation, Experts)
PARTS = (Slice, Rope)
INTO_PARTS = (Concat, Rope)
INTO_TERMS = (Add, Mul, Gain, Activation)


def stays_wide(parameter: Value, dtype: str) -> bool:
    """Return whether a parameter of a model of ``dtype`` keeps a wider one, as all that reads it widens first."""
    own = parameter.tensor.dtype
    if own not in FLOATS or ITEM_BITS[own] <= ITEM_BITS[dtype]:
        return False
    users = [user for user in parameter.users if not user.weight_time]
    slots = [(user, slot) for user in users for slot, values in user.slots.items() if parameter in values]
    return all(slot in WIDE.get(type(user), ()) for user, slot in slots)


def absorbs(user: Op, made: Op) -> bool:
    """Return whether ``user`` may be written around the expression of ``made``."""
    if isinstance(user, CHAINS):
        return not isinstance(made, KV | Route | StateRows)
    if isinstance(user, INTO_PARTS) and isinstance(made, PARTS):
        return True
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
    """Return the names of the run-time ops that this target cannot write, kernels aside."""
    import_module("regraft.ir.ops")  # registers every op
    plain = {name: cls for name, cls in REGISTRY.items() if not cls.weight_time and not issubclass(cls, Kernel)}
    return sorted(name for name, cls in plain.items() if cls not in EMITTERS)
