"""What a loss says about heads: its gradient by a gate on each head's result, from one backward pass a window.

Source: Michel et al. 2019, Are Sixteen Heads Really Better than One?; specs/passes_math.md, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from regraft.ir.graph import Graph
from regraft.ir.interpret import Run, execute
from regraft.ir.op import Value
from regraft.ir.ops.algebra import Fill
from regraft.ir.ops.attn import Attend, Temper

if TYPE_CHECKING:
    from torch import Tensor


def gated(graph: Graph, attends: Sequence[Attend]) -> tuple[Graph, list[Value]]:
    """Return a copy of a graph in which each head of some attentions is multiplied by a gate, and the gates."""
    work = graph.copy()
    gates: list[Value] = []
    for attend in attends:
        out = work[attend.out.name]
        assert out.op is not None
        after = work.ops[work.ops.index(out.op) + 1]
        made = Fill({}, {"value": 1.0, "dtype": out.tensor.dtype, "shape": (len(attend.groups),)})
        gates.append(work.add(made, [work.fresh(f"{out.name}.gate")], before=after)[0])
        gate = work.add(Temper({"x": (out,), "by": (gates[-1],)}, {}), [work.fresh(f"{out.name}.gated")], before=after)
        work.replace_uses(out, gate[0], lambda op, mine=gate[0].op: op is not mine and not op.weight_time)
    return work, gates


def gate_gradients(
    graph: Graph, gates: Sequence[Value], weights: Mapping[Value, Tensor], tokens: Tensor
) -> list[Tensor]:
    """Return ``E|dL/dξ|`` of each gate's entries, float64 ``[H]``: ``L`` is a window's mean loss of the next token.

    Args:
        graph: With the gates in it.
        gates: Weight-time values, as `gated` gives them.
        weights: All other weights that run-time ops read.
        tokens: int64 ``[N, T]``, the windows.
    """
    import torch

    opened = [torch.ones(gate.tensor.sizes, requires_grad=True) for gate in gates]
    known: dict[Value, Any] = {**weights, **dict(zip(gates, opened, strict=True))}
    totals = [torch.zeros(gate.shape, dtype=torch.float64) for gate in opened]
    ops, output = list(graph.run_time()), graph.outputs[0]
    for window in tokens.split(1):
        pos = torch.arange(window.shape[1])[None]
        given = {"tokens": window, "pos": pos, "valid": torch.ones_like(window, dtype=torch.bool)}
        run = Run(pos, given["valid"], None, lambda op: weights[op.out])
        inputs = {value: given[value.name] for value in graph.inputs}
        with torch.enable_grad():
            logits = execute(ops, {**known, **inputs}, run, {output})[output]
            loss = torch.nn.functional.cross_entropy(logits[0, :-1].float(), window[0, 1:])
            found = torch.autograd.grad(loss, opened)
        totals = [total + gradient.double().abs() for total, gradient in zip(totals, found, strict=True)]
    return [total / len(tokens) for total in totals]
