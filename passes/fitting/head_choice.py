"""Which query heads stay, for each of several numbers of heads a layer, by a score."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from regraft.ir.errors.recipe import StructureError
from regraft.ir.graph import Graph
from regraft.ir.op import Value
from regraft.ir.ops.attn import KV
from regraft.ir.ops.core import Linear
from regraft.passes.base import Measurements, Pass
from regraft.passes.fitting.head_cut import Keep
from regraft.passes.fitting.head_scores import Shares, activation_norms, eliminations, keep_largest, weight_norms
from regraft.passes.matching.heads import trace
from regraft.passes.matching.sites import Attention, Refusal, output_of

if TYPE_CHECKING:
    from torch import Tensor

Choice = dict[int, tuple[int, ...]]  # the heads that stay, by their number
SCORES = ("output-error", "loss-error", "measured", "activation-norm", "taylor", "weight-norm")


@dataclass(frozen=True)
class Score:
    """What decides which heads go.

    Attributes:
        name: One of `SCORES`.
        ridge: Of errors of refitted outputs, in units of the mean second moment.
        parts: Devices over which heads must go evenly.
        edit: Returns the rewrite that keeps only some heads of some layers, to be measured.
    """

    name: str
    ridge: float
    parts: int
    edit: Callable[[Keep], Callable[[Graph], object]]


def choose_heads(
    owner: Pass,
    graph: Graph,
    found: Mapping[int, Attention],
    numbers: Mapping[int, Sequence[int]],
    measurements: Measurements,
    by: Score,
) -> dict[int, Choice]:
    """Return the heads that stay in each layer, for each number that is asked for; those of fewer are among more.

    Args:
        owner: The pass, for messages.
        graph: The graph.
        found: The layers' attentions.
        numbers: How many heads may stay in each layer.
        measurements: Statistics, weights and divergences.
        by: The score.

    Raises:
        StructureError: ``weight-norm`` finds no projection that makes the values.
    """
    shares = {layer: Shares(each.attend.groups, each.kv_heads, by.parts) for layer, each in found.items()}
    chosen: dict[int, dict[int, list[int]]] = {}
    if by.name == "measured":
        chosen = _by_divergence(graph, shares, numbers, measurements, by)
    elif by.name in ("output-error", "loss-error"):
        costs = _loss_metrics(graph, found, measurements) if by.name == "loss-error" else {}
        for layer, c, rows in _outputs(graph, found, measurements):
            weighed = rows @ costs[layer] if costs else rows
            chosen[layer] = eliminations(c, weighed, numbers[layer], shares[layer], by.ridge)
    else:
        for layer, scores in _scores(owner, graph, found, measurements, by.name):
            chosen[layer] = {keep: keep_largest(scores, keep, shares[layer]) for keep in numbers[layer]}
    return {
        layer: {keep: tuple(sorted(heads)) for keep, heads in choice.items()}
        for layer, choice in sorted(chosen.items())
    }


def _by_divergence(
    graph: Graph,
    shares: Mapping[int, Shares],
    numbers: Mapping[int, Sequence[int]],
    measurements: Measurements,
    by: Score,
) -> dict[int, dict[int, list[int]]]:
    """Remove heads one at a time, in each layer by itself, each time the one whose removal diverges least."""
    alive = {layer: list(range(len(each.groups))) for layer, each in shares.items()}
    chosen: dict[int, dict[int, list[int]]] = {layer: {} for layer in shares}
    while True:
        steps: list[tuple[int, list[int]]] = []
        for layer, heads in alive.items():
            if len(heads) in numbers[layer]:
                chosen[layer][len(heads)] = heads
            target = max((number for number in numbers[layer] if number < len(heads)), default=None)
            if target is not None:
                gone = shares[layer].removable(heads, target)
                steps += [(layer, [head for head in heads if head != each]) for each in gone]
        if not steps:
            return chosen
        costs = measurements.damage(graph, [by.edit({layer: tuple(heads)}) for layer, heads in steps])
        for layer in {layer for layer, _ in steps}:
            alive[layer] = min((cost, heads) for (at, heads), cost in zip(steps, costs, strict=True) if at == layer)[1]


def _outputs(
    graph: Graph, found: Mapping[int, Attention], measurements: Measurements
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Yield each layer with the second moments of what its output projection reads, and this one's rows by head."""
    layer_at = {_output(attention): layer for layer, attention in found.items()}
    for linear, c, weight in measurements.projections(graph, list(layer_at)):
        yield layer_at[linear], c, _rows(weight)


def _loss_metrics(graph: Graph, found: Mapping[int, Attention], measurements: Measurements) -> dict[int, Tensor]:
    """Return, for each layer, what to multiply an error of its output by so that its square is what it costs the loss.

    That is a square root of the second moments of the loss's gradient there, scaled to a mean square of one.
    """
    import torch

    gradients = measurements.result_gradients(graph, [_output(attention) for attention in found.values()])
    roots: dict[int, Tensor] = {}
    for layer, gradient in zip(found, gradients, strict=True):
        values, vectors = torch.linalg.eigh(gradient)
        values = values.clamp_min(0.0)
        roots[layer] = vectors * (values / values.mean().clamp_min(torch.finfo(values.dtype).tiny)).sqrt()
    return roots


def _scores(
    owner: Pass, graph: Graph, found: Mapping[int, Attention], measurements: Measurements, score: str
) -> Iterator[tuple[int, Tensor]]:
    """Yield each layer with its heads' scores: the least goes first."""
    if score == "taylor":
        gradients = measurements.gate_gradients(graph, [attention.attend for attention in found.values()])
        yield from zip(found, gradients, strict=True)
    elif score == "activation-norm":
        for layer, c, rows in _outputs(graph, found, measurements):
            yield layer, activation_norms(c, rows, found[layer].heads)
    else:
        for layer, attention in found.items():
            values = measurements.weight(graph, _value_weight(owner, attention)).double()
            rows = _rows(measurements.weight(graph, _output(attention).weight))
            yield layer, weight_norms(rows, values, attention.attend.groups)


def _output(attention: Attention) -> Linear:
    output = output_of(attention.attend)
    assert not isinstance(output, Refusal), "checked before"
    return output.linear


def _rows(weight: Tensor) -> Tensor:
    """Return an output projection ``[M, Hq * Dv]`` as rows by head, in float64."""
    return weight.double().T.contiguous()


def _value_weight(owner: Pass, attention: Attention) -> Value:
    """Return the projection that makes an attention's values."""
    state = attention.memory.op
    cut = trace(state.v, state) if isinstance(state, KV) else Refusal("its memory holds no values by head")
    if isinstance(cut, Refusal) or len(cut.linears) != 1:
        reason = cut.reason if isinstance(cut, Refusal) else "its values come from several projections"
        fix, where = "use another score", owner.place("score")
        raise StructureError(owner=owner.name, layer=attention.layer, reason=reason, fix=fix, where=where)
    return cut.linears[0].weight
