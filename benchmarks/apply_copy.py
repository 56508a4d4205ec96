"""What ``apply`` costs over a copy: a recipe that touches no weight, against ``cp`` and ``sync`` of the same file.

    python benchmarks/apply_copy.py [RUNS] [GIGABYTES] [FOLDER]

Runs alternate, each on a disk that was synced before. The time of ``apply`` is taken in a fresh process once it is idle
(regraft and torch imported), with the hashes of inputs and outputs; memory is the largest anonymous memory above that
of the idle process. Bars: the median ratio 1.5; 3 times the largest tensor and 300 MB.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy

from regraft.frontends.lift import expected_tensors
from regraft.ir.header import build_header
from regraft.model import lift

ROOT = Path(__file__).resolve().parent.parent
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 32000,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
}
LAYER_BYTES = 2 * (2 * 2048 * 2048 + 2 * 1024 * 2048 + 3 * 6144 * 2048)
RATIO_BAR = 1.5
CHILD = """
import json, sys, threading, time
import torch
import regraft

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) * 1024

def transferred():
    with open("/proc/self/io") as counts:
        return [int(line.split()[1]) for line in counts if line[:5] in ("rchar", "wchar")]

regraft.apply  # the public face loads late
before = transferred()
idle, peak, done = anonymous(), [0], threading.Event()

def watch():
    while not done.wait(0.005):
        peak[0] = max(peak[0], anonymous())

watcher = threading.Thread(target=watch)
watcher.start()
began = time.perf_counter()
regraft.apply(sys.argv[1], sys.argv[2], sys.argv[3])
taken = time.perf_counter() - began
done.set()
watcher.join()
read, written = (after - then for after, then in zip(transferred(), before))
print(json.dumps({"seconds": taken, "anonymous": peak[0] - idle, "read": read, "written": written}))
"""
RECIPE = "share-kv{layers=[1], donor=0, level=raw, refit=false}"  # leaves one layer's keys and values out


def make_checkpoint(folder: Path, gigabytes: float) -> int:
    """Write a model of random finite bf16 weights, and return the bytes of its largest tensor."""
    layers = max(2, round((gigabytes * 1e9 - 2 * 32000 * 2048) / LAYER_BYTES))
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}), encoding="utf-8")
    infos = list(expected_tensors(lift(folder).graph))
    random = numpy.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(build_header(infos))
        for info in infos:
            bits = random.integers(0, 1 << 16, info.nbytes // 2, dtype=numpy.uint16)
            bits &= 0x80FF  # sign, the exponent's last bit and the mantissa
            bits |= 0x3C00
            file.write(bits.tobytes())
    return max(info.nbytes for info in infos)


def copy(source: Path, target: Path) -> float:
    """Return the seconds that ``cp`` and ``sync`` take."""
    os.sync()
    began = time.perf_counter()
    subprocess.run(["sh", "-c", 'cp "$0" "$1" && sync', source, target], check=True)
    taken = time.perf_counter() - began
    target.unlink()
    return taken


def apply(source: Path, target: Path, recipe: str = RECIPE) -> dict[str, float]:
    """Return the seconds, the anonymous memory and the bytes read and written of ``apply`` in a fresh process."""
    os.sync()
    command = [sys.executable, "-c", CHILD, source, recipe, target]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    shutil.rmtree(target)
    return json.loads(done.stdout)


def main() -> int:
    """Measure and print as JSON; return 1 if a bar is missed."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    gigabytes = float(sys.argv[2]) if len(sys.argv) > 2 else 2.0
    with tempfile.TemporaryDirectory(dir=sys.argv[3] if len(sys.argv) > 3 else None) as name:
        folder = Path(name)
        model = folder / "model"
        model.mkdir()
        largest = make_checkpoint(model, gigabytes)
        weights = model / "model.safetensors"
        pairs = [(copy(weights, folder / "copy"), apply(model, folder / "out")) for _ in range(runs + 1)]
        size = weights.stat().st_size
    pairs = pairs[1:]  # the first pair warms the file cache
    ratios = [applied["seconds"] / copied for copied, applied in pairs]
    ratio, bar = statistics.median(ratios), 3 * largest + 300_000_000
    memory = max(applied["anonymous"] for _, applied in pairs)
    facts = {
        "schema": "regraft.benchmark.apply-copy/1",
        "bytes": size,
        "cp_seconds": [round(copied, 3) for copied, _ in pairs],
        "apply_seconds": [round(applied["seconds"], 3) for _, applied in pairs],
        "ratios": [round(ratio, 3) for ratio in ratios],
        "median_ratio": round(ratio, 3),
        "ratio_bar": RATIO_BAR,
        "anonymous_bytes": memory,
        "anonymous_bar": bar,
    }
    print(json.dumps(facts, indent=2))
    return int(ratio > RATIO_BAR or memory > bar)


if __name__ == "__main__":
    sys.exit(main())
