"""How fast an emitted program is and what it holds, beside what its graph predicts for this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.ir.cost import cost
from regraft.ir.graph import Graph
from regraft.ir.parse import parse_graph
from regraft.machine import check_device
from regraft.programs import load_program

if TYPE_CHECKING:
    import torch

    from regraft.quality import Progress

BUFFER = 256 << 20  # bytes, more than any cache holds
SQUARE = 1024  # rows of the matrices whose product is timed


@dataclass(frozen=True)
class Workload:
    """What is timed: ``batch`` sequences, a ``prompt`` and ``new`` tokens after it; ``repeats`` prefills."""

    batch: int = 1
    prompt: int = 128
    new: int = 64
    repeats: int = 5


@dataclass(frozen=True)
class Speed:
    """Tokens a second over the whole batch: measured, and what the machine allows at most (None without a graph)."""

    tokens: int
    measured: float
    at_most: float | None


@dataclass(frozen=True)
class Rates:
    """What the machine reaches: bytes read a second, and floating-point operations a second in the model's dtype."""

    bytes_per_s: float
    flops_per_s: float


@dataclass(frozen=True)
class BenchReport:
    """What `bench` measured. Sizes in bytes."""

    package: str
    device: str
    dtype: str
    threads: int
    batch: int
    compiled: bool
    machine: Rates
    prefill: Speed
    decode: Speed
    cache_predicted: int | None
    cache_measured: int
    weights: int
    peak: int | None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON of schema ``regraft.bench/1``."""
        return {"schema": "regraft.bench/1", **asdict(self)}


def bench(
    package: str | Path,
    work: Workload = Workload(),
    *,
    device: str = "cpu",
    dtype: str | None = None,
    compiled: bool = False,
    progress: Progress | None = None,
) -> BenchReport:
    """Time a program on random tokens: a prefill, and the decoding of more tokens one by one.

    Both are medians: of several prefills after one that is not counted, and of the single steps of one decode.

    Args:
        package: A folder that ``build`` wrote.
        work: How many tokens and sequences.
        device: A torch device.
        dtype: A torch dtype to compute in; the stored one by default.
        compiled: Whether to compile the program with torch.compile first.
        progress: Called with steps done and in all.

    Raises:
        NotAPackageError: The folder is no package.
        DeviceMissingError: Torch does not have the device.
    """
    import torch

    batch, prompt, new = work.batch, work.prompt, work.new
    check_device(device)
    model = load_program(package, device, dtype)
    if compiled:
        model.compile()
    parameter = next(iter(model.parameters()))
    rates = machine_rates(parameter.dtype, device)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, int(model.vocab), (batch, prompt + new), generator=generator).to(device)
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    with torch.no_grad():
        first, prefills = _prefills(model, tokens[:, :prompt], prompt + new, work.repeats, progress)
        steps = [timed(lambda i=i: model(tokens[:, i : i + 1], first, last=1)) for i in range(prompt, prompt + new)]
    graph = _graph(Path(package))
    decode_steps = steps[min(3, len(steps) - 1) :]  # the first ones compile
    return BenchReport(
        package=str(package),
        device=device if device == "cpu" else torch.cuda.get_device_name(device),
        dtype=str(parameter.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        batch=batch,
        compiled=compiled,
        machine=rates,
        prefill=Speed(
            prompt, batch * prompt / statistics.median(prefills), _limit(graph, rates, batch, prompt, prompt)
        ),
        decode=Speed(new, batch / statistics.median(decode_steps), _limit(graph, rates, batch, 1, prompt + new)),
        cache_predicted=cost(graph, batch, 1, prompt + new).total.cache if graph else None,
        cache_measured=int(first.nbytes),
        weights=sum(p.numel() * p.element_size() for p in model.parameters()),
        peak=None if device == "cpu" else torch.cuda.max_memory_allocated(),
    )


def _prefills(
    model: Any, tokens: torch.Tensor, context: int, repeats: int, progress: Progress | None
) -> tuple[Any, list[float]]:
    """Return a cache that holds ``tokens``, and the seconds of each of ``repeats`` prefills."""
    cache: Any = None
    found: list[float] = []
    for i in range(repeats + 1):
        cache = model.new_cache(len(tokens), context)
        found.append(timed(partial(model, tokens, cache, last=1)))
        if progress is not None:
            progress(i + 1, repeats + 1, "prefills")
    return cache, found[1:]


def timed(work: Callable[[], Any]) -> float:
    """Return the seconds that ``work`` takes, what it started on a GPU included."""
    import torch

    began = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - began


def machine_rates(dtype: torch.dtype, device: str) -> Rates:
    """Measure how fast the machine reads memory and multiplies matrices: the best of five."""
    import torch

    data = torch.ones(BUFFER // 4, device=device)
    matrix = torch.ones(SQUARE, SQUARE, dtype=dtype, device=device)
    with torch.no_grad():
        reading = min(timed(data.sum) for _ in range(5))
        multiplying = min(timed(lambda: matrix @ matrix) for _ in range(5))
    return Rates(BUFFER / reading, 2 * SQUARE**3 / multiplying)


def _graph(package: Path) -> Graph | None:
    path = package / "graph.rg"
    return parse_graph(path.read_text(encoding="utf-8"), str(path)) if path.is_file() else None


def _limit(graph: Graph | None, rates: Rates, batch: int, tokens: int, context: int) -> float | None:
    """Return the tokens a second that reading and multiplying alone would allow."""
    if graph is None:
        return None
    whole = cost(graph, batch, tokens, context).total
    return batch * tokens / max(whole.bytes_read / rates.bytes_per_s, whole.flops / rates.flops_per_s)
