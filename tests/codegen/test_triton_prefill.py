"""Target ``triton``: calls of many tokens, by kernels in Triton's interpreter and as target ``torch`` computes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from regraft.api import build, lift
from regraft.api import twin as write_twin
from regraft.codegen.package import emit
from regraft.codegen.torch.forms import Forms
from regraft.frontends.family import read_config
from regraft.frontends.folder import builtin_names, open_model
from regraft.frontends.lift import lift_config
from regraft.frontends.tensors import Declared
from regraft.frontends.twin import twin_config
from regraft.ir.graph import Graph
from regraft.ir.interpret import Interpreter
from regraft.ir.ops.attn import Attend
from regraft.ir.ops.index import Index
from regraft.ir.ops.kernels import Flash, IndexStep, Kernel
from regraft.ir.parse import parse_graph
from regraft.ir.text import print_graph
from regraft.passes.fusion import fuse_decode
from regraft.passes.fusion.prefill import fuse_prefill
from regraft.programs import load_program
from tests.codegen.programs import DECODERS, source_of, tokens_of
from tests.ir.models import FULL, LayerSpec, decoder
from tests.passes.exactness import run

if TYPE_CHECKING:
    from torch import Tensor

MIXED: dict[str, Sequence[LayerSpec]] = {
    "windows, all rows and readers": [LayerSpec(window=4), FULL, LayerSpec(donor=0, window=2), LayerSpec(donor=1)],
    "first rows and uneven heads": [
        LayerSpec(window=4, first=3),
        LayerSpec(donor=0, window=2, first=1),
        LayerSpec(heads=3, head_map=(0, 1, 1), window=6),
        LayerSpec(heads=4, kv_heads=1, moe=True),
    ],
}


def built(layers: Sequence[LayerSpec], folder: Path) -> tuple[Any, Interpreter]:
    """Return the program of a decoder with random weights, and its interpreter."""
    return built_of(decoder(layers), folder)


def built_of(graph: Graph, folder: Path) -> tuple[Any, Interpreter]:
    """Return the program of a graph with random weights, and its interpreter."""
    source = source_of(graph)
    forms = Forms(graph, fused=fuse_decode(graph), prefill=fuse_prefill(graph))
    emit(forms, source, folder, target="triton")
    return load_program(folder, dtype="float32"), Interpreter(graph, source)


def file_of(model: Any) -> dict[str, Any]:
    """Return the names of an emitted file."""
    return type(model).run.__globals__


def check_chunks(program: tuple[Any, Interpreter], tokens: Tensor, counts: Tensor) -> None:
    """Check calls, a row of ``counts`` each, of sequences that stand at places of their own."""
    model, interpreter = program
    (batch, room), wanted = tokens.shape, interpreter(tokens)
    for _ in ways(model):
        cache, start = model.new_cache(batch, room), torch.zeros(batch, dtype=torch.int64)
        for count in counts:
            places = start[:, None] + torch.arange(int(count.max()))
            found = model(tokens.gather(1, places.clamp(max=room - 1)), cache, lengths=count)
            for row, (at, new) in enumerate(zip(start.tolist(), count.tolist(), strict=True)):
                difference = found[row, :new] - wanted[row, at : at + new]
                assert not new or difference.abs().max() < bound(wanted)
            start = start + count


def check_gradients(program: tuple[Any, Interpreter], parts: Sequence[str], tokens: Tensor) -> None:
    """Check gradients of weights whose names have one of ``parts`` by kernels against those by plain operations."""
    model, interpreter = program
    weights = [weight for name, weight in model.named_parameters() if any(part in name for part in parts)]
    assert weights
    found: list[tuple[Tensor, ...]] = []
    for weight in weights:
        weight.requires_grad_(True)
    for _ in ways(model):
        logits = model(tokens)
        assert (logits - interpreter(tokens)).abs().max() < bound(logits.detach())
        found.append(torch.autograd.grad(logits.log_softmax(-1)[..., 3].sum(), weights))
    for weight in weights:
        weight.requires_grad_(False)
    for plain, fused in zip(*found, strict=True):
        assert (plain - fused).abs().max() <= 1e-5 * max(1.0, float(plain.abs().max()))


def check_steps(program: tuple[Any, Interpreter], tokens: Tensor, prompt: int) -> None:
    """Check steps by plain functions after a prompt that kernels took."""
    model, interpreter = program
    wanted, cache = interpreter(tokens), model.new_cache(*tokens.shape)
    file_of(model)["INTERPRETED"] = True
    parts = [model(tokens[:, :prompt], cache)]
    file_of(model)["INTERPRETED"] = False
    parts += [model(tokens[:, at : at + 1], cache) for at in range(prompt, tokens.shape[1])]
    assert (torch.cat(parts, 1) - wanted).abs().max() < bound(wanted)


def ways(model: Any) -> Iterator[bool]:
    """Yield twice: where plain functions run, and where kernels do."""
    for interpreted in (False, True):
        file_of(model)["INTERPRETED"] = interpreted
        yield interpreted


def bound(wanted: Tensor) -> float:
    """Return how far logits in float32 may be from those of the graph."""
    return 1e-5 * max(1.0, float(wanted.abs().max()) / 4)


@pytest.mark.parametrize("name", MIXED)
def test_calls_of_many_tokens_are_the_graphs(name: str, tmp_path: Path) -> None:
    model, interpreter = built(MIXED[name], tmp_path / "package")
    tokens = tokens_of(2, 11)
    wanted = interpreter(tokens)
    for _ in ways(model):
        cache = model.new_cache(2, 12)
        chunks = torch.cat([model(tokens[:, start:end], cache) for start, end in ((0, 3), (3, 11))], 1)
        assert (chunks - wanted).abs().max() < bound(wanted)
        assert (model(tokens) - wanted).abs().max() < bound(wanted)
        assert (model(tokens[:, :1]) - wanted[:, :1]).abs().max() < bound(wanted)


@pytest.mark.parametrize("context", [4, 9])
def test_rows_of_a_batch_have_lengths_of_their_own(context: int, tmp_path: Path) -> None:
    layers = [LayerSpec(window=3, first=2), LayerSpec(window=5)]
    model, interpreter = built(layers, tmp_path / "package")
    tokens, counts = tokens_of(3, context), torch.tensor([[2, 0, 1], [2, context - 2, 2]])
    wanted = interpreter(tokens)
    for _ in ways(model):
        cache, start = model.new_cache(3, context), torch.zeros(3, dtype=torch.int64)
        for count in counts:
            length = max(2, int(count.max()))
            places = start[:, None] + torch.arange(length)
            found = model(tokens.gather(1, places.clamp(max=context - 1)), cache, lengths=count)
            for row, (at, new) in enumerate(zip(start.tolist(), count.tolist(), strict=True)):
                difference = found[row, :new] - wanted[row, at : at + new]
                assert not new or difference.abs().max() < bound(wanted)
            start = start + count


def test_where_kernels_run_nobody_makes_a_mask(tmp_path: Path) -> None:
    model, _ = built([LayerSpec(window=3, first=2), LayerSpec(window=5), FULL], tmp_path / "package")
    made: list[Tensor] = []
    names = file_of(model)
    bias = names["bias"]

    def noted(seen: Tensor, dtype: torch.dtype) -> Tensor:
        made.append(seen)
        return bias(seen, dtype)

    names["bias"] = noted
    for interpreted in ways(model):
        made.clear()
        cache = model.new_cache(1, 12)
        model(tokens_of(1, 6), cache)
        model(tokens_of(1, 6), cache)
        assert bool(made) != interpreted


def test_a_view_that_others_read_keeps_its_mask(tmp_path: Path) -> None:
    layers = [LayerSpec(window=4), LayerSpec(kv_heads=1, window=4, rate=2, chosen=2)]
    model, interpreter = built(layers, tmp_path / "package")
    tokens = tokens_of(2, 11)
    wanted = interpreter(tokens)
    for _ in ways(model):
        cache = model.new_cache(2, 12)
        found = torch.cat([model(tokens[:, :6], cache), model(tokens[:, 6:], cache)], 1)
        assert (found - wanted).abs().max() < bound(wanted)


@pytest.mark.parametrize("name", MIXED)
def test_gradients_are_those_of_plain_functions(name: str, tmp_path: Path) -> None:
    model, _ = built(MIXED[name], tmp_path / "package")
    weights = list(model.requires_grad_(True).parameters())
    tokens, lengths = tokens_of(2, 9), torch.tensor([9, 6])
    found: list[tuple[Tensor, ...]] = []
    for _ in ways(model):
        score = model(tokens, lengths=lengths)[:, :6].log_softmax(-1)[..., 3].sum()
        found.append(torch.autograd.grad(score, weights))
    for plain, fused in zip(*found, strict=True):
        assert (plain - fused).abs().max() <= 1e-5 * max(1.0, float(plain.abs().max()))


class Call(nn.Module):
    """A call of a model after earlier tokens, as a module."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, start: Tensor, count: Tensor, memories: list[Any]) -> Tensor:
        call = self.model.run if tokens.shape[1] > 1 else self.model.run_step
        return call(tokens, start, count, memories, 16, False, None)


@pytest.mark.parametrize("length", [1, 9])
def test_a_call_is_one_graph_of_kernels(length: int, tmp_path: Path) -> None:
    model, _ = built([LayerSpec(moe=True)], tmp_path / "package")
    file_of(model)["INTERPRETED"] = True
    tokens, start, count = tokens_of(2, length), torch.tensor([3, 0]), torch.full((2,), length)
    given = (tokens, start, count, model.new_cache(2, 16).layers)
    call = Call(model)

    def called_so(*given: Any) -> Tensor:  # tracing counts the arguments of a function
        return call(*given)

    expected = {"flash", "grouped_experts"} if length > 1 else {"attention", "experts"}
    with torch.no_grad():
        traced = make_fx(called_so, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*given)
        exported = torch.export.export(call, given)
    for graph in (traced.graph, exported.graph):
        called = {str(node.target).split(".")[1] for node in graph.nodes if str(node.target).startswith("regraft_")}
        assert expected <= called


def test_an_exported_call_takes_prompts_of_other_lengths(tmp_path: Path) -> None:
    model, _ = built([LayerSpec(window=4), LayerSpec(moe=True)], tmp_path / "package")
    file_of(model)["INTERPRETED"] = True
    call, start = Call(model), torch.tensor([3, 0])

    def given(length: int) -> tuple[Any, ...]:
        return tokens_of(2, length), start, torch.full((2,), length), model.new_cache(2, 16).layers

    fixed = [tuple(tuple(None for _ in rows) for rows in layer) for layer in given(9)[3]]
    varying = ({1: torch.export.Dim("length", min=2, max=13)}, None, None, fixed)
    with torch.no_grad():
        exported = torch.export.export(call, given(9), dynamic_shapes=varying).module()
        assert torch.equal(exported(*given(6)), call(*given(6)))


def test_a_call_compiles_whole(tmp_path: Path) -> None:
    torch.compiler.reset()
    model, _ = built([LayerSpec(window=4), FULL], tmp_path / "package")
    file_of(model)["INTERPRETED"] = True
    found: list[Tensor] = []
    for call in (model.run, torch.compile(model.run, fullgraph=True, backend="eager")):
        cache = model.new_cache(2, 16)
        model(tokens_of(2, 3), cache)
        with torch.no_grad():
            given = (tokens_of(2, 7), cache.lengths, torch.tensor([7, 4]), cache.layers, 16, False, None)
            found += [call(*given), *(field for layer in cache.layers for rows in layer for field in rows)]
    half = len(found) // 2
    for plain, compiled in zip(found[:half], found[half:], strict=True):
        assert torch.allclose(plain, compiled, atol=1e-6)


@pytest.mark.parametrize("name", DECODERS)
def test_a_fused_graph_means_what_the_plain_one_does(name: str) -> None:
    graph = decoder(DECODERS[name])
    fused = fuse_prefill(graph)
    fused.verify()
    assert parse_graph(print_graph(fused)).equals(fused)
    assert any(isinstance(op, Flash) for op in fused.ops)
    assert not any(isinstance(op, Attend) for op in fused.ops)
    source, tokens = source_of(graph), tokens_of(2, 7)
    assert torch.equal(Interpreter(graph, source, "f64")(tokens), Interpreter(fused, source, "f64")(tokens))


def test_attention_to_chosen_rows_stays_as_it_is() -> None:
    graph: Graph = fuse_prefill(decoder([LayerSpec(window=4), LayerSpec(kv_heads=1, window=4, rate=2, chosen=2)]))
    kinds = (Attend, Flash, Index, IndexStep)
    assert [type(op).__name__ for op in graph.ops if isinstance(op, kinds)] == ["Flash", "IndexStep", "Attend"]
    several = fuse_prefill(decoder([LayerSpec(kv_heads=2, window=4, rate=2, chosen=2)]))
    assert [type(op).__name__ for op in several.ops if isinstance(op, kinds)] == ["Index", "Attend"]


def twin_of(name: str, folder: Path) -> tuple[Any, Interpreter]:
    """Return the program of a small model of a family, and its interpreter."""
    write_twin(f"builtin:{name}", folder / "twin")
    subject = lift(folder / "twin")
    model = load_program(build(folder / "twin", folder / "package", target="triton"), dtype="float32")
    return model, Interpreter(subject.graph, subject.require_source())


def test_rows_of_all_tokens_are_chosen_by_their_keys(tmp_path: Path) -> None:
    """Chosen latents are attended to as they are kept: no keys and values are made of them, and no mask."""
    model, interpreter = twin_of("DeepSeek-V3.2", tmp_path)
    assert "attention_of_chosen_in_blocks(" in (tmp_path / "package" / "model.py").read_text()
    tokens = tokens_of(2, 12)
    wanted = interpreter(tokens)
    for _ in ways(model):
        cache = model.new_cache(2, 13)
        first = model(tokens[:, :5], cache, lengths=torch.tensor([5, 4]))
        rest = torch.stack((tokens[0, 5:11], tokens[1, 4:10]))
        found = model(rest, cache)
        assert (first[0] - wanted[0, :5]).abs().max() < bound(wanted)
        for row, start in enumerate((5, 4)):
            assert (found[row] - wanted[row, start : start + 6]).abs().max() < bound(wanted)


def test_gradients_flow_through_chosen_latents(tmp_path: Path) -> None:
    model, _ = twin_of("DeepSeek-V3.2", tmp_path)
    weights = [weight for name, weight in model.requires_grad_(True).named_parameters() if "indexer" not in name]
    tokens = tokens_of(2, 9)
    found: list[tuple[Tensor | None, ...]] = []
    for _ in ways(model):
        score = model(tokens)[:, 4:].log_softmax(-1)[..., 3].sum()
        found.append(torch.autograd.grad(score, weights, allow_unused=True))
    assert sum(plain is not None for plain in found[0]) > len(weights) // 2
    for plain, fused in zip(*found, strict=True):
        assert (plain is None) == (fused is None)
        if plain is not None and fused is not None:
            assert (plain - fused).abs().max() <= 1e-5 * max(1.0, float(plain.abs().max()))


def test_pooled_rows_are_attended_to_beside_a_window(tmp_path: Path) -> None:
    model, interpreter = twin_of("DeepSeek-V4-Flash", tmp_path)
    assert "_and_pooled_in_blocks(" in (tmp_path / "package" / "model.py").read_text()
    file_of(model)["INTERPRETED"] = True
    tokens, cache = tokens_of(1, 11), model.new_cache(1, 12)
    wanted = interpreter(tokens)
    found = torch.cat([model(tokens[:, :5], cache), model(tokens[:, 5:], cache)], 1)  # windows of 8
    assert (found - wanted).abs().max() < bound(wanted)


def test_residual_streams_are_written_and_read_at_once(tmp_path: Path) -> None:
    graph = run(decoder([LayerSpec(window=4)]), "add-hyper-connections{streams=2, iterations=3}").graph
    model, interpreter = built_of(graph, tmp_path / "package")
    tokens = tokens_of(2, 9)
    wanted = interpreter(tokens)
    file_of(model)["INTERPRETED"] = True
    called: list[str] = []
    for name in ("read_streams_in_blocks", "write_and_read_streams_in_blocks", "write_streams_in_blocks"):
        kernel = file_of(model)[name]

        def noted(*given: Any, name: str = name, kernel: Any = kernel) -> Any:
            called.append(name)
            return kernel(*given)

        file_of(model)[name] = noted
    assert (model(tokens) - wanted).abs().max() < bound(wanted)  # gradients are wanted: these kernels have none
    assert not called
    cache = model.new_cache(2, 10)
    found = torch.cat([model(tokens[:, :4], cache), model(tokens[:, 4:], cache)], 1)
    assert (found - wanted).abs().max() < bound(wanted)
    assert called == 2 * ["read_streams_in_blocks", "write_and_read_streams_in_blocks", "write_streams_in_blocks"]


FUSED_BY_COMPILING = """
    core.activation core.add core.bias core.cast_like core.clamp core.concat core.embed core.flatten core.gain
    core.grouped_linear core.layer_norm core.linear core.mul core.norm core.repeat core.scale core.slice core.softcap
    core.unflatten core.widen mem.read mem.view moe.assign moe.route pos.rope state.kv state.rows
"""
CONVOLVED = {"seq.conv", "seq.decay", "state.tail"}


@pytest.mark.parametrize("name", builtin_names())
def test_what_mixes_tokens_of_known_models_has_kernels(name: str) -> None:
    """Products, norms, rotations and what is done element by element stay, and short convolutions and decays."""
    graph = lift_config(read_config(twin_config(open_model(f"builtin:{name}").config)), Declared("f32"))
    plain = {op.opname for op in fuse_prefill(graph).run_time() if not isinstance(op, Kernel)}
    assert plain - set(FUSED_BY_COMPILING.split()) == (
        CONVOLVED if name.startswith(("Qwen3-Next", "Qwen3.6")) else set()
    )
