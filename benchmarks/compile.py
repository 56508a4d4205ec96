"""CPU-seconds to compile a decoding step of 30 layers, cold cache: the emitted program beside transformers.

    python benchmarks/compile.py [PAIRS] [--layers 30]

Each measurement is a fresh process with an empty cache folder, compiling in that process alone, so that all of its work
counts: its own CPU time and that of the C++ compiler, from the first call of torch.compile to the second step's end.
``floor`` is what compiling ``x + 1`` costs there, loading the compiler and probing the processor; both include it.
Writes benchmarks/results/compile.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "compile.json"
BAR = 0.35
CAPACITY = 512
SHAPE = {
    "vocab_size": 1024,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "tie_word_embeddings": True,
}


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def child(which: str, folder: Path) -> float:
    """Return the CPU-seconds that one program's compilation takes here."""
    import torch

    torch.set_num_threads(1)
    with torch.no_grad():
        start = {"floor": floor, "emitted": emitted, "transformers": transformers}[which](folder)
        began = cpu_seconds()
        step = start()
        step()
        step()
        return cpu_seconds() - began


Start = Callable[[], Callable[[], Any]]  # compiles a program, and gives its step


def floor(folder: Path) -> Start:
    """Return the least that there is to compile."""
    import torch

    ones = torch.ones(8)
    return lambda: partial(torch.compile(lambda x: x + 1), ones)


def emitted(folder: Path) -> Start:
    """Return the emitted program's step."""
    import torch

    from regraft.programs import load_program

    model = load_program(folder / "package", dtype="float32")
    token, cache = torch.zeros(1, 1, dtype=torch.int64), model.new_cache(1, CAPACITY)
    model(token.expand(1, 8), cache)

    def start() -> Callable[[], Any]:
        model.compile()
        return lambda: model(token, cache)

    return start


def transformers(folder: Path) -> Start:
    """Return the step of the original implementation, compiled whole, with its static cache."""
    import torch
    from transformers import AutoModelForCausalLM, StaticCache

    model: Any = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval()
    token, cache = torch.zeros(1, 1, dtype=torch.int64), StaticCache(config=model.config, max_cache_len=CAPACITY)
    model(token.expand(1, 8), past_key_values=cache)
    return lambda: partial(torch.compile(model.forward, dynamic=False), input_ids=token, past_key_values=cache)


def measure(which: str, folder: Path) -> float:
    """Return what `child` finds in a fresh process with an empty cache."""
    with tempfile.TemporaryDirectory() as cache:
        settings = {"TORCHINDUCTOR_CACHE_DIR": cache, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        command = [sys.executable, __file__, "--child", which, "--folder", str(folder)]
        done = subprocess.run(command, env={**os.environ, **settings}, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def main() -> int:
    """Measure, print and write; return 1 if the bar is missed."""
    parser = argparse.ArgumentParser(description="CPU-seconds to compile a decoding step.")
    parser.add_argument("pairs", nargs="?", type=int, default=3)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(child(given.child, given.folder))
        return 0
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from decode import random_qwen3

    import regraft

    times: dict[str, list[float]] = {"emitted": [], "transformers": [], "floor": []}
    with tempfile.TemporaryDirectory() as folder:
        model = random_qwen3({**SHAPE, "num_hidden_layers": given.layers}, Path(folder) / "model")
        regraft.build(model, Path(folder) / "package")
        for _ in range(given.pairs):
            for which, found in times.items():
                found.append(measure(which, Path(folder)))
    ratio = statistics.median(a / b for a, b in zip(times["emitted"], times["transformers"], strict=True))
    for which, found in times.items():
        print(f"{which:13} {statistics.median(found):6.1f} CPU-seconds")
    print(f"emitted over transformers, {given.layers} layers: {ratio:.3f}   bar {BAR}")
    facts = {"machine": platform.machine(), "layers": given.layers, "cpu_seconds": times, "ratio": ratio, "bar": BAR}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return int(ratio > BAR)


if __name__ == "__main__":
    sys.exit(main())
