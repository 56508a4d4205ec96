"""The process that measures one part of a model: its program, or transformers, or a pass; started by benchmarks/gpu.py.

python -m benchmarks.gpu_models (program | transformers | cold | pass) NAME [--results FILE] [--seconds S]
"""

from __future__ import annotations

import argparse
import datetime
import gc
import hashlib
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.cold_start import CONTEXT
from benchmarks.gpu_compiled import bring, compile_for
from benchmarks.gpu_maps import maps
from benchmarks.gpu_passes import CONTEXT as PASS_CONTEXT
from benchmarks.gpu_passes import PASSES, before_and_after
from benchmarks.gpu_results import RESULTS, ROOT, Results
from benchmarks.gpu_subjects import (
    Subject,
    fused_step,
    program_state,
    random_weights,
    read_program,
    subject,
    write_program,
)
from benchmarks.gpu_tables import COLD, SHIPPED
from benchmarks.gpu_timing import limits, versions
from benchmarks.model_rivals import MODES, clock, logits, prefill, stepper, stock
from regraft.codegen.kernels.kernel import Moved
from regraft.codegen.schedule import schedule
from regraft.ir.graph import Graph
from regraft.ir.hardware import devices

MORE = 75  # exit code: the time is over, and there is more to do


@dataclass(frozen=True)
class Sizes:
    """What is measured.

    Attributes:
        decode: Contexts of a decoded token.
        prefill: Lengths of a prompt.
        steps: Tokens that are decoded; of another program so many too.
        repeats: Prompts that are read after the first.
        prompt: Tokens before a cache is filled with random rows, and of which logits are compared.
    """

    decode: tuple[int, ...] = (4096, 131072)
    prefill: tuple[int, ...] = (4096, 32768)
    steps: int = 64
    repeats: int = 3
    prompt: int = 32

    def room(self, context: int) -> int:
        """Return how many tokens the cache has room for in which those around a context are decoded."""
        return context + self.steps + 8


@dataclass
class Running:
    """A model's program on a device.

    Args:
        graph: The model.
        folder: Where its program is written.
        device: Where it runs.
    """

    graph: Graph
    folder: Path
    device: str
    weights: dict[str, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        program = write_program(self.graph, self.folder)
        bring(program, self.folder)
        self.weights = random_weights(self.graph, self.device)
        self.module, self.model = read_program(self.folder, program_state(program, self.weights), self.device)

    @cached_property
    def checked(self) -> float:
        """How far a step by kernels is from one by plain functions; checked once, before all else."""
        found = float(self.module.self_check(self.model))
        self.model.checked.add(1)
        return found

    def tokens(self, count: int) -> Tensor:
        """Return a prompt [1, count]."""
        return prompt(int(self.model.vocab), count, self.device)

    @torch.no_grad()
    def logits(self, count: int) -> Tensor:
        """Return the logits of a prompt's last token, its last step by kernels."""
        tokens = self.tokens(count)
        kept = self.model.new_cache(1, count)
        self.model(tokens[:, :-1], kept, last=1)
        return self.model(tokens[:, -1:], kept)[:, -1]

    @torch.no_grad()
    def decoded(self, context: int, sizes: Sizes) -> float:
        """Return the seconds of a decoded token, half of the steps before a context and half of them after it."""
        decoder = self.module.Decoder(self.model, self.tokens(sizes.prompt), context=sizes.room(context))
        fill(decoder.cache, context - sizes.steps // 2)
        for _ in range(3):  # compile, capture, replay
            decoder.step()
        began = clock(self.device)
        for _ in range(sizes.steps):
            decoder.step()
        return (clock(self.device) - began) / sizes.steps

    def read(self, count: int, sizes: Sizes) -> float:
        """Return the seconds in which a prompt is read, into a cache that is there."""
        tokens = self.tokens(count)
        kept = self.model.new_cache(1, count)
        times: list[float] = []
        for _ in range(sizes.repeats + 1):
            kept.lengths.zero_()
            kept.used = 0
            began = clock(self.device)
            self.model(tokens, kept, last=1)
            times.append(clock(self.device) - began)
        return statistics.median(times[1:])


def prompt(vocab: int, count: int, device: str) -> Tensor:
    """Return a prompt [1, count] that is the same in every process."""
    return torch.arange(count, device=device)[None] * 7919 % vocab


@torch.no_grad()
def fill(kept: Any, tokens: int) -> None:
    """Fill a program's cache with random rows, as if it had read so many tokens."""
    for memories in kept.layers:
        for memory in memories:
            for each in memory:
                if each.is_floating_point():
                    each.uniform_(-1, 1)
    kept.lengths.fill_(tokens)
    kept.used = tokens


def moved(graph: Graph, context: int) -> Moved:
    """Return what a decoded token launches and moves, by the schedule."""
    return schedule(graph, fused_step(graph), 1, context).whole


def sheet_bandwidth(name: str) -> float | None:
    """Return a device's bandwidth by its data sheet, if it is known by what the driver calls it."""
    return next((each.bandwidth_bytes_per_s for each in devices().values() if each.name.startswith(name)), None)


def shares(of: Moved, taken: float, copy: float, sheet: float | None) -> dict[str, Any]:
    """Return the entry of a decoded token: times, bytes, and what share of two limits is reached."""
    return {
        "ms": taken * 1e3,
        "tokens_per_s": 1 / taken,
        "kernels": of.launches,
        "bytes": of.total,
        "least": of.least,
        "of_sheet": None if sheet is None else of.least / sheet / taken,
        "of_copy": of.least / copy / taken,
    }


# -- parts


@dataclass
class Part:
    """One part of a model's measures, each of which is put into the results as soon as it is known.

    Args:
        results: Where measures go.
        until: When nothing new is started, by `time.monotonic`.
        device: Where it runs.
        sizes: What is measured.
        like: What an entry must agree with to be known.
    """

    results: Results
    until: float
    device: str
    sizes: Sizes
    like: dict[str, Any]

    def known(self, key: str) -> bool:
        """Return whether there is an entry of the same conditions."""
        return self.results.known(key, self.like)

    def measure(self, key: str, of: Callable[[], Mapping[str, Any]], **more: Any) -> bool:
        """Measure what is not known; return whether there was time for it."""
        if self.known(key):
            return True
        if time.monotonic() > self.until:
            return False
        entry = {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), **self.like, **more}
        self.results.put(key, entry | {"status": "running"})
        self.results.put(key, entry | {"status": "measured"} | dict(of()))
        if self.device != "cpu":
            torch.cuda.empty_cache()
        return True


def digest(graph: Graph) -> str:
    """Return what tells one version of a model's program from another."""
    with tempfile.TemporaryDirectory() as folder:
        return hashlib.sha256(write_program(graph, Path(folder)).model_py.encode()).hexdigest()[:16]


def program_part(of: Subject, part: Part, rates: Mapping[str, float]) -> bool:
    """Measure a model's program: its logits, decoded tokens and prompts; return whether there was time for all."""
    key, sizes = f"models/{of.name}", part.sizes
    sheet = sheet_bandwidth(part.results.device)
    with tempfile.TemporaryDirectory() as folder:

        @cache
        def running() -> Running:  # made within the first measure: what goes wrong is told there
            return Running(of.graph, Path(folder), part.device)

        def compared() -> dict[str, Any]:
            return {"self_check": running().checked, "values": samples(running().logits(sizes.prompt))}

        def decode(context: int) -> dict[str, Any]:
            taken = running().decoded(context, sizes)
            return shares(moved(of.graph, context), taken, rates["copy_bytes_per_s"], sheet)

        def read(count: int) -> dict[str, Any]:
            taken = running().read(count, sizes)
            return {"ms": taken * 1e3, "tokens_per_s": count / taken}

        def mapped() -> dict[str, Any]:
            at, copy = running(), rates["copy_bytes_per_s"]
            return {"maps": maps(of.graph, at.module, lambda: at.logits(4), copy, part.device)}

        return (
            part.measure(f"{key}/logits", compared)
            and all(part.measure(f"{key}/decode@{n}", partial(decode, n)) for n in sizes.decode)
            and all(part.measure(f"{key}/prefill@{n}", partial(read, n)) for n in sizes.prefill)
            and (part.device == "cpu" or part.measure(f"{key}/maps", mapped))
        )


def samples(row: Tensor, count: int = 256) -> list[float]:
    """Return some of the logits [1, V], evenly spread over the vocabulary."""
    places = torch.linspace(0, row.shape[-1] - 1, count, device=row.device).long()
    return row[0].float()[places].tolist()


def apart(values: list[float], others: list[float]) -> float:
    """Return how far numbers are from others, as a share of the largest of these."""
    largest = max(1e-6, *map(abs, others))
    return max(abs(a - b) for a, b in zip(values, others, strict=True)) / largest


def transformers_part(of: Subject, part: Part) -> bool:
    """Measure transformers on the tensors of a model's program; return whether there was time for all.

    A decoded token is measured in the first of `MODES` that works. One that fails is an entry too, and not tried again.
    """
    key, sizes = f"models/{of.name}/transformers", part.sizes

    @cache
    def made() -> Any:
        return stock(of.config, random_weights(of.graph, part.device), part.device)

    def tokens(count: int) -> Tensor:
        return prompt(int(str(of.graph.meta["vocab"])), count, part.device)

    def compared() -> dict[str, Any]:
        values = samples(logits(made(), tokens(sizes.prompt)))
        ours = part.results.entries().get(f"models/{of.name}/logits", {}).get("values")
        return {"values": values, "apart": None if ours is None else apart(ours, values)}

    def decode(context: int, mode: str) -> dict[str, Any]:
        step = stepper(made(), mode, tokens(sizes.prompt), context - sizes.steps // 2, sizes.steps + 8)
        for _ in range(5):  # compile, record, replay
            step()
        began = clock(part.device)
        for _ in range(sizes.steps):
            step()
        taken = (clock(part.device) - began) / sizes.steps
        return {"ms": taken * 1e3, "tokens_per_s": 1 / taken}

    def read(count: int) -> dict[str, Any]:
        times: list[float] = []
        for _ in range(sizes.repeats + 1):
            began = clock(part.device)
            prefill(made(), tokens(count))
            times.append(clock(part.device) - began)
        taken = statistics.median(times[1:])
        return {"ms": taken * 1e3, "tokens_per_s": count / taken}

    if not part.measure(f"{key}/logits", compared):
        return False
    for context in sizes.decode:
        for mode in MODES:
            place = f"{key}/decode@{context}/{mode}"
            known = part.known(place)
            if not part.measure(place, partial(decode, context, mode)):
                return False
            if not known:
                part.until = 0.0  # what it compiled and keeps is in the way of the next one
            if part.results.entries()[place]["status"] == "measured":
                break
    return all(part.measure(f"{key}/prefill@{n}", partial(read, n)) for n in sizes.prefill)


def cold_part(of: Subject, part: Part) -> bool:
    """Measure from the start of a process to a package's first token: once without compiled kernels, once with."""
    started = partial(_cold, of.graph, part.device)
    return all(part.measure(f"models/{of.name}/cold/{name}", partial(started, name == SHIPPED)) for name in COLD)


def _cold(graph: Graph, device: str, shipped: bool) -> dict[str, Any]:
    """Start a package whose kernels nobody has compiled here before, unless they are shipped with it."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = write_program(graph, folder)
        facts: dict[str, Any] = {}
        if shipped:
            began = time.monotonic()
            size = compile_for(program, folder, "sm_{}{}".format(*torch.cuda.get_device_capability()), [CONTEXT])
            facts = {"compile_s": time.monotonic() - began, "shipped_bytes": size}
        command = [sys.executable, "-m", "benchmarks.cold_start", name, str(time.time()), "--device", device]
        environment = os.environ | {"TRITON_CACHE_DIR": str(folder / "compiled here")}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr.strip()[-500:])
        compiled = len(list((folder / "compiled here").glob("*/*.ttir")))
        return json.loads(done.stdout.strip().splitlines()[-1]) | {"compiled": compiled} | facts


def pass_part(name: str, part: Part, context: int = PASS_CONTEXT) -> bool:
    """Measure what a pass does to a decoded token, beside what the schedule predicts."""

    def measured() -> dict[str, Any]:
        sizes: list[int] = []
        times: list[float] = []
        for graph in before_and_after(PASSES[name]):
            with tempfile.TemporaryDirectory() as folder:
                running = Running(graph, Path(folder), part.device)
                sizes.append(moved(graph, context).total)
                times.append(running.decoded(context, part.sizes))
                del running
                gc.collect()  # a model and its step know each other
            if part.device != "cpu":
                torch.cuda.empty_cache()
        return {
            "predicted": sizes[0] / sizes[1],
            "measured": times[0] / times[1],
            "bytes": sizes,
            "ms": [each * 1e3 for each in times],
        }

    model, recipe = PASSES[name]
    return part.measure(f"passes/{name}@{context}", measured, model=model, recipe=recipe)


def measure_limits(results: Results) -> None:
    """Measure the device's rates, if they are not known for these versions."""
    like = {"versions": versions()}
    if not results.known("limits", like):
        date = datetime.datetime.now(datetime.UTC).date().isoformat()
        results.put("limits", {"status": "measured", "date": date, **like, **limits()})


def main() -> int:
    """Measure one part."""
    start = time.monotonic()
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("program", "transformers", "cold", "pass"))
    parser.add_argument("name")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--seconds", type=float, default=150.0)
    asked = parser.parse_args()
    results = Results(asked.results, torch.cuda.get_device_name(0))
    measure_limits(results)
    like = {"versions": versions()}
    part = Part(results, start + asked.seconds, "cuda", Sizes(), like)
    if asked.part == "pass":
        return 0 if pass_part(asked.name, part) else MORE
    of = subject(asked.name)
    if asked.part == "transformers":
        like["transformers"] = importlib.metadata.version("transformers")
        return 0 if transformers_part(of, part) else MORE
    like["digest"] = digest(of.graph)
    if asked.part == "cold":
        return 0 if cold_part(of, part) else MORE
    return 0 if program_part(of, part, results.entries()["limits"]) else MORE


if __name__ == "__main__":
    sys.exit(main())
