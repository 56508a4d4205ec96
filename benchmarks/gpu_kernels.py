"""The process that checks and times the kernels of one module of codegen/kernels; started by benchmarks/gpu.py.

python -m benchmarks.gpu_kernels MODULE [--results FILE] [--seconds S]
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import importlib.util
import math
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_results import RESULTS, Results
from benchmarks.gpu_timing import cache_bytes, limits, seconds, versions
from benchmarks.kernel_inputs import Call, inputs
from benchmarks.kernel_rivals import rivals
from regraft.codegen.kernels.alone import kernel_file, shelf
from regraft.codegen.kernels.attention import Attention
from regraft.codegen.kernels.experts import Experts
from regraft.codegen.kernels.flash import Flash
from regraft.codegen.kernels.grouped import Grouped
from regraft.codegen.kernels.index import Index
from regraft.codegen.kernels.kernel import TARGETS, Kernel, Tile
from regraft.codegen.kernels.search import Candidate, ranked
from regraft.codegen.kernels.sparse import Sparse, SparsePrefill
from regraft.ir.errors.kernels import NoTileError

MORE = 75  # exit code: the time is over, and there is more to do
MOST_BYTES = 16 << 30  # of arguments at once
CHECKED = 2048  # tokens of a check where the plain form stores every score
EXPERTS = 32  # of a check, whose weights are there in float64 too


@dataclass(frozen=True)
class Program:
    """A kernel's op and its plain form, loaded from an emitted file.

    Attributes:
        op: The custom op.
        plain: The same by plain operations.
        arguments: Names of the op's arguments, and whether it writes into them.
    """

    op: Callable[..., Any]
    plain: Callable[..., Any]
    arguments: Mapping[str, bool]


def load(kernel: Kernel, folder: Path, tiles: Mapping[str, Mapping[str, Tile]] | None = None) -> Program:
    """Return a kernel's program, with tiles as `kernel_file` takes them."""
    text = kernel_file([kernel], tiles)
    path = folder / f"kernel_{hashlib.sha256(text.encode()).hexdigest()[:16]}.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[path.stem] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    op: Any = getattr(module, kernel.name)
    schema = op._opoverload._schema
    writes = {each.name: each.alias_info is not None and each.alias_info.is_write for each in schema.arguments}
    return Program(op, getattr(module, f"{kernel.name}_plain"), writes)


def contexts(kernel: Kernel) -> Sequence[int]:
    """Return the contexts at which a kernel is measured."""
    if isinstance(kernel, Attention) and not kernel.ring:
        return [context for context in (4096, 32768, 131072) if context <= kernel.slots]
    if isinstance(kernel, Index):
        return (16384, 1 << 20)
    if isinstance(kernel, Sparse):
        return (16384, 131072)
    return (4096, 16384) if isinstance(kernel, Flash) else (4096,)


def checked(kernel: Kernel) -> Kernel:
    """Return a kernel as it is checked: with few experts, where all would not fit in float64."""
    if isinstance(kernel, Experts | Grouped):
        return replace(kernel, experts=max(kernel.chosen, min(kernel.experts, EXPERTS)))
    return kernel


def errors(program: Program, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return how far the op and its plain form are from the plain form in float64.

    Returns:
        ``error`` and ``plain_error``, the largest difference over the root mean square, of the result where the first
        is largest; ``different`` whole numbers of the op's result, and ``plain_different``.
    """
    exact = _results(program, program.plain, {name: _widened(value) for name, value in given.items()})
    found: dict[str, Any] = {"error": 0.0, "plain_error": 0.0, "different": 0, "plain_different": 0}
    results = [
        _results(program, form, {n: _copied(v) for n, v in given.items()}) for form in (program.op, program.plain)
    ]
    for wanted, got, plain in zip(exact, *results, strict=True):
        if not wanted.is_floating_point():
            found["different"] += int((got.sort(-1).values != wanted.sort(-1).values).sum())
            found["plain_different"] += int((plain.sort(-1).values != wanted.sort(-1).values).sum())
            continue
        size = max(float(wanted.square().mean().sqrt()), 1e-30)
        error = _largest(got.double() - wanted) / size
        if not error <= found["error"]:
            found |= {"error": error, "plain_error": _largest(plain.double() - wanted) / size}
    return found


def _largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def _results(program: Program, form: Callable[..., Any], given: Mapping[str, Any]) -> list[Tensor]:
    """Return what a form returns, and after it what it has written into."""
    made = form(**given)
    returned = [] if made is None else [made] if isinstance(made, Tensor) else list(made)
    return [*returned, *(given[name] for name, writes in program.arguments.items() if writes)]


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _widened(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else _copied(value)


def timed(kernel: Kernel, program: Program, call: Call, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the microseconds of a call with these arguments, and of what else computes the same."""
    whole = sum(value.nbytes for value in given.values() if isinstance(value, Tensor))
    moved = kernel.moved(2, call.batch, call.context)
    copies = min(math.ceil(4 * cache_bytes() / max(moved.total, 1)), MOST_BYTES // max(whole, 1), 64)
    sets = [given, *({name: _copied(value) for name, value in given.items()} for _ in range(copies - 1))]
    taken = seconds([lambda each=each: program.op(**each) for each in sets])
    beside: dict[str, float | str] = {}
    for name, of in rivals(kernel, program.plain, call).items():
        try:
            beside[name] = seconds([lambda each=each, of=of: of(**each) for each in sets]) * 1e6
        except Exception as error:  # what the library cannot do, it is not beside
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            beside[name] = f"{type(error).__name__}: {error}"[:200]
    return {"us": taken * 1e6, "beside": beside}


def measured(
    kernel: Kernel, context: int, rates: Mapping[str, float], folder: Path, target: str, device: str = "cuda"
) -> dict[str, Any]:
    """Return all that is said of a kernel at a context, with the tile that a build takes for a target.

    Args:
        kernel: The kernel.
        context: Tokens of the sequence.
        rates: What the device can do, as `gpu_timing.limits` returns it.
        folder: Where the program is written.
        target: What the device's code is compiled for; if there is no search for it, the first tile is taken.
        device: Where it runs.
    """
    best = ranked(kernel, target)[0] if target in TARGETS else Candidate(kernel.tiles()[0])
    if best.problem:
        raise NoTileError(kernel=kernel.name, count=len(kernel.tiles()), target=target, notes=[best.problem])
    tiles = {kernel.name: {target: best.tile}}
    program, small = load(kernel, folder, tiles), checked(kernel)
    other = program if small == kernel else load(small, folder, tiles)
    shorter = Call(
        1, min(context, CHECKED) if isinstance(kernel, Flash | SparsePrefill) else context, torch.bfloat16, device
    )
    with torch.no_grad():
        found = errors(other, inputs(small, other.arguments, shorter))
        torch.cuda.empty_cache()
        call = Call(1, context, torch.bfloat16, device)
        found |= timed(kernel, program, call, inputs(kernel, program.arguments, call))
    moved = kernel.moved(2, 1, context)
    moving, multiplying = moved.least / rates["copy_bytes_per_s"], moved.flops / rates["matmul_flops"]
    of = "bandwidth" if moving >= multiplying else "matrix rate"
    share = max(moving, multiplying) * 1e6 / found["us"]
    found |= {"tile": best.tile.launch(), "modelled_us": best.seconds * 1e6 if target in TARGETS else None}
    return found | {"bytes": moved.total, "least": moved.least, "flops": moved.flops, "share": share, "of": of}


def run(module: str, results: Results, until: float) -> int:
    """Measure what is not known yet; return the exit code."""
    rates = results.entries()["limits"]
    target = "sm_{}{}".format(*torch.cuda.get_device_capability())
    with tempfile.TemporaryDirectory() as folder:
        for index, kernel in enumerate(shelf()[module]):
            digest = hashlib.sha256(kernel_file([kernel]).encode()).hexdigest()[:16]
            for context in contexts(kernel):
                key = f"kernels/{module}/{index}@{context}"
                like = {"digest": digest, "versions": versions()}
                if results.known(key, like):
                    continue
                if time.monotonic() > until:
                    return MORE
                entry = {"kernel": kernel.name, "constants": repr(kernel), "date": _today(), **like}
                results.put(key, entry | {"status": "running"})
                found = measured(kernel, context, rates, Path(folder), target)
                results.put(key, entry | {"status": "measured"} | found)
                torch.cuda.empty_cache()
    return 0


def measure_limits(results: Results) -> None:
    """Measure the device's rates, if they are not known for these versions."""
    like = {"versions": versions()}
    if not results.known("limits", like):
        results.put("limits", {"status": "measured", "date": _today(), **like, **limits()})


def _today() -> str:
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def main() -> int:
    """Measure a module's kernels."""
    start = time.monotonic()
    parser = argparse.ArgumentParser()
    parser.add_argument("module")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--seconds", type=float, default=150.0)
    asked = parser.parse_args()
    results = Results(asked.results, torch.cuda.get_device_name(0))
    measure_limits(results)
    return run(asked.module, results, start + asked.seconds)


if __name__ == "__main__":
    sys.exit(main())
