"""``state.rows`` and ``mem``: memories of any rows a token, and tensors along a memory's rows.

What is kept need not be what is attended to: a latent is kept, its rows are read back, mapped token by token to keys
and values, and attended to as a memory in its own right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.ir.attributes import STR
from regraft.ir.dims import B, Sizes, evaluate, rows_of
from regraft.ir.errors.graph import MemoryRuleError, OpRuleError
from regraft.ir.op import Cost, Dims, Op, Value, defaulted, memory, op, operand, optional_operand, result
from regraft.ir.ops.attn import Attend, Windowed
from regraft.ir.ops.core import Slice, Unflatten
from regraft.ir.types import Field, MemoryType, TensorType, Type

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.ir.interpret import Rows, Run


@op("state.rows")
class StateRows(Windowed):
    """Keep a row of every token, or of the last ``window`` and the ``first`` ones: a latent, an index key.

    Example:
        %m = state.rows %x : memory<bf16; x [576]>
    """

    x = operand("B T M", dtype="float")
    out = result()

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        self.verify_kept()
        return (MemoryType(self.x.tensor.dtype, (Field("x", (dim.size("M"),)),), self.window, first=self.first),)

    def reference(self, run: Run, x: Tensor) -> Rows:
        return run.extend(self.out, {"x": x})


class MemoryOp(Op):
    """An op over what a memory shows: the rows kept, then this call's."""

    reads_memory = True
    on_rows = True

    def verify(self, dim: Dims) -> None:
        source = self.slots["memory"][0]
        if source.memory.fixed is not None or (source.op is not None and not source.op.is_state):
            raise OpRuleError(op=self.label, problem=f"%{source.name} keeps no row of each token", fix="read a state")


@op("mem.read")
class ReadRows(MemoryOp):
    """Give the rows of a memory as a tensor, for ops that work token by token.

    Example:
        %rows = mem.read %m : bf16[B, S@m, 576]
    """

    memory = memory("*")
    out = result()
    field = defaulted(STR, "x")

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        kept = self.memory.memory
        shape = next((each.shape for each in kept.fields if each.name == self.field), None)
        if shape is None:
            fix = f"one of {', '.join(each.name for each in kept.fields)}"
            raise OpRuleError(op=self.label, problem=f"rows have no field {self.field!r}", fix=fix)
        return (TensorType(kept.dtype, (B, rows_of(self.memory.name), *shape)),)

    def cost(self, at: Sizes) -> Cost:
        read, chosen = self.out.tensor.nbytes(at), _chosen(self.out)
        if chosen is not None:  # the others need not be looked at
            row = self.out.tensor.nbytes({**at, rows_of(self.memory.name).text: 1})
            read = min(read, row * sum(at["T"] * evaluate(each.tensor.shape[2], at) for each in chosen))
        return Cost(cache_read=read, activations=self.activation_bytes(at))

    def reference(self, run: Run, rows: Rows) -> Tensor:
        return rows.fields[self.field]


def _chosen(rows: Value) -> set[Value] | None:
    """Return the numbers of all rows that are ever looked at, where rows are seen as they are, and only if chosen."""
    found: set[Value] = set()
    for user in rows.users:
        some: set[Value] | None = None
        if isinstance(user, Slice | Unflatten):
            some = _chosen(user.out)
        elif isinstance(user, ViewRows):
            reads = [(op, op.chosen) for op in user.out.users if isinstance(op, Attend) and op.entries is None]
            some = {chosen for _, chosen in reads if chosen is not None}
            some = some if len(reads) == len(user.out.users) and all(chosen for _, chosen in reads) else None
        if some is None:
            return None
        found |= some
    return found or None


@op("mem.pos")
class RowPositions(MemoryOp):
    """Give the positions of a memory's rows, for what depends on where a row stands.

    Example:
        %pos = mem.pos %m : i64[B, S@m]
    """

    memory = memory("*")
    out = result()

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        return (TensorType("i64", (B, rows_of(self.memory.name))),)

    def reference(self, run: Run, rows: Rows) -> Tensor:
        return rows.pos


@op("mem.view")
class ViewRows(MemoryOp):
    """Make keys and values along a memory's rows a memory that can be attended to. It is no state: nothing is kept.

    Without ``v`` the keys are the values too.

    Example:
        %kv = mem.view %m, %k, v=%v : memory<bf16; k [16, 192], v [16, 128]>
    """

    memory = memory("*")
    k = operand("B T Hkv D", dtype="float")
    v = optional_operand("B T Hkv Dv", dtype="k")
    out = result()

    def verify(self, dim: Dims) -> None:
        super().verify(dim)
        rows = rows_of(self.memory.name)
        if dim["T"] != rows:
            raise MemoryRuleError(op=self.label, first=rows, second=dim["T"])

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        heads, kept = dim.size("Hkv"), self.memory.memory
        widths = {"k": dim.size("D"), **({} if self.v is None else {"v": dim.size("Dv")})}
        fields = tuple(Field(name, (heads, width)) for name, width in widths.items())
        return (MemoryType(self.k.tensor.dtype, fields, kept.window, rate=kept.rate, first=kept.first),)

    def cost(self, at: Sizes) -> Cost:
        return Cost()

    def reference(self, run: Run, rows: Rows, k: Tensor, v: Tensor | None = None) -> Rows:
        from regraft.ir.interpret import Rows

        return Rows({"k": k} if v is None else {"k": k, "v": v}, rows.pos, rows.valid)
