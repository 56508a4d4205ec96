"""From the start of a process to the first token of a package that is there already; started by gpu_models.py.

python -m benchmarks.cold_start FOLDER BEGAN [--device cuda]

The time of reading weights is told apart: they are made on the device. Nothing of regraft is imported.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path
from typing import Any

CONTEXT = 1024  # tokens that the cache has room for, as generate.py's has at least


def first_token(folder: Path, began: float, device: str, prompt: int = 8) -> dict[str, float]:
    """Return the seconds from ``began``, in the clock's, to the first token, and those in which weights were made."""
    import torch

    imported = time.time()
    spec = importlib.util.spec_from_file_location("cold_start_model", folder / "model.py")
    assert spec is not None
    assert spec.loader is not None
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written: dict[str, Any] = json.loads((folder / "tensors.json").read_text(encoding="utf-8"))
    with torch.device("meta"):
        model = module.Model(written["config"])
    loading = time.time()
    state = {
        name: _made(torch, dtype, shape, low, high, device)
        for name, (dtype, shape, low, high) in written["tensors"].items()
    }
    model.load_state_dict(state, assign=True)
    model.to(device).eval()
    if device != "cpu":
        torch.cuda.synchronize()
    loaded = time.time()
    tokens = torch.arange(prompt, device=device)[None]
    decoder = module.Decoder(model, tokens, context=CONTEXT)
    decoder.step().tolist()
    ended = time.time()
    return {
        "seconds": ended - began - (loaded - loading),
        "import_s": imported - began,
        "load_s": loaded - loading,
        "first_s": ended - loaded,
    }


def _made(torch: Any, dtype: str, shape: list[int], low: float, high: float, device: str) -> Any:
    if dtype == "i64":  # experts of a token
        return torch.arange(shape[-1], device=device).expand(shape).contiguous()
    kind = {"bf16": torch.bfloat16, "f32": torch.float32}[dtype]
    return torch.empty(shape, dtype=kind, device=device).uniform_(min(low, high), max(low, high))


def main() -> int:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("began", type=float)
    parser.add_argument("--device", default="cuda")
    asked = parser.parse_args()
    print(json.dumps(first_token(asked.folder, asked.began, asked.device)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
