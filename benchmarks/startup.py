"""How long the command line takes to start: medians over fresh processes, with a warm file cache and compiled modules.

    python benchmarks/startup.py [RUNS]

Bars: ``--help`` 0.25 s, ``inspect`` of any bundled config and of one of 80 layers 0.6 s, torch not imported.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HELP, LOOK = 0.25, 0.6  # seconds


def seconds(arguments: list[str], runs: int, compiled: str) -> float:
    """Return the median wall time of a command, process start included; the folder ``compiled`` keeps byte code."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": compiled}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    found: list[float] = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "regraft", *arguments], cwd=ROOT, env=environment, check=True, capture_output=True
        )
        found.append(time.perf_counter() - began)
    return statistics.median(found[1:])  # the first run compiles


def imports_torch(arguments: list[str]) -> bool:
    """Return whether a command loads torch."""
    code = f"import sys; from regraft.cli.main import main; main({arguments!r}); sys.exit('torch' in sys.modules)"
    return bool(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False).returncode)


def commands(folder: str) -> list[tuple[str, list[str], float]]:
    """Return what is measured: its name, the arguments and the bar; configs that are needed go into ``folder``."""
    configs = ROOT / "frontends" / "configs"
    config = json.loads((configs / "Qwen3-8B.json").read_text(encoding="utf-8")) | {"num_hidden_layers": 80}
    config.pop("layer_types", None)
    file = Path(folder) / "config.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    pair = ["builtin:DeepSeek-V3.2", "builtin:DeepSeek-V4-Pro"]
    found = [
        ("--version", ["--version"], HELP),
        ("--help", ["--help"], HELP),
        ("inspect of 80 layers", ["inspect", str(file)], LOOK),
        ("inspect of 80 layers, --json", ["inspect", str(file), "--json"], LOOK),
        ("compare of 61 layers with 61", ["compare", "-q", *pair], 2 * LOOK),
    ]
    names = sorted(each.stem for each in configs.glob("*.json"))
    return found + [(f"inspect {name}", ["inspect", "-q", f"builtin:{name}"], LOOK) for name in names]


def main() -> int:
    """Measure and print; return 1 if a bar is missed."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    missed = False
    with tempfile.TemporaryDirectory() as folder:
        for name, arguments, bar in commands(folder):
            taken, torch = seconds(arguments, runs, folder), imports_torch(arguments)
            missed |= taken > bar or torch
            print(f"{name:30} {taken:.3f} s   bar {bar} s   {'imports torch' if torch else 'no torch'}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
