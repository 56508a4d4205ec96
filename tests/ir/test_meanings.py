"""What ops compute, against formulas written another way."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regraft.ir.dims import B, T, evaluate
from regraft.ir.graph import Graph
from regraft.ir.interpret import Run, execute
from regraft.ir.op import Value, op_class
from regraft.ir.ops.core import ACTIVATIONS, activate
from regraft.ir.ops.pos import Rope
from regraft.ir.source import torch_dtype
from regraft.ir.types import FLOATS, TensorType
from tests.ir.strategies import RULES, graphs_with

BOUND = 1e-12


def run(positions: Tensor | None = None) -> Run:
    pos = torch.zeros(1, 1) if positions is None else positions
    return Run(pos, pos >= 0, None, lambda load: torch.zeros(load.shape))


def compute(opname: str, *inputs: Tensor | None, weights: bool = False, **attributes: object) -> Tensor:
    """Compute one op on tensors; ``weights`` says that they are parameters."""
    cls, graph = op_class(opname), Graph("g")
    slots: dict[str, list[Value]] = {}
    names = [slot.name for slot in cls.spec.slots]
    for i, tensor in enumerate(inputs):
        if tensor is not None:
            shape = tuple(tensor.shape)
            kind = "i64" if tensor.dtype == torch.int64 else "f64"
            name = f"v{i}"
            if weights:
                value = graph.add(op_class("weight.load")({}, {"dtype": kind, "shape": shape}), [name])[0]
            else:
                value = graph.add_input(name, TensorType(kind, shape))
            slots.setdefault(names[min(i, len(names) - 1)], []).append(value)
    op = cls(slots, attributes)
    results = graph.add(op, [f"r{i}" for i in range(len(cls.spec.results))])
    found = op.reference(run(), *inputs)
    assert tuple(found.shape) == results[0].tensor.sizes
    return found


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= BOUND * max(1.0, float(expected.abs().max())))


def test_norm() -> None:
    x, w = random(2, 3, 8), random(8, seed=1)
    rms = torch.stack([row / math.sqrt(float(row @ row) / 8 + 1e-3) for row in x.view(6, 8)]).view(2, 3, 8)
    assert close(compute("core.norm", x, None, eps=1e-3), rms)
    assert close(compute("core.norm", x, w, eps=1e-3), rms * w)
    assert close(compute("core.norm", x, w, eps=1e-3, offset=1.0, cast="after"), rms * (1 + w))


def test_elementwise_ops() -> None:
    a, b = random(2, 3), random(2, 3, seed=1)
    assert close(compute("core.add", a, b), a + b)
    assert close(compute("core.mul", a, b), a * b)
    assert close(compute("core.scale", a, factor=-0.5), a / -2)
    assert close(compute("core.softcap", a, cap=0.7), 0.7 * (1 - 2 / (torch.exp(2 * a / 0.7) + 1)))


SIGMOID = {x: 1 / (1 + math.exp(-x)) for x in (-3.0, -0.5, 0.0, 0.5, 3.0)}
FORMULAS = {
    "silu": lambda x: x * SIGMOID[x],
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "quick_gelu": lambda x: x / (1 + math.exp(-1.702 * x)),
    "relu": lambda x: max(x, 0.0),
    "sigmoid": lambda x: SIGMOID[x],
    "softplus": lambda x: math.log1p(math.exp(x)),
    "tanh": math.tanh,
}


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations(kind: str) -> None:
    x = torch.tensor(list(SIGMOID), dtype=torch.float64)
    expected = torch.tensor([FORMULAS[kind](value) for value in SIGMOID], dtype=torch.float64)
    assert close(activate(kind, x), expected)


def test_shapes() -> None:
    x = random(2, 3, 12)
    assert close(compute("core.flatten", compute("core.unflatten", x, parts=4)), x)
    parts = [compute("core.slice", x, start=i, stop=i + 4) for i in (0, 4, 8)]
    assert close(compute("core.concat", *parts), x)


def test_linear_and_embed() -> None:
    x, w, bias = random(2, 5), random(3, 5, seed=1), random(3, seed=2)
    by_hand = torch.tensor([[float(sum(x[i] * w[o])) for o in range(3)] for i in range(2)], dtype=torch.float64)
    assert close(compute("core.linear", x, w), by_hand)
    assert close(compute("core.linear", x, w, bias), by_hand + bias)
    assert close(compute("core.embed", torch.tensor([[2, 0]]), w), torch.stack([w[2], w[0]])[None])


# -- positions


def rope(x: Tensor, positions: list[int], **attributes: object) -> Tensor:
    graph = Graph("g")
    shape = (B, T, *x.shape[2:])
    slots = {
        "x": [graph.add_input("x", TensorType("f64", shape))],
        "pos": [graph.add_input("p", TensorType("i64", (B, T)))],
    }
    op = Rope(slots, {"base": 100.0, "channels": x.shape[-1], **attributes})
    graph.add(op, ["y"])
    return op.reference(run(), x, torch.tensor([positions]))


def test_rotations_turn_pairs_by_position_times_frequency() -> None:
    x, at = random(1, 1, 1, 6), 11
    found = rope(x, [at])[0, 0, 0]
    for i in range(3):
        z = complex(float(x[0, 0, 0, i]), float(x[0, 0, 0, i + 3])) * complex(
            math.cos(at * 100 ** (-i / 3)), math.sin(at * 100 ** (-i / 3))
        )
        # frequencies are float32, as transformers has them
        assert abs(complex(float(found[i]), float(found[i + 3])) - z) < 1e-5


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 50), st.sampled_from(["halves", "interleaved"]))
def test_scores_depend_on_distance_alone(p: int, s: int, shift: int, layout: str) -> None:
    q, k = random(1, 1, 2, 8), random(1, 1, 2, 8, seed=1)

    def score(a: int, b: int) -> Tensor:
        return (rope(q, [a], layout=layout, channels=6) * rope(k, [b], layout=layout, channels=6)).sum(-1)

    assert (score(p, s) - score(p + shift, s + shift)).abs().max() < 1e-9


def test_layouts_are_permutations_and_channels_beyond_pass() -> None:
    x = random(1, 3, 2, 8)
    order = [0, 2, 4, 1, 3, 5, 6, 7]
    halves = rope(x[..., order], [4, 5, 6], channels=6)
    assert close(rope(x, [4, 5, 6], channels=6, layout="interleaved")[..., order], halves)
    assert torch.equal(halves[..., 6:], x[..., 6:])
    assert close(rope(x, [0, 0, 0], amplitude=1.5), 1.5 * x)


@pytest.mark.parametrize("scaling", ["linear", "llama3", "yarn"])
def test_scaled_frequencies_lie_between_plain_and_divided_ones(scaling: str) -> None:
    graph = Graph("g")
    slots = {
        "x": [graph.add_input("x", TensorType("f64", (B, T, 1, 64)))],
        "pos": [graph.add_input("p", TensorType("i64", (B, T)))],
    }

    def frequencies(scaling: str) -> Tensor:
        options = {"factor": 8.0, "original": 512, "low": 1.0, "high": 32.0 if scaling == "yarn" else 4.0}
        return Rope(slots, {"base": 1e4, "channels": 64, "scaling": scaling, **options}).frequencies()

    plain, scaled = frequencies("none"), frequencies(scaling)
    assert scaled.shape == (32,)
    assert bool(((scaled <= plain * 1.0001) & (scaled >= plain / 8.0001)).all())
    assert bool((scaled.diff() < 0).all())
    assert torch.allclose(scaled[-1], plain[-1] / 8)
    assert torch.allclose(scaled[0], plain[0] / 8 if scaling == "linear" else plain[0])


# -- mixtures


def test_experts_against_a_loop() -> None:
    tokens, width, hidden, count, chosen = 5, 4, 3, 6, 2
    x, logits = random(1, tokens, width), random(1, tokens, count, seed=1)
    gate_up, down = random(count, 2 * hidden, width, seed=2), random(count, width, hidden, seed=3)
    route = op_class("moe.route")
    for normalize in (True, False):
        graph = Graph("g")
        value = graph.add_input("x", TensorType("f64", (B, T, count)))
        op = route({"logits": [value]}, {"chosen": chosen, "normalize": normalize})
        graph.add(op, ["w", "e"])
        weights, experts = op.reference(run(), logits)
        found = compute("moe.experts", x, weights, experts, gate_up, down)
        for t in range(tokens):
            scores = torch.exp(logits[0, t]) / torch.exp(logits[0, t]).sum()
            best = sorted(range(count), key=lambda e: -float(scores[e]))[:chosen]
            whole = float(sum(scores[e] for e in best)) if normalize else 1.0
            y = torch.zeros(width, dtype=torch.float64)
            for e in best:
                gate, up = gate_up[e, :hidden] @ x[0, t], gate_up[e, hidden:] @ x[0, t]
                y += scores[e] / whole * (down[e] @ (gate / (1 + torch.exp(-gate)) * up))
            assert close(found[0, t], y)


def test_what_routing_and_experts_can_be_told() -> None:
    x, logits, bias, gain = random(1, 2, 4), random(1, 2, 6, seed=1), random(6, seed=2), random(6, seed=3)
    route = op_class("moe.route")
    graph = Graph("g")
    values = [graph.add_input("x", TensorType("f64", (B, T, 6)))]
    tables = [graph.add_input(name, TensorType("f64", (6,))) for name in ("b", "g")]
    options = {"chosen": 2, "normalize": True, "score": "sigmoid", "scale": 2.5}
    op = route({"logits": values, "bias": tables[:1], "gain": tables[1:]}, options)
    graph.add(op, ["w", "e"])
    weights, experts = op.reference(run(), logits, bias, gain)
    gate_up, down = random(6, 6, 4, seed=4), random(6, 4, 3, seed=5)
    biases = random(6, 6, seed=6), random(6, 4, seed=7)
    tensors = (x, weights, experts, gate_up, down, *biases)
    found = compute("moe.experts", *tensors, activation="quick_gelu", limit=0.6, shift=1.0)
    for t in range(2):
        scores = [1 / (1 + math.exp(-float(z))) for z in logits[0, t]]
        best = sorted(range(6), key=lambda e: -scores[e] - float(bias[e]))[:2]
        y = torch.zeros(4, dtype=torch.float64)
        for e in best:
            both = gate_up[e] @ x[0, t] + biases[0][e]
            gate, up = both[:3].clamp(max=0.6), both[3:].clamp(-0.6, 0.6)
            out = down[e] @ (gate / (1 + torch.exp(-1.702 * gate)) * (up + 1)) + biases[1][e]
            y += scores[e] / sum(scores[b] for b in best) * 2.5 * gain[e] * out
        assert close(found[0, t], y)


# -- weights


def test_weight_ops() -> None:
    a, b = random(6, 4), random(6, 4, seed=1)
    assert close(compute("weight.slice", a, weights=True, axis=1, start=1, stop=3), a[:, 1:3])
    assert close(compute("weight.take", a, weights=True, block=2, indices=(2, 0, 2)), a[[4, 5, 0, 1, 4, 5]])
    assert close(compute("weight.concat", a, b, weights=True, axis=1), torch.hstack((a, b)))
    assert close(compute("weight.stack", a, b, weights=True)[1], b)
    assert close(compute("weight.combine", a, b, weights=True, factors=(2.0, -1.0)), 2 * a - b)
    assert compute("weight.cast", a, weights=True, dtype="f16").dtype == torch.float16


@pytest.mark.parametrize("ridge", [0.0, 1e-4, 1.0, 1e6])
def test_a_refit_is_the_least_squares_solution(ridge: float) -> None:
    z, y, prior = random(50, 5), random(50, 3, seed=1), random(3, 5, seed=2)
    gram, cross = z.T @ z / 50, z.T @ y / 50
    found = compute("weight.refit", gram, cross, prior, weights=True, ridge=ridge)
    amount = ridge * float(gram.trace()) / 5
    # the same as plain least squares over the data and, as more data, the prior
    left = torch.cat((z / math.sqrt(50), math.sqrt(amount) * torch.eye(5, dtype=torch.float64)))
    right = torch.cat((y / math.sqrt(50), math.sqrt(amount) * prior.T))
    expected = torch.linalg.lstsq(left, right).solution.T  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    assert isinstance(expected, Tensor)
    assert (found - expected).abs().max() < 1e-9
    if ridge == 1e6:
        assert (found - prior).abs().max() < 1e-4


# -- every op


SIZES = {"B": 2, "T": 3, "S": 3}


def filled(type: TensorType) -> Tensor:
    """Random numbers of a type at `SIZES`; integers are zero, which every table and expert list has."""
    shape, dtype = [evaluate(dim, SIZES) for dim in type.shape], torch_dtype(type.dtype)
    return torch.randn(shape).to(dtype) if type.dtype in FLOATS else torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize("name", sorted(RULES))
def test_results_have_the_types_that_are_inferred(name: str) -> None:
    @settings(max_examples=25, deadline=None)
    @given(graphs_with(name))
    def check(graph: Graph) -> None:
        pos = torch.arange(3).expand(2, 3)
        run = Run(
            pos,
            pos >= 0,
            None,
            lambda load: filled(TensorType(load.dtype, load.shape)),
            lambda m: filled(m.results[0].tensor),
        )
        given_ = {value: filled(value.tensor) for value in graph.inputs}
        found = execute(graph.ops, given_, run, set(graph.outputs))
        for value, result in found.items():
            if isinstance(value.type, TensorType):
                assert result.shape == filled(value.type).shape
                assert result.dtype == torch_dtype(value.type.dtype)
            else:
                for field in value.type.fields:
                    rows = result.fields[field.name].shape
                    assert (rows[0], *rows[2:]) == (2, *field.shape)
                    assert rows[1] in ((1, value.type.fixed + 3) if value.type.fixed else (value.type.rows(3), 3))
                    assert result.fields[field.name].dtype == torch_dtype(value.type.dtype)

    check()


def test_weight_algebra_against_torch() -> None:
    a, b, by = random(2, 3, 4), random(2, 4, 5, seed=1), random(4, seed=2)
    assert close(compute("weight.matmul", a, b, weights=True), torch.einsum("bik,bko->bio", a, b))
    scaled = compute("weight.scale", a, by, weights=True, axis=2, offset=1.0)
    assert close(scaled, torch.einsum("bik,k->bik", a, by + 1))
    assert torch.equal(compute("weight.reshape", a, weights=True, shape=(6, 4)), a.flatten(0, 1))
    assert torch.equal(compute("weight.permute", a, weights=True, axes=(2, 0, 1)), torch.einsum("bik->kbi", a))


def test_weights_made_from_nothing() -> None:
    def made(opname: str, *shape: int, **rest: object) -> Tensor:
        return compute(opname, weights=True, dtype="f64", shape=shape, **rest)

    assert torch.equal(made("weight.fill", 2, 3, value=0.25), torch.full((2, 3), 0.25, dtype=torch.float64))
    assert torch.equal(made("weight.eye", 2, 3, 4)[1], torch.eye(3, 4, dtype=torch.float64))
    drawn = made("weight.random", 100, 100, std=0.5, seed=3)
    assert torch.equal(drawn, made("weight.random", 100, 100, std=0.5, seed=3))
    assert not torch.equal(drawn, made("weight.random", 100, 100, std=0.5, seed=4))
    assert 0.49 < float(drawn.std()) < 0.51


@pytest.mark.parametrize("transposed", [False, True])
def test_grouped_linear_is_a_matrix_for_each_group(transposed: bool) -> None:
    x, blocks = random(2, 3, 4, 5), random(4, 5, 6, seed=1) if transposed else random(4, 6, 5, seed=1)
    expected = torch.stack([x[:, :, g] @ (m if transposed else m.T) for g, m in enumerate(blocks)], 2)
    assert close(compute("core.grouped_linear", x, blocks.flatten(0, 1), transposed=transposed), expected)
