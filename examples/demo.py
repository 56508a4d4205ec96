"""The whole road on a small trained model: inspect, plan, apply, build, verify, run, and a table of what it cost.

    make demo

Works in ``runs/demo``, which it clears first. A few minutes at most, on two cores; no network.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from regraft import api
from regraft.benching import Workload, bench
from regraft.cli.main import main as regraft
from regraft.views.numbers import change, count, flops, size
from regraft.views.table import Heading, plain, table

ROOT = Path(__file__).resolve().parent.parent
MODEL, RECIPE, HELD_OUT = "examples/tiny-qwen3", "examples/demo.yaml", "examples/text/heldout.txt"
WORK = Path("runs/demo")
CONTEXT = 512
ROUNDS = 3  # of the two programs in turn, so that what else the machine does hits both
PROMPT = "def read_lines(path):\n    "


def run(*arguments: str | Path) -> None:
    """Run a command as it would be typed, and stop if it fails."""
    given = [str(each) for each in arguments]
    print(f"\n$ regraft {shlex.join(given)}", flush=True)
    code = regraft(given)
    if code:
        sys.exit(code)


def comparison(before: Path, after: Path, changed: Path) -> str:
    """Return the table: two packages, and the model folder that the second one came from."""
    facts = [api.inspect(model, (CONTEXT,), device=None) for model in (MODEL, changed)]
    quality = api.evaluate(after, HELD_OUT, against=MODEL, tokens=16384, context=CONTEXT, probes=api.Probes(()))
    work = Workload(prompt=128, new=128)
    rounds = [[bench(package, work, dtype="float32") for package in (before, after)] for _ in range(ROUNDS)]
    prefill, decode = (
        [max(getattr(each[i], kind).measured for each in rounds) for i in (0, 1)] for kind in ("prefill", "decode")
    )
    assert quality.base_perplexity is not None
    assert quality.kl_mean is not None
    rows: list[tuple[str, str, str, str]] = []

    def row(name: str, pair: list[int] | list[float], form: Callable[[float], str]) -> None:
        rows.append((name, form(pair[0]), form(pair[1]), change(*pair)))

    row("parameters", [each.parameters.total for each in facts], count)
    row(f"cache at {CONTEXT} tokens", [each.cache[CONTEXT].bytes for each in facts], size)
    row(f"one decode step at {CONTEXT}", [each.decode[CONTEXT].flops for each in facts], flops)
    row("perplexity, held-out text", [quality.base_perplexity, quality.perplexity], "{:.2f}".format)
    rows.append(("KL to the original, nats a token", "0", f"{quality.kl_mean:.3f}", ""))
    row(f"prefill, tokens/s, best of {ROUNDS}", prefill, "{:,.0f}".format)
    row(f"decode, tokens/s, best of {ROUNDS}", decode, "{:,.0f}".format)
    title = f"{Path(MODEL).name}, before and after {Path(RECIPE).name}"
    return plain([Heading(title, 1), table(("", "before", "after", "change"), rows)])


def main() -> None:
    """Walk the road."""
    began = time.monotonic()
    torch.set_num_threads(1)  # matrices this small gain nothing from a second thread, and lose when a core is shared
    os.chdir(ROOT)
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    before, changed, after = WORK / "before", WORK / "model", WORK / "program"
    run("inspect", MODEL, "--context", "512,2k")
    run("plan", MODEL, "-r", RECIPE)
    run("apply", MODEL, "-r", RECIPE, "-o", changed)
    run("build", MODEL, "-o", before)
    run("build", changed, "-o", after)
    run("verify", after, "--against", changed)
    run("run", after, PROMPT, "--max-new-tokens", "60", "--temperature", "0.7")
    print(f"\n{comparison(before, after, changed)}")
    print(f"{WORK / 'program'} runs without regraft: see its README.md, model.py and generate.py.")
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
