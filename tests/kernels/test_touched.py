from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest
import torch

from tests.kernels.touched import OutsideError, Touch, touched

TEXT = """
import torch
import triton
import triton.language as tl


@triton.jit
def halves_kernel(x, y, seen, n, past: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + offs, mask=offs < n, other=0.0)
    value += tl.load(x + offs, mask=offs < n // 2, other=0.0)
    tl.store(y + offs + past, value, mask=offs < n // 2)
    tl.atomic_add(seen, 1)


@torch.library.custom_op("touched_test::halves", mutates_args=())
def halves(x: torch.Tensor, past: int) -> torch.Tensor:
    y = torch.zeros_like(x)
    seen = torch.zeros(1, dtype=torch.int32)
    halves_kernel[(2,)](x, y, seen, x.numel(), past=past, BLOCK=16)
    return y + 1
"""


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("touched") / "touched_halves.py"
    path.write_text(TEXT)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[path.stem] = loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_distinct_bytes_of_each_tensor_are_counted(halves: Any) -> None:
    x = torch.arange(20.0)
    with touched() as run, torch.no_grad():
        halves.halves(x, 0)
    (launch,) = run.launches
    assert (launch.name, launch.grid) == ("halves_kernel", (2,))
    assert launch.tensors == {"x": Touch(80, 0), "y": Touch(0, 40), "seen": Touch(4, 4)}
    assert (run.read, run.written) == (84, 44)


def test_operations_inside_custom_ones_count_and_views_do_not(halves: Any) -> None:
    x = torch.arange(20.0)
    with touched() as run, torch.no_grad():
        halves.halves(x, 0).view(4, 5).transpose(0, 1)
        torch.empty(3)
        halves.halves(x[10:], 0)
    each = ["aten::zeros_like", "aten::zeros", "halves_kernel", "aten::add"]
    assert run.names == each * 2
    assert run.operations == [name for name in run.names if name != "halves_kernel"]
    assert run.launches[1].tensors["x"] == Touch(40, 0)
    with touched() as run:
        pass
    assert run.names == []


def test_memory_of_no_argument_is_refused(halves: Any) -> None:
    x = torch.arange(20.0)
    with pytest.raises(Exception, match="none of its arguments"):
        with touched(), torch.no_grad():
            halves.halves(x, 11)
    assert issubclass(OutsideError, AssertionError)
