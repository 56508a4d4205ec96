"""Target ``triton``: calls of ``kernel.pool`` whose rows are keys and values by head."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.codegen.kernels.pool_heads import PoolHeads
from regraft.codegen.torch.code import Code
from regraft.codegen.triton.heads import outside, piece_of, turn_of, weight_of
from regraft.ir.forms.pool_heads import PooledHeads
from regraft.ir.ops.kernels import Kernel as KernelOp

if TYPE_CHECKING:
    from regraft.codegen.triton.target import StepBody


def emit_pool_heads(op: KernelOp, form: PooledHeads, at: StepBody) -> Code:
    """Return the call that takes a token's heads into a memory; its view is where the rows are kept."""
    state, pieces = form.state, form.pieces
    turned = next((piece.rope for piece in pieces if piece.rope is not None), None)
    kernel = PoolHeads(
        name="",
        pieces=tuple(map(piece_of, pieces)),
        rate=state.rate,
        overlap=state.overlap,
        gated=state.gates is not None,
        turn=turn_of(turned or form.rope, 0),
        late=form.rope is not None,
    )
    memory = at.memory(op.memory_of(state.out))
    at.show(outside(op, form.view.out), memory, len(pieces))
    codes = {f"rows_{i}": f"{memory}[{i}]" for i in range(len(pieces))}
    codes |= {"tail": f"{memory}[{len(pieces)}]", "before": f"{memory}[{len(pieces) + 1}]"}
    given = {f"piece_{i}": piece.x for i, piece in enumerate(pieces)}
    weights = {f"norm_{i}": weight_of(piece.norm) for i, piece in enumerate(pieces)}
    given |= {name: value for name, value in {**weights, "gates": state.gates}.items() if value is not None}
    codes |= {name: at.passed(outside(op, value)) for name, value in {**given, "bias": state.bias}.items()}
    for prefix, rope in (("", turned), ("row_", form.rope)):
        if rope is not None:
            codes |= {f"{prefix}{side}": f"{at.rope(rope)}[{i}]" for i, side in enumerate(("cos", "sin"))}
    codes |= {name: at.call(name) for name in ("start", "count")}
    name = at.shared.kernel(f"pool_heads_every_{kernel.rate}", kernel.called)
    return Code(f"{name}({', '.join(codes[argument] for argument in kernel.arguments)})")
