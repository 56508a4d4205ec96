"""``weight.align`` and its relatives: scores against other keys, mixes of other values, before and after."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from regraft.ir.graph import Graph
from regraft.ir.interpret import Run
from regraft.ir.ops.crossing import AlignAcross
from regraft.ir.ops.fits import Align, AlignValues
from regraft.ir.ops.weight import Load


def align(*inputs: Tensor, kind: type[Align | AlignValues] = Align, **attributes: Any) -> Tensor:
    graph = Graph("g")
    values = [graph.add(Load({}, {"dtype": "f64", "shape": tuple(t.shape)}), [f"v{i}"]) for i, t in enumerate(inputs)]
    op = kind(dict(zip(("weight", "gram", "cross", "norm"), values, strict=False)), attributes)
    graph.add(op, ["out"])
    nothing = torch.zeros(0, 0)
    found = op.reference(Run(nothing, nothing, None, lambda _: nothing), *inputs)
    assert tuple(found.shape) == op.out.tensor.sizes
    return found


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(a: Tensor, b: Tensor) -> bool:
    return float((a - b).abs().max()) < 1e-10


@pytest.mark.parametrize("layout", ["halves", "interleaved"])
def test_aligned_queries_score_other_keys_as_the_old_ones(layout: str) -> None:
    new = torch.view_as_complex(random(40, 2, 3, 2))  # 2 KV heads of 3 frequencies, and a channel that does not turn
    factor = torch.view_as_complex(random(2, 3, 2, seed=1))
    weight, x = random(4 * 7, 5, seed=2), random(5, seed=3)

    def channels(keys: Tensor) -> Tensor:
        parts = torch.view_as_real(keys)
        flat = parts.flatten(-2) if layout == "interleaved" else parts.transpose(-1, -2).flatten(-2)
        return torch.cat((flat, torch.ones_like(flat[..., :1])), -1)

    keys, old = channels(new), channels(factor * new)
    gram, cross = keys.flatten(1).T @ keys.flatten(1) / 40, keys.flatten(1).T @ old.flatten(1) / 40
    groups = (1, 0, 0, 1)
    attributes: dict[str, Any] = {"own": groups, "donor": groups, "channels": 6, "layout": layout, "ridge": 0.0}
    found = align(weight, gram, cross, **attributes)
    for head, group in enumerate(groups):
        before, after = (w.view(4, 7, 5)[head] @ x for w in (weight, found))
        assert close(keys[:, group] @ after, old[:, group] @ before)
    norm = random(7, seed=4).abs() + 0.5
    scaled = align(weight, gram, cross, norm, **attributes)
    plain = align((weight.view(4, 7, 5) * norm[:, None]).reshape(28, 5), gram, cross, **attributes)
    assert close(scaled.view(4, 7, 5) * norm[:, None], plain.view(4, 7, 5))


def test_alignment_is_drawn_to_one_and_survives_silent_keys() -> None:
    weight, gram, cross = random(8, 5), torch.eye(8, dtype=torch.float64), random(8, 8, seed=1)
    attributes: dict[str, Any] = {"own": (0, 1), "donor": (0, 1), "channels": 4}
    far, near = ((align(weight, gram, cross, **attributes, ridge=ridge) - weight).norm() for ridge in (1e-4, 1e4))
    assert near < 1e-3 * far
    nothing = torch.zeros(8, 8, dtype=torch.float64)
    assert close(align(weight, nothing, nothing, **attributes), weight)


def test_a_turned_output_makes_of_other_values_what_it_made_of_the_old_ones() -> None:
    new, maps, weight = random(50, 2, 3), random(2, 3, 3, seed=1), random(7, 4 * 3, seed=2)
    old = torch.stack([new[:, g] @ maps[g].T for g in (1, 0)], 1)  # KV heads in another order
    gram, cross = new.flatten(1).T @ new.flatten(1) / 50, new.flatten(1).T @ old.flatten(1) / 50
    own, donor = (1, 1, 0, 0), (0, 0, 1, 1)
    found = align(weight, gram, cross, kind=AlignValues, own=own, donor=donor, ridge=0.0)
    for head in range(4):
        columns = slice(3 * head, 3 * head + 3)
        assert close(new[:, donor[head]] @ found[:, columns].T, old[:, own[head]] @ weight[:, columns].T)


def test_the_maps_of_values_are_ridge_regressions_drawn_to_the_identity() -> None:
    new, old, weight, ridge = random(30, 6), random(30, 6, seed=1), random(5, 6, seed=2), 0.3
    gram, cross = new.T @ new / 30, new.T @ old / 30
    found = align(weight, gram, cross, kind=AlignValues, own=(0, 1), donor=(0, 1), ridge=ridge)
    amount = (30 * ridge * gram.trace() / 6).sqrt()
    for head in range(2):
        part = slice(3 * head, 3 * head + 3)
        left = torch.cat((new[:, part], amount * torch.eye(3, dtype=torch.float64)))
        right = torch.cat((old[:, part], amount * torch.eye(3, dtype=torch.float64)))
        assert close(found[:, part], weight[:, part] @ torch.linalg.lstsq(left, right).solution.T)
    nothing = torch.zeros(6, 6, dtype=torch.float64)
    silent = align(weight, nothing, nothing, kind=AlignValues, own=(0, 1), donor=(0, 1))
    assert close(silent, torch.zeros_like(weight))


def across(gram: Tensor, cross: Tensor, **attributes: Any) -> Tensor:
    graph = Graph("g")
    values = [
        graph.add(Load({}, {"dtype": "f64", "shape": tuple(t.shape)}), [name])[0]
        for name, t in (("gram", gram), ("cross", cross))
    ]
    op = AlignAcross({"gram": (values[0],), "cross": (values[1],)}, attributes)
    graph.add(op, ["out"])
    nothing = torch.zeros(0, 0)
    found = op.reference(Run(nothing, nothing, None, lambda _: nothing), gram, cross)
    assert tuple(found.shape) == op.out.tensor.sizes
    return found


def placed(pairs: Tensor, still: Tensor, layout: str) -> Tensor:
    """Return heads ``[N, H * D]`` of complex pairs ``[N, H, F]`` and channels that do not turn ``[N, H, S]``."""
    parts = torch.view_as_real(pairs)
    flat = parts.flatten(-2) if layout == "interleaved" else parts.transpose(-1, -2).flatten(-2)
    return torch.cat((flat, still), -1).flatten(1)


@pytest.mark.parametrize("layout", ["halves", "interleaved"])
def test_mixes_of_all_heads_are_found(layout: str) -> None:
    new, still = torch.view_as_complex(random(60, 3, 2, 2)), random(60, 3, 2, seed=1)
    mixes, rest = torch.view_as_complex(random(2, 2, 3, 2, seed=2)), random(4, 6, seed=3)
    old = torch.einsum("foh,nhf->nof", mixes, new)
    keys, wanted = placed(new, still, layout), placed(old, (still.flatten(1) @ rest.T).unflatten(1, (2, 2)), layout)
    options: dict[str, Any] = {"width": 6, "channels": 4, "layout": layout, "ridge": 0.0}
    found = across(keys.T @ keys, keys.T @ wanted, **options)
    assert close(keys @ found.T, wanted)


def test_a_map_across_heads_is_the_best_that_passes_a_rotation_and_is_drawn_to_its_own_head() -> None:
    new, old = torch.view_as_complex(random(60, 3, 2, 2)), torch.view_as_complex(random(60, 3, 2, 2, seed=1))
    nothing = random(60, 3, 0)
    keys, wanted = placed(new, nothing, "halves"), placed(old, nothing, "halves")
    gram, cross = keys.T @ keys / 60, keys.T @ wanted / 60
    found = across(gram, cross, width=4, channels=4, ridge=0.0)
    turn = torch.polar(torch.ones(2).double(), torch.tensor([1.0, 0.1]).double())
    assert close(placed(new * turn, nothing, "halves") @ found.T, turned(keys @ found.T, turn))
    for frequency in range(2):
        best = torch.linalg.lstsq(new[:, :, frequency], old[:, :, frequency]).solution
        mapped = torch.view_as_complex((keys @ found.T).view(60, 3, 2, 2).transpose(2, 3).contiguous())
        assert float((mapped[:, :, frequency] - new[:, :, frequency] @ best).abs().max()) < 1e-10
    assert float((across(gram, cross, width=4, channels=4, ridge=1e8) - torch.eye(12)).abs().max()) < 1e-6


def turned(keys: Tensor, turn: Tensor) -> Tensor:
    """Return keys ``[N, H * D]`` in halves of two frequencies, turned."""
    pairs = torch.view_as_complex(keys.view(-1, 3, 2, 2).transpose(2, 3).contiguous())
    return placed(pairs * turn, torch.zeros(len(keys), 3, 0).double(), "halves")
