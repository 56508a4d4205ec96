"""The branches of a layer: what is computed beside the residual stream, from one point of it to a later one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from regraft.ir.op import Op, Value
from regraft.ir.ops.core import Activation, Embed, Linear
from regraft.views.describe import jobs
from regraft.views.drawing.scene import Branch

_TITLES = {"ple": "per-layer embedding", "attn": "attention", "moe": "mixture of experts", "mlp": "MLP"}


def branches(
    ops: Sequence[Op], stream: Sequence[Value], outside: Sequence[Value], name: Callable[[Op], str]
) -> tuple[Branch, ...]:
    """Return the branches of run-time ops, in order, each a set of ops that are connected beside the stream.

    Args:
        ops: The ops of a layer, or all that stand together outside of layers.
        stream: The stream's values, the input first; none outside of layers.
        outside: The values from outside: to read the same one connects nothing.
        name: Gives the id of an op.
    """
    carried, cut = set(stream), set(stream) | set(outside)
    aside = [op for op in ops if not op.weight_time and not carried.intersection(op.results)]
    found: list[Branch] = []
    for group in _connected(aside, cut):
        taken = {v for op in group for v in op.operands if v in carried}
        enters = next((v for v in stream if v in taken), None)
        users = {user for op in group for v in op.results for user in v.users}
        leaves = next((v for v in stream if v.op in users), None)
        ids = tuple(name(op) for op in group)
        title, lines = _described(group, ids)
        start = "" if enters is None or enters is stream[0] or enters.op is None else name(enters.op)
        end = "" if leaves is None or leaves.op is None else name(leaves.op)
        found.append(Branch(title, lines, ids, start, end))
    return tuple(found)


def _described(group: Sequence[Op], ids: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """Return a branch's title, and what there is to say of it."""
    scopes = Counter(id.partition(".")[0] for id in ids if "." in id)
    scope = scopes.most_common(1)[0][0] if scopes else ""
    found = jobs(group)
    if not found or scope == "ple":
        return _TITLES.get(scope, scope), tuple(dict.fromkeys(_plain(op) for op in group if _plain(op)))
    title = found[0][0]
    lines: list[str] = []
    for job, words in found:
        shared = job == "MLP" and scope == "moe"
        lines += [f"shared {words[0].replace('MLP', 'expert of')}", *words[1:]] if shared else words
    return title, tuple(dict.fromkeys(line.replace("MLP ", "width ") for line in lines))


def _plain(op: Op) -> str:
    """Return what is said of an op of a branch that has no job: tables, heads, gates."""
    match op:
        case Embed():
            return "table of " + " × ".join(f"{size:,}" for size in op.table.tensor.sizes)
        case Linear() if op.weight.tensor.sizes[0] > op.weight.tensor.sizes[1]:
            return "map {1:,} → {0:,}".format(*op.weight.tensor.sizes)
        case Activation():
            return f"gate of {op.out.tensor.shape[-1]}, {op.kind}"
        case _:
            return ""


def _connected(ops: Sequence[Op], cut: set[Value]) -> list[list[Op]]:
    """Return the ops in groups that are connected by values that are not cut."""
    home = {op: i for i, op in enumerate(ops)}
    lead = list(range(len(ops)))

    def find(i: int) -> int:
        while lead[i] != i:
            lead[i] = lead[lead[i]]
            i = lead[i]
        return i

    for op in ops:
        for value in op.operands:
            if value not in cut and value.op in home:
                one, other = sorted((find(home[op]), find(home[value.op])))
                lead[other] = one
    groups: dict[int, list[Op]] = {}
    for op in ops:
        groups.setdefault(find(home[op]), []).append(op)
    return list(groups.values())
