"""The process that compiles kernels: jobs come in as JSON, one line each, and one line goes out for each.

It is a process of its own because Triton decides once, when it is imported, whether kernels are compiled or
interpreted, and because a mistake in a compiler's back end may end the process that runs it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from regraft.codegen.kernels.listing import (
    Listing,
    amd_registers,
    nvidia_registers,
    read_amdgcn,
    read_loop,
    read_ptx,
    text_bytes,
)


def main() -> None:
    """Compile what standard input asks for."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # compilers talk
    with tempfile.TemporaryDirectory() as folder:
        for number, line in enumerate(sys.stdin):
            try:
                answer = _compiled(json.loads(line), Path(folder) / f"job_{number}.py")
            except Exception as error:  # whatever a compiler's front end raises is the answer
                answer = {"failed": _reason(error)}
            print(json.dumps(answer), file=answers, flush=True)


def _reason(error: BaseException) -> str:
    """Return what is wrong, in one line, and then the place, which Triton's errors know."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = getattr(error, "error_message", None)
    return f"{said}\n{error}" if said else f"{type(error).__name__}: {error}"


def _compiled(job: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the fields of `Built` for a job of `ahead`."""
    path.write_text(job["source"], encoding="utf-8")
    function = getattr(_loaded(path), job["function"])
    names: list[str] = function.arg_names
    constants = {**job["constants"], **{name: size for name, size in job["sizes"].items() if name in names}}
    types: dict[str, str] = job["arguments"]
    if set(names) != {*constants, *types}:
        missing, unknown = sorted({*names} - {*constants, *types}), sorted({*constants, *types} - {*names})
        raise ValueError(f"arguments without a type or value: {missing}; unknown: {unknown}")
    aligned = [name for name in names if name in types and (types[name].startswith("*") or types[name].endswith(":16"))]
    compiler = importlib.import_module("triton.compiler")
    source = compiler.ASTSource(
        fn=function,
        signature={name: types[name].partition(":")[0] if name in types else "constexpr" for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": job["warps"], "num_stages": job["stages"], "enable_fp_fusion": True}  # as launched
    result = importlib.import_module("triton").compile(source, target=triton_target(job["target"]), options=options)
    return _measured(result, path)


def triton_target(name: str) -> Any:
    """Return what Triton calls a target."""
    backends = importlib.import_module("triton.backends.compiler")
    if name.startswith("sm_"):
        return backends.GPUTarget("cuda", int(name.removeprefix("sm_")), 32)
    return backends.GPUTarget("hip", name, 64)


def _measured(result: Any, path: Path) -> dict[str, Any]:
    listing: Listing
    if "ptx" in result.asm:
        binary = path.with_suffix(".cubin")
        binary.write_bytes(result.asm["cubin"])
        tool = importlib.import_module("triton.knobs").nvidia.cuobjdump.path
        usage = subprocess.run([tool, "-res-usage", str(binary)], check=True, capture_output=True, text=True).stdout
        (registers, stack), listing = nvidia_registers(usage), read_ptx(result.asm["ptx"])
    else:
        text = result.asm["amdgcn"]
        (registers, stack), listing = amd_registers(text), read_amdgcn(text)
    code = text_bytes(result.asm.get("cubin") or result.asm["hsaco"])
    step_bytes, step_flops = read_loop(result.asm["ttir"])
    return {
        "registers": registers,
        "stack": stack,
        "shared": result.metadata.shared,
        "code": code,
        "step_bytes": step_bytes,
        "step_flops": step_flops,
        **asdict(listing),
    }


def _loaded(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
