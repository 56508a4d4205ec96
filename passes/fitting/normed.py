"""A decoupled latent attention in the layout of DeepSeek's checkpoints, whose rows hold a normed latent.

    row = [RMSNorm(W x + b), RoPE(W_r x)],    k_h = [UK_h row_latent, row_key],    v_h = UV_h row_latent

A norm of the latent would take its length away. So one more channel is the same for every token, and large: a bias. The
root mean square is then that channel's but for a part of ``|latent|² / (2 * CONSTANT²)``, under what float32 resolves,
and the norm's weight undoes the division by it. Floating-point numbers keep the small channels as exact as they were.
Queries are one projection, the maps to the shared key folded in.

Source: specs/mla.md, sections 1 to 3; specs/passes_math.md, section 4.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from regraft.ir.op import Op, Value
from regraft.ir.ops.algebra import Fill, MatMul, Reshape
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.core import Concat, Flatten, GroupedLinear, Linear, Norm, Repeat, Slice, Unflatten
from regraft.ir.ops.memory import ReadRows, StateRows, ViewRows
from regraft.ir.ops.pos import Rope
from regraft.ir.ops.weight import Cast, Combine, ConcatWeight
from regraft.passes.fitting.latents import module_of
from regraft.passes.matching.latents import expanded_site
from regraft.passes.matching.memories import KeyValues
from regraft.passes.matching.rewrite import Editor
from regraft.passes.matching.sites import Output, Refusal, output_of

EXPONENT = 40  # of the constant channel, a power of two: its square, and what it divides, are in float32's range
NARROW = 15  # in float16, which ends at the 16th
EPS = 1e-6  # of the latent's norm, in every config
_NAMES = (
    "q_proj", "q", "q_turning", "q_rope", "q_plain", "q_whole", "kv_a", "latent", "latent_norm", "k_shared",
    "k_turning", "k_rope", "k_row", "row", "memory", "rows", "row_latent", "row_key", "k_b", "k_rows",
    "k_shared_rows", "k", "v_b", "v_rows", "view",
)  # fmt: skip


def normed_refusal(site: KeyValues) -> Refusal | None:
    """Return why an attention does not take DeepSeek's layout, or None where it does."""
    attend = site.readers[0]
    queries = attend.q.op
    made = queries.x.op if isinstance(queries, Rope) else None
    linear = made.x.op if isinstance(made, Unflatten) else None
    if not isinstance(linear, Linear) or linear.bias is not None or not linear.weight.is_weight:
        return Refusal("queries are normed, or made with a bias, which DeepSeek's are not")
    sides = (site.keys, site.values)
    if any(side.linear is None or side.linear.bias is not None or side.norm is not None for side in sides):
        return Refusal("keys or values are normed, or made with a bias, which DeepSeek's are not")
    if {side.linear.x for side in sides if side.linear is not None} != {linear.x}:
        return Refusal("queries, keys and values are not made of the same input")
    output = output_of(attend)
    if isinstance(output, Refusal):
        return output
    if any(not isinstance(op, Flatten) for op in output.chain) or output.linear.bias is not None:
        return Refusal("something stands between the attention and its output projection, or that has a bias")
    if attend.window is not None or attend.softcap is not None or attend.sink is not None:
        return Refusal("windows, sinks and capped scores are nothing that DeepSeek has")
    return None


class _Layer:
    """The rewrite of one attention that asks for a latent and a shared key."""

    def __init__(self, edit: Editor, attend: Attend) -> None:
        found = expanded_site(attend)
        assert not isinstance(found, Refusal), found
        assert found.turned is not None
        self.edit, self.attend, self.found = edit, attend, found
        self.module, self.scope = module_of(attend), attend.scope
        self.rank = found.rank
        row = found.view.memory.op
        assert isinstance(row, StateRows)
        assert isinstance(row.x.op, Concat)
        latent, turned = (part.op for part in row.x.op.xs)
        assert isinstance(latent, Linear)
        self.x, self.down = latent.x, latent.weight
        self.key_rope, self.key_map = _turned(turned)
        query_rope = found.turned.op
        assert isinstance(query_rope, Rope)
        asked = query_rope.x.op
        assert isinstance(asked, GroupedLinear)
        self.query_rope, self.asked = query_rope, asked
        self.size, self.plain = self.key_rope.channels, int(str(found.plain.tensor.shape[-1]))
        self.dtype = attend.q.tensor.dtype

    def add(self, op: type[Op], name: str, *values: Value | Sequence[Value], **rest: object) -> Value:
        """Put an op before the attention, under its scope."""
        return self.edit.add(op, f"{self.scope}.{name}", *values, before=self.attend, **rest)

    def weight(self, op: type[Op], name: str, *values: Value | Sequence[Value], **rest: object) -> Value:
        """Put a weight-time op before the attention, under its module."""
        return self.edit.add(op, f"{self.module}.{name}", *values, before=self.attend, **rest)

    def give_way(self) -> None:
        """Let all that has a name of the layout, and what measures it, go by another."""
        graph = self.edit.graph
        for name in _NAMES:
            whole = f"{self.scope}.{name}"
            if whole in graph:
                graph.rename(graph[whole], graph.fresh(f"{whole}_before"))
        for name in ("q_proj", "k_b_proj", "v_b_proj"):
            whole = f"{self.module}.{name}.weight"
            if whole in graph:
                self.edit.set_aside(graph[whole])

    def queries(self) -> Value:
        """Return queries by one projection, scaled to what the layout multiplies scores by."""
        found, heads = self.found, self.found.heads
        linear = found.plain.op
        assert isinstance(linear, Unflatten)
        assert isinstance(linear.x.op, Linear)
        old, model = linear.x.op.weight, int(str(self.x.tensor.shape[-1]))
        width = self.plain + self.size
        by_head = self.weight(Reshape, "q_proj.heads", old, shape=(heads, self.plain, model))
        wide = self.weight(Cast, "q_proj.plain", by_head, dtype="f64")
        maps = self.weight(Reshape, "q_proj.maps", _unrounded(self.asked.weight), shape=(heads, self.size, self.plain))
        turned = self.weight(MatMul, "q_proj.turned", maps, wide)
        both = self.weight(ConcatWeight, "q_proj.both", [wide, turned], axis=1)
        flat = self.weight(Reshape, "q_proj.flat", both, shape=(heads * width, model))
        scaled = self.weight(Combine, "q_proj.scaled", [flat], factors=(self.attend.scale * width**0.5,))
        weight = self.weight(Cast, "q_proj.weight", scaled, dtype=self.dtype)
        q = self.add(Unflatten, "q", self.add(Linear, "q_proj", self.x, weight), parts=heads)
        turning = self.add(Slice, "q_turning", q, start=self.plain, stop=width)
        turned = self.rope("q_rope", turning, self.query_rope)
        plain = self.add(Slice, "q_plain", q, start=0, stop=self.plain)
        return self.add(Concat, "q_whole", [plain, turned])

    def rope(self, name: str, x: Value, like: Rope) -> Value:
        """Return ``x`` turned as ``like`` does; by the usual frequencies where they are these."""
        factors = like.factors or ()
        facts = dict(like.attributes)
        if all(abs(factor - 1) < 1e-6 for factor in factors):
            facts |= {"scaling": "none", "factors": None}
        made: Op = Rope({**like.slots, "x": (x,)}, facts)
        graph = self.edit.graph
        return graph.add(made, [graph.fresh(f"{self.scope}.{name}")], before=self.attend)[0]

    def row(self) -> Value:
        """Return what is kept of a token: the latent and the constant, normed, and the shared key."""
        rank, size, model = self.rank, self.size, int(str(self.x.tensor.shape[-1]))
        exponent, power = self.powers
        name = "kv_a_proj_with_mqa"
        none = self.weight(Fill, f"{name}.none", dtype=self.dtype, shape=(1, model))
        weight = self.weight(ConcatWeight, f"{name}.weight", [self.down, none, self.key_map])
        parts = [self.filled(f"{name}.bias_{i}", n, v) for i, (n, v) in enumerate(((rank, 0.0), (1, 2.0**exponent)))]
        parts.append(self.filled(f"{name}.bias_2", size, 0.0))
        bias = self.weight(ConcatWeight, f"{name}.bias", parts)
        y = self.add(Linear, "kv_a", self.x, weight, bias=bias)
        latent = self.add(Slice, "latent", y, start=0, stop=rank + 1)
        gains = [self.filled("kv_a_layernorm.own", rank, 2.0**power), self.filled("kv_a_layernorm.none", 1, 0.0)]
        gain = self.weight(ConcatWeight, "kv_a_layernorm.weight", gains)
        latent = self.add(Norm, "latent_norm", latent, weight=gain, eps=EPS)
        shared = self.add(Slice, "k_shared", y, start=rank + 1, stop=rank + 1 + size)
        turned = self.rope("k_rope", self.add(Unflatten, "k_turning", shared, parts=1), self.key_rope)
        return self.add(Concat, "row", [latent, self.add(Flatten, "k_row", turned)])

    @property
    def powers(self) -> tuple[int, int]:
        """The exponents of the constant and of the norm's weight, which about undoes its division."""
        exponent = NARROW if self.dtype == "f16" else EXPONENT
        return exponent, exponent - round(math.log2(self.rank + 1) / 2)

    def filled(self, name: str, size: int, value: float) -> Value:
        """Return a vector of one number."""
        return self.weight(Fill, name, dtype=self.dtype, shape=(size,), value=value)

    def view(self, row: Value) -> Value:
        """Return keys and values by head of the rows, as a memory."""
        memory = self.add(StateRows, "memory", row)
        rows = self.add(ReadRows, "rows", memory)
        latent = self.add(Slice, "row_latent", rows, start=0, stop=self.rank + 1)
        shared = self.add(Slice, "row_key", rows, start=self.rank + 1, stop=self.rank + 1 + self.size)
        own = self.expanded("k", latent, self.found.keys)
        repeated = self.add(Repeat, "k_shared_rows", shared, parts=self.found.heads)
        k = self.add(Concat, "k", [own, repeated])
        return self.add(ViewRows, "view", memory, k, v=self.expanded("v", latent, self.found.values))

    def expanded(self, side: str, latent: Value, weight: Value) -> Value:
        """Return heads of the latent, by a map that takes no notice of the constant."""
        exponent, power = self.powers
        name, up = f"{side}_b_proj", _unrounded(weight)
        gain = 2.0 ** (exponent - power) / math.sqrt(self.rank + 1)
        scaled = self.weight(Combine, f"{name}.scaled", [up], factors=(gain,))
        none = self.weight(Fill, f"{name}.none", dtype=up.tensor.dtype, shape=(up.tensor.sizes[0], 1))
        whole = self.weight(ConcatWeight, f"{name}.whole", [scaled, none], axis=1)
        made = self.weight(Cast, f"{name}.weight", whole, dtype=self.dtype)
        return self.add(Unflatten, f"{side}_rows", self.add(Linear, f"{side}_b", latent, made), parts=self.found.heads)


def _turned(op: Op | None) -> tuple[Rope, Value]:
    """Return how a shared key is turned, and the map that makes it."""
    assert isinstance(op, Flatten)
    rope = op.x.op
    assert isinstance(rope, Rope)
    heads = rope.x.op
    assert isinstance(heads, Unflatten)
    assert isinstance(heads.x.op, Linear)
    return rope, heads.x.op.weight


def _unrounded(weight: Value) -> Value:
    """Return a fitted weight as it was before it was rounded to what is stored."""
    return weight.op.x if isinstance(weight.op, Cast) else weight


def in_layout(edit: Editor, attend: Attend) -> None:
    """Give an attention to a latent and a shared key, keys and values expanded, the layout of DeepSeek's checkpoints.

    Args:
        edit: The editor.
        attend: What `decouple` made, of a site without a `normed_refusal`.
    """
    layer = _Layer(edit, attend)
    layer.give_way()
    q = layer.queries()
    view = layer.view(layer.row())
    old = [attend.q, attend.memory]
    edit.set_operand(attend, "q", q)
    edit.set_operand(attend, "memory", view)
    edit.set_attribute(attend, "scale", float((layer.plain + layer.size) ** -0.5))
    for value in old:
        edit.erase_unread(value)
    edit.retype([attend])


def add_output_bias(edit: Editor, output: Output) -> None:
    """Give an output projection the zero bias that goes with the bias of the latent's."""
    linear = output.linear
    size = linear.weight.tensor.sizes[0]
    name = f"{linear.weight.name.removesuffix('.weight')}.bias"
    bias = edit.add(Fill, name, before=linear, dtype=linear.weight.tensor.dtype, shape=(size,))
    edit.set_operand(linear, "bias", bias)
