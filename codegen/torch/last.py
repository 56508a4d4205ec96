"""Target ``torch``: where a call goes on with the tokens alone whose logits are wanted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from regraft.codegen.torch.body import Body
from regraft.codegen.torch.code import lacking
from regraft.ir.graph import Graph
from regraft.ir.op import Value
from regraft.ir.ops.final import Last
from regraft.ir.ops.pos import Rope


def write_cut(body: Body, graph: Graph, cuts: Sequence[Last], used: Iterable[str]) -> None:
    """Write ops that keep the last tokens: their results take over the names of what they are made of.

    Args:
        body: The body of the model.
        graph: The graph.
        cuts: The ops, one after another in the graph.
        used: The rotations and views that later layers are given, by name: these are cut too.

    Raises:
        MissingEmitterError: What is cut is used afterwards as it was too, or later layers look at pooled rows.
    """
    place = {op: i for i, op in enumerate(graph.ops)}
    end = max(place[op] for op in cuts)
    names: dict[str, str] = {}
    for op in cuts:
        if any(place[user] > end for user in op.x.users) or op.x in graph.outputs:
            raise lacking(op, f"beside %{op.x.name} as it was")
        name = body.of(op.x).text
        body.names.alias(op.out, name)
        if not only_turns(op.out):
            names[name] = f"{body.helper('last_rows')}({name}, count, last)"
    shared = body.shared
    for name in used:
        if name in shared.ropes.values():
            body.helper("last_rows")
            names[name] = f"{body.helper('last_rope')}({name}, count, last)"
        elif name in shared.views.values():
            names[name] = f"{body.helper('last_view')}({name}, tokens.shape[1], count, last, dtype)"
        elif name in shared.everies.values():
            raise lacking(cuts[0], "before attention to pooled rows")
    body.lines.append("if last is not None:  # nobody asks for what later layers make of the other tokens")
    body.lines += [f"    {name} = {code}" for name, code in names.items()]


def only_turns(value: Value) -> bool:
    """Return whether positions are read to rotate by them and for nothing else: layers are given cosine and sine."""
    made = value.op.x if isinstance(value.op, Last) else value
    if made.op is not None or made.name != "pos":
        return False
    return all(isinstance(user, Rope) for user in value.users)
