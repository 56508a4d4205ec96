"""Cutting heads: from a value ``[B, T, H, D]`` back to the linear ops whose rows make its heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from regraft.ir.graph import Graph
from regraft.ir.op import Op, Value
from regraft.ir.ops.attn import KV, Attend
from regraft.ir.ops.core import Activation, Flatten, Gain, Linear, Mul, Norm, Scale, Slice, Softcap, Unflatten
from regraft.ir.ops.pos import Rope
from regraft.ir.ops.weight import Take
from regraft.passes.matching.rewrite import Editor
from regraft.passes.matching.sites import Output, Refusal, run_time_users


@dataclass
class Cut:
    """The ops between some linear ops and a value, in order of execution, that a cut of heads goes through.

    ``beside`` are ops that take other channels of the same heads, such as gates; a cut must go through these too. It is
    None where nothing may.
    """

    ops: list[Op] = field(default_factory=list[Op])
    beside: list[Op] | None = None

    @property
    def linears(self) -> list[Linear]:
        """The ops whose weights lose rows."""
        return [op for op in self.ops if isinstance(op, Linear)]


def trace(value: Value, reader: Op, *, parts: bool = False) -> Cut | Refusal:
    """Return what makes the heads of ``value``, or why they cannot be cut: some op mixes heads, or others read them.

    With ``parts`` the value may be some channels of each head; what takes the others stands ``beside``.
    """
    cut = Cut(beside=[] if parts else None)
    reason = _visit(value, False, reader, cut)
    return cut if reason is None else Refusal(reason)


def trace_gates(value: Value, output: Output, *, parts: bool = False) -> Cut | Refusal:
    """Return what makes the gates between an attention's result ``value`` and its output projection; see `trace`."""
    cut, flat = Cut(beside=[] if parts else None), False
    for op in output.chain:
        reason: str | None = None
        if isinstance(op, Flatten) and not flat:
            flat = True
        elif isinstance(op, Mul):
            gates = [gate for gate in (op.a, op.b) if gate is not value]
            reason = _visit(gates[0], flat, op, cut) if gates else None
        elif isinstance(op, Gain):
            reason = _visit_gain(op, flat, cut)
        elif not isinstance(op, Scale | Activation | Softcap) and not (isinstance(op, Norm) and not flat):
            reason = f"{op.label} stands between the attention and its output projection"
        if reason is not None:
            return Refusal(reason)
        value = op.results[0]
    return cut if flat else Refusal("the heads are not joined before the output projection")


def _visit_gain(op: Gain, flat: bool, cut: Cut) -> str | None:
    """Walk up from what heads are multiplied by along axes; a weight that is the same for every head stays."""
    if not op.by.is_weight:
        return _visit(op.by, flat, op, cut)
    sizes = op.by.tensor.sizes
    by_head = sizes[-1:] if flat else sizes[-2:-1]
    return None if by_head in ((), (1,)) else f"{op.label} has a weight for each head"


def _visit(value: Value, flat: bool, reader: Op, cut: Cut) -> str | None:
    """Walk up from ``value``; ``flat`` says that its heads are joined in the last axis. Return a reason to refuse."""
    others = [user for user in run_time_users(value) if user is not reader]
    if cut.beside is not None and not flat and isinstance(reader, Slice):
        cut.beside += [user for user in others if isinstance(user, Slice)]
        others = [user for user in others if not isinstance(user, Slice)]
    if others:
        return f"%{value.name} is read by {others[0].label} too"
    op = value.op
    reason: str | None = None
    match op:
        case Scale() | Activation() | Softcap():
            reason = _visit(op.x, flat, op, cut)
        case Rope() if not flat:
            reason = _visit(op.x, False, op, cut)
        case Norm() if not flat:
            reason = _visit(op.x, False, op, cut)
        case Mul():
            reason = _visit(op.a, flat, op, cut) or (None if op.a is op.b else _visit(op.b, flat, op, cut))
        case Slice() if not flat and cut.beside is not None:
            reason = _visit(op.x, False, op, cut)
        case Unflatten() if not flat:
            reason = _visit(op.x, True, op, cut)
        case Flatten() if flat:
            reason = _visit(op.x, False, op, cut)
        case Linear() if flat:
            if not op.weight.is_weight:
                return f"{op.label} multiplies by a value that is known only at run time"
        case Slice() if _of_projection(op):
            return f"{op.label} takes a part of a projection, which split-projections makes one of its own"
        case None:
            return f"%{value.name} is an input of the graph"
        case _:
            return f"{op.label} makes the heads in a way that cannot be cut"
    if reason is None:
        cut.ops.append(op)
    return reason


def _of_projection(op: Slice) -> bool:
    made = op.x.op.x.op if isinstance(op.x.op, Unflatten) else op.x.op
    return isinstance(made, Linear)


def apply_cut(edit: Editor, cut: Cut, heads: int, keep: Sequence[int]) -> None:
    """Keep only some heads: take their rows of each projection and bias, and correct the types on the way."""
    edit.set_aside_measured(cut.ops)
    for op in cut.ops:
        if isinstance(op, Linear):
            block = int(op.weight.tensor.sizes[0]) // heads
            for slot in ("weight", "bias"):
                if op.slots[slot]:
                    take_blocks(edit, op, slot, 0, block, keep)
        elif isinstance(op, Unflatten):
            edit.set_attribute(op, "parts", len(keep))
    edit.retype(cut.ops)


def take_blocks(edit: Editor, reader: Op, slot: str, axis: int, block: int, keep: Sequence[int]) -> None:
    """Let ``reader`` read only some blocks of rows or columns of a weight."""

    def make(old: Value, name: str) -> Value:
        return edit.add(Take, f"{name}.kept", old, axis=axis, block=block, indices=tuple(keep), before=reader)

    edit.replace_weight(reader, slot, make)


def group_map(heads: Sequence[int], kv_heads: int) -> tuple[int, ...] | None:
    """Return the key/value head of each query head as an attribute: None where it is what the default rule gives."""
    count = len(heads)
    if count % kv_heads == 0 and all(group == i // (count // kv_heads) for i, group in enumerate(heads)):
        return None
    return tuple(heads)


def drop_unread_kv_heads(graph: Graph, edit: Editor, memory: Value) -> str:
    """Drop the key/value heads of a memory that no reader's query head reads, and say so; empty if all are read."""
    state = memory.op
    readers = [op for op in memory.users if isinstance(op, Attend)]
    if not isinstance(state, KV) or len(readers) < len(memory.users) or memory in graph.outputs:
        return ""
    heads = memory.memory.fields[0].shape[0]
    kept = sorted({group for op in readers for group in op.groups})
    if len(kept) == heads:
        return ""
    unread = [head for head in range(heads) if head not in kept]
    what = f"KV head{'s' if len(unread) > 1 else ''} {', '.join(map(str, unread))}"
    cuts = trace(state.k, state), trace(state.v, state)
    for cut in cuts:
        if isinstance(cut, Refusal):
            return f"{what} unread, but kept: {cut.reason}"
    k, v = (cut for cut in cuts if isinstance(cut, Cut))
    if state.k is state.v or set(k.linears) & set(v.linears):
        return f"{what} unread, but kept: keys and values come from one projection"
    new = {head: i for i, head in enumerate(kept)}
    groups = {op: [new[g] for g in op.groups] for op in readers}
    for cut in (k, v):
        apply_cut(edit, cut, heads, kept)
    edit.retype([state])
    for op, mapped in groups.items():
        edit.set_attribute(op, "head_map", group_map(mapped, len(kept)))
    edit.retype(sorted(readers, key=graph.ops.index))
    return f"{what} of %{memory.name} dropped"
