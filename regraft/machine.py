"""What this machine has: versions, devices, memory, disk, and what is therefore available."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from regraft.ir.errors.usage import DeviceMissingError

PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "tokenizers",
    "safetensors",
    "numpy",
    "networkx",
    "jinja2",
    "click",
    "rich",
    "huggingface_hub",
)
COMPILERS = ("c++", "g++", "clang++")  # any of them serves torch.compile on the CPU


@dataclass(frozen=True)
class Gpu:
    """An accelerator as torch sees it."""

    name: str
    memory_bytes: int
    capability: str


@dataclass(frozen=True)
class Feature:
    """Something regraft can do, and what is missing for it here."""

    name: str
    available: bool
    missing: str


@dataclass(frozen=True)
class Machine:
    """The machine, in plain units: bytes and numbers of cores."""

    python: str
    platform: str
    cores: int
    memory_bytes: int
    memory_available_bytes: int
    disk_free_bytes: int
    temporary_free_bytes: int
    packages: dict[str, str | None]
    compiler: str | None
    gpus: tuple[Gpu, ...]
    features: tuple[Feature, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON of schema ``regraft.doctor/1``."""
        return {"schema": "regraft.doctor/1", **asdict(self)}


def machine() -> Machine:
    """Look at this machine. Torch is asked for GPUs, if it is installed."""
    packages = {name: _version(name) for name in PACKAGES}
    compiler = next((name for name in COMPILERS if shutil.which(name)), None)
    gpus = _gpus() if packages["torch"] else ()
    total, available = _memory()
    return Machine(
        python=platform.python_version(),
        platform=platform.platform(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=total,
        memory_available_bytes=available,
        disk_free_bytes=shutil.disk_usage(Path.cwd()).free,
        temporary_free_bytes=shutil.disk_usage(tempfile.gettempdir()).free,
        packages=packages,
        compiler=compiler,
        gpus=gpus,
        features=_features(packages, compiler, gpus),
    )


def check_device(name: str) -> None:
    """Check that torch can compute on the device called ``name``.

    Raises:
        DeviceMissingError: It cannot.
    """
    import torch

    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError):  # torch raises either, by the kind of device
        raise DeviceMissingError(name=name) from None


def _features(packages: dict[str, str | None], compiler: str | None, gpus: tuple[Gpu, ...]) -> tuple[Feature, ...]:
    def needs(name: str, *wanted: tuple[object, str]) -> Feature:
        missing = ", ".join(what for present, what in wanted if not present)
        return Feature(name, not missing, missing)

    torch = (packages["torch"], "torch")
    hub = (packages["huggingface_hub"], "huggingface_hub")
    return (
        needs("inspect, passes, plan, opt", (True, "")),
        needs("models by Hugging Face id", hub),
        needs("apply, build, verify, eval, run, bench on the CPU", torch),
        needs("verify --against transformers", torch, (packages["transformers"], "transformers: regraft[hf]")),
        needs("torch.compile on the CPU", torch, (compiler, "a C++ compiler")),
        needs("programs on a GPU", torch, (gpus, "a GPU that torch can use")),
    )


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _gpus() -> tuple[Gpu, ...]:
    import torch

    if not torch.cuda.is_available():
        return ()
    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return tuple(Gpu(each.name, each.total_memory, f"{each.major}.{each.minor}") for each in found)


def _memory() -> tuple[int, int]:
    """Return the bytes of memory in all and available, of the control group where that is less."""
    page = os.sysconf("SC_PAGE_SIZE")
    total = page * os.sysconf("SC_PHYS_PAGES")
    available = page * os.sysconf("SC_AVPHYS_PAGES")
    facts = Path("/proc/meminfo")
    if facts.is_file():
        lines = dict(line.split(":", 1) for line in facts.read_text(encoding="utf-8").splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip().isdecimal():
        total = min(total, int(limit.read_text()))
        available = min(available, max(0, total - int(used.read_text())))
    return total, available
