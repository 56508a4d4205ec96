"""Target ``triton``: what stands before attention in a convolutional latent, by a kernel in calls of many tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from regraft.codegen.package import emit
from regraft.codegen.torch.forms import Forms
from regraft.frontends.folder import open_model
from regraft.ir.interpret import Interpreter
from regraft.ir.ops.kernels import ConvolvedStep
from regraft.ir.ops.seq import Conv
from regraft.ir.source import TensorSource
from regraft.passes.fusion import fuse_decode, prefill
from regraft.passes.fusion.convolved import group_convolved
from regraft.programs import load_program
from tests.codegen.programs import tokens_of
from tests.codegen.test_triton_prefill import check_chunks, check_gradients, check_steps
from tests.frontends.agreement import twin_graph


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Interpreter]:
    """Return a small ZAYA1, whose calls of many tokens have this kernel alone, and its interpreter."""
    folder = tmp_path_factory.mktemp("program") / "package"
    graph, tensors = twin_graph(dict(open_model("builtin:ZAYA1-8B").config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefill, "PREFILL", (group_convolved,))
        fused = prefill.fuse_prefill(graph)
    kernels = sum(isinstance(op, ConvolvedStep) for op in fused.ops)
    assert kernels == graph.layer_count()
    assert not any(isinstance(op, Conv) for op in fused.ops)
    emit(Forms(graph, fused=fuse_decode(graph), prefill=fused), TensorSource(tensors), folder, target="triton")
    return load_program(folder, dtype="float32"), Interpreter(graph, TensorSource(tensors))


def test_chunks_of_sequences_that_stand_where_they_are(program: tuple[Any, Interpreter]) -> None:
    check_chunks(program, tokens_of(2, 12), torch.tensor([[5, 0], [1, 7]]))


def test_whole_sequences_have_gradients(program: tuple[Any, Interpreter]) -> None:
    check_gradients(program, ("conv_qk", "qk_norm", "temp", "q_proj", "v_proj"), tokens_of(1, 7))


def test_steps_go_on_where_a_call_ended(program: tuple[Any, Interpreter]) -> None:
    check_steps(program, tokens_of(1, 8), 5)
