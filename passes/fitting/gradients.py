"""What a loss says about heads, from one backward pass a window: the loss is the mean one of the next token.

- Its gradient by a gate on each head's result. Source: Michel et al. 2019, Are Sixteen Heads Really Better than One?
- The second moments of its gradient by an op's result: the metric in which errors there cost the loss, to second order
  where the model predicts well. Source: Martens and Grosse 2015, Optimizing Neural Networks with Kronecker-factored
  Approximate Curvature.
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
    """Return ``E|dL/dξ|`` of each gate's entries, float64 ``[H]``: the mean over windows.

    Args:
        graph: With the gates in it.
        gates: Weight-time values, as `gated` gives them.
        weights: All other weights that run-time ops read.
        tokens: int64 ``[N, T]``, the windows.
    """
    import torch

    opened = [torch.ones(gate.tensor.sizes, requires_grad=True) for gate in gates]
    known = {**weights, **dict(zip(gates, opened, strict=True))}
    totals = [torch.zeros(gate.shape, dtype=torch.float64) for gate in opened]
    for window in tokens.split(1):
        with torch.enable_grad():
            loss, _ = _loss(graph, known, window, ())
            found = torch.autograd.grad(loss, opened)
        totals = [total + gradient.double().abs() for total, gradient in zip(totals, found, strict=True)]
    return [total / len(tokens) for total in totals]


def result_gradients(
    graph: Graph, results: Sequence[Value], weights: Mapping[Value, Tensor], tokens: Tensor
) -> list[Tensor]:
    """Return ``E[g gᵀ]`` of the loss's gradient by some run-time values ``[B, T, M]``, float64 ``[M, M]``.

    Args:
        graph: The graph.
        results: The values.
        weights: The weights that run-time ops read.
        tokens: int64 ``[N, T]``, the windows.
    """
    import torch

    known = {
        value: tensor.requires_grad_() if tensor.is_floating_point() else tensor for value, tensor in weights.items()
    }
    totals: list[Tensor] = []
    for window in tokens.split(1):
        with torch.enable_grad():
            loss, seen = _loss(graph, known, window, results)
            found = torch.autograd.grad(loss, seen)
        flat = [gradient[0].double() * window.shape[1] for gradient in found]
        here = [gradient.T @ gradient / window.shape[1] for gradient in flat]
        totals = [a + b for a, b in zip(totals, here, strict=True)] if totals else here
    return [total / len(tokens) for total in totals]


def _loss(
    graph: Graph, known: Mapping[Value, Tensor], window: Tensor, results: Sequence[Value]
) -> tuple[Tensor, list[Tensor]]:
    """Return a window's mean loss, and some values on the way to it."""
    import torch

    pos = torch.arange(window.shape[1])[None]
    given = {"tokens": window, "pos": pos, "valid": torch.ones_like(window, dtype=torch.bool)}
    run = Run(pos, given["valid"], None, lambda op: known[op.out])
    values: dict[Value, Any] = {**known, **{value: given[value.name] for value in graph.inputs}}
    output = graph.outputs[0]
    found = execute(list(graph.run_time()), values, run, {output, *results})
    loss = torch.nn.functional.cross_entropy(found[output][0, :-1].float(), window[0, 1:])
    return loss, [found[value] for value in results]
