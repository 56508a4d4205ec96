"""The maps of a model's step, one by one: kernels whose text is made of a graph, so that no shelf holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_kernels import Program, errors, timed
from benchmarks.kernel_inputs import Call
from benchmarks.tiles import kernels_of
from regraft.codegen.kernels.rows import RowsKernel
from regraft.ir.graph import Graph


def maps(graph: Graph, module: ModuleType, step: Callable[[], object], copy: float, device: str) -> dict[str, Any]:
    """Return what is measured of each map that a step launches, with the arguments that the step gives it.

    Args:
        graph: The model.
        module: Its program.
        step: Decodes a token.
        copy: Bytes that a copy moves in a second, reads and writes counted.
        device: Where it runs.

    Returns:
        By the op's name microseconds, least bytes, the share of a copy's rate, errors as `gpu_kernels.errors` has them,
        and microseconds of what stands beside it.
    """
    kernels = {kernel.name: kernel for kernel in kernels_of(graph) if isinstance(kernel, RowsKernel)}
    found: dict[str, Any] = {}
    for name, given in recorded(module, kernels, step).items():
        schema = getattr(getattr(torch.ops, module.SPACE), name).default._schema
        arguments = dict(zip((each.name for each in schema.arguments), given, strict=True))
        program = Program(getattr(module, name), getattr(module, f"{name}_plain"), dict.fromkeys(arguments, False))
        call = Call(1, 1, given[0].dtype, device)
        of = kernels[name].moved(given[0].element_size(), 1, 1)
        with torch.no_grad():
            made = errors(program, arguments) | timed(kernels[name], program, call, arguments)
        found[name] = made | {"least": of.least, "share": of.least / copy * 1e6 / made["us"]}
    return found


def recorded(module: ModuleType, names: Iterable[str], step: Callable[[], object]) -> dict[str, tuple[Tensor, ...]]:
    """Return the arguments of a program's ops in their first calls of a step, those that are called."""
    found: dict[str, tuple[Tensor, ...]] = {}
    ops: Mapping[str, Callable[..., object]] = {name: getattr(module, name) for name in names}

    def noted(name: str) -> Callable[..., object]:
        def call(*given: Tensor) -> object:
            found.setdefault(name, given)
            return ops[name](*given)

        return call

    vars(module).update({name: noted(name) for name in ops})
    try:
        step()
    finally:
        vars(module).update(ops)
    return found
