"""Emitted programs compute what the graph means, however they are called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from regraft.ir.cost import cache_bytes
from regraft.ir.graph import Graph
from regraft.ir.parse import parse_graph
from tests.codegen.programs import DECODERS, Emitted, emitted, small, tokens_of

torch = pytest.importorskip("torch")
BOUND, LENGTH = 1e-5, 23


@pytest.fixture(scope="module", params=list(DECODERS))
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Emitted:
    return emitted(small(request.param), tmp_path_factory.mktemp("program") / "package")


def worst(found: Any, expected: Any) -> float:
    """Return the largest difference, beside logits of about 4."""
    assert found.shape == expected.shape
    return float((found.detach() - expected.detach()).abs().max()) / max(1.0, float(expected.detach().abs().max()) / 4)


def chunks(model: Any, tokens: Any, sizes: Sequence[int], context: int = LENGTH) -> Any:
    cache = model.new_cache(len(tokens), context)
    return torch.cat([model(part, cache) for part in tokens.split(list(sizes), 1)], 1)


def test_prefill(program: Emitted) -> None:
    tokens = tokens_of(2, LENGTH)
    expected = program.interpreter(tokens)
    assert float(expected.std()) >= 1
    assert worst(program.model(tokens), expected) <= BOUND
    assert worst(program.model(tokens, last=3), expected[:, -3:]) <= BOUND


@pytest.mark.parametrize("sizes", [(23,), (1, 7, 15), (5, 5, 5, 5, 3), (2, 1, 20), (1,) * 23])
def test_any_split_of_the_tokens(program: Emitted, sizes: tuple[int, ...]) -> None:
    tokens = tokens_of(2, LENGTH)
    assert worst(chunks(program.model, tokens, sizes), program.interpreter(tokens)) <= BOUND


def test_ragged_rows_as_if_alone(program: Emitted) -> None:
    tokens, model = tokens_of(4, LENGTH), program.model
    cache = model.new_cache(4, LENGTH)
    stands = [0, 0, 0, 0]
    for lengths in ([6, 1, 9, 0], [1, 1, 0, 1], [0, 4, 2, 7], [1, 0, 1, 1], [1, 1, 1, 1], [3, 9, 1, 2]):
        width = max(lengths)
        call = torch.full((4, width), 7)  # padding is a token like any other
        for row, (start, count) in enumerate(zip(stands, lengths, strict=True)):
            call[row, :count] = tokens[row, start : start + count]
        logits = model(call, cache, torch.tensor(lengths))
        for row, (start, count) in enumerate(zip(stands, lengths, strict=True)):
            if count:
                alone = program.interpreter(tokens[row : row + 1, : start + count])[0, start:]
                assert worst(logits[row, :count], alone) <= BOUND
        stands = [start + count for start, count in zip(stands, lengths, strict=True)]
    assert cache.lengths.tolist() == stands


def test_the_last_logits_of_ragged_rows(program: Emitted) -> None:
    tokens, lengths = tokens_of(3, 9), torch.tensor([9, 4, 2])
    found = program.model(tokens, program.model.new_cache(3, 9), lengths, last=2)
    whole = program.model(tokens, lengths=lengths)
    for row, length in enumerate(lengths.tolist()):
        assert worst(found[row], whole[row, length - 2 : length]) <= BOUND


def test_gradients_are_those_of_the_graph(program: Emitted) -> None:
    tokens = tokens_of(2, 9)
    program.model.zero_grad()
    program.model(tokens, lengths=torch.tensor([9, 5]))[:, :5].pow(2).mean().backward()
    silent = [name for name, p in program.model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert silent == []


def test_no_gradients_with_a_cache(program: Emitted) -> None:
    assert not program.model(tokens_of(1, 4), program.model.new_cache(1, 4)).requires_grad


def test_the_cache_holds_what_was_predicted(program: Emitted) -> None:
    for context in (1, 4, 50):
        assert program.model.new_cache(3, context).nbytes == cache_bytes(program.graph, context, 3)


def test_a_call_beyond_the_context_changes_nothing(program: Emitted) -> None:
    model, tokens = program.model, tokens_of(2, 8)
    cache = model.new_cache(2, 6)
    model(tokens[:, :4], cache, torch.tensor([4, 2]))
    before = [tensor.clone() for memories in cache.layers for memory in memories for tensor in memory]
    with pytest.raises(ValueError, match="7 tokens do not fit a cache made for 6"):
        model(tokens[:, :3], cache)
    with pytest.raises(ValueError, match="3 rows do not fit a cache made for 2"):
        model(tokens_of(3, 1), cache)
    with pytest.raises(ValueError, match="lengths must be"):
        model(tokens[:, :2], cache, torch.tensor([3, 0]))
    after = [tensor for memories in cache.layers for memory in memories for tensor in memory]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert cache.lengths.tolist() == [4, 2]
    model(tokens[:, :2], cache)  # what fits still does
    model(tokens[:, :2], cache, torch.tensor([0, 2]))


@pytest.mark.parametrize(("batch", "context"), [(0, 4), (1, 0)])
def test_a_cache_for_nothing_is_refused(program: Emitted, batch: int, context: int) -> None:
    with pytest.raises(ValueError, match="holds nothing"):
        program.model.new_cache(batch, context)


def test_float64_agrees_to_its_own_precision(tmp_path: Path) -> None:
    program = emitted(small("windows and full"), tmp_path / "package", "f64")
    tokens = tokens_of(1, LENGTH)
    expected = program.interpreter(tokens)
    assert worst(program.model(tokens), expected) <= 1e-12
    assert worst(chunks(program.model, tokens, (1, 7, 15)), expected) <= 1e-12


OPS = """
graph @ops {{family = "test"}} (%tokens: i64[B, T], %pos: i64[B, T], %valid: bool[B, T]) {{
  %table = weight.load : f32[40, 16]
  %embed = core.embed %tokens, %table : f32[B, T, 16]
  {body}
  %logits = core.linear %y, %table : f32[B, T, 40]
  return %logits
}}
"""


def one(body: str) -> Graph:
    """Return a graph of the embedding, some lines that make ``%y``, and the tied head."""
    return parse_graph(OPS.format(body=body))


LINES = {
    "plain norm": "%y = core.norm %embed {eps = 1e-05}",
    "norm with offset": "%w = weight.load : f32[16]\n  %y = core.norm %embed, weight=%w {eps = 1e-05, offset = 1.0}",
    "wide norm": '%w = weight.load : f32[16]\n  %y = core.norm %embed, weight=%w {eps = 1e-05, cast = "after"}',
    "wide norm with offset": "%w = weight.load : f32[16]\n"
    '  %y = core.norm %embed, weight=%w {eps = 1e-05, offset = 1.0, cast = "after"}',
    "scale and cap": "%a = core.scale %embed {factor = 3.0}\n  %y = core.softcap %a {cap = 2.0}",
    "slice and concat": "%a = core.slice %embed {start = 0, stop = 4}\n"
    "  %b = core.slice %embed {start = 4, stop = 16}\n  %y = core.concat %b, %a",
    "nested sums": "%a = core.add %embed, %embed\n  %b = core.add %embed, %a\n  %c = core.mul %b, %a\n"
    "  %d = core.mul %a, %c\n  %y = core.add %d, %b",
    "bias": "%w = weight.load : f32[16, 16]\n  %v = weight.load : f32[16]\n  %y = core.linear %embed, %w, bias=%v",
    **{
        f"activation {kind}": f'%y = core.activation %embed {{kind = "{kind}"}}'
        for kind in ("silu", "gelu", "gelu_tanh", "relu", "sigmoid", "softplus", "tanh")
    },
    **{
        f"rope {name}": "%h = core.unflatten %embed {parts = 2}\n"
        f"  %r = pos.rope %h, %pos {{base = 1000.0, {attributes}}}\n  %y = core.flatten %r"
        for name, attributes in {
            "halves": "channels = 8",
            "part": "channels = 4",
            "pairs": 'channels = 8, layout = "interleaved"',
            "part in pairs": 'channels = 4, layout = "interleaved"',
            "linear": 'channels = 8, scaling = "linear", factor = 4.0',
            "llama3": 'channels = 8, scaling = "llama3", factor = 8.0, original = 64',
            "yarn": 'channels = 8, scaling = "yarn", factor = 4.0, original = 64, high = 32.0, amplitude = 1.25',
            "yarn, not rounded": 'channels = 8, scaling = "yarn", factor = 4.0, original = 64, truncate = false',
        }.items()
    },
    **{
        f"experts {kind}": "%g = weight.load : f32[4, 16]\n  %l = core.linear %embed, %g\n"
        f"  %w, %e = moe.route %l {{chosen = 2, normalize = {normalize}}}\n"
        "  %u = weight.load : f32[4, 12, 16]\n  %d = weight.load : f32[4, 16, 6]\n"
        f'  %y = moe.experts %embed, %w, %e, %u, %d {{activation = "{kind}"}}'
        for kind, normalize in {"silu": "true", "gelu_tanh": "false", "sigmoid": "false", "relu": "true"}.items()
    },
    "heads by run and by list": "%h = core.unflatten %embed {parts = 4}\n  %a = attn.pick %h {heads = [1, 2]}\n"
    "  %b = attn.pick %h {heads = [3, 0]}\n  %c = core.concat %a, %b\n  %y = core.flatten %c",
    "two memories": "%h = core.unflatten %embed {parts = 4}\n  %k = core.unflatten %embed {parts = 4}\n"
    "  %m = state.kv %h, %k\n  %n = state.kv %k, %h {window = 3}\n  %a = attn.attend %h, %m {scale = 0.5}\n"
    "  %b = attn.attend %h, %n {scale = 0.5, window = 3}\n  %c = core.add %a, %b\n  %y = core.flatten %c",
}


@pytest.mark.parametrize("name", list(LINES))
def test_each_op(name: str, tmp_path: Path) -> None:
    program = emitted(one(LINES[name]), tmp_path / "package")
    tokens = tokens_of(2, 11)
    expected = program.interpreter(tokens)
    assert worst(program.model(tokens), expected) <= BOUND
    assert worst(chunks(program.model, tokens, (1, 7, 3), 11), expected) <= BOUND
    assert worst(chunks(program.model, tokens, (1,) * 11, 11), expected) <= BOUND
    lengths = torch.tensor([11, 4])
    found = program.model(tokens, lengths=lengths, last=2)
    assert worst(found[1], expected[1, 2:4]) <= BOUND
