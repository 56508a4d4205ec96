"""Rows that several layers read are made anew by each of these, where a kernel makes them as it attends."""

from __future__ import annotations

from regraft.ir.forms.attend import values_form
from regraft.ir.forms.attend_rows import attend_rows_form
from regraft.ir.graph import Graph, layer_of
from regraft.ir.op import Op, Value
from regraft.ir.ops.attn import Attend, PickHeads
from regraft.ir.ops.core import Concat, Flatten, Gain, Linear, Repeat, Slice, Unflatten
from regraft.ir.ops.memory import ReadRows, RowPositions, StateRows, ViewRows
from regraft.ir.ops.pos import Rope
from regraft.passes.fusion.attend import done_to_heads
from regraft.passes.latent_forms import decoding_form
from regraft.passes.matching.latents import LatentSite, expanded_site

_MAKING = (
    Concat, Flatten, Gain, Linear, PickHeads, ReadRows, Repeat, Rope, RowPositions, Slice, Unflatten, ViewRows,
)  # fmt: skip


def rebuild_apart(graph: Graph) -> Graph:
    """Return a graph in which each layer makes what it attends to of the rows that another layer keeps.

    So what makes it goes with the attention, whichever layer that stands in; maps of a latent are absorbed. It is the
    same graph where no kernel makes such rows; ``graph`` stays as it is.
    """
    views = [op for op in graph.ops if isinstance(op, ViewRows) and _making(op) and _read_elsewhere(op)]
    here = [view.out.name for view in views if _in_kernels(view)]
    others = [view.out.name for view in views if view.out.name not in here]
    whole = _apart(graph, [*here, *others])
    readers = {name: [op.out.name for op in graph[name].users if isinstance(op, Attend)] for name in others}
    latent = [name for name in others if all(_of_latent(whole[reader]) for reader in readers[name])]
    if not here and not latent:
        return graph
    changed = whole if latent == others else _apart(graph, [*here, *latent])
    return decoding_form(changed) or changed


def _apart(graph: Graph, views: list[str]) -> Graph:
    """Return a graph in which each layer that reads one of some views has one of its own."""
    if not views:
        return graph
    changed = graph.copy()
    for name in views:
        view = changed[name].op
        assert isinstance(view, ViewRows)
        for reader in _read_elsewhere(view):
            changed.replace_uses(view.out, _made_again(changed, view, reader), lambda user, to=reader: user is to)
    changed.drop_dead()
    return changed


def _of_latent(attended: Value) -> bool:
    """Return whether an attention is to keys and values that a latent is mapped to."""
    return isinstance(attended.op, Attend) and isinstance(expanded_site(attended.op), LatentSite)


def _in_kernels(view: ViewRows) -> bool:
    """Return whether the other layers that attend to a view all have a kernel that makes it of the rows."""
    ops = _making(view)
    bodies = [[*ops, *done_to_heads(reader.q), reader] for reader in _read_elsewhere(view)]
    return all(attend_rows_form(body) or values_form(body) for body in bodies)


def _read_elsewhere(view: ViewRows) -> list[Attend]:
    """Return the attentions of other layers that read a view, if attentions are all that do."""
    readers = [user for user in view.out.users if isinstance(user, Attend)]
    here = layer_of(view.out.name)
    alone = len(readers) == len(view.out.users)
    return [reader for reader in readers if alone and layer_of(reader.out.name) != here]


def _making(view: ViewRows) -> list[Op]:
    """Return what makes a view of kept rows, in order; nothing if anything else does."""
    found: dict[Op, None] = {}
    stack: list[Op] = [view]
    while stack:
        op = stack.pop()
        found[op] = None
        for value in op.operands:
            if value.is_weight or isinstance(value.op, StateRows):
                continue
            if not isinstance(value.op, _MAKING):
                return []
            stack += [] if value.op in found else [value.op]
    return list(found)


def _made_again(graph: Graph, view: ViewRows, reader: Attend) -> Value:
    """Make a view once more, for a layer that reads it, and return it."""
    here, there = (f"layers.{layer_of(name)}." for name in (view.out.name, reader.out.name))
    ops = _making(view)
    made: dict[Value, Value] = {}

    def there_too(value: Value) -> Value:
        return made.get(value, value)

    for op in [each for each in graph.ops if each in ops]:
        names = [graph.fresh(result.name.replace(here, there, 1)) for result in op.results]
        made |= dict(zip(op.results, graph.add(op.rebuilt(there_too), names, before=reader), strict=True))
    return made[view.out]
