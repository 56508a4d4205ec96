"""Target ``triton``: calls of ``kernel.flash``, and for many tokens of ``kernel.index`` and ``kernel.sparse``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.codegen.kernels.flash import Flash
from regraft.codegen.kernels.index import Index
from regraft.codegen.kernels.sparse import SparsePrefill
from regraft.codegen.torch.code import ATOM, Code
from regraft.ir.errors.codegen import MissingEmitterError
from regraft.ir.forms.flash import flash_form, latent_form, pooled_form, scores_form
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.kernels import Kernel as KernelOp
from regraft.ir.ops.memory import ViewRows

if TYPE_CHECKING:
    from regraft.codegen.triton.prefill import PrefillBody


def emit_flash(op: KernelOp, at: PrefillBody) -> Code:
    """Return the call of attention of many tokens."""
    attend = flash_form(op.stands_for)
    if attend is None:
        raise MissingEmitterError(target="triton", op=op.label, where=op.scope)
    kept = attend.memory.memory
    heads, width = (int(str(dim)) for dim in attend.q.tensor.shape[2:])
    kernel = Flash(
        name="",
        heads=heads,
        kv_heads=kept.field("k").shape[0],
        width=width,
        value_width=kept.fields[-1].shape[-1],
        scale=attend.scale,
        window=attend.window,
        first=attend.first,
        kept=kept.first,
        softcap=attend.softcap,
        sink=attend.sink is not None,
        head_map=_head_map(attend, heads),
        shared=len(kept.fields) == 1,
    )
    stem = "flash" if kernel.window is None else f"flash_{kernel.window}"
    name = at.shared.kernel(stem, kernel.called)
    q, memory, *sink = (at.of(value) for value in op.inputs)
    rows = f"{memory.within(ATOM)}[0]" if kernel.shared else f"*{memory.within(ATOM)}"
    values = [q.text, rows, *(code.text for code in sink), at.call("start"), at.call("count")]
    return Code(f"{name}_attend({', '.join(values)})")


def _head_map(attend: Attend, heads: int) -> tuple[int, ...] | None:
    """Return the key head that each head reads; none where as many read each, in order."""
    kv_heads = attend.memory.memory.field("k").shape[0]
    even = heads % kv_heads == 0 and attend.groups == tuple(head // (heads // kv_heads) for head in range(heads))
    return None if even else attend.groups


def emit_scores(op: KernelOp, at: PrefillBody) -> Code:
    """Return the call that chooses rows for many tokens."""
    index = scores_form(op.stands_for)
    if index is None:
        raise MissingEmitterError(target="triton", op=op.label, where=op.scope)
    kept = index.memory.memory
    heads, width = (int(str(dim)) for dim in index.q.tensor.shape[2:])
    kernel = Index(
        name="",
        heads=heads,
        width=width,
        chosen=index.chosen,
        scale=index.scale,
        rate=kept.rate or 1,
        window=index.window,
        first=index.first,
    )
    name = at.shared.kernel("index_in_blocks", kernel.called)
    q, weights, memory = (at.of(value).within(ATOM) for value in op.inputs)
    rows = f"{memory}[0].flatten(2)" if len(kept.fields[0].shape) > 1 else f"{memory}[0]"
    given = f"{q}.contiguous(), {weights}.contiguous(), {rows}.contiguous(), {at.call('start')}"
    return Code(f"{name}({given})" if kept.rate else f"{at.helper('best_shown')}({name}, {given})")


def emit_gathered(op: KernelOp, at: PrefillBody) -> Code:
    """Return the call of many tokens' attention to gathered rows: of a latent, or pooled ones beside a window."""
    attend = latent_form(op.stands_for)
    return _pooled(op, at) if attend is None else _latent(attend, at)


def _latent(attend: Attend, at: PrefillBody) -> Code:
    view, chosen = attend.memory.op, attend.chosen
    assert isinstance(view, ViewRows)
    assert chosen is not None
    heads, width = (int(str(dim)) for dim in attend.q.tensor.shape[2:])
    kernel = SparsePrefill(
        name="",
        heads=heads,
        width=width,
        value_width=int(str(attend.out.tensor.shape[3])),
        scale=attend.scale,
        chosen=int(str(chosen.tensor.shape[2])),
    )
    name = at.shared.kernel("attention_of_chosen_in_blocks", kernel.called)
    q, rows = (f"{at.of(value).within(ATOM)}.contiguous()" for value in (attend.q, view.k))
    codes = {"q": q, "chosen": at.of(chosen).text, "keys": rows, "start": at.call("start")}
    return Code(f"{name}({', '.join(codes[argument] for argument in kernel.arguments)})")


def _pooled(op: KernelOp, at: PrefillBody) -> Code:
    """Return the call of attention to a window and to pooled rows, all or some."""
    attend = pooled_form(op.stands_for)
    if attend is None or attend.entries is None:
        raise MissingEmitterError(target="triton", op=op.label, where=op.scope)
    heads, width = (int(str(dim)) for dim in attend.q.tensor.shape[2:])
    kernel = SparsePrefill(
        name="",
        heads=heads,
        width=width,
        value_width=width,
        scale=attend.scale,
        window=attend.window,
        rate=attend.entries.memory.rate or 1,
        chosen=None if attend.chosen is None else int(str(attend.chosen.tensor.shape[2])),
        sink=attend.sink is not None,
    )
    name = at.shared.kernel(f"attention_{kernel.window}_and_pooled_in_blocks", kernel.called)
    given = {"q": attend.q, "rows": attend.memory, "entries": attend.entries}
    given |= {"sink": attend.sink} if attend.sink is not None else {}
    given |= {"chosen": attend.chosen} if attend.chosen is not None else {}
    codes = {slot: at.of(value).within(ATOM) for slot, value in given.items()}  # the body's names are aliases
    rows, length = f"{codes['rows']}[0]", f"{codes['q']}.shape[1]"
    codes |= {"k": f"{rows}[:, -{length}:].contiguous()", "keys": f"{rows}[:, :-{length}].contiguous()"}
    codes |= {"q": f"{codes['q']}.contiguous()", "entries": f"{codes['entries']}[0].contiguous()"}
    codes["start"] = at.call("start")
    return Code(f"{name}({', '.join(codes[argument] for argument in kernel.arguments)})")
