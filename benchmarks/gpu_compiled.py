"""Kernels of the models that are measured, compiled before a GPU is at hand, with the Triton that it will have.

    python -m benchmarks.gpu_compiled [MODEL ...] [--target sm_90]

They are kept in `STORE` by the program's text; what measures a program puts them beside it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.gpu_results import ROOT
from benchmarks.gpu_subjects import MODELS, WEIGHTS, subject, write_program
from regraft.codegen.kernels.kernel import TARGETS
from regraft.codegen.kernels.shipping import FOLDER, shipped_kernels, stored
from regraft.codegen.torch.target import Program

STORE = ROOT / "runs" / "compiled"


def place(program: Program) -> Path:
    """Return where a program's kernels are kept."""
    return STORE / hashlib.sha256(program.model_py.encode()).hexdigest()[:16] / FOLDER


def bring(program: Program, folder: Path) -> None:
    """Put the kernels of a program beside it, if some are kept."""
    if place(program).is_dir():
        shutil.copytree(place(program), folder / FOLDER)


def compile_for(program: Program, folder: Path, target: str, lengths: list[int]) -> int:
    """Compile a written program's kernels for caches of some lengths, into its folder, and return their bytes."""
    config = json.loads((folder / WEIGHTS).read_text(encoding="utf-8"))["config"]
    files = shipped_kernels(program.model_py, config, stored(program.tensors), [target], lengths)
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return sum(map(len, files.values()))


def main() -> int:
    """Compile what is asked for."""
    from benchmarks.gpu_models import Sizes

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="all that are measured by default")
    parser.add_argument("--target", choices=TARGETS, default="sm_90")
    asked = parser.parse_args()
    sizes = Sizes()
    for name in asked.models or MODELS:
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            program = write_program(subject(name).graph, folder)
            size = compile_for(program, folder, asked.target, [sizes.room(each) for each in sizes.decode])
            shutil.copytree(folder / FOLDER, place(program), dirs_exist_ok=True)
        print(f"{name}: {size / 1e6:.1f} MB, {time.monotonic() - began:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
