"""Target ``triton``: rows that are pooled of several tokens, made by kernels in calls of many tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from regraft.codegen.package import emit
from regraft.codegen.torch.forms import Forms
from regraft.ir.interpret import Interpreter
from regraft.ir.ops.compress import Compressed
from regraft.ir.ops.kernels import PoolStep
from regraft.passes.fusion import fuse_decode, prefill
from regraft.passes.fusion.pool import group_pool
from regraft.programs import load_program
from tests.codegen.programs import tokens_of
from tests.codegen.test_triton_prefill import Call, bound, check_chunks, check_steps, file_of, ways
from tests.codegen.test_triton_v4 import flash, kernels, weights_of

if TYPE_CHECKING:
    from torch import Tensor


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Interpreter]:
    """Return a small DeepSeek V4 and its interpreter; calls of many tokens have these kernels and those of experts."""
    graph, folder = flash(), tmp_path_factory.mktemp("program") / "package"
    source = weights_of(graph)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefill, "PREFILL", (group_pool, prefill.group_grouped_experts))
        forms = Forms(graph, fused=fuse_decode(graph), prefill=prefill.fuse_prefill(graph))
    emit(forms, source, folder, target="triton")
    return load_program(folder, dtype="float32"), Interpreter(graph, source)


def counted(model: Any, called: list[str]) -> None:
    """Note the calls of the kernels that pool."""
    for name in ("pool_every_4_in_blocks", "pool_every_8_in_blocks"):
        kernel = file_of(model)[name]

        def noted(*given: Any, name: str = name, kernel: Any = kernel) -> Any:
            called.append(name)
            return kernel(*given)

        file_of(model)[name] = noted


def test_each_layer_pools_once() -> None:
    graph = flash()
    fused = prefill.fuse_prefill(graph)
    assert set(kernels(fused, PoolStep).values()) == {1}
    assert not any(isinstance(op, Compressed) for op in fused.ops)


def test_calls_end_windows_that_others_began(program: tuple[Any, Interpreter]) -> None:
    model, interpreter = program
    tokens = tokens_of(1, 21, 128)
    wanted = interpreter(tokens)
    for _ in ways(model):
        with torch.no_grad():
            assert (model(tokens[:, :13]) - wanted[:, :13]).abs().max() < bound(wanted)
        cache = model.new_cache(1, 21)
        parts = [model(tokens[:, start:end], cache) for start, end in ((0, 6), (6, 9), (9, 21))]
        assert (torch.cat(parts, 1) - wanted).abs().max() < bound(wanted)


def test_rows_of_a_batch_stand_where_they_are(program: tuple[Any, Interpreter]) -> None:
    check_chunks(program, tokens_of(3, 18, 128), torch.tensor([[5, 0, 3], [7, 9, 1], [2, 0, 6]]))


def test_steps_go_on_where_a_call_ended(program: tuple[Any, Interpreter]) -> None:
    """A step's kernel reads what a call's kernel keeps of windows that have not ended."""
    check_steps(program, tokens_of(1, 9, 128), 6)


def test_gradients_take_the_plain_form(program: tuple[Any, Interpreter], monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = program
    for name in ("pool_every_4_in_blocks", "pool_every_8_in_blocks"):
        monkeypatch.setitem(file_of(model), name, file_of(model)[name])  # put back in the end
    called: list[str] = []
    counted(model, called)
    monkeypatch.setitem(file_of(model), "INTERPRETED", True)
    weights = [weight for name, weight in model.named_parameters() if "position_bias" in name and "index" not in name]
    monkeypatch.setattr(model, "training", False)
    for weight in weights:
        weight.requires_grad_(True)
    found = torch.autograd.grad(model(tokens_of(1, 9, 128)).sum(), weights)
    assert all(bool(gradient.abs().max() > 0) for gradient in found)
    assert not called
    with torch.no_grad():
        model(tokens_of(1, 9, 128))
    assert called
    for weight in weights:
        weight.requires_grad_(False)


def test_a_call_is_exported_with_them(program: tuple[Any, Interpreter]) -> None:
    model, _ = program
    file_of(model)["INTERPRETED"] = True
    tokens, start, count = tokens_of(2, 9, 128), torch.tensor([3, 0]), torch.full((2,), 9)
    memories: list[tuple[tuple[Tensor, ...], ...]] = model.new_cache(2, 16).layers
    with torch.no_grad():
        exported = torch.export.export(Call(model), (tokens, start, count, memories))
    called = {str(node.target) for node in exported.graph.nodes}
    assert any("pool_every_4_in_blocks" in name for name in called)
