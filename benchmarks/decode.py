"""Decoding speed of emitted programs beside transformers, on this CPU: float32, batch 1, from a context of 256 on.

    python benchmarks/decode.py [tiny|100m ...] [--threads 1] [--rounds 15]

Programs decode the same tokens with the same weights, in turn, eight tokens each a round: the emitted one compiled as
it is by default, by kind of layer, whole, and not at all; transformers eager with its growing cache, and compiled with
its static cache. Each ratio is the median over the rounds. Writes benchmarks/results/decode.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "decode.json"
CONTEXT, STEPS, WARM = 256, 8, 3
BARS = {"tiny": {"eager": 1.5, "compiled": 1.0}, "100m": {"eager": 1.15, "compiled": 1.0}}
QWEN_100M = {
    "vocab_size": 24000,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 28,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


def subject(name: str, folder: Path) -> Path:
    """Return the folder of a model to measure; a random one is written into ``folder``."""
    if name == "tiny":
        return ROOT / "examples" / "tiny-qwen3"
    return random_qwen3(QWEN_100M, folder / "model")


def random_qwen3(keys: dict[str, Any], out: Path) -> Path:
    """Write a Qwen3 with every parameter random, so that its logits differ by about one or more; return its folder."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**keys))
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.copy_(1 + 0.1 * noise if parameter.ndim == 1 else noise * parameter.shape[-1] ** -0.5)
    model.save_pretrained(out)
    return out


def programs(
    model: Path, package: Path, capacity: int, compiled: bool = True
) -> dict[str, Callable[[torch.Tensor], Any]]:
    """Return the programs by name, each a function from the next token ``[1, 1]`` to logits, filled to the context."""
    from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

    from regraft.programs import load_program

    prompt = torch.arange(CONTEXT)[None] % 1000
    theirs: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    growing, static = DynamicCache(config=theirs.config), StaticCache(config=theirs.config, max_cache_len=capacity)
    theirs(prompt, past_key_values=growing)
    theirs(prompt, past_key_values=static)
    compiled_theirs: Any = torch.compile(theirs.forward, dynamic=False)
    ours = {how: load_program(package, dtype="float32") for how in ("", ", by kind", ", whole", ", not compiled")}
    caches = {how: model.new_cache(1, capacity) for how, model in ours.items()}
    for how, program in ours.items():
        program(prompt, caches[how])
    ours[""].compile()
    ours[", by kind"].compile(whole=False)
    ours[", whole"].compile(whole=True)
    return {
        **{f"emitted{how}": partial(_step, program, caches[how]) for how, program in ours.items()},
        "eager": lambda token: theirs(token, past_key_values=growing).logits,
        "compiled": lambda token: compiled_theirs(input_ids=token, past_key_values=static).logits,
    }


def _step(program: Any, cache: Any, token: torch.Tensor) -> torch.Tensor:
    return program(token, cache)


def measure(name: str, rounds: int, folder: Path) -> dict[str, Any]:
    """Return what one model's programs reach."""
    import regraft

    model = subject(name, folder)
    package = regraft.build(model, folder / "package")
    running = programs(model, package, CONTEXT + STEPS * (rounds + WARM))
    times: dict[str, list[float]] = {each: [] for each in running}
    place = CONTEXT
    for round_ in range(rounds + WARM):
        tokens = [torch.tensor([[(place + step) % 1000]]) for step in range(STEPS)]
        logits: dict[str, torch.Tensor] = {}
        for each, step in running.items():
            began = time.perf_counter()
            for token in tokens:
                logits[each] = step(token)
            if round_ >= WARM:
                times[each].append((time.perf_counter() - began) / STEPS)
        place += STEPS
        spread = max(float((found - logits["eager"]).abs().max()) for found in logits.values())
        if spread > 1e-3 * max(1.0, float(logits["eager"].abs().max())):
            raise SystemExit(f"{name}: the programs' logits differ by {spread}")
    ratios = {
        other: statistics.median(b / a for a, b in zip(times["emitted"], times[other], strict=True))
        for other in times
        if other != "emitted"
    }
    return {
        "tokens_per_s": {each: 1 / statistics.median(found) for each, found in times.items()},
        "emitted_over": ratios,
        "bars": BARS[name],
    }


def main() -> int:
    """Measure, print and write; return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description="Decoding speed of emitted programs beside transformers.")
    parser.add_argument("models", nargs="*", help=f"{' or '.join(BARS)}; all by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    found: dict[str, Any] = {}
    with torch.no_grad():
        for name in given.models or list(BARS):
            with tempfile.TemporaryDirectory() as folder:
                found[name] = measure(name, given.rounds, Path(folder))
            for each, rate in found[name]["tokens_per_s"].items():
                print(f"{name:5} {each:24} {rate:9.1f} tokens/s")
            for other, bar in BARS[name].items():
                ratio = found[name]["emitted_over"][other]
                print(f"{name:5} emitted over transformers {other:9} {ratio:6.2f}   bar {bar}")
    machine = {"machine": platform.machine(), "threads": given.threads, "torch": torch.__version__}
    before = json.loads(RESULTS.read_text(encoding="utf-8"))["models"] if RESULTS.is_file() else {}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({**machine, "models": {**before, **found}}, indent=1) + "\n", encoding="utf-8")
    return int(any(one["emitted_over"][o] < bar for one in found.values() for o, bar in one["bars"].items()))


if __name__ == "__main__":
    sys.exit(main())
