"""``weight.fit_scores``: what norms let through is met, and its error is that of scores at random distances."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.ir.graph import Graph
from regraft.ir.interpret import Run
from regraft.ir.ops.merging import Channels
from regraft.ir.ops.scores import FitScores, drawn, score_error
from regraft.ir.ops.weight import Load

D, M = 6, 5


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fit(*inputs: Tensor, **attributes: Any) -> tuple[Tensor, ...]:
    graph = Graph("g")
    values = [
        graph.add(Load({}, {"dtype": "f64", "shape": tuple(t.shape)}), [f"v{i}"])[0] for i, t in enumerate(inputs)
    ]
    names = [slot.name for slot in FitScores.spec.slots]
    op = FitScores({name: (value,) for name, value in zip(names, values, strict=True)}, {"eps": 1e-6, **attributes})
    graph.add(op, ["q", "k", "m", "n"])
    nothing = torch.zeros(0, 0)
    found = op.reference(Run(nothing, nothing, None, lambda _: nothing), *inputs)
    assert [tuple(each.shape) for each in found] == [value.tensor.sizes for value in op.results]
    return found


def normalised(x: Tensor, weight: Tensor, gain: Tensor) -> Tensor:
    heads = (x @ weight.T).unflatten(-1, (-1, D))
    return heads * (heads.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * gain


@pytest.mark.parametrize(
    "turn", [{"channels": D, "pairs": 3}, {"channels": 4, "pairs": 2, "layout": "interleaved"}, {}]
)
def test_error_is_that_of_scores_at_random_distances(turn: dict[str, Any]) -> None:
    channels = Channels(D, turn.get("channels", 0), turn.get("pairs", 0), turn.get("layout", "halves"))
    q, k, q2, k2 = random(30, 4, D), random(30, 2, D, seed=1), random(30, 4, D, seed=2), random(30, 1, D, seed=3)
    q2, k2 = q + 0.3 * q2, k[:, :1] + 0.3 * k2
    real, imaginary = channels.turning()
    groups = [0, 0, 1, 1]
    error = square = 0.0
    angles = torch.rand(200, 1, len(real), generator=torch.Generator().manual_seed(4), dtype=torch.float64) * 6.2831853
    for head, group in enumerate(groups):
        scores = []
        for a, b in ((q[:, head], k[:, group]), (q2[:, head], k2[:, 0])):
            turned = b.repeat(200, 1, 1)
            turned[..., real] = b[:, real] * angles.cos() - b[:, imaginary] * angles.sin()
            turned[..., imaginary] = b[:, imaginary] * angles.cos() + b[:, real] * angles.sin()
            scores.append(torch.einsum("td,asd->ats", a, turned))
        error += float((scores[0] - scores[1]).square().mean())
        square += float(scores[0].square().mean())
    found = float(score_error((q, k), (q2, k2), groups, [0, 0], channels))
    assert abs(found - error / square) < (0.05 if real else 1e-9) * error / square


def test_heads_that_are_equal_merge_without_error_and_others_with_less_than_from_the_start() -> None:
    gram = random(M, M, seed=9)
    gram = gram @ gram.T
    queries, keys = random(2 * D, M), random(2 * D, M, seed=1)
    gains = random(D, seed=2).abs() + 0.5, random(D, seed=3).abs() + 0.5
    same = torch.cat((keys[:D], keys[:D]))
    down, up = torch.cat((torch.eye(D), torch.eye(D)), 1).double() / 2, torch.eye(D).double().repeat(2, 1, 1)
    turn: dict[str, Any] = {"channels": D, "pairs": 3, "groups": (0, 1), "merged": (0, 0)}
    x = drawn(gram, 7)

    def error(keys: Tensor, steps: int) -> float:
        q, k, m, n = fit(gram, queries, keys, *gains, down, up, steps=steps, **turn)
        old = normalised(x, queries, gains[0]), normalised(x, keys, gains[1])
        new = normalised(x, q, m), normalised(x, k, n)
        return float(score_error(old, new, [0, 1], [0, 0], Channels(D, D, 3)))

    assert error(same, 60) < 0.02
    assert error(keys, 30) < 0.8 * error(keys, 0)


def test_drawn_tokens_have_the_moments_asked_for_and_are_the_same_every_time() -> None:
    root = random(M, M)
    gram = root @ root.T
    x = drawn(gram, 0)
    assert torch.equal(x, drawn(gram, 0))
    assert not torch.equal(x, drawn(gram, 1))
    assert float((x.T @ x / len(x) - gram).norm() / gram.norm()) < 0.1
