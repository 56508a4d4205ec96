"""What calls of attention kernels have in common: heads, what is seen, and where memories and rotations are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from regraft.codegen.kernels.attend_rows import Piece
from regraft.codegen.kernels.attention import Attention, HeadNorm, Turn
from regraft.ir.forms.pieces import RowPiece
from regraft.ir.op import Value
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.core import Norm
from regraft.ir.ops.kernels import Kernel as KernelOp
from regraft.ir.ops.pos import Rope
from regraft.ir.types import MemoryType

if TYPE_CHECKING:
    from regraft.codegen.triton.target import StepBody

LONG = 131072  # rows of a memory of all, for the choice of tiles


def slots(kept: MemoryType) -> int:
    """Return how many rows a memory holds, for the choice of tiles."""
    return LONG if kept.window is None else kept.window + kept.first


def stem(kernel: Attention, called: str) -> str:
    """Return what a kernel's function is called."""
    called = called if kernel.window is None else f"{called}_{kernel.window}"
    return called if kernel.writes else f"{called}_of_others"


def outside(op: KernelOp, value: Value) -> Value:
    """Return the operand or result that a value of a kernel's body is."""
    found = op.outside(value)
    assert found is not None, value
    return found


def sight(attend: Attend) -> dict[str, Any]:
    """Return what queries see, and how scores are squashed."""
    return {
        "window": attend.window,
        "first": attend.first,
        "head_map": attend.head_map,
        "softcap": attend.softcap,
        "sink": attend.sink is not None,
    }


def head_norm(norm: Norm | None) -> HeadNorm | None:
    """Return the constants of a norm of heads."""
    return None if norm is None else HeadNorm(norm.eps, norm.weight is not None, norm.offset)


def weight_of(norm: Norm | None) -> Value | None:
    """Return a norm's weight, if it has one."""
    return None if norm is None else norm.weight


def turn_of(rope: Rope | None, start: int) -> Turn | None:
    """Return the constants of a rotation of channels from `start` on."""
    if rope is None:
        return None
    return Turn(rope.channels, start, "halves" if rope.layout == "halves" else "interleaved", rope.pairs)


def rope_codes(rope: Rope | None, at: StepBody) -> dict[str, str]:
    """Return the code of a rotation's cosine and sine at the token's position."""
    if rope is None:
        return {}
    name = at.rope(rope)
    return {"cos": f"{name}[0]", "sin": f"{name}[1]"}


def piece_of(piece: RowPiece) -> Piece:
    """Return the constants of a part of a token's row."""
    shape = [int(str(dim)) for dim in piece.x.tensor.shape[2:]]
    heads, width = shape if len(shape) == 2 else (1, *shape)
    inverse = None if piece.inverse is None else piece.inverse.eps
    return Piece(heads, width, head_norm(piece.norm), piece.rope is not None, inverse)
