"""``state`` and ``attn``: memories, and what reads them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regraft.ir.attributes import BOOL, FLOAT, INT, INTS
from regraft.ir.dims import Sizes, evaluate
from regraft.ir.errors.graph import HeadGroupError, HeadMapError, OpRuleError, WindowError
from regraft.ir.op import (
    Cost,
    Dims,
    Op,
    Value,
    attribute,
    defaulted,
    memory,
    op,
    operand,
    optional,
    optional_memory,
    optional_operand,
    result,
)
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


class Windowed(State):
    """A state that keeps every row, or the last ``window`` and with them the ``first`` ones of the sequence."""

    window = optional(INT)
    first = defaulted(INT, 0)

    def verify_kept(self) -> None:
        """Refuse a window without rows, and first rows beside all of them."""
        if self.window is not None and self.window < 1:
            raise OpRuleError(op=self.label, problem=f"window {self.window}", fix="a window keeps at least one row")
        if self.first < 0 or (self.first and self.window is None):
            problem = f"first {self.first}, window {self.window or 'none'}"
            raise OpRuleError(op=self.label, problem=problem, fix="first rows stay beside a window")


@op("state.kv")
class KV(Windowed):
    """Keep the keys and values of every token, or of the last ``window`` and the ``first`` ones.

    Example:
        %m = state.kv %k, %v {window = 512} : memory<bf16; k [4, 16], v [4, 16]; window 512>
    """

    k = operand("B T Hkv D", dtype="float")
    v = operand("B T Hkv Dv", dtype="k")
    out = result()

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        self.verify_kept()
        heads = dim.size("Hkv")
        fields = Field("k", (heads, dim.size("D"))), Field("v", (heads, dim.size("Dv")))
        return (MemoryType(self.k.tensor.dtype, fields, self.window, first=self.first),)

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


@op("attn.pick")
class PickHeads(Op):
    """Take some heads, in the order given.

    Example:
        %near = attn.pick %k {heads = [0, 2]} : bf16[B, T, 2, 128]
    """

    x = operand("B T H D")
    out = result()
    heads = attribute(INTS)

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        count = dim.size("H")
        if not self.heads or not all(0 <= head < count for head in self.heads):
            problem = f"heads {list(self.heads)} of {count}"
            raise OpRuleError(op=self.label, problem=problem, fix=f"heads from 0 to {count - 1}")
        return (self.x.tensor.with_shape(*self.x.tensor.shape[:2], len(self.heads), dim["D"]),)

    def reference(self, run: Run, x: Tensor) -> Tensor:
        return x[:, :, list(self.heads)]


@op("attn.attend")
class Attend(Op):
    """Attend each query to the rows of a memory and mix their values.

    A query at position ``p`` sees the rows at positions ``s <= p``, and with a window only ``s > p - window`` or
    ``s < first``: sinks, as in Xiao et al. 2023, "Efficient Streaming Language Models with Attention Sinks". Query head
    ``h`` reads key/value head ``head_map[h]``, by default ``h // (Hq // Hkv)``. Softmax is taken in float32 at least.

    Scores are products times ``scale``, with ``softcap`` squashed to ``softcap * tanh(score / softcap)``. ``sink`` is a
    further score of each query head, as it stands: it has a share of the softmax and no value. With ``chosen`` a query
    sees only the rows of these numbers, counted among all rows of the memory; -1 is none. ``entries`` is a further
    memory in the same softmax, whatever the window: of rows made of several tokens those whose last one is not after
    the query; ``chosen`` then counts these. Without values keys are values too.

    With ``disjoint`` no token is seen twice, and none is missed: of the window a query sees the rows from the start of
    a block of ``rate`` tokens on, ``s >= rate * ceil((p - window + 1) / rate)``, and of the entries those of the blocks
    before, without those of the ``first`` rows. ``entries_bias`` is added to the entries' scores: ``log(rate)`` where
    an entry stands for as many tokens. Source: specs/passes_math.md, equation (8).

    Example:
        %ctx = attn.attend %q, %m {scale = 0.25} : bf16[B, T, 8, 16]
    """

    q = operand("B T Hq D", dtype="float")
    memory = memory("k Hkv D, v? Hkv Dv")
    sink = optional_operand("Hq", dtype="float")
    chosen = optional_operand("B T K", dtype="int")
    entries = optional_memory("k Hkv D, v? Hkv Dv")
    out = result("B T Hq Dv", dtype="q")
    scale = attribute(FLOAT)
    window = optional(INT)
    first = defaulted(INT, 0)
    head_map = optional(INTS)
    softcap = optional(FLOAT)
    disjoint = defaulted(BOOL, False)
    entries_bias = defaulted(FLOAT, 0.0)
    reads_memory = True
    on_last = True

    def verify(self, dim: Dims) -> None:
        self._verify_heads(dim.size("Hq"), dim.size("Hkv"))
        kept, dtype = self.memory.memory.window, self.memory.memory.dtype
        if self.window is not None and self.window < 1:
            raise OpRuleError(op=self.label, problem=f"window {self.window}", fix="a window shows at least one row")
        if kept is not None and (self.window is None or self.window > kept):
            raise WindowError(op=self.label, window=self.window or "all", kept=kept)
        held = self.first if kept is None else self.memory.memory.first
        if self.first < 0 or self.first > held or (self.first and self.window is None):
            problem = f"first {self.first} rows, window {self.window or 'none'}, of {self.memory.memory}"
            raise OpRuleError(op=self.label, problem=problem, fix="first rows beside a window, that the memory keeps")
        if self.softcap is not None and self.softcap <= 0:
            raise OpRuleError(op=self.label, problem=f"softcap is {self.softcap}", fix="a cap must be positive")
        self._verify_entries()
        if self.chosen is not None and self.entries is None and kept is not None:
            raise OpRuleError(
                op=self.label, problem=f"rows chosen of a window of {kept}", fix="numbers count all of a memory's rows"
            )
        if dtype != self.q.tensor.dtype:
            raise OpRuleError(
                op=self.label, problem=f"{self.q.tensor.dtype} queries, {dtype} memory", fix="both need the same dtype"
            )

    def _verify_entries(self) -> None:
        problem = fix = ""
        if self.entries is None:
            if self.disjoint or self.entries_bias:
                problem, fix = "disjoint or biased entries, and there are none", "give entries"
        elif self._other_fields(self.entries.memory):
            problem = f"{self.entries.memory} beside {self.memory.memory}"
            fix = "the same keys and values, all of them kept"
        elif self.disjoint:
            rate = self.entries.memory.rate or 1
            if self.window is None or self.window < rate or self.first % rate:
                problem = f"window {self.window or 'none'} and first {self.first} over entries of {rate} tokens"
                fix = f"a window of at least {rate} rows, and a multiple of {rate} first ones"
        if problem:
            raise OpRuleError(op=self.label, problem=problem, fix=fix)

    def _other_fields(self, entries: MemoryType) -> bool:
        """Return whether entries are no rows like those of the memory, of which all are kept."""
        same = (entries.dtype, entries.fields) == (self.memory.memory.dtype, self.memory.memory.fields)
        return not same or entries.window is not None or entries.fixed is not None

    def infer(self, dim: Dims) -> tuple[Type, ...]:
        return (self.q.tensor.with_shape(*self.q.tensor.shape[:3], self.memory.memory.fields[-1].shape[-1]),)

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
        at = self._asked(at)
        chosen = None if self.chosen is None else evaluate(self.chosen.tensor.shape[2], at)
        if self.entries is None:
            limits = [limit for limit in (self._most, chosen) if limit is not None]
            return pairs(at, most=min(limits, default=None))
        rate = self.entries.memory.rate or 1
        if not self.disjoint:
            return pairs(at, most=self._most) + pairs(at, most=chosen, rate=rate)
        assert self.window is not None
        far = before_window(at, self.window, self.first, rate)
        return pairs(at) - rate * pairs(far, rate=rate) + pairs(far, most=chosen, rate=rate)

    def _asked(self, at: Sizes) -> Sizes:
        """Return sizes at which a call has the queries of this op alone: all tokens, or the last of them."""
        return {**at, "T": evaluate(self.q.tensor.shape[1], at)}

    @property
    def _most(self) -> int | None:
        """The rows of the memory that a query sees at most."""
        return None if self.window is None else self.window + self.first

    def flops(self, at: Sizes) -> int:
        heads, width = (evaluate(d, at) for d in self.q.tensor.shape[2:])
        value_width = self.memory.memory.fields[-1].shape[-1]
        return 2 * at["B"] * heads * (width + value_width) * self.visible(at)

    def cost(self, at: Sizes) -> Cost:
        return Cost(
            flops=self.flops(at),
            weights=self.weight_bytes(at),
            cache_read=sum(self._read(memory, at) for memory in (self.memory, self.entries) if memory is not None),
            activations=self.activation_bytes(at),
        )

    def _read(self, memory: Value, at: Sizes) -> int:
        """Return the bytes of a memory's rows; those of a view are counted where they are read."""
        if memory.op is not None and not memory.op.is_state:
            return 0
        kept = memory.memory
        if memory is self.memory and self.window is not None:
            kept = kept.with_window(self.window, self.first)
        return kept.shown(self._asked(at)["T"], at["S"]) * memory.memory.row_bytes * at["B"]

    def reference(
        self,
        run: Run,
        q: Tensor,
        rows: Rows,
        sink: Tensor | None = None,
        chosen: Tensor | None = None,
        entries: Rows | None = None,
    ) -> Tensor:
        import torch

        run = run.along(self.q.tensor.shape[1])
        rate = 1 if self.entries is None else self.entries.memory.rate or 1
        seen = seen_rows(run, rows)
        if self.window is not None:
            near = rows.pos[:, None, :] >= window_start(run, self.window, rate if self.disjoint else 1)
            seen = seen & (near | (rows.pos[:, None, :] < self.first))
        last = seen
        if entries is not None:
            window = self.window if self.disjoint else None
            last = seen_rows(run, entries, rate, window, self.first)
        if chosen is not None:
            some = torch.zeros(*last.shape[:2], last.shape[2] + 1, dtype=torch.bool, device=last.device)
            last = last & some.scatter(2, chosen.long() + 1, True)[..., 1:]
        fields = [rows.fields["k"], rows.fields.get("v", rows.fields["k"])]
        bias = None
        if entries is None:
            seen = last
        else:
            if self.entries_bias:
                numbers = torch.arange(seen.shape[2] + last.shape[2], device=q.device)
                bias = (numbers >= seen.shape[2]).double() * self.entries_bias
            more = [entries.fields["k"], entries.fields.get("v", entries.fields["k"])]
            fields = [torch.cat(both, 1) for both in zip(fields, more, strict=True)]
            seen = torch.cat((seen, last), -1)
        groups = torch.tensor(self.groups, device=q.device)
        k, v = (each.transpose(1, 2)[:, groups] for each in fields)
        if sink is None and self.softcap is None and bias is None:
            out = torch.nn.functional.scaled_dot_product_attention(
                q.transpose(1, 2), k, v, attn_mask=seen[:, None], scale=self.scale
            )
        else:
            out = self._mix(run, (q.transpose(1, 2), k, v), seen[:, None], sink, bias)
        # a padded query may see no row at all: its result is zero, whatever the kernel makes of it
        blind = ~seen.any(-1)
        return out.transpose(1, 2).masked_fill(blind[:, :, None, None], 0.0)

    def _mix(
        self, run: Run, qkv: tuple[Tensor, Tensor, Tensor], seen: Tensor, sink: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Return the values' mix ``[B, Hq, T, Dv]``, score by score; ``seen`` is ``[B, 1, T, S]``, ``bias`` ``[S]``."""
        import torch

        q, k, v = qkv
        scores = run.wide(q @ k.transpose(-1, -2) * self.scale)
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        if bias is not None:
            scores = scores + bias.to(scores.dtype)
        scores = scores.masked_fill(~seen, -torch.inf)
        if sink is not None:
            column = run.wide(sink)[:, None, None].expand(*scores.shape[:-1], 1)
            scores = torch.cat((scores, column), -1)
        shares = torch.softmax(scores, -1)[..., : k.shape[2]]
        return shares.to(v.dtype) @ v


def seen_rows(run: Run, rows: Rows, rate: int = 1, window: int | None = None, first: int = 0) -> Tensor:
    """Return which rows of ``rate`` tokens each query sees, bool ``[B, T, N]``.

    They stand wholly at or before it, or where a ``window`` shows later tokens, before that and after ``first`` tokens.
    """
    at = rows.pos[:, None, :]
    if window is None:
        return (run.pos[:, :, None] - at >= rate - 1) & rows.valid[:, None, :]
    return (at < window_start(run, window, rate)) & (at >= first) & rows.valid[:, None, :]


def window_start(run: Run, window: int, rate: int) -> Tensor:
    """Return the position ``[B, T, 1]`` from which on each query sees the rows of a window, a multiple of ``rate``."""
    return (run.pos[:, :, None] - window + rate) // rate * rate


def before_window(at: Sizes, window: int, first: int, rate: int) -> Sizes:
    """Return sizes at which rows of ``rate`` tokens count that stand before a window, and after ``first`` tokens."""
    context = max(0, at["S"] - (window - rate + 1) - first)
    return {**at, "S": context, "T": min(at["T"], context)}


def pairs(at: Sizes, *, most: int | None = None, rate: int = 1) -> int:
    """Return the (query, row) pairs of one sequence: a query sees the rows of ``rate`` tokens up to it, at ``most``."""
    first, last = at["S"] - at["T"] + 1, at["S"]
    top = last if most is None else min(most * rate, last)  # a query at most so far on sees less than the most

    def before(end: int) -> int:  # the rows that queries up to this one see
        full, rest = divmod(min(end, top), rate)
        return rate * full * (full - 1) // 2 + full * (rest + 1) + max(0, end - top) * (top // rate)

    return before(last) - before(first - 1)
