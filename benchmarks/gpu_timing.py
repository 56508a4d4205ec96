"""Times on a GPU: what the device can do, and what a call takes."""

from __future__ import annotations

import importlib.metadata
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch

WARM, LEAST, MOST = 3, 10, 100  # replays
ENOUGH = 1.0  # seconds of replays


def versions() -> str:
    """Return what programs were made and run with."""
    return f"torch {torch.__version__}, triton {importlib.metadata.version('triton')}, CUDA {torch.version.cuda}"


def seconds(calls: Sequence[Callable[[], Any]]) -> float:
    """Return the time of one of some calls that run after one another in a CUDA graph, the median over replays.

    They should be on tensors of their own, and these together larger than the last cache.
    """
    torch.cuda.synchronize()  # what calls take was made on another stream
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # compile, and make what is made once
        for call in calls:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    first = statistics.median(_replayed(graph, WARM))
    times = _replayed(graph, max(LEAST, min(MOST, int(ENOUGH / max(first, 1e-6)))))
    return statistics.median(times) / len(calls)


def _replayed(graph: Any, count: int) -> list[float]:
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
    for start, end in events:
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in events]


def limits() -> dict[str, float]:
    """Return the rates of a copy, counting what it reads and writes, and of a bf16 matrix product."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copied = 2 * source.numel() / seconds([lambda: target.copy_(source)])
    side = 8192
    a, b = (torch.randn(side, side, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    multiplied = 2 * side**3 / seconds([lambda: torch.mm(a, b)])
    return {"copy_bytes_per_s": copied, "matmul_flops": multiplied}


def cache_bytes() -> int:
    """Return the size of the last cache."""
    return int(torch.cuda.get_device_properties(0).L2_cache_size)
