"""What fitted passes do to the trained models of examples/, beside the baselines that others use.

    python -m benchmarks.quality [NAME ...] [--seeds 0 1] [--tokens 65536] [--list] [--table]

Each row is a recipe and a baseline on one model: both are fitted on the same windows of the bundled text and compared
by mean KL to the original on held-out text, context 512. The ratio's bar is that of the project's own aims. Recipes of
several passes stand beside the sum of what each pass does alone. A row is measured for every seed that draws
calibration windows. Merges into benchmarks/results/quality.json, so that single rows can be measured anew, and writes
the table of docs/quality.md from it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gpu_results import write_between

if TYPE_CHECKING:
    from collections.abc import Iterator

    from regraft.ir.source import Source
    from regraft.model import Model

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "quality.json"
HELD_OUT = ROOT / "examples" / "text" / "heldout.txt"
DOCUMENT = ROOT / "docs" / "quality.md"
BEGIN, END = "<!-- quality: written by benchmarks/quality.py -->", "<!-- quality: end -->"
CONTEXT, JUDGED = 512, 32768


@dataclass(frozen=True)
class Row:
    """A recipe beside a baseline, both pipeline strings; ``bar`` is the largest ratio of their KL that will do.

    A baseline of several strings is the sum of what they do one by one; without a bar any ratio will do.
    """

    name: str
    model: str
    ours: str
    baseline: str | tuple[str, ...]
    bar: float | None = None


def _latent(rank: int, method: str) -> str:
    """Return a baseline of `to-latent`: another subspace, with the same refit but for the SVD, which has none."""
    return f"to-latent{{rank={rank}, method={method}{', refit=false' if method == 'weight-svd' else ''}}}"


def _merged(options: str = "") -> str:
    """Return `merge-kv-heads` to half of the heads, with further options."""
    return f"merge-kv-heads{{heads=2{', ' + options if options else ''}}}"


COMPOSED = ("share-kv{groups=2}", "to-latent{rank=0.75}", "window{window=128}")

ROWS = (
    Row(
        "merge-kv-heads, 4 to 2 / Procrustes, neither refitted",
        "tiny-llama",
        _merged("refit=false"),
        _merged("method=procrustes, refit=false"),
        0.7,
    ),
    Row(
        "merge-kv-heads, 4 to 2 / Procrustes, both refitted", "tiny-llama", _merged(), _merged("method=procrustes"), 0.8
    ),
    Row(
        "merge-kv-heads, 4 to 2, norm: gauge / mean pooling, neither refitted",
        "tiny-qwen3",
        _merged("norm=gauge, refit=false"),
        _merged("method=mean, grouping=adjacent, refit=false"),
        1 / 3,
    ),
    Row(
        "merge-kv-heads, 4 to 2, norm: gauge / mean pooling, both refitted",
        "tiny-qwen3",
        _merged("norm=gauge"),
        _merged("method=mean, grouping=adjacent"),
        1 / 3,
    ),
    Row(
        "merge-kv-heads, 4 to 2, norm: stock / mean pooling, neither refitted",
        "tiny-qwen3",
        _merged("norm=stock, refit=false"),
        _merged("method=mean, grouping=adjacent, refit=false"),
        1 / 3,
    ),
    Row(
        "merge-kv-heads, 4 to 2, norm: stock / mean pooling, both refitted",
        "tiny-qwen3",
        _merged("norm=stock"),
        _merged("method=mean, grouping=adjacent"),
        1 / 3,
    ),
    Row(
        "window on half the layers, chosen by KL / the last half",
        "tiny-llama",
        "window{window=64, choose=3}",
        'window{window=64, layers="3..5"}',
        0.5,
    ),
    Row(
        "window on half the layers, chosen by KL / the last half",
        "tiny-qwen3",
        "window{window=64, choose=4}",
        'window{window=64, layers="4..7"}',
        0.5,
    ),
    Row("to-latent, rank 48 / balanced PCA", "tiny-llama", "to-latent{rank=48}", _latent(48, "balanced-pca"), 0.8),
    Row("to-latent, rank 48 / SVD of weights", "tiny-llama", "to-latent{rank=48}", _latent(48, "weight-svd"), 0.2),
    Row("to-latent, rank 32 / balanced PCA", "tiny-llama", "to-latent{rank=32}", _latent(32, "balanced-pca"), 0.8),
    Row("to-latent, rank 32 / SVD of weights", "tiny-llama", "to-latent{rank=32}", _latent(32, "weight-svd"), 0.2),
    Row(
        "share-kv on half the layers, donors by measured KL / most similar caches, raw",
        "tiny-llama",
        "share-kv{choose=0.5, donor=measured}",
        "share-kv{choose=0.5, donor=similar, level=raw, refit=false}",
        0.35,
    ),
    Row(
        "budget-heads, half of each layer, by the loss, MLP refitted too / activation norm, output refitted",
        "tiny-llama",
        "budget-heads{heads=0.5, score=loss-error, mlp=true}",
        "budget-heads{heads=0.5, score=activation-norm}",
        0.75,
    ),
    Row(
        "budget-heads, half of all heads, dealt / half of each layer's",
        "tiny-llama",
        "budget-heads{total=0.5}",
        "budget-heads{heads=0.5}",
        0.7,
    ),
    Row(
        "share-kv on half the layers, donors by measured KL / most similar caches, raw",
        "tiny-qwen3",
        "share-kv{choose=0.5, donor=measured}",
        "share-kv{choose=0.5, donor=similar, level=raw, refit=false}",
        0.35,
    ),
    Row(
        "budget-heads, half of each layer, by the loss, MLP refitted too / activation norm, output refitted",
        "tiny-qwen3",
        "budget-heads{heads=0.5, score=loss-error, mlp=true}",
        "budget-heads{heads=0.5, score=activation-norm}",
        0.75,
    ),
    Row(
        "budget-heads, half of all heads, dealt / half of each layer's",
        "tiny-qwen3",
        "budget-heads{total=0.5}",
        "budget-heads{heads=0.5}",
        0.7,
    ),
    *(
        Row("share-kv, to-latent and window in one recipe / the sum of each alone", name, ",".join(COMPOSED), COMPOSED)
        for name in ("tiny-llama", "tiny-qwen3")
    ),
)


@dataclass(frozen=True)
class Subject:
    """A model with its tensors and the windows to judge by."""

    model: Model
    source: Source
    held_out: torch.Tensor


@cache
def subject(name: str) -> Subject:
    """Return one of the models of examples/."""
    from regraft.model import lift

    model = lift(ROOT / "examples" / name)
    return Subject(model, model.require_source(), windows(model, HELD_OUT, JUDGED, 0))


def windows(model: Model, text: Path, tokens: int, seed: int) -> torch.Tensor:
    """Return windows of a text, int64 ``[N, CONTEXT]``."""
    from regraft.passes.fitting.text import load_tokenizer, read_windows

    return read_windows(text, load_tokenizer(model.files), model.vocab, model.begin, CONTEXT, tokens, seed).tokens


@cache
def divergence(name: str, pipeline: str, seed: int, tokens: int) -> dict[str, Any]:
    """Return what a recipe does to a model: its KL to the original in nats a token, and its decisions."""
    from regraft.ir.cost import cache_bytes
    from regraft.passes.fitting.damage import Damage
    from regraft.passes.fitting.measure import Measurements
    from regraft.passes.fitting.text import SAMPLE, text_path
    from regraft.passes.pipeline import run_pipeline
    from regraft.passes.recipe import parse_pipeline

    began = time.perf_counter()
    on = subject(name)
    fit = windows(on.model, text_path(SAMPLE), tokens, seed)
    measure = Measurements(on.model.graph, on.source, fit)
    result = run_pipeline(on.model.graph, parse_pipeline(pipeline), measure)
    (found,) = Damage(result.graph, on.model.graph, on.source, fit, on.held_out).measure([lambda graph: None])
    before, after = (cache_bytes(graph, CONTEXT) for graph in (on.model.graph, result.graph))
    decided = ",".join(str(step) for step in result.recipe.passes)
    seconds = round(time.perf_counter() - began, 1)
    return {"kl": found, "cache": after / before, "decided": decided, "seconds": seconds}


def summed(name: str, pipelines: str | tuple[str, ...], seed: int, tokens: int) -> dict[str, Any]:
    """Return what a recipe does to a model, or what several do in sum, each alone."""
    if isinstance(pipelines, str):
        return divergence(name, pipelines, seed, tokens)
    alone = [divergence(name, each, seed, tokens) for each in pipelines]
    return {"kl": sum(each["kl"] for each in alone), "alone": alone}


def measure(row: Row, seeds: list[int], tokens: int) -> dict[str, Any]:
    """Return a row's results: both recipes for each seed, and the median of the ratios."""
    runs: list[dict[str, Any]] = [
        {
            "seed": seed,
            **{side: summed(row.model, getattr(row, side), seed, tokens) for side in ("ours", "baseline")},
        }
        for seed in seeds
    ]
    ratio = statistics.median(run["ours"]["kl"] / run["baseline"]["kl"] for run in runs)
    facts = {"model": row.model, "ours": row.ours, "baseline": row.baseline, "bar": row.bar}
    return {**facts, "ratio": ratio, "reached": row.bar is None or ratio <= row.bar, "tokens": tokens, "runs": runs}


def chosen(names: list[str]) -> list[Row]:
    """Return the rows whose name or model contains one of ``names``; all rows if there are none."""
    return [row for row in ROWS if not names or any(name in f"{row.name} {row.model}" for name in names)]


def main() -> int:
    """Measure, print and write; return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description="What fitted passes do to trained models, beside baselines.")
    parser.add_argument("names", nargs="*", help="parts of rows' names or models; all by default")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--tokens", type=int, default=65536)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results are merged into")
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    parser.add_argument("--table", action="store_true", help="write the table of what was measured and stop")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    rows = chosen(given.names)
    for row in rows if given.list else ():
        beside = row.baseline if isinstance(row.baseline, str) else " + ".join(row.baseline)
        print(f"{row.model:10}  {row.name}\n    {row.ours}\n    {beside}")
    missed = 0
    for row in () if given.list or given.table else rows:
        found = measure(row, given.seeds, given.tokens)
        missed += not found["reached"]
        bar = "no bar" if row.bar is None else f"bar {row.bar:g}"
        sides = "  ".join(f"{run['ours']['kl']:.4f} / {run['baseline']['kl']:.4f}" for run in found["runs"])
        print(f"{row.model:10}  {row.name:60}  {found['ratio']:.3f}  {bar}   {sides}", flush=True)
        write(row, found, given.out)
    if not given.list and given.out == RESULTS:
        write_between(BEGIN, END, table(RESULTS), DOCUMENT)
    return 1 if missed else 0


def write(row: Row, found: dict[str, Any], out: Path) -> None:
    """Put a row into the results, beside those that are there."""
    before: dict[str, Any] = json.loads(out.read_text(encoding="utf-8")) if out.is_file() else {}
    rows = {**before.get("rows", {}), f"{row.model}: {row.name}": found}
    after = {"torch": torch.__version__, "rows": dict(sorted(rows.items()))}
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(after, indent=2) + "\n", encoding="utf-8")


def table(results: Path) -> Iterator[str]:
    """Yield the rows of results as a table, those that are measured by this file's present recipes."""
    rows: dict[str, Any] = json.loads(results.read_text(encoding="utf-8"))["rows"]
    yield "| model | recipe | KL | cache | beside it | KL | cache | ratio | aim |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in ROWS:
        found = rows.get(f"{row.model}: {row.name}")
        if found is None or found["ours"] != row.ours:
            continue
        sides = [cell for side in ("ours", "baseline") for cell in _side(found, side)]
        yield f"| {' | '.join((row.model, *sides, format(found['ratio'], '.2f'), _aim(row)))} |"


def _side(found: dict[str, Any], side: str) -> tuple[str, str, str]:
    pipelines = found[side] if isinstance(found[side], list) else [found[side]]
    runs = [run[side] for run in found["runs"]]
    cache = " / ".join(dict.fromkeys(f"{run['cache']:.2f}" for run in runs if "cache" in run))
    return " + ".join(f"`{each}`" for each in pipelines), " / ".join(f"{run['kl']:.3f}" for run in runs), cache


def _aim(row: Row) -> str:
    return "–" if row.bar is None else f"{row.bar:.2f}"


if __name__ == "__main__":
    sys.exit(main())
