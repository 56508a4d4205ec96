"""What ``apply`` takes on a model of 7 B parameters: memory, and bytes read and written, beside those of its files.

    python -m benchmarks.apply_large [LAYERS] [FOLDER]

The checkpoint has Mistral-7B's shapes, bf16, in shards, random, 32 layers by default: 14.5 GB. The recipe shares keys
and values between layers and drops query heads by the norms of weights, without calibration text. Bars: 3 GB of
anonymous memory above the idle process; what is written is read once, but for the maps that the norms are taken of,
which are read to decide and again to write; 16 MB are left to configs, headers and code.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy

from benchmarks.apply_copy import apply
from regraft.frontends.folder import open_model
from regraft.frontends.lift import expected_tensors
from regraft.ir.header import build_header
from regraft.ir.source import TensorInfo
from regraft.model import lift

RECIPE = "share-kv{groups=2, refit=false},budget-heads{heads=0.75, score=weight-norm, refit=false}"
SHARD_BYTES, BLOCK = 5_000_000_000, 1 << 26
MEMORY_BAR = 3_000_000_000
REST = 16_000_000  # bytes of anything but tensors


def make_checkpoint(folder: Path, layers: int) -> list[TensorInfo]:
    """Write a model of random finite bf16 weights in shards, and return what it holds."""
    config = {**open_model("builtin:Mistral-7B-v0.3").config, "num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    infos = list(expected_tensors(lift(folder).graph))
    shards: list[list[TensorInfo]] = [[]]
    for info in infos:
        if shards[-1] and sum(each.nbytes for each in shards[-1]) + info.nbytes > SHARD_BYTES:
            shards.append([])
        shards[-1].append(info)
    bits = numpy.random.default_rng(0).integers(0, 1 << 16, BLOCK // 2, dtype=numpy.uint16)
    block = (bits & 0x80FF | 0x3C00).tobytes()  # sign, the exponent's last bit and the mantissa
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        with (folder / name).open("wb") as file:
            file.write(build_header(shard))
            for left in range(sum(info.nbytes for info in shard), 0, -BLOCK):
                file.write(block[: min(left, BLOCK)])
        weight_map |= {info.name: name for info in shard}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return infos


def main() -> int:
    """Measure and print as JSON; return 1 if a bar is missed."""
    layers = int(sys.argv[1]) if len(sys.argv) > 1 else 32
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as name:
        model = Path(name) / "model"
        model.mkdir()
        infos = make_checkpoint(model, layers)
        found = apply(model, Path(name) / "out", RECIPE)
    held = sum(info.nbytes for info in infos)
    scored = sum(info.nbytes for info in infos if info.name.endswith(("o_proj.weight", "v_proj.weight")))
    read_bar, written_bar = held + scored + REST, held + REST
    facts = {
        "schema": "regraft.benchmark.apply-large/1",
        "checkpoint_bytes": held,
        "seconds": round(found["seconds"], 1),
        "anonymous_bytes": found["anonymous"],
        "anonymous_bar": MEMORY_BAR,
        "read_bytes": found["read"],
        "read_bar": read_bar,
        "written_bytes": found["written"],
        "written_bar": written_bar,
    }
    print(json.dumps(facts, indent=2))
    missed = found["anonymous"] > MEMORY_BAR or found["read"] > read_bar or found["written"] > written_bar
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
