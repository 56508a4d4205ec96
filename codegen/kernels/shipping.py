"""Kernels compiled for a package: whole machine code beside its program, so that its first token waits for no compiler.

A package offers them to Triton as what was compiled before (templates/compiled.py.j2). They are named by what they are
made from and by the version of Triton: another version, an edited program or a call that was not foreseen compiles.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, cast

from regraft.codegen.kernels.ahead import compiler_environment, triton_version
from regraft.codegen.kernels.kernel import TARGETS
from regraft.ir.errors.kernels import ShippingError, UnknownGpuError
from regraft.ir.op import Value
from regraft.ir.source import torch_dtype

FOLDER = "kernels"  # in a package
SHORTEST, LONGEST = 1024, 131072  # tokens that caches of shipped kernels have room for, and the powers of two between


def contexts(trained: int) -> list[int]:
    """Return the lengths of caches that kernels are shipped for, given the longest sequence of a model's training."""
    found = [SHORTEST]
    while found[-1] < min(trained, LONGEST):
        found.append(2 * found[-1])
    return found


def check_targets(names: Sequence[str]) -> None:
    """Check that kernels can be compiled for some targets here.

    Raises:
        UnknownGpuError: There is no such target.
        TritonMissingError: Triton is not installed.
    """
    for name in names:
        if name not in TARGETS:
            raise UnknownGpuError(name=name, targets=", ".join(TARGETS))
    if names:
        triton_version()


def stored(tensors: Mapping[str, Value]) -> dict[str, tuple[str, Sequence[int]]]:
    """Return torch's names of the dtypes, and the shapes, of a program's tensors."""
    return {
        name: (str(torch_dtype(value.tensor.dtype)).removeprefix("torch."), value.tensor.sizes)
        for name, value in tensors.items()
    }


def shipped_kernels(
    program: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, tuple[str, Sequence[int]]],
    targets: Sequence[str],
    lengths: Sequence[int],
) -> dict[str, bytes]:
    """Return the compiled kernels of a package by the names of their files in it; the same input gives the same bytes.

    They are those that a sequence by itself needs, whatever its length, in caches of the ``lengths`` given.

    Args:
        program: The text of ``model.py``.
        config: What its model is made from, and the ``dtype`` that it is loaded in.
        tensors: Each of its tensors as `stored` tells it.
        targets: Some of `kernel.TARGETS`.
        lengths: Tokens that caches have room for.

    Raises:
        ShippingError: The program cannot be run, or one of its kernels does not compile.
        TritonMissingError: Triton is not installed.
    """
    asked = {"config": dict(config), "tensors": dict(tensors), "contexts": list(lengths)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.py")
        path.write_text(program, encoding="utf-8")
        compiled = partial(_compiled, path, asked)
        with ThreadPoolExecutor(max(1, min(os.cpu_count() or 1, len(targets)))) as pool:
            found = dict(zip(targets, pool.map(compiled, targets), strict=True))
    version = triton_version()
    return {
        f"{FOLDER}/{version}/{target}/{name}": data
        for target, files in found.items()
        for name, data in sorted(files.items())
    }


def _compiled(program: Path, asked: Mapping[str, Any], target: str) -> dict[str, bytes]:
    """Return the files that one target needs: NAME/FUNCTION.cubin and the like, and NAME/FUNCTION.json."""
    cache = program.with_name(target)
    done = subprocess.run(
        [sys.executable, "-m", "regraft.codegen.kernels.shipper"],
        input=json.dumps({**asked, "program": str(program), "target": target}),
        env={**compiler_environment(str(cache)), "TRITON_DISABLE_LINE_INFO": "1"},  # lines name files of this machine
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise ShippingError(target=target, reason=said[-1] if said else "no reason given", excerpt=said[-20:])
    answer = cast("dict[str, dict[str, Any]]", json.loads(done.stdout))
    signatures = answer["signatures"]
    return {name: _portable(Path(path), signatures[name.split("/")[0]]) for name, path in answer["files"].items()}


def _portable(file: Path, signature: Sequence[str]) -> bytes:
    """Return what a file holds, without what is true of this machine alone; how it is called is added to the facts."""
    data = file.read_bytes()
    if file.suffix != ".json":
        return data
    known = json.loads(data) | {"extern_libs": [], "hash": "", "signature": signature}
    return (json.dumps(known, sort_keys=True) + "\n").encode()
