"""Kernels on a GPU: checked against float64, and timed as a share of what the device can do.

    python -m benchmarks.gpu [kernels | kernels.attend ...] [--again] [--minutes M] [--table]

What is measured comes in parts of less than four minutes, each a process of its own. What a part finds is merged at
once into benchmarks/results/gpu.json, under the device's name, with versions and date: a run that is cut short is
taken up again where it ended, and what is there for the same kernel and the same versions is not measured again. A
kernel that ends its process or takes too long has failed, and the next one goes on. At the end the table in
docs/performance.md is written anew; ``--table`` does that alone, without a GPU.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.gpu_results import RESULTS, ROOT, Results, write_table
from regraft.codegen.kernels.alone import shelf

PART, STOPS = 235.0, 150.0  # seconds that a part may take, and after which it starts nothing new
MORE = 75


def parts(asked: Sequence[str]) -> list[str]:
    """Return the modules of kernels that were asked for.

    Raises:
        ValueError: There is no such part.
    """
    known = {f"kernels.{module}": module for module in shelf()}
    wanted: dict[str, None] = {}
    for name in asked or ["kernels"]:
        if name != "kernels" and name not in known:
            raise ValueError(f"there is no part {name}; parts: kernels, {', '.join(known)}")
        wanted |= dict.fromkeys(known.values() if name == "kernels" else [known[name]])
    return list(wanted)


def measure(module: str, results: Results, until: float) -> bool:
    """Measure a module's kernels in as many parts as it takes; return whether there was time for all."""
    command = [sys.executable, "-m", "benchmarks.gpu_kernels", module, "--results", str(results.path)]
    while time.monotonic() + PART < until:
        try:
            done = subprocess.run(
                [*command, "--seconds", str(STOPS)],
                cwd=ROOT,
                timeout=PART,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
            code, said = done.returncode, done.stderr.strip()
        except subprocess.TimeoutExpired:
            code, said = 1, f"took more than {PART:.0f} s"
        if code == 0:
            return True
        if code != MORE:
            failed = results.interrupted(said[-1000:])
            print(f"{', '.join(failed) or module} failed: {said[-300:]}", file=sys.stderr)
            if not failed:
                return True  # it does not even begin
    return False


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="kernels, or kernels.MODULE; all by default")
    parser.add_argument("--again", action="store_true", help="measure what is known, too")
    parser.add_argument("--minutes", type=float, default=1e6, help="start no part that might end after so long")
    parser.add_argument("--table", action="store_true", help="only write the table")
    asked = parser.parse_args(arguments)
    if asked.table:
        write_table()
        return 0
    try:
        modules = parts(asked.parts)
    except ValueError as error:
        parser.error(str(error))
    import torch

    if not torch.cuda.is_available():
        print(
            f"benchmarks.gpu needs a GPU, and torch {torch.__version__} finds none: nothing measured", file=sys.stderr
        )
        return 2
    until = time.monotonic() + 60 * asked.minutes
    results = Results(RESULTS, torch.cuda.get_device_name(0))
    results.interrupted(None)  # by whoever ended the last run
    for module in modules:
        if asked.again:
            results.drop(f"kernels/{module}/")
        print(f"kernels.{module}", flush=True)
        if not measure(module, results, until):
            print("the time is over; run it again for the rest", file=sys.stderr)
            break
    write_table()
    return 0


if __name__ == "__main__":
    sys.exit(main())
