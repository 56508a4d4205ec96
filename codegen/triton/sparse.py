"""Target ``triton``: calls of ``kernel.index`` and ``kernel.sparse``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.codegen.kernels.index import Index
from regraft.codegen.kernels.sparse import Sparse
from regraft.codegen.torch.code import ATOM, Code
from regraft.ir.errors.codegen import MissingEmitterError
from regraft.ir.forms.index import IndexForm, index_form
from regraft.ir.forms.sparse import SparseForm, sparse_form
from regraft.ir.op import Value
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.index import Index as IndexOp
from regraft.ir.ops.kernels import Kernel as KernelOp
from regraft.ir.ops.memory import ViewRows
from regraft.ir.ops.pos import Rope

if TYPE_CHECKING:
    from regraft.codegen.triton.target import StepBody


def emit_index(op: KernelOp, at: StepBody) -> Code:
    """Return the call of a choice of rows."""
    ops = op.stands_for
    form = next((index_form(each, ops) for each in ops if isinstance(each, IndexOp)), None)
    if form is None or form.ops != frozenset(ops):
        raise MissingEmitterError(target="triton", op=op.label, where=op.scope)
    index = form.index
    given = {"q": form.q, "weights": index.weight} | ({} if form.k is None else {"k": form.k})
    codes = {name: at.passed(_outside(op, value)) for name, value in given.items()}
    memory = index.memory if form.state is None else form.state.out
    flat = ".flatten(2)" if len(memory.memory.fields[0].shape) > 1 else ""
    codes["keys"] = f"{_kept(_outside(op, memory), at)}[0]{flat}"
    name = at.shared.kernel("index", (kernel := _index(form)).called)
    return _call(name, kernel.arguments, {**codes, **_turn(form.rope, at)}, at)


def emit_sparse(op: KernelOp, at: StepBody) -> Code:
    """Return the call of attention to gathered rows."""
    ops = op.stands_for
    form = next((sparse_form(each, ops) for each in ops if isinstance(each, Attend)), None)
    if form is None or form.ops != frozenset(ops):
        raise MissingEmitterError(target="triton", op=op.label, where=op.scope)
    attend, kernel = form.attend, _sparse(form)
    weight = None if form.row_norm is None else form.row_norm.weight
    given = {"q": form.q, "q_turned": form.q_turned, "k": form.row, "k_norm": weight}
    given |= {"sink": attend.sink, "chosen": attend.chosen}
    codes = {name: at.passed(_outside(op, value)) for name, value in given.items() if value is not None}
    codes["keys"] = f"{_kept(_outside(op, form.state.out), at)}[0]"
    if attend.entries is not None:
        codes["entries"] = f"{_kept(_outside(op, attend.entries), at)}[0]"
    stem = "attention" if attend.window is None else f"attention_{attend.window}"
    stem += "" if attend.entries is None else "_and_pooled" if attend.chosen is None else "_and_chosen"
    name = at.shared.kernel(stem if attend.entries or not attend.chosen else f"{stem}_of_chosen", kernel.called)
    return _call(name, kernel.arguments, {**codes, **_turn(form.rope, at)}, at)


def _call(name: str, arguments: tuple[str, ...], codes: dict[str, str], at: StepBody) -> Code:
    codes["start"] = at.call("start")
    return Code(f"{name}({', '.join(codes[argument] for argument in arguments)})")


def _index(form: IndexForm) -> Index:
    index = form.index
    heads, width = (int(str(dim)) for dim in form.q.tensor.shape[2:])
    keys = index.memory.memory.fields[0].shape
    return Index(
        name="",
        heads=heads,
        width=width,
        chosen=index.chosen,
        scale=index.scale,
        rate=index.memory.memory.rate or 1,
        window=index.window,
        first=index.first,
        turned=0 if form.rope is None else form.rope.channels,
        offset=form.offset,
        layout="halves" if form.rope is None else form.rope.layout,
        writes=form.state is not None,
        key_heads=keys[0] if len(keys) == 2 else 1,
    )


def _sparse(form: SparseForm) -> Sparse:
    attend, rope, norm = form.attend, form.rope, form.row_norm
    heads, width = (int(str(dim)) for dim in attend.q.tensor.shape[2:])
    entries, chosen = attend.entries, attend.chosen
    return Sparse(
        name="",
        heads=heads,
        width=width,
        value_width=int(str(attend.out.tensor.shape[3])),
        scale=attend.scale,
        window=attend.window,
        rate=1 if attend.window is None else None if entries is None else entries.memory.rate,
        chosen=None if chosen is None else int(str(chosen.tensor.shape[2])),
        sink=attend.sink is not None,
        q_apart=form.q_turned is not None,
        q_eps=None if form.q_norm is None else form.q_norm.eps,
        k_eps=None if norm is None else norm.eps,
        k_normed=None if norm is None else int(str(norm.x.tensor.shape[2])),
        turned=0 if rope is None else rope.channels,
        layout="halves" if rope is not None and rope.layout == "halves" else "interleaved",
        back=form.turned_back,
    )


def _outside(op: KernelOp, value: Value) -> Value:
    found = op.outside(value)
    assert found is not None, value
    return found


def _kept(memory: Value, at: StepBody) -> str:
    """Return the variable of a memory's tensors; a view of pooled rows shows them as they are kept."""
    return at.of(memory).within(ATOM) if isinstance(memory.op, ViewRows) else at.memory(memory)


def _turn(rope: Rope | None, at: StepBody) -> dict[str, str]:
    if rope is None:
        return {}
    name = at.rope(rope)
    return {"cos": f"{name}[0]", "sin": f"{name}[1]"}
