"""The interpreter: any split of a text into calls gives the same result, and no memory ever sees padding."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regraft.ir.cost import cache_bytes
from regraft.ir.dims import B, T
from regraft.ir.errors import RegraftError
from regraft.ir.errors.checkpoint import TensorMismatchError
from regraft.ir.errors.checks import CallError, ContextError, NeedsCalibrationError
from regraft.ir.errors.graph import UnknownValueError
from regraft.ir.graph import Graph
from regraft.ir.interpret import Cache, Interpreter, last_of
from regraft.ir.op import op_class
from regraft.ir.parse import parse_graph
from regraft.ir.source import TensorSource
from regraft.ir.types import TensorType
from tests.ir.models import FULL, VOCABULARY, LayerSpec, decoder, random_source, random_weights

torch.set_num_threads(1)

SLIDING = LayerSpec(window=4)
MODELS = {
    "full": [FULL, FULL],
    "windowed": [SLIDING, LayerSpec(window=1), LayerSpec(window=3)],
    "shared": [FULL, replace(SLIDING, donor=0), SLIDING, replace(FULL, donor=0), LayerSpec(window=2, donor=2)],
    "sinks": [LayerSpec(window=3, first=2), LayerSpec(window=5, donor=0), LayerSpec(window=2, first=1, donor=0)],
    "uneven": [LayerSpec(heads=5, head_map=(1, 0, 0, 1, 0)), replace(SLIDING, heads=1, head_map=(1,), donor=0)],
    "moe": [LayerSpec(moe=True), LayerSpec(window=3, moe=True)],
    "mixed": [SLIDING, LayerSpec(moe=True, window=6), replace(FULL, skip=0), replace(SLIDING, donor=0, tied=True)],
    "pooled": [LayerSpec(window=5, rate=3), LayerSpec(window=4, first=2, rate=2, chosen=2, overlap=True), SLIDING],
}
BOUND = 1e-10  # relative, in float64


@cache
def model(name: str, dtype: str = "f64") -> Interpreter:
    graph = decoder(MODELS[name])
    return Interpreter(graph, random_source(graph), dtype)


def same(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= BOUND * expected.abs().max())


def one_at_a_time(run: Interpreter, texts: list[list[int]]) -> list[Tensor]:
    """The logits of each text in one call of its own, without a cache."""
    return [run(torch.tensor([text]))[0] if text else torch.zeros(0, VOCABULARY) for text in texts]


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_any_split_into_ragged_calls_with_any_padding(name: str, seed: int) -> None:
    chance, run = random.Random(seed), model(name)
    texts = [[chance.randrange(VOCABULARY) for _ in range(chance.randint(1, 14))] for _ in range(chance.randint(1, 3))]
    expected = one_at_a_time(run, texts)
    state = run.new_cache(len(texts), context=max(map(len, texts)))
    done = [0] * len(texts)
    found: list[list[Tensor]] = [[] for _ in texts]
    while done != [len(text) for text in texts]:
        width = chance.randint(1, 6)
        counts = [chance.randint(0, min(width, len(text) - at)) for at, text in zip(done, texts, strict=True)]
        garbage = [[chance.randrange(VOCABULARY) for _ in range(width)] for _ in texts]  # stays as padding
        tokens = torch.tensor(garbage)
        for row, n in enumerate(counts):
            tokens[row, :n] = torch.tensor(texts[row][done[row] : done[row] + n])
        last = chance.choice([None, 1, 2, 3])
        logits = run(tokens, state, torch.tensor(counts), last)
        for row, n in enumerate(counts):
            if last is None:
                found[row].append(logits[row, :n])
            else:
                assert logits.shape == (len(texts), last, VOCABULARY)
                real = min(last, n)
                found[row].append(expected[row][done[row] : done[row] + n - real])
                found[row].append(logits[row, last - real :])
            done[row] += n
    for row, logits in enumerate(expected):
        assert same(torch.cat(found[row]), logits)
    assert state.lengths is not None
    assert state.lengths.tolist() == done


@pytest.mark.parametrize("name", MODELS)
def test_token_by_token_as_in_one_call(name: str) -> None:
    run = model(name)
    tokens = torch.arange(20)[None] * 7 % VOCABULARY
    expected = run(tokens)
    assert expected.std() > 0.3  # a model that says something
    state = run.new_cache()
    steps = [run(tokens[:, i : i + 1], state) for i in range(20)]
    assert same(torch.cat(steps, 1), expected)


@pytest.mark.parametrize("name", MODELS)
def test_the_cache_holds_what_the_cost_model_says(name: str) -> None:
    run = model(name, "f32")
    for length in (1, 2, 3, 7, 12):
        state = run.new_cache(2)
        run(torch.ones(2, length, dtype=torch.int64), state)
        assert state.nbytes == cache_bytes(run.graph, length, 2)


def test_garbage_in_the_padding_changes_nothing() -> None:
    run = model("mixed")
    tokens = torch.randint(0, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([9, 4])
    other = tokens.clone()
    other[1, 4:] = torch.tensor([0, 3, 0, 39, 1])
    caches = [run.new_cache(2), run.new_cache(2)]
    first, second = (run(t, c, lengths) for t, c in zip((tokens, other), caches, strict=True))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1, :4], second[1, :4])
    for name, rows in caches[0].rows.items():
        again = caches[1].rows[name]
        assert torch.equal(rows.valid, again.valid)
        assert not (rows.valid & (rows.pos >= lengths[:, None])).any()
        for field, values in rows.fields.items():
            assert torch.equal(values[rows.valid], again.fields[field][again.valid])


def snapshot(state: Cache) -> list[Tensor]:
    tensors = [t for rows in state.rows.values() for t in (*rows.fields.values(), rows.pos, rows.valid)]
    return [t.clone() for t in tensors] + ([] if state.lengths is None else [state.lengths.clone()])


@pytest.mark.parametrize(
    ("tokens", "lengths", "error", "problem"),
    [
        (torch.ones(2, 4, dtype=torch.int64), None, ContextError, "9 tokens do not fit a cache made for 8"),
        (torch.ones(2, 4, dtype=torch.int64), torch.tensor([1, 4]), ContextError, "9 tokens do not fit"),
        (torch.ones(3, 1, dtype=torch.int64), None, CallError, "3 rows of tokens and a cache for 2"),
        (torch.ones(2, 0, dtype=torch.int64), None, CallError, "tokens are torch.int64 [2, 0]"),
        (torch.ones(2, dtype=torch.int64), None, CallError, "tokens are torch.int64 [2]"),
        (torch.ones(2, 2), None, CallError, "tokens are torch.float32 [2, 2]"),
        (torch.ones(2, 2, dtype=torch.int64), torch.tensor([1, 3]), CallError, "lengths run from 1 to 3 of 2"),
        (torch.ones(2, 2, dtype=torch.int64), torch.tensor([-1, 2]), CallError, "lengths run from -1 to 2 of 2"),
        (torch.ones(2, 2, dtype=torch.int64), torch.tensor([1]), CallError, "lengths are torch.int64 [1]"),
    ],
)
def test_a_call_that_does_not_fit_changes_nothing(
    tokens: Tensor, lengths: Tensor | None, error: type[RegraftError], problem: str
) -> None:
    run = model("windowed")
    state = run.new_cache(2, context=8)
    run(torch.ones(2, 5, dtype=torch.int64), state, torch.tensor([3, 5]))
    before = snapshot(state)
    with pytest.raises(error) as caught:
        run(tokens, state, lengths)
    assert problem in caught.value.text
    after = snapshot(state)
    assert all(map(torch.equal, before, after))
    assert len(before) == len(after)
    fits = run(torch.ones(2, 3, dtype=torch.int64), state, torch.tensor([3, 3]))
    assert same(fits[1], run(torch.ones(1, 8, dtype=torch.int64))[0, 5:])


def test_a_step_that_fails_midway_changes_nothing() -> None:
    run = model("full")
    state = run.new_cache(1)
    run(torch.ones(1, 3, dtype=torch.int64), state)
    before = snapshot(state)
    with pytest.raises(IndexError):
        run(torch.tensor([[1, VOCABULARY]]), state)
    assert all(map(torch.equal, before, snapshot(state)))


def test_the_last_rows() -> None:
    logits = torch.arange(2 * 4 * 1.0).view(2, 4, 1)
    assert last_of(logits, None, 2)[..., 0].tolist() == [[2, 3], [6, 7]]
    assert last_of(logits, torch.tensor([4, 2]), 2)[..., 0].tolist() == [[2, 3], [4, 5]]
    assert last_of(logits, torch.tensor([1, 0]), 2)[..., 0].tolist() == [[0, 0], [4, 4]]
    assert last_of(logits, None, 6)[..., 0].tolist() == [[0, 0, 0, 1, 2, 3], [4, 4, 4, 5, 6, 7]]
    with pytest.raises(CallError, match="last is 0"):
        model("full")(torch.ones(1, 2, dtype=torch.int64), last=0)


def test_attention_is_what_its_formula_says() -> None:
    """One op against a loop over queries, heads and rows."""
    graph = parse_graph(
        """
        graph @g (%tokens: i64[B, T], %pos: i64[B, T], %valid: bool[B, T]) {
          %wq = weight.load : f32[9, 12]
          %wk = weight.load : f32[9, 8]
          %wv = weight.load : f32[9, 6]
          %q = core.embed %tokens, %wq
          %k = core.embed %tokens, %wk
          %v = core.embed %tokens, %wv
          %qh = core.unflatten %q {parts = 3}
          %kh = core.unflatten %k {parts = 2}
          %vh = core.unflatten %v {parts = 2}
          %m = state.kv %kh, %vh {window = 3}
          %c = attn.attend %qh, %m {scale = 0.7, window = 3, head_map = [1, 0, 1]} : f32[B, T, 3, 3]
          return %c
        }"""
    )
    weights = random_weights(graph)
    found = Interpreter(graph, TensorSource(weights), "f64")(torch.tensor([[3, 1, 4, 1, 5]]))
    q, k, v = (weights[w][torch.tensor([3, 1, 4, 1, 5])] for w in ("wq", "wk", "wv"))
    for t in range(5):
        for head, group in enumerate((1, 0, 1)):
            rows = range(max(0, t - 2), t + 1)
            scores = [0.7 * float(q[t, 4 * head : 4 * head + 4] @ k[s, 4 * group : 4 * group + 4]) for s in rows]
            shares = [math.exp(score - max(scores)) for score in scores]
            values = torch.stack([v[s, 3 * group : 3 * group + 3] for s in rows])
            assert same(found[0, t, head], torch.tensor(shares, dtype=torch.float64) @ values / sum(shares))


def test_edges_and_what_has_no_meaning_yet() -> None:
    run = model("full")
    values = run.run(torch.tensor([[1, 2, 3]]), edges=["layers.0.attn.q_rope", "layers.1.out", "lm_head.weight", "pos"])
    assert values["layers.0.attn.q_rope"].shape == (1, 3, 4, 4)
    assert values["pos"].tolist() == [[0, 1, 2]]
    assert values["lm_head.weight"] is run.weights["lm_head.weight"]
    with pytest.raises(UnknownValueError, match=r"did you mean layers\.0\.out"):
        run.run(torch.tensor([[1]]), edges=["layers.0.oat"])
    graph = Graph("g")
    x = graph.add_input("stream", TensorType("f32", (B, T, 4)))
    graph.set_outputs([x])
    with pytest.raises(CallError, match="an input %stream that no call gives"):
        Interpreter(graph, TensorSource({}))(torch.tensor([[1]]))


def test_a_statistic_needs_a_text() -> None:
    graph = parse_graph(
        """
        graph @g (%tokens: i64[B, T], %pos: i64[B, T], %valid: bool[B, T]) {
          %w = weight.load : f32[9, 4]
          %x = core.embed %tokens, %w
          %gram = weight.moment a=%x, b=%x : f64[4, 4]
          %prior = weight.load : f32[4, 4]
          %o = weight.refit %gram, %gram, %prior
          %y = core.linear %x, %o
          return %y
        }"""
    )
    with pytest.raises(NeedsCalibrationError, match="%gram is a statistic"):
        Interpreter(graph, random_source(graph))


def test_weights_are_folded_and_computed_with_in_one_dtype() -> None:
    graph = parse_graph(
        """
        graph @g (%tokens: i64[B, T], %pos: i64[B, T], %valid: bool[B, T]) {
          %w = weight.load : f32[6, 4]
          %table = weight.cast %w {dtype = "bf16"}
          %x = core.embed %tokens, %table
          %s = weight.load : bf16[4, 6]
          %a = weight.take %s {axis = 1, block = 2, indices = [2, 0]}
          %b = weight.slice %a {axis = 0, start = 1, stop = 3}
          %c = weight.combine %b, %b {factors = [2.0, -0.5]}
          %d = weight.concat %c, %c
          %y = core.linear %x, %d
          return %y
        }"""
    )
    weights = random_weights(graph)
    for dtype, kind in (("f64", torch.float64), ("f32", torch.float32), ("bf16", torch.bfloat16)):
        run = Interpreter(graph, TensorSource(weights), dtype)
        assert {t.dtype for t in run.weights.values()} == {kind}
        assert torch.equal(run.weights["table"], weights["w"].to(kind).bfloat16().to(kind))
        part = weights["s"].to(kind)[1:3][:, [4, 5, 0, 1]]
        assert torch.equal(run.weights["d"], torch.cat([part * 2 - part * 0.5] * 2))
        assert run(torch.tensor([[5]])).dtype == kind


def test_a_tensor_of_another_shape_is_refused() -> None:
    graph = decoder([FULL])
    weights = random_weights(graph)
    weights["lm_head.weight"] = weights["lm_head.weight"][:, 1:]
    with pytest.raises(TensorMismatchError, match=r"lm_head\.weight is f64\[40, 15\]") as caught:
        Interpreter(graph, TensorSource(weights, "there"))
    assert caught.value.where == "there: lm_head.weight"


def test_numbers_that_are_none_are_not_hidden() -> None:
    graph = decoder([FULL])
    weights = random_weights(graph)
    weights["model.layers.0.self_attn.q_proj.weight"][0, 0] = math.nan
    found = Interpreter(graph, TensorSource(weights)).run(torch.tensor([[1, 2]]), edges=["layers.0.attn.ctx"])
    assert bool(found["layers.0.attn.ctx"].isnan().any())


def test_every_run_time_op_has_a_meaning() -> None:
    from regraft.ir.op import REGISTRY, Op

    op_class("core.add")
    assert [name for name, cls in REGISTRY.items() if cls.reference is Op.reference] == []
