"""The tile that each target takes, chosen without one at hand: compiled ahead of time, then ranked by a model.

A tile is refused where registers spill, where shared memory is more than a program may have, or where it loses the
loads of 16 bytes that another tile has. The others are ranked by the time that they would take if a target moved bytes
as fast as enough of them are in flight (Little's law), and multiplied matrices as fast as the unit that they use, or as
the last cache feeds it (specs/kernels.md, 1.3). The model knows no better than that: tiles within `SAME` of each other
keep the order of `Kernel.tiles`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from regraft.codegen.kernels.ahead import Built, Failed, Job, compile_ahead
from regraft.codegen.kernels.alone import kernel_file
from regraft.codegen.kernels.kernel import TARGETS, Kernel, Moved, Tile
from regraft.ir.errors.kernels import NoTileError
from regraft.ir.hardware import Device, devices

LATENCY = 1.4e-6  # seconds from a load's issue to its data in a loaded memory: 36 KB in flight per processor of an H100
RESERVED = 1024  # bytes of shared memory that a resident program costs beside its own
WARPS = {"nvidia": 64, "amd": 32}  # resident on a processor at most; AMD's have 64 lanes
PROGRAMS = 32  # resident on a processor at most
UNITS = {"wgmma": 1.0, "tcgen05.mma": 1.0, "mfma": 1.0, "mma.sync": 0.6}  # share of the sheet rate, sm_80's being 1
ALU = 0.06  # the same for products without a matrix unit: 67 of 989 Tflop/s on an H100
CACHE_RATE = 44e9  # bytes a second that a processor gets of the last cache: 26 a cycle on an H100
SAME = 1.05
CONTEXT = 4096  # tokens of the call that candidates are ranked for


@dataclass(frozen=True)
class Candidate:
    """A tile on a target.

    Attributes:
        tile: The tile.
        built: What it compiles to, one for each of the kernel's functions; none where one does not compile.
        problem: Why it does not fit; empty where it does.
        seconds: Time of a call in the model; infinite where it does not fit.
    """

    tile: Tile
    built: tuple[Built, ...] = ()
    problem: str = ""
    seconds: float = math.inf


def device_of(target: str) -> Device:
    """Return the device that a target stands for: of those known, the one with the fastest memory."""
    return max((d for d in devices().values() if d.arch == target), key=lambda d: d.bandwidth_bytes_per_s)


def programs_resident(built: Built, tile: Tile, target: str) -> int:
    """Return how many programs a processor holds at once."""
    device = device_of(target)
    nvidia = target.startswith("sm_")
    lanes = 32 if nvidia else 64
    registers = -(-built.registers // 8) * 8 * lanes * tile.warps
    shared = device.max_shared_memory_per_block_bytes or 0
    return min(
        PROGRAMS,
        (device.registers_per_sm or 0) // max(1, registers),
        (shared + RESERVED) // (built.shared + RESERVED) if nvidia else shared // max(1, built.shared),
        WARPS["nvidia" if nvidia else "amd"] // tile.warps,
    )


def bytes_in_flight(built: Built, tile: Tile, target: str) -> int:
    """Return how many bytes a program has under way at most: its pipeline's, or those of its loads as they stand."""
    lanes = 32 if target.startswith("sm_") else 64
    if built.copies and tile.stages > 1:
        return built.shared * (tile.stages - 1) // tile.stages
    return (16 * built.wide_loads + 4 * built.narrow_loads) * lanes * tile.warps


def misfit(built: Built, tile: Tile, target: str) -> str:
    """Return why a compiled function must not run on a target; nothing if it may."""
    limit = device_of(target).max_shared_memory_per_block_bytes or 0
    if built.stack:
        return f"{built.stack} bytes of registers spill"
    if built.shared > limit:
        return f"{built.shared} bytes of shared memory, {limit} are there"
    if not programs_resident(built, tile, target):
        return f"{built.registers} registers for each of {tile.warps} warps are more than there are"
    return ""


def ranked(kernel: Kernel, target: str, dtype: str = "bf16") -> list[Candidate]:
    """Return a kernel's tiles on a target, the best first, those that do not fit last.

    Raises:
        TritonMissingError: Triton is not installed.
    """
    return _all_ranked([kernel], [target], dtype)[kernel.name, target]


def search(
    kernels: Sequence[Kernel], targets: Sequence[str] = TARGETS, dtype: str = "bf16"
) -> dict[str, dict[str, Tile]]:
    """Return the best tile of each kernel for each target, as `Kernel.text` takes them: by name, then target.

    Raises:
        NoTileError: None of a kernel's tiles fits a target.
        TritonMissingError: Triton is not installed.
    """
    found = _all_ranked(kernels, targets, dtype)
    tables: dict[str, dict[str, Tile]] = {}
    for kernel in kernels:
        for target in targets:
            candidates = found[kernel.name, target]
            if candidates[0].problem:
                notes = [f"{candidate.tile.launch()}: {candidate.problem}" for candidate in candidates]
                raise NoTileError(kernel=kernel.name, count=len(candidates), target=target, notes=notes)
            tables.setdefault(kernel.name, {})[target] = candidates[0].tile
    return tables


def compared(kernel: Kernel, targets: Sequence[str] = TARGETS, dtype: str = "bf16") -> dict[str, Candidate]:
    """Return the best of a kernel's tiles for each target; its ``problem`` says so where none fits.

    Raises:
        TritonMissingError: Triton is not installed.
    """
    return {target: found[0] for (_, target), found in _all_ranked([kernel], targets, dtype).items()}


def found_fitting(kernel: Kernel, targets: Sequence[str] = TARGETS, dtype: str = "bf16") -> dict[str, Candidate]:
    """Return the first of a kernel's tiles that fits each target, without looking at the others.

    Raises:
        TritonMissingError: Triton is not installed.
    """
    text, entries = kernel_file([kernel]), kernel.entries(dtype)
    found: dict[str, Candidate] = {}
    waiting = list(targets)
    for tile in kernel.tiles():
        outcomes = iter(compile_ahead([Job(text, entry, tile, target) for target in waiting for entry in entries]))
        for target in waiting:
            (candidate,) = _ranking(kernel, target, [(tile, [next(outcomes) for _ in entries])])
            narrow = not candidate.problem and not any(each.wide_loads for each in candidate.built)
            found[target] = replace(candidate, problem="no loads of 16 bytes") if narrow else candidate
        waiting = [target for target in waiting if found[target].problem]
        if not waiting:
            return found
    return found | compared(kernel, waiting, dtype)


def _all_ranked(
    kernels: Sequence[Kernel], targets: Sequence[str], dtype: str
) -> dict[tuple[str, str], list[Candidate]]:
    """Return the candidates of each kernel on each target; all are compiled by one process."""
    jobs: list[Job] = []
    for kernel in kernels:
        text = kernel_file([kernel])
        entries = kernel.entries(dtype)
        jobs += [Job(text, entry, tile, target) for target in targets for tile in kernel.tiles() for entry in entries]
    outcomes = iter(compile_ahead(jobs))
    found: dict[tuple[str, str], list[Candidate]] = {}
    for kernel in kernels:
        functions = len(kernel.entries(dtype))
        for target in targets:
            results = [(tile, [next(outcomes) for _ in range(functions)]) for tile in kernel.tiles()]
            found[kernel.name, target] = _ranking(kernel, target, results)
    return found


def _ranking(kernel: Kernel, target: str, results: Sequence[tuple[Tile, list[Built | Failed]]]) -> list[Candidate]:
    wide = any(isinstance(outcome, Built) and outcome.wide_loads for _, outcomes in results for outcome in outcomes)
    moved = kernel.moved(2, 1, CONTEXT)
    candidates: list[Candidate] = []
    for tile, outcomes in results:
        failed = next((outcome for outcome in outcomes if isinstance(outcome, Failed)), None)
        built = tuple(outcome for outcome in outcomes if isinstance(outcome, Built))
        if failed is not None:
            candidates.append(Candidate(tile, problem=failed.error().text))
        elif problem := next((p for b in built if (p := misfit(b, tile, target))), ""):
            candidates.append(Candidate(tile, built, problem))
        elif wide and not any(each.wide_loads for each in built):
            candidates.append(Candidate(tile, built, "no loads of 16 bytes"))
        else:
            programs = kernel.programs(tile, 1)
            candidates.append(Candidate(tile, built, seconds=_seconds(built, tile, target, moved, programs)))
    best = min(candidate.seconds for candidate in candidates)
    return sorted(candidates, key=lambda candidate: _class(candidate.seconds, best))  # stable: the author's order


def _class(seconds: float, best: float) -> float:
    """Return the number of steps of `SAME` that a time is behind the best."""
    return seconds if math.isinf(seconds) else math.floor(math.log(seconds / best) / math.log(SAME) + 1e-9)


def _seconds(built: Sequence[Built], tile: Tile, target: str, moved: Moved, programs: int | None) -> float:
    """Return how long a call takes in the model, its functions having equal parts of what it moves.

    Args:
        built: What was compiled, function by function.
        tile: Its tile.
        target: Its target.
        moved: What the call moves.
        programs: Programs of a function's launch, where that is known; else they are taken to fill the device.
    """
    multiply = [each for each in built if each.matrix] or list(built)
    total = 0.0
    for each in built:
        part = moved.flops / len(multiply) if each in multiply else 0.0
        total += _part_seconds(each, tile, target, (moved.total / len(built), part), programs)
    return total


def _part_seconds(built: Built, tile: Tile, target: str, work: tuple[float, float], programs: int | None) -> float:
    """Return the same of one function; ``work`` is the bytes and the operations that it has to do."""
    device = device_of(target)
    resident = programs_resident(built, tile, target) * (device.sm_count or 1)
    at_once = min(resident, programs or resident)
    waves = (programs or resident) / resident
    evenness = waves / math.ceil(waves) if waves > 1 else 1.0
    bandwidth = device.bandwidth_bytes_per_s * device.usable_bandwidth_fraction
    in_flight = at_once * bytes_in_flight(built, tile, target)
    moving = work[0] / min(bandwidth, max(1, in_flight) / LATENCY)
    unit = max((UNITS[name] for name in built.matrix), default=ALU)
    if target == "sm_80" and "mma.sync" in built.matrix:
        unit = 1.0
    multiplying = work[1] / ((device.bf16_dense_flops or 1) * unit)
    feeding = 0.0
    if built.step_flops:  # what programs load again, others have left in the cache
        feeding = work[1] * built.step_bytes / built.step_flops / (CACHE_RATE * (device.sm_count or 1))
    return max(moving, multiplying, feeding) / evenness
