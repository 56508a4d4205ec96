"""Times on a GPU: what the device can do, and what a call takes."""

from __future__ import annotations

import importlib.metadata

import torch

from regraft.tuning import seconds


def versions() -> str:
    """Return what programs were made and run with."""
    return f"torch {torch.__version__}, triton {importlib.metadata.version('triton')}, CUDA {torch.version.cuda}"


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
