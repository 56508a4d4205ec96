"""A block kind in words, read off its operations."""

from __future__ import annotations

from collections.abc import Sequence

from regraft.ir.kinds import Kind
from regraft.ir.op import Op, Value
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.core import Activation, Clamp, Linear, Mul, Norm
from regraft.ir.ops.index import Index
from regraft.ir.ops.memory import ViewRows
from regraft.ir.ops.moe import Experts, Route
from regraft.ir.ops.pos import Rope
from regraft.ir.ops.seq import Conv, Delta

FOR_EACH_TOKEN = ("mixture of experts", "shared expert", "MLP")  # titles of jobs; the others mix tokens


def describe(kind: Kind) -> str:
    """Return what a block kind is made of: how it mixes tokens, then what it does with each."""
    ops = kind.layers[0].ops
    return "; ".join(", ".join(words) for _, words in jobs(ops)) or ", ".join(sorted({op.opname for op in ops}))


def jobs(ops: Sequence[Op]) -> list[tuple[str, list[str]]]:
    """Return what ops do, each job by its title and in words: those that mix tokens, then those for each token."""
    found = [("attention", _attention(op, ops)) for op in ops if isinstance(op, Attend)]
    found += [("gated delta rule", _delta(op)) for op in ops if isinstance(op, Delta)]
    taps = [op.weight.tensor.sizes[-1] for op in ops if isinstance(op, Conv)]
    found += [("convolution", [f"{_times(taps.count(tap))} over {tap} tokens"]) for tap in dict.fromkeys(taps)]
    found += [("mixture of experts", _experts(op, ops)) for op in ops if isinstance(op, Experts)]
    return found + [_mlp(op) for op in ops if isinstance(op, Activation) and _gates(op)]


def _mlp(op: Activation) -> tuple[str, list[str]]:
    width = op.out.tensor.shape[-1]
    if op.results[0].name.rpartition(".")[2].startswith("shared_"):
        return "shared expert", [f"shared expert of {width}", op.kind]
    return "MLP", [f"MLP {width}", op.kind]


def _times(convolutions: int) -> str:
    return "causal convolution" if convolutions == 1 else f"{convolutions} causal convolutions"


def _attention(op: Attend, ops: Sequence[Op]) -> list[str]:
    heads, width = op.q.tensor.shape[2:]
    kept = op.memory.memory
    of = kept.fields[0].shape[0]
    words = [f"{heads} query heads of {width} over {of} KV {'head' if of == 1 else 'heads'}"]
    view = op.memory.op
    if isinstance(view, ViewRows):
        words[0] += f" made from rows of {view.memory.memory.row_elements}"
    index = op.chosen.op if op.chosen is not None else None
    what = "tokens"
    if op.entries is not None:
        words.append("all tokens" if op.window is None else _window(op))
        what = f"rows of {op.entries.memory.rate or 1} tokens"
    if isinstance(index, Index):
        words.append(f"the {index.chosen:,} {what} that an index of {index.q.tensor.shape[2]} heads chooses")
    elif op.entries is not None or op.window is None:
        words.append(f"all {what}")
    else:
        words.append(_window(op))
    if op.head_map is not None:
        words.append("head map")
    if op.memory.op not in ops:
        words.append("reads another layer's memory")
    if any(isinstance(each, Norm) and len(each.out.tensor.shape) == 4 for each in ops):
        words.append("q/k norm")
    words += [
        name
        for name, present in (("attention sinks", op.sink is not None), ("softcap", op.softcap is not None))
        if present
    ]
    ropes = {each.base: each.scaling for each in ops if isinstance(each, Rope)}
    return words + [
        f"rope base {base:,.0f}{'' if scaling == 'none' else f' {scaling}'}" for base, scaling in ropes.items()
    ]


def _window(op: Attend) -> str:
    return f"window {op.window:,}{f' and the first {op.first:,}' if op.first else ''}"


def _delta(op: Delta) -> list[str]:
    heads, keys, values = op.matrix.memory.fields[0].shape
    return ["gated delta rule", f"{heads} heads of {keys} × {values}"]


def _experts(op: Experts, ops: Sequence[Op]) -> list[str]:
    route = next((each for each in ops if isinstance(each, Route)), None)
    chosen = f"{0 if route is None else route.chosen} a token"
    if route is not None and route.given is not None:
        chosen += ", looked up by the token's number"
    count, _, width = op.down.tensor.shape
    return [f"{count} experts of {width}", chosen, op.activation]


def _gates(op: Activation) -> bool:
    """Whether an activation is a gated MLP's: its result times one linear map of the stream goes into another."""
    return _is_linear(op.x) and any(
        isinstance(user, Mul)
        and any(_is_linear(value) for value in user.operands if value is not op.out)
        and any(isinstance(reader, Linear) for reader in user.out.users)
        for user in op.out.users
    )


def _is_linear(value: Value) -> bool:
    """Whether a value is a linear map's, cut or not."""
    return isinstance(value.op.x.op if isinstance(value.op, Clamp) else value.op, Linear)
