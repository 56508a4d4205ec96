"""Attention to a kept latent in its two forms: keys and values expanded by head, or the maps to them absorbed.

    expanded:  k = [UK_h c, k_r],  v = UV_h c,  o_h = Σ p v
    absorbed:  q = [UK_hᵀ q_h, q_r],  k = [c, k_r],  v = c,  o_h = UV_h Σ p c

Both read the same rows and the same two matrices. Source: specs/mla.md, sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from regraft.ir.op import Op, Value
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.core import Concat, GroupedLinear, Linear, Repeat, Slice, Unflatten
from regraft.ir.ops.memory import ReadRows, StateRows, ViewRows
from regraft.passes.matching.rewrite import Editor
from regraft.passes.matching.sites import Refusal, run_time_users


@dataclass(frozen=True)
class LatentSite:
    """An attention to a kept latent, in either form.

    Attributes:
        attend: The attention.
        view: What makes the rows a memory of keys and values.
        rows: The rows, of which the first ``rank`` channels are the latent and the others a key that all heads share.
        heads: Query heads, each with a key and a value of its own where they are expanded.
        rank: Channels of the latent.
        keys: The map from the latent to keys, ``[heads * D, rank]``.
        values: The map from the latent to values, ``[heads * Dv, rank]``.
        plain: The queries' channels that meet what the latent is mapped to ``[B, T, heads, D]``.
        turned: Those that meet the shared key, or none.
        after: In the absorbed form, what maps the result to values.
    """

    attend: Attend
    view: ViewRows
    rows: Value
    heads: int
    rank: int
    keys: Value
    values: Value
    plain: Value
    turned: Value | None
    after: GroupedLinear | None = None

    @property
    def scope(self) -> str:
        """The place of the attention."""
        return self.attend.scope


def expanded_site(attend: Attend) -> LatentSite | Refusal:
    """Return an attention whose keys and values are expanded from a latent, or why it is none."""
    view = _view(attend)
    if isinstance(view, Refusal):
        return view
    heads = attend.q.tensor.shape[2]
    if not isinstance(heads, int) or attend.groups != tuple(range(heads)) or heads != view.k.tensor.shape[2]:
        return Refusal("query heads share expanded keys, or are mapped to them")
    own, *shared = view.k.op.xs if isinstance(view.k.op, Concat) else (view.k,)
    keys, values = _expansion(own, view), None if view.v is None else _expansion(view.v, view)
    if keys is None or values is None or keys[1:] != values[1:] or len(shared) > 1:
        return Refusal(f"keys and values of %{view.out.name} are not linear maps of one part of the rows")
    rows, rank = keys[1:]
    if not _is_shared(shared, rows, rank):
        return Refusal(f"keys of %{view.out.name} have channels that are neither the latent's nor shared by all heads")
    if any(set(run_time_users(v)) - {view, view.k.op} for v in (own, view.k, view.v) if v is not None):
        return Refusal("expanded keys or values are read by other ops too")
    plain = own.tensor.shape[-1]
    assert isinstance(plain, int)
    queries = _queries(attend.q, plain)
    if queries is None:
        return Refusal(f"%{attend.q.name} is not put together of what meets the latent and what meets the shared key")
    return LatentSite(attend, view, rows, heads, rank, keys[0], values[0], *queries)


def absorbed_site(attend: Attend) -> LatentSite | Refusal:
    """Return an attention to a latent itself, with maps of queries before it and of its result after, or why not."""
    view = _view(attend)
    if isinstance(view, Refusal):
        return view
    key, value = view.k.op, None if view.v is None else view.v.op
    if not isinstance(key, Unflatten) or key.parts != 1 or not isinstance(key.x.op, ReadRows):
        return Refusal(f"keys of %{view.out.name} are not the rows themselves")
    if not isinstance(value, Slice) or value.x is not view.k or value.start:
        return Refusal(f"values of %{view.out.name} are not the first channels of its keys")
    users = run_time_users(attend.out)
    after = users[0] if len(users) == 1 else None
    first, *rest = attend.q.op.xs if isinstance(attend.q.op, Concat) else (attend.q,)
    before = first.op
    mapped = isinstance(after, GroupedLinear) and not after.transposed
    if not mapped or not isinstance(before, GroupedLinear) or not before.transposed or len(rest) > 1:
        return Refusal("its queries and its result are not mapped by head")
    assert isinstance(after, GroupedLinear)
    heads = attend.q.tensor.shape[2]
    assert isinstance(heads, int)
    turned = rest[0] if rest else None
    return LatentSite(attend, view, key.x, heads, value.stop, before.weight, after.weight, before.x, turned, after)


def _view(attend: Attend) -> ViewRows | Refusal:
    view = attend.memory.op
    if not isinstance(view, ViewRows) or not isinstance(view.memory.op, StateRows):
        return Refusal("it reads no keys and values that are made of kept rows")
    if attend.entries is not None:
        return Refusal("it attends to a second memory too")
    if run_time_users(view.out) != [attend]:
        return Refusal(f"%{view.out.name} is read by other attentions too")
    return view


def _expansion(value: Value, view: ViewRows) -> tuple[Value, Value, int] | None:
    """Return the matrix that makes heads of the first channels of a memory's rows, the rows, and how many channels."""
    split = value.op
    linear = split.x.op if isinstance(split, Unflatten) else None
    if not isinstance(linear, Linear) or linear.bias is not None or not linear.weight.is_weight:
        return None
    cut = linear.x.op
    rows, rank = (cut.x, cut.stop) if isinstance(cut, Slice) and not cut.start else (linear.x, 0)
    width = rows.tensor.shape[-1]
    if not isinstance(rows.op, ReadRows) or rows.op.memory is not view.memory or not isinstance(width, int):
        return None
    return linear.weight, rows, rank or width


def _is_shared(shared: list[Value], rows: Value, rank: int) -> bool:
    """Return whether what follows the latent in a row is all that heads share, and nothing is left of the row."""
    width = rows.tensor.shape[-1]
    if not shared:
        return width == rank
    repeat = shared[0].op
    cut = repeat.x.op if isinstance(repeat, Repeat) else None
    return isinstance(cut, Slice) and cut.x is rows and (cut.start, cut.stop) == (rank, width)


def _queries(q: Value, plain: int) -> tuple[Value, Value | None] | None:
    """Return the queries' first ``plain`` channels and the others, where they are put together of these."""
    width = q.tensor.shape[-1]
    if width == plain:
        return q, None
    parts = q.op.xs if isinstance(q.op, Concat) else ()
    if len(parts) != 2 or parts[0].tensor.shape[-1] != plain:
        return None
    return parts[0], parts[1]


# -- from one form to the other


def absorb(site: LatentSite, edit: Editor) -> None:
    """Let queries be mapped to the latent, and what is mixed of the latent to values; keys are the rows themselves."""
    attend, view, scope = site.attend, site.view, site.scope
    k = edit.add(Unflatten, f"{scope}.k", site.rows, parts=1, before=view)
    v = edit.add(Slice, f"{scope}.v", k, start=0, stop=site.rank, before=view)
    latent = edit.add(GroupedLinear, f"{scope}.q_absorbed", site.plain, site.keys, transposed=True, before=attend)
    name = attend.out.name
    edit.graph.rename(attend.out, edit.graph.fresh(f"{name}_latent"))
    old = _reconnect(edit, site, k, v, latent, attend)
    after = edit.graph.ops.index(attend) + 1
    following = edit.graph.ops[after] if after < len(edit.graph.ops) else None
    op = GroupedLinear({"x": (attend.out,), "weight": (site.values,)}, {})
    edit.graph.replace_uses(attend.out, edit.graph.add(op, [name], before=following)[0])
    _tidy(edit, site, old, {"k": k, "v": v})


def expand(site: LatentSite, edit: Editor) -> None:
    """Make keys and values by head of the latent; queries and the result are as without it."""
    assert site.after is not None
    attend, view, rows, scope = site.attend, site.view, site.rows, site.scope
    width, shared = rows.tensor.shape[-1], None
    latent = rows
    if width != site.rank:
        latent = edit.add(Slice, f"{scope}.row_latent", rows, start=0, stop=site.rank, before=view)
        shared = edit.add(Slice, f"{scope}.row_key", rows, start=site.rank, stop=width, before=view)
    k = _by_head(edit, site, "k", latent, site.keys)
    if shared is not None:
        repeated = edit.add(Repeat, f"{scope}.k_shared_rows", shared, parts=site.heads, before=view)
        k = edit.add(Concat, f"{scope}.k", [k, repeated], before=view)
    v = _by_head(edit, site, "v", latent, site.values)
    parts = [part for part in (site.plain, site.turned) if part is not None]
    made = [edit.graph.ops.index(part.op) for part in parts if part.op is not None]
    old = _reconnect(edit, site, k, v, site.plain, edit.graph.ops[max(made) + 1] if made else attend)
    name = site.after.out.name
    edit.graph.replace_uses(site.after.out, attend.out)
    edit.graph.erase(site.after)
    edit.graph.rename(attend.out, name)
    _tidy(edit, site, old, {} if shared is None else {"k": k})


def _by_head(edit: Editor, site: LatentSite, side: str, latent: Value, weight: Value) -> Value:
    edit.hoist(weight, site.view)
    flat = edit.add(Linear, f"{site.scope}.{side}_b", latent, weight, before=site.view)
    return edit.add(Unflatten, f"{site.scope}.{side}_rows", flat, parts=site.heads, before=site.view)


def _reconnect(edit: Editor, site: LatentSite, k: Value, v: Value, plain: Value, before: Op) -> list[Value]:
    """Show the attention other keys and values, and ask by other queries, put together before an op.

    Returns:
        What it was shown and asked by before.
    """
    attend, view = site.attend, site.view
    old = [value for value in (view.k, view.v, attend.q) if value is not None]
    if site.turned is not None:
        plain = edit.add(Concat, f"{site.scope}.q_whole", [plain, site.turned], before=before)
    edit.set_operand(view, "k", k)
    edit.set_operand(view, "v", v)
    edit.set_operand(attend, "q", plain)
    edit.retype([view, attend])
    return old


def _tidy(edit: Editor, site: LatentSite, old: Sequence[Value], named: Mapping[str, Value]) -> None:
    """Remove what nobody reads any more, and give its names to what stands in its place."""
    for value in old:
        if value.name in edit.graph:
            edit.erase_unread(value)
    for name, value in {**named, "q_whole": site.attend.q}.items():
        wanted = f"{site.scope}.{name}"
        made = isinstance(value.op, Concat) or name in named
        if made and wanted not in edit.graph:
            edit.graph.rename(value, wanted)
