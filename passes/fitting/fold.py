"""Folding: each parameter's expression over the checkpoint evaluated once, and delivered to a sink."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from regraft.ir.cost import is_buffer
from regraft.ir.errors.checkpoint import NotFiniteError
from regraft.ir.graph import Graph
from regraft.ir.op import Op, Value
from regraft.ir.ops.fits import Statistic
from regraft.ir.ops.weight import Load
from regraft.ir.source import Sink, Source, TensorInfo, to_bytes
from regraft.passes.fitting.sweep import Progress, Sweep, evaluate
from regraft.passes.packing import read_tensors

if TYPE_CHECKING:
    from torch import Tensor


def plan_tensors(graph: Graph, kept: Collection[str] = ()) -> list[TensorInfo]:
    """Return what folding writes: each parameter's name, dtype and shape, in order of first use.

    For the parameters that are ``kept`` it is the tensors of the checkpoint that they are computed from.
    """
    if kept:
        return read_tensors(folded(graph, kept).parameters())
    return [TensorInfo(v.name, v.tensor.dtype, v.tensor.sizes) for v in graph.parameters()]


def fitted_parameters(graph: Graph) -> list[Value]:
    """Return the parameters that depend on a statistic, in order."""
    fitted: dict[Op, bool] = {}
    for op in graph.ops:
        if op.weight_time:
            before = (v.op is not None and fitted.get(v.op, False) for v in op.operands)
            fitted[op] = isinstance(op, Statistic) or any(before)
    return [v for v in graph.parameters() if v.op is not None and fitted[v.op]]


def folded(graph: Graph, kept: Collection[str] = ()) -> Graph:
    """Return the graph of the model that folding writes: every parameter that is not ``kept`` loads under its name."""
    copy = graph.copy()
    readers: dict[Value, Op] = {}
    for op in copy.run_time():
        for value in op.operands:
            readers.setdefault(value, op)
    for parameter in copy.parameters():
        if parameter.name in kept or (isinstance(parameter.op, Load) and parameter.op.tensor is None):
            continue
        assert parameter.op is not None
        name, type = parameter.name, parameter.tensor
        copy.rename(parameter, copy.fresh(f"{name}.unfolded"))
        load = Load({}, {"dtype": type.dtype, "shape": type.sizes, "buffer": is_buffer(parameter)})
        loaded = copy.add(load, [name], before=readers[parameter])[0]  # where a frontend puts it
        copy.replace_uses(parameter, loaded, lambda op: not op.weight_time)
    copy.drop_dead()
    return copy


def fold(
    graph: Graph,
    source: Source,
    sink: Sink,
    sweep: Sweep | None = None,
    keep: Callable[[str, Tensor], None] | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
    kept: Collection[str] = (),
) -> None:
    """Write every parameter that ``sink`` still wants, and every tensor behind one that is ``kept``.

    Tensors that no pass touched are copied byte by byte. Others are evaluated one at a time in each worker, from inputs
    that are dropped again at once. Parameters fitted to statistics come from ``sweep``, in depth order.

    Args:
        graph: The rewritten graph.
        source: The checkpoint.
        sink: Where the tensors go.
        sweep: The statistics; needed where a parameter depends on one.
        keep: Called with each fitted parameter, so that an interrupted run need not fit it again.
        progress: Called with tensors done, tensors in all, and what is being done.
        workers: Threads, one for each core by default.
        kept: Parameters that stay expressions: what they read is copied. See `passes.packing`.

    Raises:
        NotFiniteError: A tensor holds NaN or infinity.
        NeedsCalibrationError: A parameter is fitted, and there is no sweep.
    """
    pending = set(sink.pending())
    values = {v.name: v for v in graph.parameters() if v.name not in kept}
    fitted = {v.name: v for v in fitted_parameters(graph)} if sweep is not None else {}
    order = [name for name in sink.pending() if name not in fitted]

    def one(name: str) -> None:
        value = values.get(name)
        if value is None:
            sink.copy(name, source, name)
        elif isinstance(value.op, Load):
            sink.copy(name, source, value.op.source)
        else:
            sink.write(name, to_bytes(_finite(name, evaluate(value, source))))

    done = 0
    wanted = [v for v in fitted.values() if v.name in pending]
    if sweep is not None and wanted:
        for value, tensor in sweep.solve(wanted, progress):
            if keep is not None:
                keep(value.name, tensor)
            sink.write(value.name, to_bytes(_finite(value.name, tensor)))
            done += 1
    _in_parallel(one, order, len(pending), done, progress, workers)


def _finite(name: str, tensor: Tensor) -> Tensor:
    import torch

    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        raise NotFiniteError(tensor=name, count=bad, total=tensor.numel(), where="what apply computed")
    return tensor


def _in_parallel(
    one: Callable[[str], None],
    names: Sequence[str],
    total: int,
    done: int,
    progress: Progress | None,
    workers: int | None,
) -> None:
    """Call ``one`` with each name; the first failure stops the rest and is raised."""
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        running = {pool.submit(one, name): name for name in names}
        try:
            while running:
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    name = running.pop(future)
                    future.result()
                    done += 1
                    if progress is not None:
                        progress(done, total, name)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
