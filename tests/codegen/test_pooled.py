"""Programs whose memories hold pooled rows: DeepSeek V4, and its mechanisms one by one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from regraft.codegen.package import emit
from regraft.codegen.torch.target import TorchTarget
from regraft.frontends.family import read_config
from regraft.frontends.folder import open_model
from regraft.frontends.lift import lift_config
from regraft.frontends.tensors import Declared
from regraft.frontends.twin import random_tensors, twin_config
from regraft.ir.cost import cache_bytes
from regraft.ir.errors.codegen import MissingEmitterError
from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter
from regraft.ir.parse import parse_graph
from regraft.ir.source import TensorSource
from regraft.programs import load_program
from tests.codegen.programs import Emitted, emitted, tokens_of
from tests.codegen.test_compile import Recorder
from tests.ir.models import FULL, LayerSpec, decoder

torch = pytest.importorskip("torch")
BOUND, LENGTH = 1e-5, 75
SPLITS = [(LENGTH,), (1,) * LENGTH, (7,) * 10 + (5,), (64, 11), (1, 7, 64, 3)]


@pytest.fixture(scope="module", params=["Flash", "Pro"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Emitted:
    config = twin_config(open_model(f"builtin:DeepSeek-V4-{request.param}").config)
    graph = lift_config(read_config(config), Declared("f32"))
    source = TensorSource({name: torch.from_numpy(array) for name, array in random_tensors(graph, 0).items()})
    folder = emit(graph, source, tmp_path_factory.mktemp("program") / "package")
    return Emitted(graph, source, folder, load_program(folder, dtype="float32"), Interpreter(graph, source))


def check(found: Any, expected: Any, bound: float = BOUND) -> None:
    limit = bound * max(1.0, float(expected.abs().max()) / 4)
    torch.testing.assert_close(found.detach(), expected, rtol=0, atol=limit)


def check_splits(program: Emitted, tokens: Any, splits: list[tuple[int, ...]]) -> None:
    expected = program.interpreter(tokens)
    check(program.model(tokens), expected)
    for sizes in splits:
        cache = program.model.new_cache(len(tokens), sum(sizes))
        check(torch.cat([program.model(part, cache) for part in tokens.split(sizes, 1)], 1), expected)


def check_ragged(program: Emitted, tokens: Any, bound: float = BOUND) -> None:
    """Check rows that stand at different places of their windows, idle ones and padded ones among them."""
    expected, stands = program.interpreter(tokens), [0, 0, 0]
    cache = program.model.new_cache(3, tokens.shape[1])
    for lengths in ([6, 1, 9], [1, 0, 1], [1, 1, 0], [0, 4, 2], [5, 13, 1], [1, 1, 1], [1, 1, 0], [8, 0, 3]):
        call = torch.full((3, max(lengths)), 7)
        for row, (start, count) in enumerate(zip(stands, lengths, strict=True)):
            call[row, :count] = tokens[row, start : start + count]
        logits = program.model(call, cache, torch.tensor(lengths))
        for row, (start, count) in enumerate(zip(stands, lengths, strict=True)):
            if count:
                check(logits[row, :count], expected[row, start : start + count], bound)
        stands = [start + count for start, count in zip(stands, lengths, strict=True)]


def test_any_split_of_the_tokens(program: Emitted) -> None:
    check_splits(program, tokens_of(2, LENGTH, 128), SPLITS)


def test_ragged_rows_as_if_alone(program: Emitted) -> None:
    check_ragged(program, tokens_of(3, 30, 128))


@pytest.mark.parametrize("context", [1, 3, 4, 9])
def test_the_cache_holds_what_was_predicted_and_fills_up(program: Emitted, context: int) -> None:
    assert program.model.new_cache(3, context).nbytes == cache_bytes(program.graph, context, 3)
    check_splits(program, tokens_of(1, context, 128), [(context,), (1,) * context])


def test_gradients_reach_all_but_what_chooses(program: Emitted) -> None:
    program.model.zero_grad()
    program.model(tokens_of(2, 30, 128), lengths=torch.tensor([30, 21]))[:, :21].pow(2).mean().backward()
    named = dict(program.model.named_parameters())
    assert all(bool(p.grad.isfinite().all()) for p in named.values() if p.grad is not None)
    silent = {name for name, p in named.items() if p.grad is None or not p.grad.abs().sum()}
    assert silent == {name for name in named if "indexer" in name or "weights_proj" in name}


@pytest.mark.parametrize("program", ["Flash"], indirect=True)
def test_each_kind_is_compiled_once(program: Emitted) -> None:
    def steps() -> Any:
        tokens, cache = tokens_of(2, 24, 128), program.model.new_cache(2, 24)
        program.model(tokens[:, :7], cache, torch.tensor([7, 4]))
        return torch.cat([program.model(tokens[:, i : i + 1], cache) for i in range(7, 24)], 1)

    torch.compiler.reset()
    plain, single, whole = steps(), Recorder(), Recorder()
    program.model.compile(whole=False, backend=single)
    check(steps(), plain)
    assert len(single.graphs) == len({layer["kind"] for layer in TorchTarget(program.graph, [], "").program().layers})
    program.model.compile(whole=True, backend=whole)
    check(steps(), plain)
    assert whole.calls == 17


def test_the_text_is_formatted_and_clean(program: Emitted) -> None:
    assert_clean(program.folder)


def assert_clean(folder: Path) -> None:
    ruff, options = [sys.executable, "-m", "ruff"], ["--isolated", "--line-length=120", "model.py"]
    for command in (["format", "--check"], ["check", "--select=E,F,I,W,B"]):
        done = subprocess.run([*ruff, *command, *options], cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def pooled(rate: int, overlap: bool, chosen: int | None, sink: bool, dtype: str = "f32", **changes: str) -> Graph:
    """Return an attention to a window and to pooled rows, which an index may choose; lines may be given otherwise.

    Sinks and biases are stored in float32 whatever the dtype.
    """
    width = 16 if overlap else 8
    options = f"{{rate = {rate}, overlap = {str(overlap).lower()}}}"
    rope = 'base = 100.0, channels = 8, layout = "interleaved"'
    index = f"""
      %iq = core.unflatten %embed {{parts = 2}}
      %iw = weight.load : {dtype}[2, 16]
      %weights = core.linear %embed, %iw
      %numbers = seq.index %iq, %weights, %entries {{scale = 0.3, chosen = {chosen}}}
    """
    reads = (", sink=%sinks" if sink else "") + (", chosen=%numbers" if chosen else "")
    lines = {
        "entries": "%entries = mem.view %m, %turned",
        "attend": f"attn.attend %q, %view, entries=%entries{reads} {{scale = 0.5, window = 3, softcap = 4.0}}",
        **changes,
    }
    return parse_graph(f"""
    graph @pooled {{family = "test"}} (%tokens: i64[B, T], %pos: i64[B, T], %valid: bool[B, T]) {{
      %table = weight.load : {dtype}[40, 16]
      %embed = core.embed %tokens, %table : {dtype}[B, T, 16]
      %vw = weight.load : {dtype}[{width}, 16]
      %values = core.linear %embed, %vw
      %gw = weight.load : {dtype}[{width}, 16]
      %gates = core.linear %embed, %gw
      %bias = weight.load : f32[{rate}, {width}]
      %m = state.compressed %values, %bias, gates=%gates {options}
      %hi = core.unflatten %embed {{parts = 2}}
      %rows = mem.read %m
      %keys = core.unflatten %rows {{parts = 1}}
      %at = mem.pos %m
      %turned = pos.rope %keys, %at {{{rope}}}
      {lines["entries"]}
      {index if chosen else ""}
      %kw = weight.load : {dtype}[8, 16]
      %k = core.linear %embed, %kw
      %near = state.rows %k {{window = 3}}
      %near_rows = mem.read %near
      %near_keys = core.unflatten %near_rows {{parts = 1}}
      %view = mem.view %near, %near_keys
      %sinks = weight.load : f32[2]
      %q = pos.rope %hi, %pos {{{rope}}}
      %ctx = {lines["attend"]}
      %back = pos.rope %ctx, %pos {{{rope}, inverse = true}}
      %y = core.flatten %back
      %logits = core.linear %y, %table : {dtype}[B, T, 40]
      return %logits
    }}
    """)


@pytest.mark.parametrize(
    ("rate", "overlap", "chosen", "sink"),
    [(4, True, 2, True), (4, False, None, False), (1, True, 3, False), (1, False, None, True), (5, True, None, False)],
)
def test_each_way_to_pool(rate: int, overlap: bool, chosen: int | None, sink: bool, tmp_path: Path) -> None:
    program = emitted(pooled(rate, overlap, chosen, sink), tmp_path / "package")
    check_splits(program, tokens_of(2, 23), [(23,), (1,) * 23, (1, 7, 15), (4, 4, 3, 12)])
    check_ragged(program, tokens_of(3, 24))


def test_float64_agrees_to_its_own_precision(tmp_path: Path) -> None:
    program = emitted(pooled(4, True, 2, True), tmp_path / "package", "f64")
    tokens = tokens_of(2, 23)
    cache, expected = program.model.new_cache(2, 23), program.interpreter(tokens)
    check(program.model(tokens), expected, 1e-12)
    check(torch.cat([program.model(part, cache) for part in tokens.split((1, 7, 15), 1)], 1), expected, 1e-12)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"entries": "%entries = mem.view %m, %turned\n      %plain = mem.view %m, %keys"},
            "state.compressed %m whose rows are used otherwise than through one view",
        ),
        ({"attend": "attn.attend %q, %entries {scale = 0.5}"}, "attn.attend %ctx to pooled rows alone"),
        (
            {
                "entries": "%entries = mem.view %m, %turned\n"
                "%late = pos.rope %hi, %pos {base = 9.0, channels = 8, offset = 0.5}"
            },
            "pos.rope %late beside the positions of this call",
        ),
        (
            {
                "attend": "attn.attend %q, %view, chosen=%numbers, entries=%entries {scale = 0.5, window = 3, "
                "disjoint = true}"
            },
            "attn.attend %ctx to rows that an index chooses among others than it sees",
        ),
    ],
)
def test_rows_that_are_used_otherwise_are_refused(changes: dict[str, str], problem: str) -> None:
    with pytest.raises(MissingEmitterError) as caught:
        TorchTarget(pooled(3, False, 2, False, **changes), [], "").program()
    assert f"target torch has no code for {problem}" in str(caught.value)


BESIDE: dict[str, list[LayerSpec]] = {
    "before a window": [
        LayerSpec(window=5, rate=3),
        LayerSpec(window=4, rate=4, overlap=True, head_map=(0, 0, 1, 0)),
        FULL,
    ],
    "between first rows and a window": [
        LayerSpec(window=6, first=4, rate=2, chosen=2),
        LayerSpec(window=3, first=2, rate=2),
        LayerSpec(window=4, first=1),
    ],
}


@pytest.mark.parametrize("name", BESIDE)
def test_keys_and_values_are_pooled_by_head_and_no_token_counts_twice(name: str, tmp_path: Path) -> None:
    program = emitted(decoder(BESIDE[name]), tmp_path / "package", "f64")
    tokens = tokens_of(3, 30)
    expected = program.interpreter(tokens)
    for sizes in ((30,), (1,) * 30, (1, 7, 22), (4, 4, 3, 19)):
        cache = program.model.new_cache(3, 30)
        check(torch.cat([program.model(part, cache) for part in tokens.split(sizes, 1)], 1), expected, 1e-12)
    check(program.model(tokens), expected, 1e-12)
    check_ragged(program, tokens, 1e-12)
    assert_clean(program.folder)
    narrow = load_program(program.folder, dtype="float32")
    assert all(narrow.new_cache(2, n).nbytes == cache_bytes(program.graph, n, 2) for n in (1, 3, 9, 30))


def test_what_is_stored_wide_and_read_wide_stays_wide(tmp_path: Path) -> None:
    graph = pooled(4, True, 2, True, "bf16")
    program = emitted(graph, tmp_path / "package")
    plain, narrow = load_program(program.folder), load_program(program.folder, dtype="bfloat16")
    assert {str(plain.table.weight.dtype), str(plain.vw.weight.dtype)} == {"torch.bfloat16"}
    assert torch.equal(plain.sinks, program.source.read("sinks"))
    assert torch.equal(plain.bias, program.source.read("bias"))
    assert plain(tokens_of(2, 9)).dtype == torch.bfloat16
    assert plain.new_cache(2, 9).nbytes == cache_bytes(graph, 9, 2)
    assert {p.dtype for p in narrow.parameters()} == {torch.bfloat16}
    check_splits(program, tokens_of(2, 23), [(1, 7, 15)])
