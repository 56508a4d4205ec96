"""Tiles timed on a GPU: what ``regraft bench --tune`` writes beside a package's program, which reads it."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.codegen.kernels.kernel import Kernel
from regraft.ir.errors.kernels import StaleProgramError, TuneDeviceError
from regraft.ir.files import write_atomic
from regraft.ir.graph import Graph
from regraft.ir.parse import parse_graph
from regraft.programs import load_program, told

if TYPE_CHECKING:
    from regraft.quality import Progress

FILE = "tiles.json"  # in the package
SCHEMA = "regraft.tuned/1"
CALLS = 16  # calls of a kernel that are timed together, each on tensors of its own
WARM, LEAST, MOST = 3, 10, 100  # replays
ENOUGH = 1.0  # seconds of replays
BRIEF = 0.1  # the same for one of many tiles

Call = Callable[[], Any]
Clock = Callable[[Sequence[Call]], float]


@dataclass(frozen=True)
class Timed:
    """A kernel's tile that was fastest. Times in seconds of a call; of the tile before None if it did not run."""

    kernel: str
    tile: Mapping[str, int]
    seconds: float
    before: float | None
    tried: int


@dataclass(frozen=True)
class TuneReport:
    """What was timed on which device."""

    package: str
    device: str
    target: str
    kernels: Sequence[Timed]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON of schema ``regraft.tune/1``."""
        return {"schema": "regraft.tune/1", **asdict(self)}


def tune(
    package: str | Path, *, device: str = "cuda", prompt: int = 512, progress: Progress | None = None
) -> TuneReport:
    """Time the tiles of each kernel of a package on a GPU, and write the fastest into the package.

    Args:
        package: A folder that ``build --target triton`` wrote.
        device: A GPU.
        prompt: Tokens of the call that kernels for many tokens are timed on; a step comes after it.
        progress: Called with kernels done and in all.

    Raises:
        NotAPackageError: The folder is no package.
        StaleProgramError: Its program has no kernels, or not those that we would write now.
        TuneDeviceError: The device is no GPU that kernels run on.
    """
    import torch

    if not device.startswith("cuda") or not torch.cuda.is_available():
        raise TuneDeviceError(device=device)
    folder = Path(package)
    model = load_program(folder, device)
    inside: dict[str, Any] = type(model).run.__globals__
    kernels = kernels_of(parse_graph((folder / "graph.rg").read_text(encoding="utf-8"), str(folder / "graph.rg")))
    if not kernels or any(f"{name.upper()}_TILES" not in inside for name in kernels):
        raise StaleProgramError(program=folder / "model.py")
    if not inside["able"](torch.device(device)):
        raise TuneDeviceError(device=torch.cuda.get_device_name(device))
    with told(folder / "model.py"), torch.no_grad():
        calls = recorded(model, list(kernels), prompt, device)
        target: str = inside["target"](torch.device(device))
        found = timed_tiles(kernels, inside, target, calls, partial(seconds, enough=BRIEF), progress)
    write(folder, target, found)
    return TuneReport(str(package), torch.cuda.get_device_name(device), target, found)


def kernels_of(graph: Graph) -> dict[str, Kernel]:
    """Return the kernels of a graph's package by the names that they have in it."""
    from regraft.codegen.triton.target import TritonTarget
    from regraft.passes.fusion import fuse_decode
    from regraft.passes.fusion.prefill import fuse_prefill
    from regraft.passes.latent_forms import decoding_form

    target = TritonTarget(graph, [], "", fuse_decode(decoding_form(graph) or graph), fuse_prefill(graph))
    target.program()
    return {name: kernel.called(name) for kernel, name in target.shared.kernels.items()}


def recorded(model: Any, names: Sequence[str], prompt: int, device: str) -> dict[str, list[Call]]:
    """Return calls of each kernel that a prompt and a step after it make, as they were made, to be made again."""
    import torch

    inside: dict[str, Any] = type(model).run.__globals__
    ops = {name: inside[name] for name in names}
    calls: dict[str, list[Call]] = {name: [] for name in names}

    def listening(name: str) -> Callable[..., Any]:
        def call(*given: Any, **more: Any) -> Any:
            if len(calls[name]) < CALLS:
                calls[name].append(lambda: ops[name](*given, **more))
            return ops[name](*given, **more)

        return call

    model.check(1)  # whose calls are not these
    tokens = torch.arange(prompt + 1, device=device)[None] * 7919 % int(model.vocab)
    inside |= {name: listening(name) for name in names}
    try:
        running = inside["Decoder"](model, tokens[:, :prompt], context=prompt + 8)
        running.step()
    finally:
        inside |= ops
    return calls


def timed_tiles(
    kernels: Mapping[str, Kernel],
    inside: dict[str, Any],
    target: str,
    calls: Mapping[str, Sequence[Call]],
    clock: Clock,
    progress: Progress | None = None,
) -> list[Timed]:
    """Return the fastest tile of each kernel that is called, and leave it in the program's table.

    Args:
        kernels: The kernels by name.
        inside: The program's globals.
        target: The device's.
        calls: Calls of each.
        clock: Returns the seconds of one of some calls.
        progress: Called with kernels done and in all.
    """
    found: list[Timed] = []
    for done, (name, kernel) in enumerate(kernels.items()):
        if calls[name]:
            found.append(_fastest(kernel, inside[f"{name.upper()}_TILES"], target, calls[name], clock))
        if progress is not None:
            progress(done + 1, len(kernels), name)
    return found


def _fastest(
    kernel: Kernel, table: dict[str, dict[str, int]], target: str, calls: Sequence[Call], clock: Clock
) -> Timed:
    """Try a kernel's tiles; the one of the table comes first and stays where none is faster."""
    given = table.get(target, table["default"])
    launches = [given, *(tile.launch() for tile in kernel.tiles() if tile.launch() != given)]
    times = {index: _seconds(table, target, launch, calls, clock) for index, launch in enumerate(launches)}
    best = min(times, key=lambda index: times[index])
    table[target] = launches[best]
    return Timed(kernel.name, launches[best], times[best], times[0] if math.isfinite(times[0]) else None, len(launches))


def _seconds(
    table: dict[str, dict[str, int]], target: str, launch: dict[str, int], calls: Sequence[Call], clock: Clock
) -> float:
    """Return the time of a call with a tile; infinite where the device or its compiler refuses it."""
    table[target] = launch
    try:
        return clock(calls)
    except Exception:  # shared memory, registers, a compiler's pass: whatever it is, another tile is taken
        return math.inf


def write(folder: Path, target: str, found: Sequence[Timed]) -> None:
    """Add the tiles of a target to those in a package, which its program reads."""
    file = folder / FILE
    tiles: dict[str, dict[str, Mapping[str, int]]] = json.loads(file.read_bytes())["tiles"] if file.is_file() else {}
    for each in found:
        tiles.setdefault(each.kernel, {})[target] = each.tile
    write_atomic(file, json.dumps({"schema": SCHEMA, "tiles": tiles}, indent=1) + "\n")


def seconds(calls: Sequence[Call], enough: float = ENOUGH) -> float:
    """Return the time of one of some calls that run after one another in a CUDA graph, the median over replays.

    They should be on tensors of their own, and these together larger than the last cache. Replays take ``enough``
    seconds.
    """
    import torch

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
    times = _replayed(graph, max(LEAST, min(MOST, int(enough / max(first, 1e-6)))))
    return statistics.median(times) / len(calls)


def _replayed(graph: Any, count: int) -> list[float]:
    import torch

    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
    for start, end in events:
        start.record()
        graph.replay()
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) / 1e3 for start, end in events]
