"""Target ``torch``: the code of memories and of what reads them: rotation, attention, choosing rows, pooled rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from regraft.codegen.names import literal
from regraft.codegen.torch.code import ATOM, Code, Far, Scope, Sight, lacking
from regraft.ir.dims import rows_of
from regraft.ir.graph import layer_of
from regraft.ir.op import Op, Value
from regraft.ir.ops.attn import KV, Attend, PickHeads
from regraft.ir.ops.compress import Compressed
from regraft.ir.ops.final import Last
from regraft.ir.ops.index import Index
from regraft.ir.ops.kernels import Kernel
from regraft.ir.ops.memory import ReadRows, RowPositions, StateRows, ViewRows
from regraft.ir.ops.pos import Rope
from regraft.ir.types import TensorType


def _rope(op: Rope, at: Scope) -> Code:
    at_rows = isinstance(op.pos.op, RowPositions)
    pos = op.pos.op.x if isinstance(op.pos.op, Last) else op.pos  # cosine and sine are cut too
    if not at_rows and (pos.op is not None or pos.name != "pos"):
        raise lacking(op, "at positions other than this call's")
    if op.offset and not at_rows:
        raise lacking(op, "beside the positions of this call")
    name = "rotate" if op.layout == "halves" else "rotate_pairs"
    flags = () if op.channels == op.out.tensor.shape[-1] else ("part",)
    turn = f"{at.helper('back')}({at.rope(op)})" if op.inverse else at.rope(op)
    return Code(f"{at.helper(name, *flags)}({at.of(op.x).text}, {turn})")


def _kv(op: KV, at: Scope) -> Code:
    view = at.view(Sight.of(op), _reader_sight(op, at))
    return Code(f"{at.helper('keep')}({at.past(op)}, ({at.of(op.k).text}, {at.of(op.v).text}), {view})")


def _rows(op: StateRows, at: Scope) -> Code:
    return Code(f"{at.helper('keep')}({at.past(op)}, ({at.of(op.x).text},), {at.view(Sight.of(op), Sight.of(op))})")


def _pick(op: PickHeads, at: Scope) -> Code:
    first, last = op.heads[0], op.heads[-1]
    run = op.heads == tuple(range(first, last + 1))
    chosen = f"{first}:{last + 1}" if run else str(list(op.heads))
    return Code(f"{at.of(op.x).within(ATOM)}[:, :, {chosen}]")


def _read(op: ReadRows, at: Scope) -> Code:
    if isinstance(op.memory.op, Compressed):  # what becomes of these rows is kept, where it is viewed
        return _pool(op.memory.op, at)
    number = [each.name for each in op.memory.memory.fields].index(op.field)
    return Code(f"{at.of(op.memory).within(ATOM)}[{number}]")


def _view(op: ViewRows, at: Scope) -> Code:
    keys = at.of(op.k).text
    state = op.memory.op
    if isinstance(state, Compressed):
        rows = f"({keys},)" if op.v is None else f"({keys}, {at.of(op.v).text})"
        return Code(
            f"{at.helper('keep_pooled')}({at.past(state)}, {rows}, {at.every(_reader_far(op, state.rate, at))})"
        )
    return Code(f"({keys}, {keys if op.v is None else at.of(op.v).text})")


def _positions(op: RowPositions, at: Scope) -> Code:
    """Refuse positions that are no part of a rotation, which is written with them."""
    raise lacking(op, "of rows that are not turned by them")


def _pool(op: Compressed, at: Scope) -> Code:
    pooled_view(op)
    name = at.helper("pool_overlapping" if op.overlap else "pool", *(["plain"] if op.gates is None else []))
    values = ["None" if v is None else at.of(v).text for v in (op.values, op.gates, op.bias)]
    return Code(f"{name}({', '.join([at.past(op), *values, at.call('start'), at.call('count')])})")


def _reader_far(op: ViewRows, rate: int, at: Scope) -> Far:
    """Return what a reader sees of pooled rows; where they are kept does not depend on it."""
    for user in at.readers(op.out):
        if isinstance(user, Attend) and _same(user.entries, op.out) and user.disjoint:
            return Far(rate, user.window, user.first)
        if isinstance(user, Index):
            return _index_far(user, rate)
    return Far(rate)


def _same(one: Value | None, other: Value) -> bool:
    """Return whether two values are one, of which a kernel's body may hold its own."""
    return one is not None and one.name == other.name


def _index_far(op: Index, rate: int) -> Far:
    """Return among which pooled rows an index chooses."""
    return Far(rate) if op.window is None else Far(rate, op.window, op.first)


def pooled_view(op: Compressed) -> ViewRows:
    """Return the view that shows a memory's pooled rows: they are kept as it shows them.

    Each row is normed and turned once, when it is pooled, so all that is made of the rows must end in this one view.

    Raises:
        MissingEmitterError: Rows are used in some other way.
    """
    views = [user for user in op.out.users if isinstance(user, ViewRows)]
    alike = len(views) == 1 and op.kept.memory.row_bytes == views[0].out.memory.row_bytes
    if not alike or not all(_leads_to(user, views[0], rows_of(op.out.name), op) for user in op.out.users):
        raise lacking(op, "whose rows are used otherwise than through one view")
    return views[0]


def _leads_to(user: Op, view: ViewRows, rows: object, state: Op) -> bool:
    """Return whether all that is made of a memory's rows goes into the view, row by row, in the memory's own layer."""
    if layer_of(user.results[0].name) != layer_of(state.results[0].name):
        return False
    if user is view:
        return True
    made = [v.type for v in user.results]
    along = all(isinstance(type, TensorType) and type.sequence == rows for type in made)
    return along and all(_leads_to(each, view, rows, state) for v in user.results for each in v.users)


def _index(op: Index, at: Scope) -> Code:
    values = [at.of(v).text for v in (op.q, op.weight, op.memory)]
    rate = op.memory.memory.rate
    seen = at.view(Sight(), Sight()) if rate is None else at.every(_index_far(op, rate))
    more = [seen, literal(op.scale), literal(op.chosen)]
    return Code(f"{at.helper('best_rows')}({', '.join(values + more)})")


def _reader_sight(op: KV, at: Scope) -> Sight:
    """Return what a reader beside the memory sees, so that both use one view; what is kept if there is no reader.

    A view's slots depend on what the memory keeps only.
    """
    sights = [Sight.of(reader) for reader in at.readers(op.out) if isinstance(reader, Attend)]
    return Sight.of(op) if Sight.of(op) in sights or not sights else sights[0]


def _attend(op: Attend, at: Scope) -> Code:
    if op.memory.memory.rate is not None:
        raise lacking(op, "to pooled rows alone")
    memory = at.of(op.memory).text
    heads, kv_heads = op.out.tensor.shape[2], op.memory.memory.field("k").shape[0]
    flags = ("grouped",) if heads != kv_heads and op.head_map is None else ()
    if kv_heads == 1 and op.q.tensor.shape[3] != op.out.tensor.shape[3]:  # no kernel of torch's takes these as they are
        flags += ("side_by_side",)
    if op.head_map is not None:
        memory = f"{at.helper('by_head')}({memory}, {at.head_map(op.head_map)})"
    kept = op.memory.memory
    view = at.view(Sight(kept.window, kept.first), Sight.of(op))
    if op.chosen is not None and op.entries is None:
        view = f"{at.helper('among')}({view}, {at.of(op.chosen).text}, {at.of(op.memory).text}[0])"
    if op.sink is None and op.softcap is None and op.entries is None:
        return Code(f"{at.helper('attend', *flags)}({at.of(op.q).text}, {memory}, {view}, {literal(op.scale)})")
    seen = [f"({memory}, {view})"] + ([] if op.entries is None else [_entries(op, op.entries, at)])
    sink = [] if op.sink is None else [f"sink={at.of(op.sink).text}"]
    cap = [] if op.softcap is None else [f"cap={literal(op.softcap)}"]
    raised = [f"raised={literal(op.entries_bias)}"] if op.entries_bias else []
    name = at.helper("attend_by_scores", *(["raised"] if raised else []))
    values = [at.of(op.q).text, f"[{', '.join(seen)}]", literal(op.scale), *sink, *cap, *raised]
    return Code(f"{name}({', '.join(values)})")


def _entries(op: Attend, entries: Value, at: Scope) -> str:
    """Return the pooled rows that are attended to beside a memory, and the view of them."""
    rate = entries.memory.rate
    if rate is None:
        raise lacking(op, "to two memories of which the second is not pooled")
    rows = at.of(entries).text
    seen = Far(rate, op.window, op.first) if op.disjoint else Far(rate)
    index = None if op.chosen is None else op.chosen.op
    index = index.stands_for[-1] if isinstance(index, Kernel) else index
    if isinstance(index, Index) and _index_far(index, rate) != seen:
        raise lacking(op, "to rows that an index chooses among others than it sees")
    if op.head_map is not None:
        rows = f"{at.helper('by_head')}({rows}, {at.head_map(op.head_map)})"
    far = f"{rows}, {at.every(seen)}"
    if op.chosen is None:
        return f"({far})"
    at.helper("among")
    return f"{at.helper('chosen_rows')}({far}, {at.of(op.chosen).text})"


MEMORIES: Mapping[type[Op], Callable[[Any, Scope], Code]] = {
    Attend: _attend,
    Compressed: _pool,
    Index: _index,
    KV: _kv,
    ReadRows: _read,
    Rope: _rope,
    RowPositions: _positions,
    StateRows: _rows,
    PickHeads: _pick,
    ViewRows: _view,
}


def written_by_readers(op: Op) -> bool:
    """Return whether an op has no line of its own: pooling stands where its rows are read, positions in rotations."""
    if isinstance(op, RowPositions):
        return all(isinstance(user, Rope) for user in op.out.users)
    return isinstance(op, Compressed)
