"""``state`` and ``attn``: memories, and what reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.ir.attributes import FLOAT, INT, INTS
from regraft.ir.dims import Sizes, evaluate
from regraft.ir.errors.graph import HeadGroupError, HeadMapError, OpRuleError, WindowError
from regraft.ir.op import Cost, Dims, Op, Value, attribute, memory, op, operand, optional, optional_operand, result
from regraft.ir.types import Field, MemoryType, Type

if TYPE_CHECKING:
    from torch import Tensor

    from regraft.ir.interpret import Rows, Run


class State(Op):
    """An op that turns the ``T`` rows of this call into a memory. Its result's name is the memory's identity."""

    is_state = True

    @property
    def kept(self) -> Value:
        """The memory among the results."""
        return next(v for v in self.results if isinstance(v.type, MemoryType))

    def cost(self, at: Sizes) -> Cost:
        """Count the rows written, and the bytes that the memory holds at this context."""
        kept = self.kept.memory
        new = kept.rows(at["T"]) * kept.row_bytes * at["B"]
        return Cost(cache_written=new, cache=kept.rows(at["S"]) * kept.row_bytes * at["B"])


@op("state.kv")
class KV(State):
    """Keep the keys and values of every token, or of the last ``window``.

    Example:
        %m = state.kv %k, %v {window = 512} : memory<bf16; k [4, 16], v [4, 16]; window 512>
    """

    k = operand("B T Hkv D", dtype="float")
    v = operand("B T Hkv Dv", dtype="k")
    out = result()
    window = optional(INT)

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        if self.window is not None and self.window < 1:
            raise OpRuleError(op=self.label, problem=f"window {self.window}", fix="a window keeps at least one row")
        heads = dim.size("Hkv")
        fields = Field("k", (heads, dim.size("D"))), Field("v", (heads, dim.size("Dv")))
        return (MemoryType(self.k.tensor.dtype, fields, self.window),)

    def reference(self, run: Run, k: Tensor, v: Tensor) -> Rows:
        return run.extend(self.out, {"k": k, "v": v})


@op("attn.temper")
class Temper(Op):
    """Multiply each head by a number of its own, such as a learned temperature of its keys.

    Example:
        %y = attn.temper %k, %temp : bf16[B, T, 2, 128]
    """

    x = operand("B T H D", dtype="float")
    by = operand("H", dtype="float")
    out = result("B T H D", dtype="x")

    def reference(self, run: Run, x: Tensor, by: Tensor) -> Tensor:
        return x * by.to(x.dtype)[:, None]


@op("attn.attend")
class Attend(Op):
    """Attend each query to the rows of a memory and mix their values.

    A query at position ``p`` sees the rows at positions ``s <= p``, and with a window only ``s > p - window``. Query
    head ``h`` reads key/value head ``head_map[h]``, by default ``h // (Hq // Hkv)``. Softmax is taken in float32 at
    least.

    Scores are products times ``scale``, with ``softcap`` squashed to ``softcap * tanh(score / softcap)``. ``sink`` is a
    further score of each query head, as it stands: it has a share of the softmax and no value. With ``chosen`` a query
    sees only the rows of these numbers, counted among all rows of the memory; -1 is none.

    Example:
        %ctx = attn.attend %q, %m {scale = 0.25} : bf16[B, T, 8, 16]
    """

    q = operand("B T Hq D", dtype="float")
    memory = memory("k Hkv D, v Hkv Dv")
    sink = optional_operand("Hq", dtype="float")
    chosen = optional_operand("B T K", dtype="int")
    out = result("B T Hq Dv", dtype="q")
    scale = attribute(FLOAT)
    window = optional(INT)
    head_map = optional(INTS)
    softcap = optional(FLOAT)
    reads_memory = True

    def verify(self, dim: Dims) -> None:
        self._verify_heads(dim.size("Hq"), dim.size("Hkv"))
        kept, dtype = self.memory.memory.window, self.memory.memory.dtype
        if self.window is not None and self.window < 1:
            raise OpRuleError(op=self.label, problem=f"window {self.window}", fix="a window shows at least one row")
        if kept is not None and (self.window is None or self.window > kept):
            raise WindowError(op=self.label, window=self.window or "all", kept=kept)
        if self.softcap is not None and self.softcap <= 0:
            raise OpRuleError(op=self.label, problem=f"softcap is {self.softcap}", fix="a cap must be positive")
        if self.chosen is not None and kept is not None:
            raise OpRuleError(
                op=self.label, problem=f"rows chosen of a window of {kept}", fix="numbers count all of a memory's rows"
            )
        if dtype != self.q.tensor.dtype:
            raise OpRuleError(
                op=self.label, problem=f"{self.q.tensor.dtype} queries, {dtype} memory", fix="both need the same dtype"
            )

    def _verify_heads(self, heads: int, kv_heads: int) -> None:
        if self.head_map is None:
            if heads % kv_heads:
                raise HeadGroupError(op=self.label, heads=heads, kv_heads=kv_heads)
        elif len(self.head_map) != heads or not all(0 <= g < kv_heads for g in self.head_map):
            raise HeadMapError(op=self.label, head_map=list(self.head_map), heads=heads, kv_heads=kv_heads)

    @property
    def groups(self) -> tuple[int, ...]:
        """The key/value head that each query head reads."""
        if self.head_map is not None:
            return self.head_map
        heads, kv_heads = self.q.tensor.shape[2], self.memory.memory.fields[0].shape[0]
        assert isinstance(heads, int)
        return tuple(head // (heads // kv_heads) for head in range(heads))

    def visible(self, at: Sizes) -> int:
        """Return the (query, row) pairs of one sequence at ``at``: ``T`` queries that end a context of ``S``."""
        first = at["S"] - at["T"] + 1
        limits = [at["S"]] if self.window is None else [at["S"], self.window]
        if self.chosen is not None:
            limits.append(evaluate(self.chosen.tensor.shape[2], at))
        most = min(limits)
        whole = max(0, min(most - first, at["T"]))  # queries that see less than the most
        return whole * (2 * first + whole - 1) // 2 + (at["T"] - whole) * most

    def flops(self, at: Sizes) -> int:
        heads, width = (evaluate(d, at) for d in self.q.tensor.shape[2:])
        value_width = self.memory.memory.field("v").shape[-1]
        return 2 * at["B"] * heads * (width + value_width) * self.visible(at)

    def cost(self, at: Sizes) -> Cost:
        rows = at["S"] if self.window is None else min(at["S"], self.window + at["T"] - 1)
        kept = self.memory.op is None or self.memory.op.is_state  # else what is read is counted where it is read
        read = rows * self.memory.memory.row_bytes * at["B"] if kept else 0
        return Cost(
            flops=self.flops(at),
            weights=self.weight_bytes(at),
            cache_read=read,
            activations=self.activation_bytes(at),
        )

    def reference(
        self, run: Run, q: Tensor, rows: Rows, sink: Tensor | None = None, chosen: Tensor | None = None
    ) -> Tensor:
        import torch

        distance = run.pos[:, :, None] - rows.pos[:, None, :]
        seen = (distance >= 0) & rows.valid[:, None, :]
        if self.window is not None:
            seen = seen & (distance < self.window)
        if chosen is not None:
            some = torch.zeros(*seen.shape[:2], seen.shape[2] + 1, dtype=torch.bool, device=seen.device)
            seen = seen & some.scatter(2, chosen.long() + 1, True)[..., 1:]
        groups = torch.tensor(self.groups, device=q.device)
        k, v = (rows.fields[name].transpose(1, 2)[:, groups] for name in ("k", "v"))
        if sink is None and self.softcap is None:
            out = torch.nn.functional.scaled_dot_product_attention(
                q.transpose(1, 2), k, v, attn_mask=seen[:, None], scale=self.scale
            )
        else:
            out = self._mix(run, q.transpose(1, 2), k, v, seen[:, None], sink)
        # a padded query may see no row at all: its result is zero, whatever the kernel makes of it
        blind = ~seen.any(-1)
        return out.transpose(1, 2).masked_fill(blind[:, :, None, None], 0.0)

    def _mix(self, run: Run, q: Tensor, k: Tensor, v: Tensor, seen: Tensor, sink: Tensor | None) -> Tensor:
        """Return the values' mix ``[B, Hq, T, Dv]``, score by score; ``seen`` is ``[B, 1, T, S]``."""
        import torch

        scores = run.wide(q @ k.transpose(-1, -2) * self.scale)
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        scores = scores.masked_fill(~seen, -torch.inf)
        if sink is not None:
            column = run.wide(sink)[:, None, None].expand(*scores.shape[:-1], 1)
            scores = torch.cat((scores, column), -1)
        shares = torch.softmax(scores, -1)[..., : k.shape[2]]
        return shares.to(v.dtype) @ v
