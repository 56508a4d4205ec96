"""Every bundled model's small twin, built for target ``triton`` and stepped by plain functions and by kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import regraft
from regraft.frontends.folder import builtin_names
from regraft.ir.interpret import Interpreter
from regraft.programs import load_program
from tests.codegen.test_triton import stepped

LENGTH, PROMPT, LAST = 28, 20, 26  # tokens, those that are read at once, and those that the slow interpreter is spared


def packed(name: str, folder: Path) -> tuple[Any, Interpreter]:
    """Return the program of a twin, and its interpreter."""
    twin = regraft.twin(f"builtin:{name}", folder / "twin")
    regraft.build(twin, folder / "package", target="triton")
    model = regraft.lift(twin)
    return load_program(folder / "package", dtype="float32"), Interpreter(model.graph, model.require_source())


@pytest.mark.parametrize("name", builtin_names())
def test_steps_of_a_twin_are_the_graphs(name: str, tmp_path: Path) -> None:
    model, interpreter = packed(name, tmp_path)
    tokens = torch.randint(model.vocab, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    wanted = interpreter(tokens)
    bound = 1e-5 * max(1.0, float(wanted.abs().max()) / 4)
    assert (stepped(model, tokens, PROMPT, interpreted=False) - wanted).abs().max() < bound


@pytest.mark.slow
@pytest.mark.parametrize("name", builtin_names())
def test_kernels_of_a_twin_compute_what_the_graph_does(name: str, tmp_path: Path) -> None:
    model, interpreter = packed(name, tmp_path)
    tokens = torch.randint(model.vocab, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    wanted = interpreter(tokens)
    bound = 1e-5 * max(1.0, float(wanted.abs().max()) / 4)
    assert (stepped(model, tokens, LAST, interpreted=True) - wanted).abs().max() < bound


class Recorded(TorchDispatchMode):
    """The arguments that each custom op of a program is first called with."""

    def __init__(self, space: str) -> None:
        super().__init__()
        self.space = space
        self.calls: dict[Any, tuple[Any, ...]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == self.space and func not in self.calls:
            self.calls[func] = tuple(each.clone() if isinstance(each, torch.Tensor) else each for each in args)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["DeepSeek-V3.2", "Qwen3-Next-80B-A3B", "ZAYA1-8B", "gemma-4-E2B"])
def test_ops_of_a_twin_give_what_tracing_is_told(name: str, tmp_path: Path) -> None:
    model, _ = packed(name, tmp_path)
    inside = type(model).run.__globals__
    inside["INTERPRETED"] = False
    tokens = torch.randint(model.vocab, (2, 9), generator=torch.Generator().manual_seed(0))
    cache = model.new_cache(2, 16)
    with torch.no_grad(), Recorded(inside["SPACE"]) as recorded:
        model(tokens[:, :8], cache)
        model(tokens[:, 8:], cache)
    assert len(recorded.calls) > 4
    for op, arguments in recorded.calls.items():
        torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("name", ["Qwen3-30B-A3B", "ZAYA1-8B"])
def test_a_mixture_is_traced_whole_where_no_kernel_runs(name: str, tmp_path: Path) -> None:
    model, _ = packed(name, tmp_path)
    type(model).run.__globals__["INTERPRETED"] = False
    tokens = torch.randint(model.vocab, (2, 9), generator=torch.Generator().manual_seed(0))
    wanted = model(tokens)
    exported: Any = torch.export.export(model, (tokens,), strict=False)
    assert (exported.module()(tokens) - wanted).abs().max() < 1e-5
    compiled: Any = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert (compiled(tokens) - wanted).abs().max() < 1e-5
