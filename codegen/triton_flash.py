"""Target ``triton``: calls of ``kernel.flash``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.codegen.kernels.flash import Flash
from regraft.codegen.torch_code import ATOM, Code
from regraft.ir.errors.codegen import MissingEmitterError
from regraft.ir.forms.flash import flash_form
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.kernels import Kernel as KernelOp

if TYPE_CHECKING:
    from regraft.codegen.triton_prefill import PrefillBody


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
