"""Kernels compiled ahead of time, for any target, on a machine without a GPU.

Compilation runs in a process of its own (`compiler`); what it found out is kept in a folder of the user's, by a hash
of all that it depends on.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import IO, Any

from regraft.codegen.kernels.kernel import Entry, Tile
from regraft.ir.errors.base import RegraftError
from regraft.ir.errors.kernels import KernelCompileError, TritonMissingError
from regraft.ir.files import write_atomic

_FORMAT = 3  # raise it when what is stored changes its meaning
_SHARE = 8  # jobs that are worth a process of their own


@dataclass(frozen=True)
class Job:
    """A function to compile.

    Attributes:
        text: The file that holds it; only it and what it calls are compiled.
        entry: Which it is, with the types and constants of its arguments.
        tile: How its work is cut.
        target: One of `kernel.TARGETS`.
    """

    text: str
    entry: Entry
    tile: Tile
    target: str


@dataclass(frozen=True)
class Built:
    """A compiled function. Instructions are counted where they stand, not how often they run.

    Attributes:
        registers: Registers of a thread, of 32 bits.
        stack: Bytes of a thread's stack, in which spilled registers lie: 0 where nothing spills.
        shared: Bytes of shared memory of a program.
        code: Bytes of machine code.
        wide_loads: Loads from global memory of at least 16 bytes a thread, asynchronous copies included.
        narrow_loads: The others.
        copies: Asynchronous copies from global to shared memory.
        matrix: Matrix instructions by unit: ``wgmma``, ``mma.sync``, ``tcgen05.mma``, ``mfma``.
        step_bytes: Bytes that a step loads of the loop that multiplies most; 0 if none does.
        step_flops: Operations of its matrix products.
    """

    registers: int
    stack: int
    shared: int
    code: int
    wide_loads: int
    narrow_loads: int
    copies: int
    matrix: Mapping[str, int]
    step_bytes: int = 0
    step_flops: int = 0


@dataclass(frozen=True)
class Failed:
    """A function that a compiler refused.

    Attributes:
        job: What was asked.
        reason: What the compiler said.
    """

    job: Job
    reason: str

    def error(self) -> RegraftError:
        """Return the same as an error to raise."""
        head, _, rest = self.reason.partition("\n")
        job = self.job
        return KernelCompileError(
            function=job.entry.function,
            target=job.target,
            tile=job.tile.launch(),
            reason=head,
            excerpt=rest.splitlines()[-20:],
        )


def compile_ahead(jobs: Sequence[Job]) -> list[Built | Failed]:
    """Return what became of each job, in order; what was compiled before is looked up.

    Raises:
        TritonMissingError: Triton is not installed.
    """
    version = triton_version()
    payloads = [_payload(job) for job in jobs]
    keys = [hashlib.sha256(f"{_FORMAT} {version} {payload}".encode()).hexdigest() for payload in payloads]
    known = {key: found for key in dict.fromkeys(keys) if (found := _stored(key)) is not None}
    missing = {key: payload for key, payload in zip(keys, payloads, strict=True) if key not in known}
    count = max(1, min(os.cpu_count() or 1, len(missing) // _SHARE))
    shares = [list(missing.items())[start::count] for start in range(count)]
    with ThreadPoolExecutor(count) as pool:
        for answers in pool.map(_compiled, shares):
            known |= answers
    return [_outcome(job, known[key]) for job, key in zip(jobs, keys, strict=True)]


def built(jobs: Sequence[Job]) -> list[Built]:
    """Return the same, where each job must succeed.

    Raises:
        KernelCompileError: One does not compile.
        TritonMissingError: Triton is not installed.
    """
    outcomes = compile_ahead(jobs)
    for outcome in outcomes:
        if isinstance(outcome, Failed):
            raise outcome.error()
    return [outcome for outcome in outcomes if isinstance(outcome, Built)]


@cache
def triton_version() -> str:
    """Return the version of the compiler.

    Raises:
        TritonMissingError: There is none.
    """
    try:
        return importlib.import_module("triton").__version__
    except ImportError as error:
        raise TritonMissingError(reason=error) from None


def cache_folder() -> Path:
    """Return the folder in which results are kept: ``REGRAFT_CACHE``, or ``regraft`` in the user's cache."""
    given = os.environ.get("REGRAFT_CACHE")
    if given:
        return Path(given) / "kernels"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "regraft" / "kernels"


@lru_cache(maxsize=256)
def device_source(text: str, function: str) -> str:
    """Return the part of an emitted file that a ``@triton.jit`` function is compiled from: it and what it names."""
    lines = text.splitlines()
    parts: dict[str, ast.stmt] = {}
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.FunctionDef) and any("jit" in ast.unparse(d) for d in statement.decorator_list):
            parts[statement.name] = statement
        elif isinstance(statement, ast.Assign | ast.AnnAssign) and "constexpr" in ast.unparse(statement):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            parts |= {ast.unparse(target): statement for target in targets}
    if function not in parts:
        raise ValueError(f"the text has no @triton.jit function {function}")
    needed, waiting = {function}, [function]
    while waiting:
        names = {node.id for node in ast.walk(parts[waiting.pop()]) if isinstance(node, ast.Name)}
        new = (names & parts.keys()) - needed
        needed |= new
        waiting += new
    taken = [lines[_first_line(part) - 1 : part.end_lineno] for name, part in parts.items() if name in needed]
    return "import triton\nimport triton.language as tl\n\n" + "\n\n".join("\n".join(part) for part in taken) + "\n"


def _first_line(statement: ast.stmt) -> int:
    decorators = statement.decorator_list if isinstance(statement, ast.FunctionDef) else []
    return min([statement.lineno, *(decorator.lineno for decorator in decorators)])


def _payload(job: Job) -> str:
    """Return a job as one line of JSON, which is also all that its result depends on beside the compiler."""
    return json.dumps(
        {
            "source": device_source(job.text, job.entry.function),
            "function": job.entry.function,
            "arguments": dict(job.entry.arguments),
            "constants": dict(job.entry.constants),
            "sizes": dict(job.tile.sizes),
            "warps": job.tile.warps,
            "stages": job.tile.stages,
            "target": job.target,
        }
    )


def _outcome(job: Job, answer: Mapping[str, Any]) -> Built | Failed:
    return Failed(job, answer["failed"]) if "failed" in answer else Built(**answer)


def _stored(key: str) -> dict[str, Any] | None:
    try:
        found = json.loads((cache_folder() / f"{key}.json").read_bytes())
        return asdict(Built(**found))
    except (OSError, ValueError, TypeError):  # not there, or not written by this
        return None


def _store(key: str, answer: Mapping[str, Any]) -> None:
    folder = cache_folder()
    with suppress(OSError, RegraftError):  # a folder that cannot be written costs time only
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / f"{key}.json", json.dumps(answer))


def _compiled(share: Sequence[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """Return the compiler's answers to jobs by key, and keep each as soon as it is there."""
    found: dict[str, dict[str, Any]] = {}
    for (key, _), answer in zip(share, _answers([payload for _, payload in share]), strict=True):
        found[key] = answer
        if "failed" not in answer:
            _store(key, answer)
    return found


def _answers(payloads: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield the compiler's answer to each; a job that ends its process has failed, and the next ones get a new one."""
    done = 0
    while done < len(payloads):
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as said:
            for line in _run(payloads[done:], said):
                done += 1
                yield json.loads(line)
            if done < len(payloads):
                done += 1
                said.seek(0)
                yield {"failed": f"the compiler's process ended\n{said.read()[-4000:]}"}


def _run(payloads: Sequence[str], said: IO[str]) -> Iterator[str]:
    """Yield the whole lines that one compiler process answers; what it says beside goes to a file."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as asked:
        asked.writelines(f"{payload}\n" for payload in payloads)
        asked.seek(0)
        command = [sys.executable, "-m", "regraft.codegen.kernels.compiler"]
        with subprocess.Popen(
            command, stdin=asked, stdout=subprocess.PIPE, stderr=said, text=True, env=compiler_environment(folder)
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.endswith("\n"):
                    yield line


def compiler_environment(cache: str) -> dict[str, str]:
    """Return the environment of a process that compiles, and keeps what Triton caches in a folder of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = str(Path(importlib.import_module("regraft").__file__ or "").parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
    environment["TRITON_CACHE_DIR"] = cache
    return environment
