"""``apply``: a recipe carried out on a model, graph and weights, into a folder that every command takes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regraft.frontends.folder import ModelFolder
from regraft.ir.cost import cache_bytes, parameters
from regraft.ir.errors.calibration import TextError
from regraft.ir.errors.files import OutputExistsError
from regraft.ir.files import OutputFolder
from regraft.ir.graph import Graph
from regraft.ir.ops.weight import Load
from regraft.ir.sink import SHARD_BYTES, ShardWriter
from regraft.ir.source import Source, from_bytes, to_bytes
from regraft.ir.text import print_graph
from regraft.joining import Join, JoiningSink, joined_tensors
from regraft.model import Model, lift
from regraft.passes.fitting.fold import fitted_parameters, fold, folded, plan_tensors
from regraft.passes.fitting.measure import Measurements
from regraft.passes.fitting.sweep import Progress, Sweep
from regraft.passes.fitting.text import Reading, Windows, load_tokenizer, read_windows, text_path, unseen
from regraft.passes.packing import Packing, kept_packed, packing
from regraft.passes.pipeline import PipelineResult, run_pipeline
from regraft.passes.recipe import Calibration, Recipe, load_recipe, parse_pipeline
from regraft.quality import EvalReport, Probes
from regraft.readings import readings
from regraft.stock import stock_form

if TYPE_CHECKING:
    from torch import Tensor

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)
_FITS = "fits"
_EVALUATED = 16  # windows that calibration left over, evaluated after a fitted recipe


@dataclass(frozen=True)
class ApplyReport:
    """What `apply` did.

    Attributes:
        out: The folder.
        result: The pipeline's steps, per-layer reasons and predicted changes.
        predicted: Parameters, cache bytes at 4096 tokens and weight bytes, from the graph.
        measured: Parameters and weight bytes as they stand in the files.
        stock: The transformers class that loads the folder, or empty.
        quality: What the recipe did to the model, on windows of the calibration text that no fit saw; or none.
        note: Why there is no ``quality``.
        quantized: The checkpoint's quantised tensors: what stayed as it was, and what dequantising the others cost.
    """

    out: Path
    result: PipelineResult
    predicted: Mapping[str, int]
    measured: Mapping[str, int]
    stock: str
    quality: EvalReport | None
    note: str
    quantized: Packing

    def to_json(self) -> dict[str, object]:
        """Return the JSON of schema ``regraft.apply/1``."""
        return {
            "schema": "regraft.apply/1",
            "out": str(self.out),
            "stock": self.stock,
            "predicted": dict(self.predicted),
            "measured": dict(self.measured),
            "steps": [step.to_json() for step in self.result.steps],
            "quality": self.quality.to_json() if self.quality else None,
            "note": self.note,
            "quantized": self.quantized.to_json(),
        }


def read_recipe(recipe: str | Path | Recipe) -> tuple[Recipe, Path | None]:
    """Return a recipe from a file, from a pipeline string, or as it is, and the folder that its text is relative to."""
    if isinstance(recipe, Recipe):
        return recipe, None
    path = Path(recipe)
    if isinstance(recipe, Path) or path.suffix in (".yaml", ".yml", ".json") or os.path.isfile(recipe):
        return load_recipe(path), path.parent
    return parse_pipeline(recipe), None


def apply(
    model: str | Path | Model,
    recipe: str | Path | Recipe,
    out: str | Path,
    *,
    resume: bool = False,
    dump_ir: str | Path | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> ApplyReport:
    """Carry out a recipe and write the model folder that it gives.

    Weights stream through: one output tensor's inputs are in memory at a time in each of as many threads as there are
    cores. The folder appears under its name when it is complete; a run that was interrupted continues with ``resume``
    and gives the same bytes.

    Args:
        model: The model to change; it is left as it is.
        recipe: A recipe file, a ``regraft.lock.json``, or a pipeline string.
        out: The folder to write; it must not exist.
        resume: Continue an interrupted run.
        dump_ir: A folder for the graph's text after each pass; it must not exist, but to resume.
        shard_bytes: The size at which a weight file ends.
        progress: Called with what is done, what there is to do, and what it is.

    Raises:
        IllegalPassError: The recipe does not fit the model.
        NoCalibrationError: A pass is fitted, and the recipe names no text.
        OutputExistsError, DiskFullError: The folder cannot be written.
        CheckpointError: The weights are not sound.
    """
    if dump_ir is not None and Path(dump_ir).exists() and not resume:
        raise OutputExistsError(path=dump_ir)
    subject = lift(model)
    steps, base = read_recipe(recipe)
    source = subject.require_source()
    steps.check_calibration()
    windows = calibration_windows(subject, steps.calibration, base) if steps.calibration else None
    plan = _plan_digest(subject, steps, windows, shard_bytes)
    with OutputFolder(Path(out), plan, resume=resume) as folder:
        decided = next((str(r["recipe"]) for r in folder.records if "recipe" in r), None)
        if decided is not None:
            steps = parse_pipeline(decided)
        tokens = windows.tokens[: _rows(steps)] if windows is not None else None
        measure = Measurements(subject.graph, source, tokens, progress)
        result = run_pipeline(subject.graph, steps, measure, dump=Path(dump_ir) if dump_ir else None)
        if decided is None:
            folder.record(recipe=result.recipe.to_pipeline(expanded=True))
        kept = kept_packed(result.graph, subject.graph)
        quantized = packing(result.graph, subject.graph, kept)
        final = folded(result.graph, kept)
        form = None if quantized.tensors else stock_form(final, subject.folder)
        joins = form.joins if form else {}
        shards = _write_weights(result, kept, source, folder, windows, shard_bytes, progress, joins)
        stock = form.config if form else _stock(final, subject.folder, folder.path, quantized)
        final = final if form is None or form.graph is None else form.graph
        _write_config(folder, subject, final, stock)
        quality, note = _quality(subject, final, folder.path, windows, result)
        records = {
            "inputs": _input_records(subject, windows, steps.calibration),
            "outputs": {"graph.rg": _digest(print_graph(final)), **shards},
            "measured": quality.to_json() if quality else {},
        }
        if quantized.dequantized:
            records["dequantized"] = {info.name: info.dtype for info in quantized.dequantized}
        folder.write("regraft.lock.json", result.recipe.to_lock(**records))
        measured = _measured(folder.path)
        target = folder.commit()
    predicted = {
        "parameters": parameters(result.graph).total,
        "cache_bytes_4096": cache_bytes(result.graph, 4096),
        "weight_bytes": sum(info.nbytes for info in plan_tensors(result.graph, kept)),
    }
    architecture = str(stock.get("architectures", [""])[0]) if stock else ""
    return ApplyReport(target, result, predicted, measured, architecture, quality, note, quantized)


def calibration_path(calibration: Calibration, base: Path | None = None) -> Path:
    """Return where a recipe's text is: beside the recipe, in ``base``, or else in the working folder.

    Raises:
        TextError: It is in neither.
    """
    for path in (text_path(calibration.text, base), text_path(calibration.text)):
        if path.exists():
            return path
    raise TextError(path=calibration.text, reason="there is no such file or folder")


def calibration_windows(model: Model, calibration: Calibration, base: Path | None = None) -> Windows:
    """Return the windows of a recipe's calibration text: those to fit on first, then what no earlier fit read.

    Raises:
        TextError, TokenizerError: The text is too short, or the model has no tokenizer.
    """
    tokenizer = load_tokenizer(model.files)
    path = calibration_path(calibration, base)
    windows = read_windows(
        path,
        tokenizer,
        model.vocab,
        model.begin,
        calibration.context,
        calibration.tokens,
        calibration.seed,
        spare=True,
    )
    return unseen(windows, readings(model.files), -(-calibration.tokens // calibration.context))


def _rows(recipe: Recipe) -> int:
    assert recipe.calibration is not None
    return -(-recipe.calibration.tokens // recipe.calibration.context)


def _write_weights(
    result: PipelineResult,
    kept: Collection[str],
    source: Source,
    folder: OutputFolder,
    windows: Windows | None,
    shard_bytes: int,
    progress: Progress | None,
    joins: Mapping[str, Join],
) -> dict[str, str]:
    """Fold the weights into the folder, and return each file's digest."""
    sweep = None
    names = {v.name for v in fitted_parameters(result.graph)}
    infos = {info.name: info for info in plan_tensors(result.graph, kept)}

    def file(name: str) -> str:
        return f"{_FITS}/{hashlib.sha256(name.encode()).hexdigest()}"

    def keep(name: str, tensor: Tensor) -> None:
        folder.write(file(name), bytes(to_bytes(tensor)))
        folder.record(fit=name)

    if names and windows is not None:
        done = [str(r["fit"]) for r in folder.records if r.get("fit") in names]
        done = [name for name in done if (folder.path / file(name)).is_file()]  # they go once all shards are finished
        known = {name: from_bytes(bytearray((folder.path / file(name)).read_bytes()), infos[name]) for name in done}
        rows = windows.tokens[: _rows(result.recipe)]
        sweep = Sweep(result.graph, result.original, source, rows, known=known)
    tensors = joined_tensors(list(infos.values()), joins)
    with ShardWriter(folder, tensors, shard_bytes=shard_bytes) as sink:
        fold(result.graph, source, JoiningSink(sink, joins), sweep, keep, progress, kept=kept)
        digests = sink.finish()
    folder.remove(_FITS)
    return digests


def _stock(graph: Graph, folder: ModelFolder, written: Path, quantized: Packing) -> dict[str, Any] | None:
    """Return the config with which a stock class computes a quantised model that was written, or none.

    The stock classes take a checkpoint that is quantised as published, or not at all.
    """
    if not quantized.tensors:
        return None
    if not quantized.dequantized:
        form = stock_form(graph, folder, written)
    elif quantized.kept_tensors:
        return None
    else:
        plain = {key: value for key, value in folder.config.items() if key != "quantization_config"}
        form = stock_form(graph, replace(folder, config=plain))
    return form.config if form is not None and not form.joins else None


def _write_config(folder: OutputFolder, model: Model, graph: Graph, stock: dict[str, Any] | None) -> None:
    base = dict(model.folder.config)
    if base.get("model_type") == "regraft":
        base = dict(base["base"])
    config = stock or {"model_type": "regraft", "base": base}
    folder.write("graph.rg", print_graph(graph))
    folder.write("config.json", json.dumps(config, indent=2) + "\n")
    for name in TOKENIZER_FILES:
        if model.files is not None and (model.files / name).is_file():
            folder.copy(model.files / name, name)


def _quality(
    model: Model, graph: Graph, path: Path, windows: Windows | None, result: PipelineResult
) -> tuple[EvalReport | None, str]:
    """Return what the recipe did to the model, on windows that no fit saw, or why that is not known."""
    from regraft.evaluating import evaluate_on

    if all(step.preserves == "exact" for step in result.steps):
        made = any(not isinstance(v.op, Load) for v in result.graph.parameters())
        return None, "every step is exact" + (f", but for rounding of made weights to {model.dtype}" if made else "")
    if windows is None:
        return None, "the recipe names no text; measure with `regraft eval`"
    rest = windows.tokens[_rows(result.recipe) :][:_EVALUATED]
    if not len(rest):
        return None, "calibration used the whole text; measure with `regraft eval` on another"
    from regraft.frontends.checkpoint import Checkpoint

    written = replace(model.folder, folder=path)
    written.__dict__["checkpoint"] = Checkpoint(path)
    converted = replace(model, graph=graph, folder=written)
    return evaluate_on(converted, model, replace(windows, tokens=rest), Probes(lengths=(128,), count=10)), ""


def _plan_digest(model: Model, recipe: Recipe, windows: Windows | None, shard_bytes: int) -> str:
    """Return what decides the bytes that are written: graph, recipe, checkpoint, text."""
    stamp = model.folder.require_checkpoint().stamp()
    facts = [print_graph(model.graph), recipe.to_pipeline(), stamp, windows.sha256 if windows else "", shard_bytes]
    return _digest("\n".join(map(str, facts)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _input_records(model: Model, windows: Windows | None, calibration: Calibration | None) -> dict[str, object]:
    records: dict[str, object] = {"model": model.name, "graph": _digest(print_graph(model.graph))}
    if model.source is not None and model.files is not None:
        records["files"] = model.source.digests()
    if windows is not None:
        records["text"] = {"name": windows.text, "sha256": windows.sha256}
    read = list(readings(model.files))
    if windows is not None and calibration is not None:
        read.append(Reading(windows.sha256, calibration.tokens, calibration.seed, calibration.context))
    if read:
        records["readings"] = [asdict(each) for each in dict.fromkeys(read)]
    return records


def _measured(path: Path) -> dict[str, int]:
    from regraft.frontends.checkpoint import Checkpoint

    written = Checkpoint(path)
    infos = [written.info(name) for name in written.names()]
    return {
        "tensors": len(infos),
        "weight_bytes": sum(info.nbytes for info in infos),
        "file_bytes": sum((path / name).stat().st_size for name in written.files),
    }
