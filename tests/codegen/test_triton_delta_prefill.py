"""Target ``triton``: the gated delta rule by a kernel in calls of many tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from regraft.codegen.package import emit
from regraft.codegen.torch.forms import Forms
from regraft.frontends.folder import open_model
from regraft.ir.interpret import Interpreter
from regraft.ir.ops.kernels import DeltaStep
from regraft.ir.ops.seq import Delta
from regraft.ir.source import TensorSource
from regraft.passes.fusion import fuse_decode, prefill
from regraft.programs import load_program
from tests.codegen.programs import tokens_of
from tests.codegen.test_triton_prefill import bound, file_of, ways
from tests.frontends.agreement import twin_graph


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Interpreter]:
    """Return a small Qwen3-Next, whose calls of many tokens have this kernel alone, and its interpreter."""
    folder = tmp_path_factory.mktemp("program") / "package"
    graph, tensors = twin_graph(dict(open_model("builtin:Qwen3-Next-80B-A3B").config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefill, "PREFILL", (prefill.group_rules,))
        fused = prefill.fuse_prefill(graph)
    assert any(isinstance(op, DeltaStep) for op in fused.ops)
    assert not any(isinstance(op, Delta) for op in fused.ops)
    emit(Forms(graph, fused=fuse_decode(graph), prefill=fused), TensorSource(tensors), folder, target="triton")
    return load_program(folder, dtype="float32"), Interpreter(graph, TensorSource(tensors))


def test_chunks_of_sequences_that_stand_where_they_are(program: tuple[Any, Interpreter]) -> None:
    model, interpreter = program
    tokens, counts = tokens_of(2, 24), torch.tensor([[18, 0], [1, 7]])
    wanted = interpreter(tokens)
    for _ in ways(model):
        cache, start = model.new_cache(2, 24), torch.zeros(2, dtype=torch.int64)
        for count in counts:
            places = start[:, None] + torch.arange(int(count.max()))
            found = model(tokens.gather(1, places.clamp(max=23)), cache, lengths=count)
            for row, (at, new) in enumerate(zip(start.tolist(), count.tolist(), strict=True)):
                difference = found[row, :new] - wanted[row, at : at + new]
                assert not new or difference.abs().max() < bound(wanted)
            start = start + count


def test_whole_sequences_have_gradients(program: tuple[Any, Interpreter]) -> None:
    model, interpreter = program
    names = ("A_log", "a_log", "dt_bias", "conv", "in_proj")
    weights = [weight for name, weight in model.named_parameters() if any(part in name for part in names)]
    assert weights
    tokens, found = tokens_of(1, 7), list[tuple[torch.Tensor, ...]]()
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


def test_steps_go_on_where_a_call_ended(program: tuple[Any, Interpreter]) -> None:
    model, interpreter = program
    tokens = tokens_of(1, 20)
    wanted, cache = interpreter(tokens), model.new_cache(1, 20)
    file_of(model)["INTERPRETED"] = True
    parts = [model(tokens[:, :17], cache)]
    file_of(model)["INTERPRETED"] = False
    parts += [model(tokens[:, at : at + 1], cache) for at in (17, 18, 19)]
    assert (torch.cat(parts, 1) - wanted).abs().max() < bound(wanted)
