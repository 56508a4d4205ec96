"""Merging heads: the fits against formulas written another way, exact where heads are copies of one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regraft.ir.graph import Graph
from regraft.ir.interpret import Run
from regraft.ir.ops.merging import Channels, GroupGram, GroupMoments, InversePower, JointMoment, merge
from regraft.ir.ops.weight import Load

HEADS, D, N = 3, 6, 500


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def paired(keys: Tensor, layout: str) -> Tensor:
    """Return complex channels ``[..., F]`` as pairs of real ones ``[..., 2 F]``."""
    parts = torch.view_as_real(keys)
    return parts.flatten(-2) if layout == "interleaved" else parts.transpose(-1, -2).flatten(-2)


def metric(seed: int = 5, heads: int = HEADS) -> Tensor:
    root = random(heads, D, D, seed=seed)
    return root @ root.transpose(1, 2)


def moments(keys: Tensor) -> Tensor:
    return torch.einsum("njd,nke->jdke", keys, keys) / len(keys)


def restored(keys: Tensor, down: Tensor, up: Tensor) -> Tensor:
    new = torch.einsum("jab,njb->na", down, keys)
    return torch.einsum("jab,nb->nja", up, new)


@pytest.mark.parametrize("layout", ["halves", "interleaved"])
@pytest.mark.parametrize("method", ["pca", "procrustes"])
def test_keys_that_are_complex_multiples_of_one_merge_exactly(layout: str, method: str) -> None:
    u, a = torch.view_as_complex(random(N, 1, D // 2, 2)), torch.view_as_complex(random(HEADS, D // 2, 2, seed=1))
    keys = paired((a.sgn() if method == "procrustes" else a) * u, layout)
    channels = Channels(D, D, D // 2, layout)
    merged = merge(moments(keys), metric(), channels, method)
    torch.testing.assert_close(restored(keys, merged.down, merged.up), keys, rtol=0, atol=1e-11)
    assert merged.lost < 1e-12 * merged.mass
    assert merge(moments(keys), metric(), channels, "mean").lost > 0.1 * merged.mass


@pytest.mark.parametrize("method", ["pca", "procrustes"])
def test_values_that_are_linear_maps_of_one_merge_exactly(method: str) -> None:
    maps = random(HEADS, D, D, seed=2)
    maps = torch.linalg.qr(maps).Q if method == "procrustes" else maps
    values = torch.einsum("jab,nb->nja", maps, random(N, D))
    merged = merge(moments(values), metric(), Channels(D), method)
    torch.testing.assert_close(restored(values, merged.down, merged.up), values, rtol=0, atol=1e-9)


def test_lost_is_the_error_in_the_readers_metric() -> None:
    keys, readers = random(N, HEADS, D) @ random(D, D, seed=3), metric()
    for method in ("mean", "procrustes", "pca"):
        merged = merge(moments(keys), readers, Channels(D, 4, 1), method)
        rest = keys - restored(keys, merged.down, merged.up)
        expected = torch.einsum("nja,jab,njb->", rest, readers, rest) / N
        assert abs(merged.lost - expected) < 1e-9 * merged.mass


def test_no_map_of_complex_factors_does_better_than_pca() -> None:
    # the best rank-one approximation in the readers' metric, found by alternating least squares
    keys = torch.view_as_complex(random(N, HEADS, 1, 2)) @ torch.ones(1, D // 2, dtype=torch.complex128)
    keys = keys + 0.5 * torch.view_as_complex(random(N, HEADS, D // 2, 2, seed=1))
    readers = torch.diag_embed(random(HEADS, D, seed=4).square())
    merged = merge(moments(paired(keys, "halves")), readers, Channels(D, D, D // 2), "pca")
    power = readers.diagonal(dim1=1, dim2=2)
    weights = power[:, : D // 2] + power[:, D // 2 :]
    best = 0.0
    for f in range(D // 2):
        k, w, a = keys[:, :, f], weights[:, f], torch.ones(HEADS, dtype=torch.complex128)
        u = k[:, 0]
        for _ in range(300):
            u = (k * a.conj() * w).sum(1) / (a.abs().square() * w).sum()
            a = (k * u.conj()[:, None]).sum(0) / u.abs().square().sum()
        best += float(((k - a * u[:, None]).abs().square().mean(0) * w).sum())
    lost = keys - torch.view_as_complex(
        restored(paired(keys, "halves"), merged.down, merged.up).view(N, HEADS, 2, -1).transpose(-1, -2).contiguous()
    )
    assert abs(float((lost.abs().square().mean(0) * weights).sum()) - best) < 1e-8 * best


def test_channels_that_stay_apart_do() -> None:
    keys = random(N, HEADS, D)
    merged = merge(moments(keys), metric(), Channels(D, mixing=False), "pca")
    for part in (merged.down, merged.up):
        assert torch.equal(part, torch.diag_embed(part.diagonal(dim1=1, dim2=2)))


def test_a_head_alone_stays_as_it_is() -> None:
    merged = merge(moments(random(N, 1, D)), metric(heads=1), Channels(D, 4, 2), "pca")
    assert torch.equal(merged.down, torch.eye(D, dtype=torch.float64)[None])
    assert torch.equal(merged.up, merged.down)


def test_a_reader_that_is_silent_leaves_finite_maps() -> None:
    readers = metric()
    readers[1] = 0
    for gram in (moments(random(N, HEADS, D)), torch.zeros(HEADS, D, HEADS, D, dtype=torch.float64)):
        merged = merge(gram, readers, Channels(D, 4, 2), "pca")
        assert bool(torch.isfinite(merged.down).all() & torch.isfinite(merged.up).all())


def test_statistics_of_heads_are_those_of_what_a_projection_makes() -> None:
    x, weight, bias, norm = random(2, 7, 5), random(8, 5, seed=1), random(8, seed=2), random(4, seed=3)
    graph = Graph("g")
    sizes = {"weight": (8, 5), "bias": (8,), "norm": (4,)}
    slots = {k: graph.add(Load({}, {"dtype": "f64", "shape": s}), [k]) for k, s in sizes.items()}
    nothing = torch.zeros(0, 0)
    run = Run(nothing, nothing, None, lambda _: nothing)
    made = torch.nn.functional.linear(x, weight, bias).view(14, 2, 4)
    made = torch.nn.functional.rms_norm(made, (4,), norm + 1, 1e-5)
    options: dict[str, object] = {"source": "x", "eps": 1e-5, "offset": 1.0}
    joint = JointMoment(slots, {**options, "parts": 2}).batch_sum(run, x, weight, bias, norm)
    torch.testing.assert_close(joint, made.flatten(1).T @ made.flatten(1))
    both = GroupMoments(slots, {**options, "groups": (1, 1), "parts": 2}).batch_sum(run, x, weight, bias, norm)
    torch.testing.assert_close(both[1], sum(made[:, h].T @ made[:, h] for h in range(2)))
    assert not both[0].any()
    bare = {key: slots[key] for key in ("weight", "bias")}
    power = InversePower(bare, {**options, "parts": 2}).batch_sum(run, x, weight, bias)
    factors = torch.nn.functional.linear(x, weight, bias).view(14, 2, 4).square().mean(-1).add(1e-5).rsqrt()
    torch.testing.assert_close(power, factors.square().sum(0))
    gram = GroupGram({"weight": slots["weight"]}, {"groups": (0,), "parts": 1}).reference(run, weight)
    torch.testing.assert_close(gram[0], weight.T @ weight)
