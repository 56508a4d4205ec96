"""Query heads, from the projection that makes them to the columns that read their results, taken in any order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from regraft.ir.op import Value
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.weight import Take
from regraft.passes.fitting.refit import add_refit, undo_refit
from regraft.passes.matching.heads import Cut, apply_cut, group_map, take_blocks, trace, trace_gates
from regraft.passes.matching.rewrite import Editor
from regraft.passes.matching.sites import Output, Refusal, output_of

Columns = Callable[[Value, str, int], Value]
Fit = tuple[str, float]


@dataclass(frozen=True)
class QueryHeads:
    """What a choice of an attention's query heads goes through.

    ``queries`` and ``gates`` are what makes the queries and what the results are multiplied by, head by head.
    """

    attend: Attend
    queries: Cut
    gates: Cut
    output: Output

    @property
    def heads(self) -> int:
        """How many there are."""
        return len(self.attend.groups)

    @property
    def width(self) -> int:
        """The columns of the output projection that belong to a head."""
        return int(self.output.linear.weight.tensor.sizes[1]) // self.heads


def query_heads(attend: Attend) -> QueryHeads | Refusal:
    """Return what a choice of an attention's query heads goes through, or why there cannot be one."""
    output = output_of(attend)
    if isinstance(output, Refusal):
        return output
    if attend.sink is not None and not attend.sink.is_weight:
        return Refusal(f"the sinks of {attend.label} are known only at run time")
    queries, gates = trace(attend.q, attend, parts=True), trace_gates(attend.out, output, parts=True)
    if isinstance(queries, Refusal):
        return queries
    if isinstance(gates, Refusal):
        return gates
    through = {*queries.ops, *gates.ops}
    stray = [op for op in (*(queries.beside or ()), *(gates.beside or ())) if op not in through]
    if stray:
        return Refusal(f"{stray[0].label} takes channels of the query heads for something else")
    return QueryHeads(attend, queries, Cut([op for op in gates.ops if op not in queries.ops]), output)


def take_query_heads(
    edit: Editor, site: QueryHeads, order: Sequence[int], fit: Fit | None = None, columns: Columns | None = None
) -> Fit | None:
    """Let an attention have only some of its query heads, in the order given, or all in another order.

    A fit of the output projection to all heads is done anew on those that are left.

    Args:
        edit: The editor.
        site: The attention.
        order: The heads.
        fit: Target and ridge of a fit of the output projection, if it is to get one.
        columns: Makes the output projection's new weight of the old one, under a name, given a head's columns; by
            default it keeps the heads' own.

    Returns:
        What the output projection is fitted to, and how strongly it is drawn to what it was; None where it is not.
    """
    attend, heads, output = site.attend, site.heads, site.output
    width, groups = site.width, [attend.groups[head] for head in order]
    apply_cut(edit, site.queries, heads, order)
    apply_cut(edit, site.gates, heads, order)
    if attend.sink is not None:
        take_blocks(edit, attend, "sink", 0, 1, order)
    edit.set_attribute(attend, "head_map", group_map(groups, attend.memory.memory.fields[0].shape[0]))
    edit.retype([attend, *output.chain])
    earlier = undo_refit(edit, output)
    wanted = fit or earlier

    def kept(old: Value, name: str, block: int) -> Value:
        indices = tuple(order)
        return edit.add(Take, f"{name}.kept", old, axis=1, block=block, indices=indices, before=output.linear)

    def make(old: Value, name: str) -> Value:
        taken = (columns or kept)(old, name, width)
        return add_refit(edit, output, taken, name, *wanted) if wanted else taken

    edit.replace_weight(output.linear, "weight", make)
    return wanted
