"""Kernels, models and passes on a GPU: checked, and timed as a share of what the device can do.

    python -m benchmarks.gpu [kernels | kernels.attend | models | MODEL | passes ...] [--again] [--minutes M] [--table]
    python -m benchmarks.gpu schedule

What is measured comes in parts of less than four minutes, each a process of its own. What a part finds is merged at
once into benchmarks/results/gpu.json, under the device's name, with versions and date: a run that is cut short is
taken up again where it ended, and what is there for the same program and the same versions is not measured again. What
ends its process or takes too long has failed, and the next one goes on. At the end the tables in docs/performance.md
are written anew; ``--table`` does that alone, without a GPU. Nor does ``schedule`` need one: it writes what a decoded
token of each builtin model launches and moves.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.gpu_passes import PASSES
from benchmarks.gpu_results import RESULTS, ROOT, Results, write_between, write_table
from benchmarks.gpu_subjects import MODELS
from benchmarks.gpu_tables import pass_lines, schedule_lines
from regraft.codegen.kernels.alone import shelf
from regraft.frontends.folder import builtin_names

PART = 235.0  # seconds that a part may take
STOPS, MODEL_STOPS = 150.0, 60.0  # after which it starts nothing new; what compiles a model takes long
MORE = 75
MEASURE, MODEL_PARTS = "benchmarks.gpu_models", ("program", "transformers", "cold")
SCHEDULE = ("<!-- schedule: written by python -m benchmarks.gpu schedule -->", "<!-- schedule: end -->")
PREDICTED = ("<!-- passes: written by python -m benchmarks.gpu schedule -->", "<!-- passes: end -->")


def parts(asked: Sequence[str]) -> dict[str, list[list[str]]]:
    """Return what was asked for: the prefix of its entries, and its parts, each a module and its arguments.

    Raises:
        ValueError: There is no such part.
    """
    known = {
        "kernels": {f"kernels/{module}/": [["benchmarks.gpu_kernels", module]] for module in shelf()},
        "models": {f"models/{name}/": [[MEASURE, part, name] for part in MODEL_PARTS] for name in MODELS},
        "passes": {f"passes/{name}@": [[MEASURE, "pass", name]] for name in PASSES},
    }
    single = {f"kernels.{module}": f"kernels/{module}/" for module in shelf()} | {m: f"models/{m}/" for m in MODELS}
    every = {prefix: of for group in known.values() for prefix, of in group.items()}
    wanted: dict[str, list[list[str]]] = {}
    for name in asked or known:
        if name not in known and name not in single:
            raise ValueError(f"there is no part {name}; parts: schedule, {', '.join([*known, *single])}")
        wanted |= known[name] if name in known else {single[name]: every[single[name]]}
    return wanted


def measure(part: Sequence[str], results: Results, until: float) -> bool:
    """Measure a part in as many processes as it takes; return whether there was time for all."""
    command = [sys.executable, "-m", *part, "--results", str(results.path)]
    stops = MODEL_STOPS if part[0] == MEASURE else STOPS
    while time.monotonic() + PART < until:
        try:
            done = subprocess.run(
                [*command, "--seconds", str(stops)],
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
            print(f"{', '.join(failed) or ' '.join(part)} failed: {said[-300:]}", file=sys.stderr)
            if not failed:
                return True  # it does not even begin
    return False


def write_schedule() -> None:
    """Write what the schedule says into docs/performance.md."""
    write_between(*SCHEDULE, ["", *schedule_lines(builtin_names()), ""])
    write_between(*PREDICTED, ["", *pass_lines(), ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="kernels, models, passes, or one of them; all by default")
    parser.add_argument("--again", action="store_true", help="measure what is known, too")
    parser.add_argument("--minutes", type=float, default=1e6, help="start no part that might end after so long")
    parser.add_argument("--table", action="store_true", help="only write the table")
    asked = parser.parse_args(arguments)
    if asked.table:
        write_table()
        return 0
    if asked.parts == ["schedule"]:
        write_schedule()
        return 0
    try:
        wanted = parts(asked.parts)
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
    for prefix, of in wanted.items():
        if asked.again:
            results.drop(prefix)
        print(prefix.rstrip("/@"), flush=True)
        if not all(measure(part, results, until) for part in of):
            print("the time is over; run it again for the rest", file=sys.stderr)
            break
    write_table()
    return 0


if __name__ == "__main__":
    sys.exit(main())
